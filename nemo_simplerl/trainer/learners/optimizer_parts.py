"""Inside Megatron's optimizers: their Adam instances, the tensors that each steps, and the state of those."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def inner_optimizers(optimizer: Any) -> list[Any]:
    """Megatron's optimizers, each around one Adam: a model's parameters may be divided among several."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def fuse_torch_adam(optimizer: Any) -> None:
    """Have torch's Adam, which stands in for the fused ones of Transformer Engine and Apex, step in one kernel too."""
    for inner in inner_optimizers(optimizer):
        if is_torch_adam(inner.optimizer):
            for group in inner.optimizer.param_groups:
                group["fused"] = True


def is_torch_adam(adam: Any) -> bool:
    """Whether this is torch's Adam, which counts steps for each parameter; those of TE and Apex count for a group."""
    return isinstance(adam, torch.optim.Adam | torch.optim.AdamW)


def stepped_parts(inner: Any) -> Iterator[tuple[Tensor, Tensor, int]]:
    """(model parameter, the tensor that Adam steps for it, where that begins in the flattened parameter) for each."""
    if isinstance(inner, DistributedOptimizer):
        # Not by `_get_main_param_and_optimizer_states`: it takes one parameter for another in a group of both dtypes,
        # such as a bfloat16 critic with its float32 head.
        params = chain(*inner.model_fp32_groups, *inner.model_float16_groups)
        parts = chain(*inner.shard_fp32_groups, *inner.shard_fp32_from_float16_groups)
        for param, part in zip(params, parts, strict=True):
            yield param, part, inner._get_model_param_range_map(param)["param"].start
    elif isinstance(inner, Float16OptimizerWithFloat16Params):
        params = chain(*inner.fp32_from_fp32_groups, *inner.float16_groups)
        copies = chain(*inner.fp32_from_fp32_groups, *inner.fp32_from_float16_groups)
        yield from ((param, copy, 0) for param, copy in zip(params, copies, strict=True))
    else:
        yield from ((param, param, 0) for group in inner.param_groups for param in group["params"])


def moments_of(adam: Any, stepped: Tensor) -> dict[str, Tensor]:
    """Adam's moments of a tensor that it steps, by name; none before the first update."""
    state = adam.state.get(stepped, {})
    return {name: state[name] for name in MOMENTS if name in state}
