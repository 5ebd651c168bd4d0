"""Advantages that need no critic, and whitening by the moments of a whole rollout.

Shapes: B sequences, T predicted tokens, G groups. `mask` is 1 where a token counts. A group is the responses to one
prompt, wherever they are: `groups_B` holds each sequence's group as a number below `num_groups`, and statistics of a
group are summed over the ranks of `group`.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.algo.gae import discounted_sum

_STD_EPS = 1e-6  # verl's; TRL adds 1e-4, OpenRLHF 1e-9


def group_advantages(
    scores_B: Tensor,
    groups_B: Tensor,
    num_groups: int,
    *,
    divide_by_std: bool,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Each score above the mean of its group, float32 [B] (Dr. GRPO, arXiv:2503.20783); divided by the deviation of the
    group's scores too, it is GRPO's (arXiv:2402.03300).

    The deviation is the sample's, with n - 1, as in verl, TRL and OpenRLHF, plus 1e-6: two scores 0 and 1 give -0.7071
    and 0.7071. Equal scores, and a group of one, give exactly 0. Collective when `group` is given.
    """
    above_B, count_G = _above_group_mean(scores_B, groups_B, num_groups, group)
    if divide_by_std:
        (squares_G,) = _group_sums(above_B.square()[None], groups_B, num_groups, group)
        std_G = (squares_G / (count_G - 1).clamp(min=1.0)).sqrt()
        above_B = above_B / (std_G + _STD_EPS)[groups_B]
    return above_B.float()


def leave_one_out_advantages(
    scores_B: Tensor, groups_B: Tensor, num_groups: int, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Each score above the mean of the others of its group, float32 [B] (RLOO, arXiv:2402.14740).

    In a group of n that is n / (n - 1) times the score above the mean of all. Equal scores, and a group of one, which
    has no others, give exactly 0. Collective when `group` is given.
    """
    above_B, count_G = _above_group_mean(scores_B, groups_B, num_groups, group)
    return (above_B * (count_G / (count_G - 1).clamp(min=1.0))[groups_B]).float()


def equal_groups_share(
    scores_B: Tensor, groups_B: Tensor, num_groups: int, group: dist.ProcessGroup | None = None
) -> Tensor:
    """The share of groups whose scores are all equal, a float64 scalar: they tell no better response from a worse one.

    Collective when `group` is given.
    """
    above_B, count_G = _above_group_mean(scores_B, groups_B, num_groups, group)
    (squares_G,) = _group_sums(above_B.square()[None], groups_B, num_groups, group)
    return ((squares_G == 0) & (count_G > 0)).sum() / (count_G > 0).sum().double()


def rewards_to_go(rewards_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """The discounted sum of the rewards from each token on, [B, T], zero outside the mask; float32 of anything less.

    The advantage of REINFORCE++ before it is whitened (arXiv:2501.03262). The response is one contiguous run of the
    mask; a row without one is all zeros.
    """
    rewards_BT = rewards_BT.to(torch.promote_types(rewards_BT.dtype, torch.float32))
    rewards_BT = torch.where(mask_BT > 0, rewards_BT, 0.0)
    return torch.where(mask_BT > 0, discounted_sum(rewards_BT, gamma), 0.0)


def _above_group_mean(
    scores_B: Tensor, groups_B: Tensor, num_groups: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Float64: each score less the mean of its group, [B], and the number of scores of every group, [G]."""
    scores_B = scores_B.double()
    count_G, total_G = _group_sums(torch.stack([torch.ones_like(scores_B), scores_B]), groups_B, num_groups, group)
    return scores_B - (total_G / count_G)[groups_B], count_G


def _group_sums(
    values_XB: Tensor, groups_B: Tensor, num_groups: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, ...]:
    """For each row of float64 `values_XB` its sums by group, [G], over all ranks.

    Sums of float32 scores are exact in float64, whatever the order, unless their sizes differ by more than 2^20.
    """
    sums_XG = values_XB.new_zeros(len(values_XB), num_groups).index_add_(1, groups_B, values_XB)
    return _sum_over_ranks(sums_XG, group).unbind()


def whiten(advantages_BT: Tensor, mask_BT: Tensor, group: dist.ProcessGroup | None = None, eps: float = 1e-8) -> Tensor:
    """Advantages shifted and scaled to mean 0 and biased variance 1 over the group's masked tokens.

    Float32 [B, T], zero outside the mask. The variance is raised to `eps` where it is smaller, so equal
    advantages become zeros. Collective when `group` is given.
    """
    mean, variance = masked_moments(advantages_BT, mask_BT, group)
    whitened_BT = (advantages_BT.double() - mean) * variance.clamp(min=eps).rsqrt()
    return torch.where(mask_BT > 0, whitened_BT, 0.0).float()


def masked_moments(values_BT: Tensor, mask_BT: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, float64 scalars, over the group's masked values (None: this rank's).

    Zeros where nothing is masked in. Two passes in float64: the digits that reach float32 then do not depend
    on how the rows are spread over ranks. Collective when `group` is given.
    """
    is_counted_BT = mask_BT > 0
    values_BT = torch.where(is_counted_BT, values_BT.double(), 0.0)
    total, count = _sum_over_ranks(torch.stack([values_BT.sum(), is_counted_BT.sum().double()]), group)
    count = count.clamp(min=1.0)
    mean = total / count
    deviations_BT = torch.where(is_counted_BT, values_BT - mean, 0.0)
    return mean, _sum_over_ranks(deviations_BT.square().sum(), group) / count


def _sum_over_ranks(sums: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(sums, group=group)
    return sums
