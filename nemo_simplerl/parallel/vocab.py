"""Log-probability and entropy from logits whose vocabulary is split over tensor-parallel ranks.

Shapes: N rows (tokens), V columns this rank holds.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def vocab_parallel_logprob_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    group: dist.ProcessGroup | None,
    vocab_size: int,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    fp32: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability of `targets` and entropy of softmax(logits / temperature): two float32 tensors [...].

    logits [..., V]: rank r of `group` holds vocabulary columns r*V to (r+1)*V; None is one rank with all of
    them. Columns from `vocab_size` on are padding: no probability, zero gradient. targets [...]: global token
    ids; one outside 0 .. vocab_size - 1 gives a NaN log-probability. Both outputs are in nats and equal on
    every rank. Collective in the forward pass (two all-reduces of a few floats a token), silent in the
    backward pass.

    BACKWARD OVERWRITES `logits` WITH THEIR GRADIENT, as Megatron's vocab-parallel cross entropy does: a
    second tensor of that size never exists. Work space is two float32 tensors [chunk_tokens, V]. So backward
    runs once, logits are an activation rather than a leaf, and nothing else may read them afterwards
    (autograd raises where it can tell).

    fp32=False rounds as a log-softmax in the dtype of the logits does: the scaled logits and every
    log-probability, forward and backward; sums are float32 either way.

    Raises ValueError for logits that are a leaf requiring gradients, not contiguous or too few for
    `vocab_size`, for targets of another shape, and for a temperature that is not positive.
    """
    size, rank = (1, 0) if group is None else (group.size(), group.rank())
    _refuse_misuse(logits, targets, size, vocab_size, temperature)
    num_columns = logits.shape[-1]
    shard = _Shard(
        group=group if size > 1 else None,
        first=rank * num_columns,
        num_valid=min(max(vocab_size - rank * num_columns, 0), num_columns),
        vocab_size=vocab_size,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        fp32=fp32,
    )
    return _LogprobEntropy.apply(logits, targets, shard)


def _refuse_misuse(logits: Tensor, targets: Tensor, size: int, vocab_size: int, temperature: float) -> None:
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets {tuple(targets.shape)} do not match the rows of logits {tuple(logits.shape)}")
    if size * logits.shape[-1] < vocab_size:
        raise ValueError(
            f"{size} ranks x {logits.shape[-1]} columns cannot hold a vocabulary of {vocab_size}; "
            f"give logits of at least {-(-vocab_size // size)} columns a rank, "
            f"or the group the vocabulary is split over"
        )
    if not logits.is_contiguous():
        raise ValueError("logits must be contiguous, for their gradient takes their place; call .contiguous() first")
    if logits.requires_grad and logits.is_leaf:
        raise ValueError("logits must not be a leaf, for backward overwrites them; pass logits.clone()")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; greedy decoding has no distribution")


@dataclass(frozen=True)
class _Shard:
    """What one rank knows of the split vocabulary, and how it computes."""

    group: dist.ProcessGroup | None
    first: int  # vocabulary index of local column 0
    num_valid: int  # local columns that are vocabulary; the rest is padding
    vocab_size: int
    temperature: float
    chunk_tokens: int
    fp32: bool

    def scaled(self, logits: Tensor) -> Tensor:
        """A fresh tensor of logits / temperature in the accumulation dtype."""
        dtype = _accumulation_dtype(logits)
        if self.fp32:
            return logits.to(dtype, copy=True).div_(self.temperature)
        return logits.div(self.temperature).to(dtype)

    def rounded(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values if self.fp32 else values.to(dtype).to(values.dtype)

    def local(self, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Local column of each target (0 where another rank holds it), and whether this rank holds it."""
        columns_N = targets_N - self.first
        is_held_N = (columns_N >= 0) & (columns_N < self.num_valid)
        return torch.where(is_held_N, columns_N, 0), is_held_N


def _accumulation_dtype(logits: Tensor) -> torch.dtype:
    # float32 for training dtypes; float64 logits keep theirs, which finite-difference checks need.
    return torch.promote_types(logits.dtype, torch.float32)


class _LogprobEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, shard: _Shard) -> tuple[Tensor, Tensor]:
        logits_NV, targets_N = logits.view(-1, logits.shape[-1]), targets.reshape(-1)
        max_N = _row_maximum(logits_NV, shard)
        sum_exp_N, sum_exp_logit_N, target_N = _row_sums(logits_NV, targets_N, max_N, shard)

        # Logits are relative to the row's maximum: H = log Z - E[logit], log p = logit - log Z.
        log_sum_N = sum_exp_N.log()
        entropy_N = shard.rounded(log_sum_N - sum_exp_logit_N / sum_exp_N, logits.dtype)
        logprobs_N = shard.rounded(target_N - log_sum_N, logits.dtype)
        is_token_N = (targets_N >= 0) & (targets_N < shard.vocab_size)
        logprobs_N = torch.where(is_token_N, logprobs_N, torch.nan)

        ctx.shard = shard
        ctx.logits_are_gradient = False
        # An entropy that no loss uses arrives as None and spares the backward pass its half of the work.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, targets, max_N + log_sum_N, entropy_N)
        return logprobs_N.view(targets.shape), entropy_N.view(targets.shape)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logprobs_grad: Tensor | None, entropy_grad: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if ctx.logits_are_gradient:
            raise RuntimeError(
                "second backward through vocab_parallel_logprob_entropy: the first one overwrote the "
                "logits with their gradient. Run the forward pass again, "
                "or add the losses up and call backward once."
            )
        ctx.logits_are_gradient = True
        logits, targets, logsumexp_N, entropy_N = ctx.saved_tensors
        if logprobs_grad is None:
            logprobs_grad = torch.zeros_like(entropy_grad)
        _write_gradient(
            logits.view(-1, logits.shape[-1]),
            targets.reshape(-1),
            logsumexp_N,
            entropy_N,
            logprobs_grad.reshape(-1),
            None if entropy_grad is None else entropy_grad.reshape(-1),
            ctx.shard,
        )
        return logits, None, None


def _row_maximum(logits_NV: Tensor, shard: _Shard) -> Tensor:
    """Largest scaled logit of each row over all ranks."""
    if shard.num_valid:
        max_N = shard.scaled(logits_NV[:, : shard.num_valid].amax(dim=-1))
    else:
        max_N = logits_NV.new_full(logits_NV.shape[:1], -torch.inf, dtype=_accumulation_dtype(logits_NV))
    if shard.group is not None:
        dist.all_reduce(max_N, op=dist.ReduceOp.MAX, group=shard.group)
    return max_N


def _row_sums(logits_NV: Tensor, targets_N: Tensor, max_N: Tensor, shard: _Shard) -> Tensor:
    """[3, N] over all ranks, with x = scaled logit - row maximum: sum e^x, sum e^x * x, x of the target."""
    sums_3N = max_N.new_empty(3, max_N.shape[0])
    for start in range(0, max_N.shape[0], shard.chunk_tokens):
        rows = slice(start, start + shard.chunk_tokens)
        shifted_CV = shard.scaled(logits_NV[rows, : shard.num_valid]).sub_(max_N[rows, None])
        exp_CV = shifted_CV.exp()
        sums_3N[0, rows] = exp_CV.sum(dim=-1)
        sums_3N[1, rows] = exp_CV.mul_(shifted_CV).sum(dim=-1)
    columns_N, is_held_N = shard.local(targets_N)
    target_N = shard.scaled(logits_NV.gather(1, columns_N[:, None]).squeeze(1)).sub_(max_N)
    sums_3N[2] = torch.where(is_held_N, target_N, 0.0)
    if shard.group is not None:
        dist.all_reduce(sums_3N, group=shard.group)
    return sums_3N


def _write_gradient(
    logits_NV: Tensor,
    targets_N: Tensor,
    logsumexp_N: Tensor,
    entropy_N: Tensor,
    logprobs_grad_N: Tensor,
    entropy_grad_N: Tensor | None,
    shard: _Shard,
) -> None:
    """Replace the logits by their gradient, a chunk of rows at a time.

    d log p[target] = (onehot - p) / T and dH = -p * (log p + H) / T, with T the temperature.
    """
    logits_NV[:, shard.num_valid :] = 0
    if not shard.num_valid:
        return
    columns_N, is_held_N = shard.local(targets_N)
    onehot_N = torch.where(is_held_N, logprobs_grad_N, 0.0)
    for start in range(0, logits_NV.shape[0], shard.chunk_tokens):
        rows = slice(start, start + shard.chunk_tokens)
        valid_CV = logits_NV[rows, : shard.num_valid]
        logp_CV = shard.rounded(shard.scaled(valid_CV).sub_(logsumexp_N[rows, None]), logits_NV.dtype)
        if entropy_grad_N is None:
            grad_CV = logp_CV.exp_().mul_(-logprobs_grad_N[rows, None])
        else:
            grad_CV = logp_CV.exp()
            logp_CV.add_(entropy_N[rows, None]).mul_(entropy_grad_N[rows, None])
            grad_CV.mul_(logp_CV.add_(logprobs_grad_N[rows, None])).neg_()
        grad_CV.scatter_add_(1, columns_N[rows, None], onehot_N[rows, None])
        valid_CV.copy_(grad_CV.div_(shard.temperature))
