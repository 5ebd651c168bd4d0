"""Per-token estimates of KL(policy || reference) at sampled tokens.

Shapes: B sequences, T predicted tokens.
"""

import torch
from torch import Tensor


def kl_penalty(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, estimator: str) -> Tensor:
    """KL estimate in nats a token, float32 [B, T], with d = logprob - reference logprob.

    `k1` d, signed and unbiased; `k2` d^2 / 2; `k3` exp(-d) - 1 + d, unbiased and never negative (Schulman
    2020, "Approximating KL Divergence"); `abs` |d|. Raises ValueError for another name.
    """
    log_ratio_BT = logprobs_BT.float() - ref_logprobs_BT.float()
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
