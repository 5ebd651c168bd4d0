"""The losses of policy and critic as weighted sums.

Shapes: B sequences, T predicted tokens. `mask` is 1 where a token counts. Every 1/N of a mean sits in
`weights_BT`, computed once from counts of the whole update: summing a loss, or its gradient, over
micro-batches and data-parallel ranks gives the mean, however the rows were split. A token of weight 0 enters
neither a loss nor a gradient, whatever its inputs hold: they are cleared before the arithmetic, since an inf
or NaN cleared after it would still spoil the gradient. Metrics are detached scalars; a key that ends in `_max`
combines by maximum, every other by sum.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.algo.advantages import masked_moments

Metrics = dict[str, Tensor]


def token_weights(
    mask_BT: Tensor, aggregation: str, *, num_tokens: int, num_sequences: int, max_tokens: int | None = None
) -> Tensor:
    """The weight of every token in the update's mean, float32 [B, T], zero outside the mask.

    `token_mean`: each token weighs 1 / num_tokens. `seq_mean`: each sequence weighs 1 / num_sequences, shared
    by its tokens. `token_sum_over_max`: each token weighs 1 / (num_sequences * max_tokens), whatever the
    lengths are (Dr. GRPO, arXiv:2503.20783). The counts are over all micro-batches and data-parallel ranks of
    the update: `num_tokens` of the masked tokens, `num_sequences` of the rows with at least one (the trainer
    counts rows without one too under `token_sum_over_max`, whose divisor is to be a constant). Rows are whole.
    A float64 mask gives float64 weights. Raises ValueError for another aggregation.
    """
    mask_BT = (mask_BT > 0).to(torch.promote_types(mask_BT.dtype, torch.float32))
    # A count of 0 comes with an empty mask: the weights are zeros and the loss is 0.
    if aggregation == "token_mean":
        return mask_BT / max(num_tokens, 1)
    if aggregation == "seq_mean":
        lengths_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1.0)
        return mask_BT / (lengths_B1 * max(num_sequences, 1))
    if aggregation == "token_sum_over_max":
        assert max_tokens is not None, "token_sum_over_max divides by max_tokens"
        return mask_BT / (max(num_sequences, 1) * max_tokens)
    raise ValueError(f"unknown loss aggregation {aggregation!r}; choose token_mean, seq_mean or token_sum_over_max")


@dataclass(frozen=True)
class PolicyObjective:
    """Which surrogate `policy_loss` computes. The defaults are PPO's with a symmetric clip.

    With the ratio r = pi / old of a token and its advantage A, the loss of a token is

    - `clip`: -min(r * A, clamp(r, 1 - ratio_eps, 1 + ratio_eps_high) * A) (PPO, arXiv:1707.06347, equation 7;
      bounds of their own: DAPO's clip-higher, arXiv:2503.14476). `ratio_eps_high` None is `ratio_eps`. Where A
      is negative, `dual_clip` bounds the loss by -dual_clip * A (arXiv:1912.09729); it is to be above
      1 + ratio_eps_high. None: no bound.
    - `cispo`: -clamp(r, cispo_ratio_min, cispo_ratio_max) * A * log pi, whose factor r has no gradient
      (arXiv:2506.13585): every token keeps a gradient. The value is not a surrogate to read.

    `ratio_level` `sequence` puts in place of r the geometric mean of the ratios of the sequence's tokens that
    have a weight, s = exp(mean log r), with a gradient of its own for each token ("GSPO-token",
    arXiv:2507.18071): that of log pi_t is -s * A_t times the token's weight. With one advantage a sequence,
    under `seq_mean`, this is the gradient of GSPO itself.
    """

    ratio_eps: float
    ratio_eps_high: float | None = None
    dual_clip: float | None = None
    ratio_level: Literal["token", "sequence"] = "token"
    policy_loss: Literal["clip", "cispo"] = "clip"
    cispo_ratio_min: float = 0.0
    cispo_ratio_max: float = 5.0
    entropy_bonus: float = 0.0


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    entropy_BT: Tensor,
    weights_BT: Tensor,
    objective: PolicyObjective,
    sequences_BT: Tensor | None = None,
    metric_weights_BT: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """The objective's surrogate minus entropy_bonus * entropy (arXiv:1707.06347, equation 9).

    `sequences_BT`, int64, numbers the sequence of every token from 0 on, where a row holds several whole ones;
    None: each row is one. Only a ratio of sequences reads it. No log-ratio is clamped (verl clamps it to 20 in
    size, that of a sequence to 10 from above; OpenRLHF to 20, that of a sequence not; TRL none): a clamp would
    remove the gradient of the tokens that are furthest off.

    Gradients flow to `logprobs_BT`, and to `entropy_BT` unless the bonus is 0. `metric_weights_BT` makes the
    means of the metrics where `weights_BT` do not add up to 1; None: `weights_BT`. Metrics: `policy_loss` (the
    surrogate alone), `clip_fraction` (weight of the tokens whose gradient the clip removed; under cispo, whose
    factor it bounded), `dual_clip_fraction` (the same of `dual_clip`, where there is one), `approx_kl` (k3 of
    old against new, r - 1 - log r), `entropy`, `ratio_deviation_max` (largest |r - 1|, of tokens at every
    ratio_level).
    """
    is_counted_BT = weights_BT > 0
    log_ratio_BT = torch.where(is_counted_BT, logprobs_BT - old_logprobs_BT, 0.0)
    advantages_BT = torch.where(is_counted_BT, advantages_BT, 0.0)
    entropy_BT = torch.where(is_counted_BT, entropy_BT, 0.0)

    shares_BT = weights_BT if metric_weights_BT is None else metric_weights_BT
    token_log_ratio_BT = log_ratio_BT
    if objective.ratio_level == "sequence":
        log_ratio_BT = _sequence_log_ratios(log_ratio_BT, is_counted_BT, sequences_BT)
    if objective.policy_loss == "cispo":
        # Cleared like the rest: a log-probability of -inf times a weight of 0 is NaN.
        logprobs_BT = torch.where(is_counted_BT, logprobs_BT, 0.0)
        objective_BT, fractions = _cispo(log_ratio_BT, logprobs_BT, advantages_BT, shares_BT, objective)
    else:
        objective_BT, fractions = _clipped(log_ratio_BT, advantages_BT, shares_BT, objective)
    surrogate_loss = -(weights_BT * objective_BT).sum()
    loss = surrogate_loss
    # Without a bonus the entropy stays out of the graph, which spares its backward pass over the vocabulary.
    if objective.entropy_bonus:
        loss = surrogate_loss - objective.entropy_bonus * (weights_BT * entropy_BT).sum()

    with torch.no_grad():
        metrics = {
            "policy_loss": surrogate_loss.detach(),
            **fractions,
            "approx_kl": (shares_BT * (torch.expm1(token_log_ratio_BT) - token_log_ratio_BT)).sum(),
            "entropy": (shares_BT * entropy_BT).sum(),
            "ratio_deviation_max": (token_log_ratio_BT.exp() - 1.0).abs().max(),
        }
    return loss, metrics


def _clipped(
    log_ratio_BT: Tensor, advantages_BT: Tensor, shares_BT: Tensor, objective: PolicyObjective
) -> tuple[Tensor, Metrics]:
    eps_high = objective.ratio_eps if objective.ratio_eps_high is None else objective.ratio_eps_high
    fractions: Metrics = {}
    if objective.dual_clip is not None:
        # On the log-ratio a bound above the clip's does what it does on the loss, and no exponential overflows.
        bound = math.log(objective.dual_clip)
        is_negative_BT = advantages_BT < 0
        fractions["dual_clip_fraction"] = (shares_BT * (is_negative_BT & (log_ratio_BT > bound))).sum().detach()
        log_ratio_BT = torch.where(is_negative_BT, log_ratio_BT.clamp(max=bound), log_ratio_BT)
    ratio_BT = log_ratio_BT.exp()
    unclipped_BT = ratio_BT * advantages_BT
    clipped_BT = ratio_BT.clamp(1.0 - objective.ratio_eps, 1.0 + eps_high) * advantages_BT
    clip_fraction = (shares_BT * (clipped_BT < unclipped_BT)).sum().detach()
    return torch.minimum(unclipped_BT, clipped_BT), {"clip_fraction": clip_fraction, **fractions}


def _cispo(
    log_ratio_BT: Tensor, logprobs_BT: Tensor, advantages_BT: Tensor, shares_BT: Tensor, objective: PolicyObjective
) -> tuple[Tensor, Metrics]:
    with torch.no_grad():
        ratio_BT = log_ratio_BT.exp()
        factor_BT = ratio_BT.clamp(objective.cispo_ratio_min, objective.cispo_ratio_max)
        clip_fraction = (shares_BT * (factor_BT != ratio_BT)).sum()
    return factor_BT * advantages_BT * logprobs_BT, {"clip_fraction": clip_fraction}


def _sequence_log_ratios(log_ratio_BT: Tensor, is_counted_BT: Tensor, sequences_BT: Tensor | None) -> Tensor:
    """The mean log-ratio of a sequence's counted tokens in place of each token's; each keeps its own gradient."""
    if sequences_BT is None:
        sequences_BT = torch.arange(len(log_ratio_BT), device=log_ratio_BT.device)[:, None].expand_as(log_ratio_BT)
    sequences_N = sequences_BT.flatten()
    # There are no more sequences than tokens: a bound that is known without asking the device for the largest number.
    # In float64 the digits that reach float32 are the same in padded and in packed rows.
    terms_2N = torch.stack([log_ratio_BT.detach().double().flatten(), is_counted_BT.flatten().double()])
    sums_2N = torch.zeros_like(terms_2N).index_add_(1, sequences_N, terms_2N)
    means_BT = (sums_2N[0] / sums_2N[1].clamp(min=1.0))[sequences_N].view_as(log_ratio_BT).to(log_ratio_BT.dtype)
    own_BT = log_ratio_BT - log_ratio_BT.detach()  # 0, with a gradient of 1
    return torch.where(is_counted_BT, means_BT + own_BT, 0.0)


def positive_nll(logprobs_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """-sum(weight * log pi): the negative log-likelihood of right responses (VAPO, arXiv:2504.05118).

    With weights of `token_mean` over the tokens of the update's right responses it is their mean; 0 where there
    is none. Gradients flow to `logprobs_BT`.
    """
    return -(weights_BT * torch.where(weights_BT > 0, logprobs_BT, 0.0)).sum()


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    weights_BT: Tensor,
    *,
    value_clip: float | None,
    metric_weights_BT: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Half the squared error; the larger of it and that of the value kept within `value_clip` of the old one.

    `value_clip` None is the plain squared error. Metrics: `value_loss`, `value_clip_fraction` (weight of the
    tokens where the clipped error is the larger, so no gradient flows; by `metric_weights_BT` where
    `weights_BT` do not add up to 1).
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
        shares_BT = weights_BT if metric_weights_BT is None else metric_weights_BT
        clip_fraction = (shares_BT * (clipped_error_BT > squared_error_BT)).sum().detach()
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
