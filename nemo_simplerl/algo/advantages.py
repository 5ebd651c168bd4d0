"""Moments over the response tokens of a whole rollout, and the advantages whitened by them.

Shapes: B sequences, T predicted tokens. `mask` is 1 where a token counts.
"""

import torch
import torch.distributed as dist
from torch import Tensor


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
