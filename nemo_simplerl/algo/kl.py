"""Per-token estimates of KL(policy || reference) at sampled tokens, and the KL as a term of the loss.

Shapes: B sequences, T predicted tokens.
"""

import torch
from torch import Tensor


def kl_penalty(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, estimator: str) -> Tensor:
    """KL estimate in nats a token, float32 [B, T], with d = logprob - reference logprob.

    `k1` d, signed and unbiased; `k2` d^2 / 2; `k3` exp(-d) - 1 + d, unbiased and never negative (Schulman
    2020, "Approximating KL Divergence"); `abs` |d|. Nothing is clamped: verl bounds d of k3 to 20 in size and
    the estimate at 10, OpenRLHF all estimates at 10, which ends the gradient beyond. Float64 inputs give
    float64. Raises ValueError for another name.
    """
    dtype = torch.promote_types(logprobs_BT.dtype, torch.float32)
    log_ratio_BT = logprobs_BT.to(dtype) - ref_logprobs_BT.to(dtype)
    if estimator == "k1":
        return log_ratio_BT
    if estimator == "k2":
        return 0.5 * log_ratio_BT.square()
    if estimator == "k3":
        # expm1 keeps the digits that exp(-d) - 1 cancels where the two policies nearly agree.
        return torch.expm1(-log_ratio_BT) + log_ratio_BT
    if estimator == "abs":
        return log_ratio_BT.abs()
    raise ValueError(f"unknown KL estimator {estimator!r}; choose k1, k2, k3 or abs")


def kl_loss(
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    weights_BT: Tensor,
    *,
    estimator: str,
    importance_weight: bool,
) -> Tensor:
    """sum(weight * KL estimate), in nats: a term of the loss, in the mean that `weights_BT` makes.

    What it teaches is the gradient of the estimate at tokens sampled from the policy, not its value. The
    estimates' derivatives in log pi, and whose gradient their expectation under the policy is:

    - `k1`: 1, of nothing (it is 0, and adds noise alone). `k2`: d, of KL(policy || reference). `k3`:
      1 - exp(-d), of KL(reference || policy). `abs`: sign(d), of the L1 distance of the two.
    - With `importance_weight` each estimate is multiplied by r = pi / old, whose gradient flows too. `k1`:
      r * (1 + d) and `k3`: r * d, both of KL(policy || reference), also for tokens that an older policy
      sampled; `k3` with less noise. `k2` and `abs`: of the means of d^2 / 2 and |d| under the policy.

    Without the weight, tokens of an older policy (from a step's second update on) bias every one of them.
    TRL's `use_bias_correction_kl` is the weight, of the token or, with its sequence-level ratio, of the
    sequence; OpenRLHF's `unbiased_gradient` has the derivative min(r, 10) * d under every estimator's name,
    verl's `k1+` and `k3+` have d. Gradients flow to `logprobs_BT`. Tokens of weight 0 are cleared first.
    """
    is_counted_BT = weights_BT > 0
    logprobs_BT = torch.where(is_counted_BT, logprobs_BT, 0.0)
    kl_BT = kl_penalty(logprobs_BT, torch.where(is_counted_BT, ref_logprobs_BT, 0.0), estimator)
    if importance_weight:
        kl_BT = kl_BT * (logprobs_BT - torch.where(is_counted_BT, old_logprobs_BT, 0.0)).exp()
    return (weights_BT * kl_BT).sum()
