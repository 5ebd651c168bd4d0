"""Log-probability and entropy of tokens from hidden states, with an output layer sharded over tensor-parallel ranks.

Logits are computed in tiles and never held whole. Shapes: N tokens, H hidden size, V vocabulary columns this rank
holds, C tokens and W columns of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_TILE = 512, 1024  # fits the cache: 0.85 of the time of 1,024 x 4,096 at a vocabulary of 4,096
GPU_TILE = 2048, 4096  # 32 MiB of float32


def linear_logprob_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    group: dist.ProcessGroup | None,
    vocab_size: int,
    temperature: float = 1.0,
    tile: tuple[int, int] | None = None,
    fp32: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability of `targets` and entropy of softmax(hidden @ weight.T / temperature): two float32 tensors [N].

    hidden [N, H]. weight [V, H]: rank r of `group` holds vocabulary rows r*V to (r+1)*V; None is one rank with all of
    them. Rows from `vocab_size` on are padding: no probability, zero gradient. targets [N]: global token ids; one
    outside 0 .. vocab_size - 1 gives a NaN log-probability. Both outputs are in nats and equal on every rank.
    Collective in the forward pass (two all-reduces of a few floats a token), no communication in the backward pass: the
    gradient of `hidden` is this rank's part of a sum over the ranks.

    Products are in the dtype of the weight. The softmax runs over the tiles as they come (Milakov and Gimelshein 2018,
    arXiv:1805.02867), and backward computes them once more, a third of the layer's work on top: work space is a few
    float32 tensors of `tile` (tokens, columns; None takes what suits the device) whatever N and V are, beside the
    gradients, which are summed in float32.

    fp32=False rounds as a log-softmax in the dtype of the weight does: the scaled logits and every log-probability,
    forward and backward; sums are float32 either way.

    Raises ValueError for shapes that do not match, a weight too small for `vocab_size`, and a temperature that is not
    positive.
    """
    size, rank = (1, 0) if group is None else (group.size(), group.rank())
    _refuse_misuse(hidden, weight, targets, size, vocab_size, temperature)
    num_rows = weight.shape[0]
    chunk_tokens, chunk_vocab = tile or (GPU_TILE if weight.is_cuda else CPU_TILE)
    shard = _Shard(
        group=group if size > 1 else None,
        first=rank * num_rows,
        num_valid=min(max(vocab_size - rank * num_rows, 0), num_rows),
        vocab_size=vocab_size,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        chunk_vocab=chunk_vocab,
        fp32=fp32,
    )
    return _LogprobEntropy.apply(hidden, weight, targets, shard)


def _refuse_misuse(
    hidden: Tensor, weight: Tensor, targets: Tensor, size: int, vocab_size: int, temperature: float
) -> None:
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1] or hidden.shape[1:] != weight.shape[1:]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)} are not "
            "[N, H], [V, H] and [N]"
        )
    if size * weight.shape[0] < vocab_size:
        raise ValueError(
            f"{size} ranks x {weight.shape[0]} rows cannot hold a vocabulary of {vocab_size}; "
            f"give a weight of at least {-(-vocab_size // size)} rows a rank, "
            f"or the group the vocabulary is split over"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; greedy decoding has no distribution")


@dataclass(frozen=True)
class _Shard:
    """One rank's shard of the vocabulary, and the settings of the computation."""

    group: dist.ProcessGroup | None
    first: int  # vocabulary index of local row 0
    num_valid: int  # local rows that are vocabulary; the rest is padding
    vocab_size: int
    temperature: float
    chunk_tokens: int
    chunk_vocab: int
    fp32: bool

    def token_chunks(self, num_tokens: int) -> Iterator[slice]:
        for start in range(0, num_tokens, self.chunk_tokens):
            yield slice(start, min(start + self.chunk_tokens, num_tokens))

    def vocab_chunks(self) -> Iterator[slice]:
        for start in range(0, self.num_valid, self.chunk_vocab):
            yield slice(start, min(start + self.chunk_vocab, self.num_valid))

    def logits(self, hidden_CH: Tensor, weight_WH: Tensor) -> Tensor:
        """A fresh tile of logits / temperature in the accumulation dtype."""
        logits_CW = hidden_CH @ weight_WH.T
        dtype = _accumulation_dtype(logits_CW)
        if self.fp32:
            logits_CW = logits_CW.to(dtype)
            return logits_CW if self.temperature == 1.0 else logits_CW.div_(self.temperature)
        return logits_CW.div_(self.temperature).to(dtype)

    def rounded(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values if self.fp32 else values.to(dtype).to(values.dtype)

    def columns_of(self, targets_C: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
        """Index of each target among these local rows, 0 where it is not among them, and whether it is."""
        places_C = targets_C - self.first - columns.start
        is_here_C = (places_C >= 0) & (places_C < columns.stop - columns.start)
        return torch.where(is_here_C, places_C, 0)[:, None], is_here_C


def _accumulation_dtype(values: Tensor) -> torch.dtype:
    # float32 for training dtypes; float64 keeps its own, which finite-difference checks need.
    return torch.promote_types(values.dtype, torch.float32)


class _LogprobEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, shard: _Shard
    ) -> tuple[Tensor, Tensor]:
        max_N, sums_3N = _statistics(hidden_NH, weight_VH, targets_N, shard)
        sum_exp_N, sum_exp_logit_N, target_N = sums_3N
        # Logits are relative to the row's maximum: H = log Z - E[logit], log p = logit - log Z.
        log_sum_N = sum_exp_N.log()
        entropy_N = shard.rounded(log_sum_N - sum_exp_logit_N / sum_exp_N, weight_VH.dtype)
        logprobs_N = shard.rounded(target_N - log_sum_N, weight_VH.dtype)
        is_token_N = (targets_N >= 0) & (targets_N < shard.vocab_size)
        logprobs_N = torch.where(is_token_N, logprobs_N, torch.nan)

        ctx.shard = shard
        # An entropy that no loss uses arrives as None and spares the backward pass its half of the work.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, max_N + log_sum_N, entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logprobs_grad_N: Tensor | None, entropy_grad_N: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_NH, weight_VH, targets_N, logsumexp_N, entropy_N = ctx.saved_tensors
        if logprobs_grad_N is None:
            logprobs_grad_N = torch.zeros_like(entropy_grad_N)
        dtype = _accumulation_dtype(weight_VH)
        hidden_grad_NH = torch.zeros_like(hidden_NH, dtype=dtype)
        weight_grad_VH = torch.zeros_like(weight_VH, dtype=dtype) if ctx.needs_input_grad[1] else None
        for tokens in ctx.shard.token_chunks(len(hidden_NH)):
            for columns in ctx.shard.vocab_chunks():
                grad_CW = _logits_gradient(
                    hidden_NH[tokens],
                    weight_VH[columns],
                    ctx.shard.columns_of(targets_N[tokens], columns),
                    logsumexp_N[tokens, None],
                    entropy_N[tokens, None],
                    logprobs_grad_N[tokens, None],
                    None if entropy_grad_N is None else entropy_grad_N[tokens, None],
                    ctx.shard,
                )
                _add_product(hidden_grad_NH[tokens], grad_CW, weight_VH[columns])
                if weight_grad_VH is not None:
                    _add_product(weight_grad_VH[columns], grad_CW.T, hidden_NH[tokens])
                del grad_CW
        if weight_grad_VH is not None:
            weight_grad_VH = weight_grad_VH.to(weight_VH.dtype)
        return hidden_grad_NH.to(hidden_NH.dtype), weight_grad_VH, None, None


def _statistics(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, shard: _Shard) -> tuple[Tensor, Tensor]:
    """Statistics of each token's logits over all ranks: the largest scaled logit [N], and, with x = scaled logit - the
    largest, [3, N]: sum e^x, sum e^x * x, x of the target."""
    dtype = _accumulation_dtype(weight_VH)
    max_N = hidden_NH.new_full(targets_N.shape, -torch.inf, dtype=dtype)
    sums_3N = hidden_NH.new_zeros(3, len(targets_N), dtype=dtype)
    for tokens in shard.token_chunks(len(targets_N)):
        for columns in shard.vocab_chunks():
            logits_CW = shard.logits(hidden_NH[tokens], weight_VH[columns])
            places_C1, is_here_C = shard.columns_of(targets_N[tokens], columns)
            sums_3N[2, tokens] += torch.where(is_here_C, logits_CW.gather(1, places_C1)[:, 0], 0.0)
            max_C = torch.maximum(max_N[tokens], logits_CW.amax(dim=-1))
            _shift(sums_3N[:2, tokens], max_N[tokens], max_C)
            max_N[tokens] = max_C
            exp_CW = logits_CW.sub_(max_C[:, None]).exp()
            sums_3N[0, tokens] += exp_CW.sum(dim=-1)
            sums_3N[1, tokens] += exp_CW.mul_(logits_CW).sum(dim=-1)
            del logits_CW, exp_CW  # before the next tile is made
    if shard.group is not None:
        own_max_N = max_N.clone()
        dist.all_reduce(max_N, op=dist.ReduceOp.MAX, group=shard.group)
        _shift(sums_3N[:2], own_max_N, max_N)
        dist.all_reduce(sums_3N, group=shard.group)
    sums_3N[2] -= max_N
    return max_N, sums_3N


def _shift(sums_2C: Tensor, old_max_C: Tensor, new_max_C: Tensor) -> None:
    """Make sum e^x and sum e^x * x relative to another maximum, in place. -inf: nothing was summed yet."""
    shift_C = torch.where(old_max_C == -torch.inf, 0.0, old_max_C - new_max_C)
    sums_2C[1] += shift_C * sums_2C[0]
    sums_2C *= shift_C.exp()


def _logits_gradient(
    hidden_CH: Tensor,
    weight_WH: Tensor,
    places_and_presence: tuple[Tensor, Tensor],
    logsumexp_C1: Tensor,
    entropy_C1: Tensor,
    logprobs_grad_C1: Tensor,
    entropy_grad_C1: Tensor | None,
    shard: _Shard,
) -> Tensor:
    """Gradient of a tile of logits, [C, W] in the dtype of the weight.

    d log p[target] = (onehot - p) / T and dH = -p * (log p + H) / T, with T the temperature.
    """
    places_C1, is_here_C = places_and_presence
    logp_CW = shard.rounded(shard.logits(hidden_CH, weight_WH).sub_(logsumexp_C1), weight_WH.dtype)
    if entropy_grad_C1 is None:
        grad_CW = logp_CW.exp_().mul_(-logprobs_grad_C1)
    else:
        grad_CW = logp_CW.exp()
        logp_CW.add_(entropy_C1).mul_(entropy_grad_C1)
        grad_CW.mul_(logp_CW.add_(logprobs_grad_C1)).neg_()
    grad_CW.scatter_add_(1, places_C1, torch.where(is_here_C[:, None], logprobs_grad_C1, 0.0))
    if shard.temperature != 1.0:
        grad_CW.div_(shard.temperature)
    return grad_CW.to(weight_WH.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
