"""Generalised advantage estimation (Schulman 2016, arXiv:1506.02438).

Shapes: B sequences, T predicted tokens. `mask` is 1 where a token belongs to the response.
"""

import torch
from torch import Tensor


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, float32 [B, T], zero outside the mask.

    values[t] is the value of the state before token t is emitted. The response is one contiguous run of the
    mask; the state after it is terminal, so its value is 0. Equation 16, as the recursion A[t] = delta[t] +
    gamma * lam * A[t+1] with delta[t] = reward[t] + gamma * value[t+1] - value[t]; the return is A[t] +
    value[t].
    """
    is_response_BT = mask_BT > 0
    rewards_BT = torch.where(is_response_BT, rewards_BT.float(), 0.0)
    values_BT = torch.where(is_response_BT, values_BT.float(), 0.0)
    advantages_BT = torch.zeros_like(values_BT)
    next_advantage_B = torch.zeros_like(values_BT[:, 0])
    next_value_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = delta_B + gamma * lam * next_advantage_B
        next_value_B = values_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
    # Prompt positions precede the response, so the recursion has run on into them.
    advantages_BT = torch.where(is_response_BT, advantages_BT, 0.0)
    return advantages_BT, advantages_BT + values_BT
