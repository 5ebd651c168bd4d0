"""Metrics and objects combined across a group of ranks. `group` None is this rank alone."""

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.parallel.waits import waiting

T = TypeVar("T")


def all_reduce_metrics(metrics: Mapping[str, Tensor | float], group: dist.ProcessGroup | None) -> dict[str, float]:
    """The group's metrics as floats, in the order given: keys ending in `_max` reduced by maximum, others by sum.

    Collective, with the same keys on every rank (in any order): one all-reduce in float64 for the sums and one for the
    maxima, on the device of the tensors given. A maximum over a NaN is infinite: not every backend's own would show it.
    """
    tensors = (value for value in metrics.values() if isinstance(value, Tensor))
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    reduced: dict[str, float] = {}
    for operation, is_max in ((dist.ReduceOp.SUM, False), (dist.ReduceOp.MAX, True)):
        keys = sorted(key for key in metrics if key.endswith("_max") == is_max)
        packed = torch.tensor([float(metrics[key]) for key in keys], dtype=torch.float64, device=device)
        if is_max:
            packed = packed.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        if group is not None and keys:
            with waiting("all_reduce.metrics"):
                dist.all_reduce(packed, op=operation, group=group)
        reduced.update(zip(keys, packed.tolist(), strict=True))
    return {key: reduced[key] for key in metrics}


def gather_objects(obj: T, group: dist.ProcessGroup | None, what: str = "objects") -> list[T]:
    """Every rank's object, in the order of ranks, on every rank. Collective; objects are pickled.

    what: the name of this wait for the watchdog (waits.py).
    """
    if group is None or group.size() == 1:
        return [obj]
    gathered: list = [None] * group.size()
    with waiting(f"gather.{what}"):
        dist.all_gather_object(gathered, obj, group=group)
    return gathered


def gather_to_first(obj: T, group: dist.ProcessGroup | None, what: str) -> list[T]:
    """Every rank's object, in the order of ranks, on the group's first rank; none elsewhere. Collective.

    what: as in `gather_objects`.
    """
    if group is None or group.size() == 1:
        return [obj]
    gathered: list | None = [None] * group.size() if group.rank() == 0 else None
    with waiting(f"gather.{what}"):
        dist.gather_object(obj, gathered, dst=dist.get_global_rank(group, 0), group=group)
    return gathered or []


def of_first_rank(obj: T, what: str, group: dist.ProcessGroup | None = None) -> T:
    """The object of the group's first rank, on every rank of it: its view of the disk is the one that counts.
    Collective.

    what: as in `gather_objects`. group: None is the world.
    """
    return gather_objects(obj, group or dist.group.WORLD, what)[0]


def of_rank(obj: T | None, rank: int, what: str) -> T:
    """The object of one rank of the world, on every rank of it. Collective.

    what: as in `gather_objects`.
    """
    carrier = [obj]
    if dist.get_world_size() > 1:
        with waiting(f"gather.{what}"):
            dist.broadcast_object_list(carrier, src=rank)
    return carrier[0]  # type: ignore[return-value]


def any_rank(is_true: bool, device: torch.device, group: dist.ProcessGroup | None) -> bool:
    """Whether `is_true` holds on any rank of the group. Collective: one all-reduce of one number."""
    if group is None or group.size() == 1:
        return is_true
    flag = torch.tensor(int(is_true), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
    return bool(flag.item())
