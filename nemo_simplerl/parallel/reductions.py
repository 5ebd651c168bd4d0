"""Sums, means, metrics and objects gathered across a group of ranks. `group` None is this rank alone."""

from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def masked_sum(values: Tensor, mask: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum of the values where `mask` is 1, over every rank of `group`: a float64 scalar. Collective."""
    total = torch.where(mask > 0, values.detach().double(), 0.0).sum()
    if not _is_alone(group):
        dist.all_reduce(total, group=group)
    return total


def masked_mean(values: Tensor, mask: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Mean of the values where `mask` is 1, over every rank of `group`: a float64 scalar. Collective.

    The mean of the tokens, not of the ranks' means. 0 where the mask is empty everywhere.
    """
    is_counted = mask > 0
    total_and_count = torch.stack(
        [torch.where(is_counted, values.detach().double(), 0.0).sum(), is_counted.sum().double()]
    )
    if not _is_alone(group):
        dist.all_reduce(total_and_count, group=group)
    total, count = total_and_count
    return total / count.clamp(min=1.0)


def all_reduce_metrics(
    metrics: Mapping[str, Tensor | float], group: dist.ProcessGroup | None
) -> dict[str, float]:
    """The group's metrics as floats, in the order given: keys ending in `_max` by maximum, every other by sum.

    Collective, with the same keys on every rank (in any order). One all-reduce in float64 a kind, on the device of the
    tensors given.
    """
    device = next(
        (value.device for value in metrics.values() if isinstance(value, Tensor)), torch.device("cpu")
    )
    reduced: dict[str, float] = {}
    for keys, operation in (
        (sorted(key for key in metrics if not key.endswith("_max")), dist.ReduceOp.SUM),
        (sorted(key for key in metrics if key.endswith("_max")), dist.ReduceOp.MAX),
    ):
        if not keys:
            continue
        packed = torch.stack(
            [torch.as_tensor(metrics[key], dtype=torch.float64, device=device).detach() for key in keys]
        )
        if not _is_alone(group):
            dist.all_reduce(packed, op=operation, group=group)
        reduced.update(zip(keys, packed.tolist(), strict=True))
    return {key: reduced[key] for key in metrics}


def gather_objects(obj: T, group: dist.ProcessGroup | None) -> list[T]:
    """Every rank's object, in the order of ranks, on every rank of `group`. Collective. Objects are pickled."""
    if group is None or _is_alone(group):
        return [obj]
    gathered: list = [None] * group.size()
    dist.all_gather_object(gathered, obj, group=group)
    return gathered


def _is_alone(group: dist.ProcessGroup | None) -> bool:
    return group is None or group.size() == 1
