"""The two PPO losses as weighted sums.

Shapes: B sequences, T predicted tokens. `mask` is 1 where a token counts. Every 1/N of a mean sits in
`weights_BT`, computed once from counts of the whole update: summing a loss, or its gradient, over
micro-batches and data-parallel ranks gives the mean, however the rows were split. Metrics are detached
scalars; a key that ends in `_max` combines by maximum, every other by sum.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.algo.advantages import masked_moments

Metrics = dict[str, Tensor]


def token_weights(mask_BT: Tensor, aggregation: str, *, num_tokens: int, num_sequences: int) -> Tensor:
    """The weight of every token in the update's mean, float32 [B, T], zero outside the mask.

    `token_mean`: each token weighs 1 / num_tokens. `seq_mean`: each sequence weighs 1 / num_sequences, shared
    by its tokens. `num_tokens` counts the masked tokens, `num_sequences` the rows with at least one, over all
    micro-batches and data-parallel ranks of the update. Rows are whole. Raises ValueError for another
    aggregation.
    """
    mask_BT = (mask_BT > 0).float()
    # A count of 0 comes with an empty mask: the weights are zeros and the loss is 0.
    if aggregation == "token_mean":
        return mask_BT / max(num_tokens, 1)
    if aggregation == "seq_mean":
        lengths_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1.0)
        return mask_BT / (lengths_B1 * max(num_sequences, 1))
    raise ValueError(f"unknown loss aggregation {aggregation!r}; choose token_mean or seq_mean")


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    entropy_BT: Tensor,
    weights_BT: Tensor,
    *,
    ratio_eps: float,
    entropy_bonus: float,
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate minus entropy_bonus * entropy (Schulman 2017, arXiv:1707.06347, equations 7 and 9).

    Gradients flow to `logprobs_BT`, and to `entropy_BT` unless the bonus is 0. Metrics: `policy_loss` (the
    surrogate alone), `clip_fraction` (weight of the tokens whose gradient the clip removed), `approx_kl` (k3
    of old against new, r - 1 - log r), `entropy`, `ratio_deviation_max` (largest |r - 1|).
    """
    is_counted_BT = weights_BT > 0
    # Inputs are cleared before the arithmetic: an inf or NaN cleared after it would still spoil the gradient.
    log_ratio_BT = torch.where(is_counted_BT, logprobs_BT - old_logprobs_BT, 0.0)
    advantages_BT = torch.where(is_counted_BT, advantages_BT, 0.0)
    entropy_BT = torch.where(is_counted_BT, entropy_BT, 0.0)

    ratio_BT = log_ratio_BT.exp()
    unclipped_BT = ratio_BT * advantages_BT
    clipped_BT = ratio_BT.clamp(1.0 - ratio_eps, 1.0 + ratio_eps) * advantages_BT
    surrogate_loss = -(weights_BT * torch.minimum(unclipped_BT, clipped_BT)).sum()
    entropy = (weights_BT * entropy_BT).sum()
    # Without a bonus the entropy stays out of the graph, which spares its backward pass over the vocabulary.
    loss = surrogate_loss - entropy_bonus * entropy if entropy_bonus else surrogate_loss

    with torch.no_grad():
        metrics = {
            "policy_loss": surrogate_loss.detach(),
            "clip_fraction": (weights_BT * (clipped_BT < unclipped_BT)).sum(),
            "approx_kl": (weights_BT * (torch.expm1(log_ratio_BT) - log_ratio_BT)).sum(),
            "entropy": entropy.detach(),
            "ratio_deviation_max": (ratio_BT - 1.0).abs().max(),
        }
    return loss, metrics


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    weights_BT: Tensor,
    *,
    value_clip: float | None,
) -> tuple[Tensor, Metrics]:
    """Half the squared error; the larger of it and that of the value kept within `value_clip` of the old one.

    `value_clip` None is the plain squared error. Metrics: `value_loss`, `value_clip_fraction` (weight of the
    tokens where the clipped error is the larger, so no gradient flows).
    """
    is_counted_BT = weights_BT > 0
    values_BT = torch.where(is_counted_BT, values_BT, 0.0)
    old_values_BT = torch.where(is_counted_BT, old_values_BT, 0.0)
    returns_BT = torch.where(is_counted_BT, returns_BT, 0.0)

    squared_error_BT = (values_BT - returns_BT).square()
    clip_fraction = weights_BT.new_zeros(())
    if value_clip is not None:
        # Bounds, not old + clamp(change): values inside them stay as they are to the last digit.
        clipped_values_BT = values_BT.clamp(old_values_BT - value_clip, old_values_BT + value_clip)
        clipped_error_BT = (clipped_values_BT - returns_BT).square()
        clip_fraction = (weights_BT * (clipped_error_BT > squared_error_BT)).sum().detach()
        squared_error_BT = torch.maximum(squared_error_BT, clipped_error_BT)
    loss = 0.5 * (weights_BT * squared_error_BT).sum()
    return loss, {"value_loss": loss.detach(), "value_clip_fraction": clip_fraction}


def explained_variance(
    values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, group: dist.ProcessGroup | None = None
) -> Tensor:
    """1 - Var(return - value) / Var(return) over the group's masked tokens, a float64 scalar.

    1 is a perfect critic, 0 no better than a constant, negative is worse. 0 where all returns are equal,
    which leaves nothing to explain. Collective when `group` is given.
    """
    _, return_variance = masked_moments(returns_BT, mask_BT, group)
    _, error_variance = masked_moments(returns_BT.double() - values_BT.double(), mask_BT, group)
    return torch.where(return_variance > 0, 1.0 - error_variance / return_variance, 0.0)
