"""Copying weights into a transformers model, by name."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nemo_simplerl.rollout.base import Bucket
from nemo_simplerl.rollout.digest import copy_and_digest, digest


@torch.no_grad()
def copy_weights(model: PreTrainedModel, buckets: Iterable[Bucket], *, digests: bool) -> dict[str, int]:
    """Copy tensors into the parameters of their names, cast to their dtype; with `digests`, returns those by name.

    Tied names are one parameter: any of them fills it. Raises ValueError naming all that did not fit.
    """
    targets = dict(model.named_parameters(remove_duplicate=False))
    landed: dict[str, int] = {}
    filled_by: dict[int, str] = {}  # a parameter's id and the first name that filled it
    problems: list[str] = []
    number = 0  # of the bucket

    def take(bucket: Bucket) -> None:
        for name, tensor in bucket:
            target = targets.get(name)
            problem = f"unknown {name}" if target is None else _misfit(target, name, tensor, filled_by, landed)
            if target is None or problem:
                problems.append(f"{problem} (bucket {number})")
            else:
                filled_by.setdefault(id(target), name)
                landed[name] = _copy(target, tensor, with_digest=digests)

    for bucket in buckets:
        take(bucket)
        del bucket  # the sender makes the next one now; enumerate() would hold on to this one
        number += 1
    if missing := [name for name, target in model.named_parameters() if id(target) not in filled_by]:
        problems.append(f"missing {', '.join(missing)}")
    if problems:
        raise ValueError(
            f"the weights do not fit the engine's model: {'; '.join(problems)}. "
            "The trained model and the engine must be built from the same config.json."
        )
    return landed if digests else {}


def _misfit(target: Tensor, name: str, tensor: Tensor, filled_by: dict[int, str], landed: dict[str, int]) -> str | None:
    """Why a tensor cannot be copied, in words; None where it can."""
    if name in landed:
        return f"duplicate {name}"
    if target.shape != tensor.shape:
        return f"{name} is {tuple(tensor.shape)}, the model's is {tuple(target.shape)}"
    if id(target) in filled_by and not torch.equal(target, tensor.to(target)):
        return f"{name} differs from {filled_by[id(target)]}, to which config.json ties it"
    return None


def _copy(target: Tensor, tensor: Tensor, *, with_digest: bool) -> int:
    """Copy and cast; returns the digest of what landed, in the dtype that was sent, or 0."""
    if with_digest and target.dtype == tensor.dtype:
        return copy_and_digest(target, tensor)
    target.copy_(tensor)
    if not with_digest:
        return 0
    # A cast may lose bits, which cannot be cast back: the tensor landed if its cast is what the engine holds.
    return digest(tensor) if torch.equal(target, tensor.to(target.dtype)) else digest(target)
