"""Heads on the last pipeline stage's hidden states: log-probabilities of responses, values, logits.

Legend: S padded sequence length of a micro-batch, B its samples, T = S - 1 predicted tokens, H hidden size, N tokens of
responses. Under sequence parallelism a tensor rank's hidden states are its share of S.
"""

import functools
from collections.abc import Callable
from typing import Protocol

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.vocab import linear_logprob_entropy


class Responses(Protocol):
    """The part of a micro-batch that the heads read. Tokens where `mask_BT` is 0 are not predicted."""

    @property
    def tokens_BS(self) -> Tensor: ...
    @property
    def mask_BT(self) -> Tensor: ...


def logprobs_entropy(
    gpt: GPTModel,
    hidden_SBH: Tensor,
    micro: Responses,
    mesh: Mesh,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    fp32: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of the responses' tokens, float32 [B, T] each, 0 elsewhere. The output layer is
    computed for those tokens alone."""
    logprobs_N, entropy_N = _of_tokens(gpt, hidden_SBH, micro, mesh, vocab_size, temperature, fp32, entropy=True)
    assert entropy_N is not None
    return _in_place_of_tokens(logprobs_N, micro), _in_place_of_tokens(entropy_N, micro)


def logprobs(
    gpt: GPTModel,
    hidden_SBH: Tensor,
    micro: Responses,
    mesh: Mesh,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    fp32: bool = True,
) -> Tensor:
    """The log-probabilities of `logprobs_entropy` alone, for less work."""
    logprobs_N, _ = _of_tokens(gpt, hidden_SBH, micro, mesh, vocab_size, temperature, fp32, entropy=False)
    return _in_place_of_tokens(logprobs_N, micro)


def values(gpt: GPTModel, hidden_SBH: Tensor, micro: Responses) -> Tensor:
    """A critic's value of the state before each token, float32 [B, T]."""
    values_SB1, _ = gpt.output_layer(hidden_SBH)
    return values_SB1[: micro.tokens_BS.shape[1] - 1, :, 0].T.contiguous()


def output(gpt: GPTModel, hidden_SBH: Tensor) -> Tensor:
    """The output layer on all tokens: logits [S, B, V/TP], or values [S, B, 1] of a critic."""
    return gpt.output_layer(hidden_SBH, weight=None if gpt.is_critic else output_weight(gpt))[0]


def output_weight(gpt: GPTModel) -> Tensor:
    """The output layer's weight on the last pipeline stage, [V/TP, H]: the embeddings where they are tied."""
    tied = gpt.share_embeddings_and_output_weights
    return gpt.shared_embedding_or_output_weight() if tied else gpt.output_layer.weight


def _of_tokens(
    gpt: GPTModel,
    hidden_SBH: Tensor,
    micro: Responses,
    mesh: Mesh,
    vocab_size: int,
    temperature: float,
    fp32: bool,
    *,
    entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability and entropy of each token of the responses, [N]."""
    is_response_BT = micro.mask_BT > 0
    return linear_logprob_entropy(
        _hidden_of_tokens(hidden_SBH, is_response_BT, gpt, mesh),
        output_weight(gpt),
        micro.tokens_BS[:, 1:][is_response_BT],
        group=mesh.tensor,
        vocab_size=vocab_size,
        temperature=temperature,
        fp32=fp32,
        entropy=entropy,
        fuse=_compiled if gpt.config.bias_activation_fusion else None,
    )


@functools.cache
def _compiled(work: Callable) -> Callable:
    """One function for all sizes: those of tiles change with every micro-batch."""
    return torch.compile(work, dynamic=True)


def _in_place_of_tokens(of_N: Tensor, micro: Responses) -> Tensor:
    """Numbers of the responses' tokens where these stand, [B, T], and 0 elsewhere."""
    return torch.zeros_like(micro.mask_BT).masked_scatter(micro.mask_BT > 0, of_N)


def _hidden_of_tokens(hidden_SBH: Tensor, is_wanted_BT: Tensor, gpt: GPTModel, mesh: Mesh) -> Tensor:
    """Hidden states [N, H] of the wanted tokens, on every tensor rank. Backward sums the gradients that the ranks'
    shards of the vocabulary give."""
    split = gpt.config.sequence_parallel and mesh.tp_size > 1
    if split:
        hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, group=mesh.tensor)
    hidden_NH = hidden_SBH.transpose(0, 1)[:, : is_wanted_BT.shape[1]][is_wanted_BT]
    return hidden_NH if split else copy_to_tensor_model_parallel_region(hidden_NH, group=mesh.tensor)
