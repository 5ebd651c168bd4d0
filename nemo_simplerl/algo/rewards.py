"""The reward of every token: a KL penalty on each, and the sequence's score on the last.

Shapes: B sequences, T predicted tokens. `mask` is 1 where a token belongs to the response.
"""

import torch
from torch import Tensor


def token_rewards(
    scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float, reward_clip: float | None = None
) -> Tensor:
    """Rewards in float32 [B, T]: -kl_coef * kl on response tokens, plus the score on each row's last one.

    `reward_clip` bounds the score's absolute value and leaves the KL term alone. Zero outside the mask,
    whatever kl holds there (Ouyang 2022, equation 2, spread over tokens). Raises ValueError for a row without
    a response token.
    """
    is_response_BT = mask_BT > 0
    empty_rows = (~is_response_BT.any(dim=1)).nonzero().flatten().tolist()
    if empty_rows:
        raise ValueError(
            f"rows {empty_rows} have no response token to carry their score; "
            f"every completion needs at least one token in the mask"
        )
    scores_B = scores_B.float()
    if reward_clip is not None:
        scores_B = scores_B.clamp(-reward_clip, reward_clip)
    rewards_BT = torch.where(is_response_BT, -kl_coef * kl_BT.float(), 0.0)
    positions_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    last_B1 = (is_response_BT * positions_T).argmax(dim=1, keepdim=True)
    return rewards_BT.scatter_add(1, last_B1, scores_B[:, None])
