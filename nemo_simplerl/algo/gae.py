"""Generalised advantage estimation (Schulman 2016, arXiv:1506.02438).

Shapes: B sequences, T predicted tokens. `mask` is 1 where a token belongs to the response.
"""

import torch
from torch import Tensor


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Advantages and returns [B, T], float32 or as wide as the inputs where these are wider, zero outside the mask.

    values[t] is the value of the state before token t is emitted. The response is one contiguous run of the
    mask; the state after it is terminal, so its value is 0. Equation 16, as the recursion A[t] = delta[t] +
    gamma * lam * A[t+1] with delta[t] = reward[t] + gamma * value[t+1] - value[t]; the return is A[t] +
    value[t]. lam: one number, or a tensor [B, 1] with one for each row.
    """
    is_response_BT = mask_BT > 0
    rewards_BT = torch.where(is_response_BT, _at_least_float32(rewards_BT), 0.0)
    values_BT = torch.where(is_response_BT, _at_least_float32(values_BT), 0.0)
    next_values_BT = torch.nn.functional.pad(values_BT[:, 1:], (0, 1))
    deltas_BT = rewards_BT + gamma * next_values_BT - values_BT
    # Prompt positions precede the response, so the sum has run on into them.
    advantages_BT = torch.where(is_response_BT, discounted_sum(deltas_BT, gamma * lam), 0.0)
    return advantages_BT, advantages_BT + values_BT


def length_adaptive_lambda(mask_BT: Tensor, alpha: float) -> Tensor:
    """lambda = 1 - 1 / (alpha * l) for a response of l tokens, float64 [B, 1] (VAPO, arXiv:2504.05118).

    It makes the sum of all lambda^k, 1 / (1 - lambda), the share alpha of the length. Negative below 1 / alpha tokens
    as published: 0 there, which is one step of temporal difference, as NeMo RL and AReaL do.
    """
    lengths_B1 = (mask_BT > 0).sum(dim=1, keepdim=True).double()
    return (1.0 - 1.0 / (alpha * lengths_B1)).clamp(min=0.0)


def _at_least_float32(values_BT: Tensor) -> Tensor:
    return values_BT.to(torch.promote_types(values_BT.dtype, torch.float32))


def discounted_sum(terms_BT: Tensor, discount: float | Tensor) -> Tensor:
    """S[t] = terms[t] + discount * S[t+1], in log2 T passes over all columns instead of one pass a column.

    The sum of the next k terms, and discount**k times the sum of the k terms after those, is the sum of the next 2k
    (Hillis and Steele 1986, "Data parallel algorithms"). discount: a number, or a tensor [B, 1].
    """
    sums_BT, reach = terms_BT.clone(), 1
    while reach < sums_BT.shape[1]:
        factor = discount**reach
        if isinstance(factor, Tensor):
            later_BT = factor.to(sums_BT.dtype) * sums_BT[:, reach:]
            sums_BT[:, :-reach] = sums_BT[:, :-reach] + later_BT
        else:
            sums_BT[:, :-reach] = torch.add(sums_BT[:, :-reach], sums_BT[:, reach:], alpha=factor)
        reach *= 2
    return sums_BT
