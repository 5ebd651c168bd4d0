"""Forward and forward-backward passes in Megatron's pipeline schedules. Callers do not see pipeline stages.

Legend: S padded sequence length of a micro-batch, B its samples, T = S - 1; `hidden_SBH` is the output of the last
pipeline stage, from which `head` computes log-probabilities or values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from megatron.core.fp8_utils import get_fp8_align_size
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_simplerl.parallel.mesh import Mesh


class PipelineBatch(Protocol):
    """The part of a micro-batch that a pass reads; heads and losses are given the whole object.

    Rows are right-padded sequences. Where `is_packed`, the only row is sequences of `lengths_B` tokens end to end, none
    of which attends to another.
    """

    tokens_BS: Tensor
    lengths_B: Tensor
    is_packed: bool


@dataclass(frozen=True)
class TokenBatch:
    """A micro-batch of bare tokens, whose sequences all have the same length."""

    tokens_BS: Tensor
    is_packed: bool = False

    @property
    def lengths_B(self) -> Tensor:
        return self.tokens_BS.new_full((self.tokens_BS.shape[0],), self.tokens_BS.shape[1])


Head = Callable[[Tensor, PipelineBatch], Tensor]
Loss = Callable[[Tensor, PipelineBatch], tuple[Tensor, dict[str, Tensor]]]


@torch.no_grad()
def forward_only(model, micro_batches: Sequence[PipelineBatch], head: Head, mesh: Mesh) -> list[Tensor]:
    """`head(hidden_SBH, micro_batch)` of each micro-batch, on every pipeline stage. Collective over the replica.

    The head runs on the last stage and returns a float32 tensor [B, T] (or [k, B, T]); the result is broadcast.
    """
    training = model.training
    model.eval()

    def step(iterator, model):
        micro_batch = next(iterator)
        output = _run(model, micro_batch, mesh)
        return output, lambda hidden_SBH, non_loss_data=True: head(hidden_SBH, micro_batch)

    results = _schedule(step, model, micro_batches, mesh, forward_only=True, collect_non_loss_data=True)
    model.train(training)
    return _from_last_stage(results, mesh)


def forward_backward(model, micro_batches: Sequence[PipelineBatch], loss: Loss, mesh: Mesh) -> dict[str, Tensor]:
    """Accumulate gradients of the sum of `loss` over the micro-batches. Collective over the replica.

    Returns the losses' metrics on the last pipeline stage, combined over micro-batches (keys ending in `_max` by
    maximum, others by sum), and an empty dict on the other stages. The loss is summed as it is: it must already be
    divided by the global count.
    """

    def step(iterator, model):
        micro_batch = next(iterator)
        output = _run(model, micro_batch, mesh)

        def loss_function(hidden_SBH):
            value, metrics = loss(hidden_SBH, micro_batch)
            # Megatron expects a token count beside the loss, to divide by it; the loss is divided already.
            return value, torch.zeros((), dtype=torch.int, device=mesh.device), metrics

        return output, loss_function

    combined: dict[str, Tensor] = {}
    for metrics in _schedule(step, model, micro_batches, mesh, forward_only=False, collect_non_loss_data=False):
        for key, value in metrics.items():
            before = combined.get(key)
            if before is None:
                combined[key] = value
            else:
                combined[key] = torch.maximum(before, value) if key.endswith("_max") else before + value
    return combined


def _run(model, micro_batch: PipelineBatch, mesh: Mesh) -> Tensor:
    """Hidden states of the tokens in Megatron's layout, [S, B, H]."""
    tokens_BS = _padded(micro_batch.tokens_BS, model.config, mesh)
    positions_BS = torch.arange(tokens_BS.shape[1], device=tokens_BS.device).expand_as(tokens_BS)
    # Local attention and rotary embedding read the bounds as numbers, in every layer.
    on_host = model.config.transformer_impl == "local"
    packing = _packing(micro_batch, tokens_BS.shape[1], on_host=on_host) if micro_batch.is_packed else None
    return model(tokens_BS, positions_BS, None, packed_seq_params=packing)


def _packing(micro_batch: PipelineBatch, num_tokens: int, *, on_host: bool) -> PackedSeqParams:
    """The bounds of the sequences in a packed row; padding at the end of the row counts as one more sequence."""
    lengths = micro_batch.lengths_B.cpu() if on_host else micro_batch.lengths_B
    if (num_padding := num_tokens - micro_batch.tokens_BS.shape[1]) > 0:
        lengths = torch.cat([lengths, lengths.new_tensor([num_padding])])
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def _padded(tokens_BS: Tensor, config: TransformerConfig, mesh: Mesh) -> Tensor:
    """The tokens padded to a length that sequence parallelism divides equally and that FP8 kernels accept."""
    parts = mesh.tp_size if config.sequence_parallel else 1
    multiple = parts * (get_fp8_align_size(config.fp8_recipe) if config.fp8 else 1)
    return torch.nn.functional.pad(tokens_BS, (0, -tokens_BS.shape[1] % multiple))


def _schedule(step, model, micro_batches, mesh: Mesh, *, forward_only: bool, collect_non_loss_data: bool) -> list:
    rows, length = micro_batches[0].tokens_BS.shape
    to_neighbours = P2PCommunicator(mesh.pipeline, model.config) if mesh.pp_size > 1 else None
    return get_forward_backward_func(pp_size=mesh.pp_size)(
        forward_step_func=step,
        data_iterator=iter(micro_batches),
        model=[model],
        num_microbatches=len(micro_batches),
        seq_length=length,  # ignored where shapes are exchanged; micro-batches have their own lengths
        micro_batch_size=rows,
        forward_only=forward_only,
        collect_non_loss_data=collect_non_loss_data,
        p2p_communicator=to_neighbours,
        pg_collection=mesh.collection,
    )


def _from_last_stage(results: list[Tensor], mesh: Mesh) -> list[Tensor]:
    if mesh.pp_size == 1:
        return results
    source = mesh.stage_rank(mesh.pp_size - 1)
    shapes = [[tuple(result.shape) for result in results]]
    dist.broadcast_object_list(shapes, src=source, group=mesh.pipeline)
    if not mesh.is_last_stage:
        results = [torch.empty(shape, device=mesh.device) for shape in shapes[0]]
    for result in results:
        dist.broadcast(result, src=source, group=mesh.pipeline)
    return results
