"""Megatron's optimizer, built by the ranks of one model alone."""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


class _With(types.ModuleType):
    """A module, but for the attributes that are given."""

    def __init__(self, module: types.ModuleType, **changes: Any):
        super().__init__(module.__name__)
        self.__dict__.update(changes, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextmanager
def optimizer_of_ranks(group: dist.ProcessGroup) -> Iterator[None]:
    """Use as a context around `get_megatron_optimizer`: what it gathers from the world is gathered from `group`.

    Its ranks agree on the kinds of parameters that any of them has (`_get_param_groups`, 0.16.1 to 0.19.2), by an
    all-gather over the world that takes no group. It hangs where a rank builds no model, and mixes up the kinds of two
    models that are built at the same time.
    """
    from megatron.core import optimizer

    def gather(objects: list, mine: object) -> None:
        dist.all_gather_object(objects, mine, group=group)

    module: Any = optimizer
    module.torch = _With(torch, distributed=_With(dist, get_world_size=group.size, all_gather_object=gather))
    try:
        yield
    finally:
        module.torch = torch
