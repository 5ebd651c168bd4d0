"""Log-probability and entropy of tokens from hidden states, with an output layer sharded over tensor-parallel ranks.

Logits are computed in tiles and never held whole. Shapes: N tokens, H hidden size, V vocabulary columns this rank
holds, C tokens and W columns of a tile.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_simplerl.parallel.products import accumulation_dtype, add_product, product

CPU_TILE = 512, 1024  # fits the cache: 0.85 of the time of 1,024 x 4,096 at a vocabulary of 4,096
# On a GPU every tile reads and writes its share of the gradients' sums again, so few large tiles move the fewest bytes.
GPU_TILE_BYTES = 2**28
_ALIGNED = 8  # columns: the matrix units take rows whose bytes are a multiple of 16

Fuse = Callable[[Callable], Callable]


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
    entropy: bool = True,
    fuse: Fuse | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of `targets` and entropy of softmax(hidden @ weight.T / temperature): two float32 tensors [N].

    hidden [N, H]. weight [V, H]: rank r of `group` holds vocabulary rows r*V to (r+1)*V; None is one rank with all of
    them. Rows from `vocab_size` on are padding: no probability, zero gradient. targets [N]: global token ids; one
    outside 0 .. vocab_size - 1 gives a NaN log-probability. Both outputs are in nats and equal on every rank.
    Collective in the forward pass (two all-reduces of a few floats a token), no communication in the backward pass: the
    gradient of `hidden` is this rank's part of a sum over the ranks.

    Products are of the weight's dtype and their sums float32 (see products.py). The softmax runs over the tiles as they
    come (Milakov and Gimelshein 2018, arXiv:1805.02867), and backward computes them once more, a third of the layer's
    work on top: work space is a few float32 tensors of `tile` (tokens, columns; None takes what suits the device, see
    `tile_of`) whatever N and V are, beside the gradients, which are summed in float32.

    fp32=False rounds as a log-softmax in the dtype of the weight does: the scaled logits and every log-probability,
    forward and backward; sums are float32 either way. entropy=False leaves the entropy out, None takes its place. fuse:
    makes one kernel of the work on a tile, such as torch.compile; None runs it operation by operation.

    Raises ValueError for shapes that do not match, a weight too small for `vocab_size`, and a temperature that is not
    positive.
    """
    size, rank = (1, 0) if group is None else (group.size(), group.rank())
    _refuse_misuse(hidden, weight, targets, size, vocab_size, temperature)
    num_rows = weight.shape[0]
    shard = _Shard(
        group=group if size > 1 else None,
        first=rank * num_rows,
        num_valid=min(max(vocab_size - rank * num_rows, 0), num_rows),
        vocab_size=vocab_size,
        temperature=temperature,
        tile=tile or (CPU_TILE if weight.is_cpu else tile_of(len(hidden), num_rows)),
        fp32=fp32,
        entropy=entropy,
        fuse=fuse,
    )
    return _LogprobEntropy.apply(hidden, weight, targets, shard)


def tile_of(num_tokens: int, num_columns: int, tile_bytes: int = GPU_TILE_BYTES) -> tuple[int, int]:
    """Tokens and columns of a float32 tile of at most `tile_bytes`: as near to a square as the logits allow."""
    side = math.isqrt(tile_bytes // 4)
    tokens = max(side, tile_bytes // 4 // max(num_columns, 1)) // _ALIGNED * _ALIGNED
    tokens = max(chunk.stop - chunk.start for chunk in even_chunks(max(num_tokens, 1), tokens))
    return tokens, tile_bytes // 4 // tokens // _ALIGNED * _ALIGNED


def even_chunks(total: int, most: int) -> Iterator[slice]:
    """Cut `total` into the fewest chunks of at most `most`, of the same size to a unit: 8 where `most` is a multiple of
    8, else 1. A last chunk of a few columns would take a kernel's time for little."""
    unit = _ALIGNED if most % _ALIGNED == 0 else 1
    units = -(-total // unit)
    number = -(-units // (most // unit))
    edges = [min(index * units // number * unit, total) for index in range(number + 1)] if number else []
    yield from map(slice, edges, edges[1:])


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
    tile: tuple[int, int]
    fp32: bool
    entropy: bool
    fuse: Fuse | None

    def tiles(self, num_tokens: int) -> Iterator[tuple[slice, slice]]:
        for tokens in even_chunks(num_tokens, self.tile[0]):
            for columns in even_chunks(self.num_valid, self.tile[1]):
                yield tokens, columns

    def logits(self, hidden_CH: Tensor, weight_WH: Tensor) -> Tensor:
        """A fresh tile of logits in the accumulation dtype, to be divided by `divisor`."""
        if self.fp32:
            return product(hidden_CH, weight_WH.T)
        logits_CW = (hidden_CH @ weight_WH.T).div_(self.temperature)
        return logits_CW.to(accumulation_dtype(logits_CW))

    @property
    def divisor(self) -> float:
        return self.temperature if self.fp32 else 1.0

    def rounding(self, dtype: torch.dtype) -> torch.dtype | None:
        """What log-probabilities are rounded to."""
        return None if self.fp32 else dtype

    def fused(self, work: Callable) -> Callable:
        return work if self.fuse is None else self.fuse(work)

    def work_space(self, logits_CW: Tensor) -> Tensor | None:
        """Where the work on a tile of logits puts its results: over them, unless it is one kernel that has none."""
        return logits_CW if self.fuse is None else None

    def columns_of(self, targets_C: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
        """Index of each target among these local rows, 0 where it is not among them, and whether it is: [C, 1] each."""
        places_C = targets_C - self.first - columns.start
        is_here_C = (places_C >= 0) & (places_C < columns.stop - columns.start)
        return torch.where(is_here_C, places_C, 0)[:, None], is_here_C[:, None]


class _LogprobEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, shard: _Shard
    ) -> tuple[Tensor, Tensor | None]:
        max_N, sums_XN = _statistics(hidden_NH, weight_VH, targets_N, shard)
        sum_exp_N, target_N = sums_XN[:2]
        # Logits are relative to the row's maximum: H = log Z - E[logit], log p = logit - log Z.
        log_sum_N = sum_exp_N.log()
        rounding = shard.rounding(weight_VH.dtype)
        logprobs_N = _rounded(target_N - log_sum_N, rounding)
        is_token_N = (targets_N >= 0) & (targets_N < shard.vocab_size)
        logprobs_N = torch.where(is_token_N, logprobs_N, torch.nan)
        entropy_N = None
        if shard.entropy:
            entropy_N = _rounded(log_sum_N - sums_XN[2] / sum_exp_N, rounding)

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
        dtype, shard = accumulation_dtype(weight_VH), ctx.shard
        hidden_grad_NH = torch.zeros_like(hidden_NH, dtype=dtype)
        weight_grad_VH = torch.zeros_like(weight_VH, dtype=dtype) if ctx.needs_input_grad[1] else None
        tile_gradient = shard.fused(_tile_gradient)
        for tokens, columns in shard.tiles(len(hidden_NH)):
            places_C1, is_here_C1 = shard.columns_of(targets_N[tokens], columns)
            slope_C1 = logprobs_grad_N[tokens, None] / shard.temperature
            of_entropy = None
            if entropy_grad_N is not None:
                of_entropy = entropy_N[tokens, None], entropy_grad_N[tokens, None] / shard.temperature
            logits_CW = shard.logits(hidden_NH[tokens], weight_VH[columns])
            grad_CW, at_target_C1 = tile_gradient(
                logits_CW,
                places_C1,
                logsumexp_N[tokens, None],
                slope_C1,
                torch.where(is_here_C1, slope_C1, 0.0),
                of_entropy,
                divisor=shard.divisor,
                rounding=shard.rounding(weight_VH.dtype),
                dtype=weight_VH.dtype,
                work=shard.work_space(logits_CW),
            )
            del logits_CW
            grad_CW.scatter_(1, places_C1, at_target_C1)
            add_product(hidden_grad_NH[tokens], grad_CW, weight_VH[columns])
            if weight_grad_VH is not None:
                add_product(weight_grad_VH[columns], grad_CW.T, hidden_NH[tokens])
            del grad_CW  # before the next tile is made
        if weight_grad_VH is not None:
            weight_grad_VH = weight_grad_VH.to(weight_VH.dtype)
        return hidden_grad_NH.to(hidden_NH.dtype), weight_grad_VH, None, None


def _statistics(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, shard: _Shard) -> tuple[Tensor, Tensor]:
    """Statistics of each token's logits over all ranks: the largest scaled logit [N], and, with x = scaled logit - the
    largest, [2 or 3, N]: sum e^x, x of the target, and with an entropy sum e^x * x."""
    dtype = accumulation_dtype(weight_VH)
    max_N = hidden_NH.new_full(targets_N.shape, -torch.inf, dtype=dtype)
    sums_XN = hidden_NH.new_zeros(2 + shard.entropy, len(targets_N), dtype=dtype)
    tile_statistics = shard.fused(_tile_statistics)
    for tokens, columns in shard.tiles(len(targets_N)):
        places_C1, is_here_C1 = shard.columns_of(targets_N[tokens], columns)
        logits_CW = shard.logits(hidden_NH[tokens], weight_VH[columns])
        max_C, target_C1, sum_exp_C, sum_exp_logit_C = tile_statistics(
            logits_CW,
            max_N[tokens],
            places_C1,
            divisor=shard.divisor,
            entropy=shard.entropy,
            work=shard.work_space(logits_CW),
        )
        del logits_CW  # before the next tile is made
        sums_XN[1, tokens] += torch.where(is_here_C1, target_C1, 0.0)[:, 0]
        _shift(sums_XN[:, tokens], max_N[tokens], max_C)
        max_N[tokens] = max_C
        sums_XN[0, tokens] += sum_exp_C
        if sum_exp_logit_C is not None:
            sums_XN[2, tokens] += sum_exp_logit_C
    if shard.group is not None:
        own_max_N = max_N.clone()
        dist.all_reduce(max_N, op=dist.ReduceOp.MAX, group=shard.group)
        _shift(sums_XN, own_max_N, max_N)
        dist.all_reduce(sums_XN, group=shard.group)
    sums_XN[1] -= max_N
    return max_N, sums_XN


def _shift(sums_XC: Tensor, old_max_C: Tensor, new_max_C: Tensor) -> None:
    """Make sum e^x and sum e^x * x relative to another maximum, in place. -inf: nothing was summed yet."""
    shift_C = torch.where(old_max_C == -torch.inf, 0.0, old_max_C - new_max_C)
    factor_C = shift_C.exp()
    if len(sums_XC) == 3:
        sums_XC[2] += shift_C * sums_XC[0]
        sums_XC[2] *= factor_C
    sums_XC[0] *= factor_C


# What is done to one tile of logits. `work` is the tile itself, to be written over, or None: a compiler that makes one
# kernel of a function keeps what lies between in registers.


def _tile_statistics(
    logits_CW: Tensor, max_C: Tensor, places_C1: Tensor, *, divisor: float, entropy: bool, work: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The largest scaled logit of this tile and those before it [C], the logit at `places_C1` [C, 1], and, relative to
    the largest, sum e^x [C] and sum e^x * x [C]: see `_statistics`."""
    if divisor != 1.0:
        logits_CW = torch.div(logits_CW, divisor, out=work)
    target_C1 = logits_CW.gather(1, places_C1)
    max_C = torch.maximum(max_C, logits_CW.amax(dim=-1))
    logits_CW = torch.sub(logits_CW, max_C[:, None], out=work)
    if not entropy:
        return max_C, target_C1, torch.exp(logits_CW, out=work).sum(dim=-1), None
    exp_CW = logits_CW.exp()
    return max_C, target_C1, exp_CW.sum(dim=-1), torch.mul(exp_CW, logits_CW, out=work).sum(dim=-1)


def _tile_gradient(
    logits_CW: Tensor,
    places_C1: Tensor,
    logsumexp_C1: Tensor,
    slope_C1: Tensor,
    slope_at_target_C1: Tensor,
    of_entropy: tuple[Tensor, Tensor] | None,
    *,
    divisor: float,
    rounding: torch.dtype | None,
    dtype: torch.dtype,
    work: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """In `dtype`: the gradient of a tile of logits without the targets' own term, and with it at `places_C1`, [C, 1].

    d log p[target] = (onehot - p) / T and dH = -p * (log p + H) / T, with T the temperature. The slopes are the
    gradients of the two outputs over T, that of the log-probability 0 where the target is elsewhere; of_entropy: H and
    its slope.
    """
    if divisor != 1.0:
        logits_CW = torch.div(logits_CW, divisor, out=work)
    logp_CW = _rounded(torch.sub(logits_CW, logsumexp_C1, out=work), rounding)
    if of_entropy is None:
        grad_CW = torch.mul(torch.exp(logp_CW, out=work), -slope_C1, out=work)
    else:
        entropy_C1, entropy_slope_C1 = of_entropy
        prob_CW = logp_CW.exp()
        factor_CW = torch.mul(torch.add(logp_CW, entropy_C1, out=work), -entropy_slope_C1, out=work)
        grad_CW = torch.mul(prob_CW, torch.sub(factor_CW, slope_C1, out=work), out=work)
    at_target_C1 = grad_CW.gather(1, places_C1) + slope_at_target_C1
    return grad_CW.to(dtype), at_target_C1.to(dtype)


def _rounded(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    return values if dtype is None else values.to(dtype).to(values.dtype)
