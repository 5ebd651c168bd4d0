"""Adam's state of a sharded model, saved in pieces from which any parallel layout can restore it.

The key `KIND.tpRANK.NAME` holds one of KINDS for tensor rank RANK's flattened shard of the canonical parameter NAME.
Data ranks that share a shard under the distributed optimizer write a range of it each, and the index joins them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats.torch_dist import BlockSink, GlobalTensor
from nemo_simplerl.model.hf_map import EMBEDDING, OUTPUT_LAYER
from nemo_simplerl.model.sharding.load import layer_offset
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.learners.optimizer_parts import (
    MOMENTS,
    inner_optimizers,
    is_torch_adam,
    moments_of,
    stepped_parts,
)

FOLDER = "optimizer"
_MASTER = "master"  # the float32 copy that is stepped in place of bfloat16 weights
KINDS = (*MOMENTS, _MASTER)


@dataclass(frozen=True)
class _Piece:
    """The part of a parameter that this rank's optimizer steps: its flattened tensor shard from element `start` on."""

    name: str  # canonical, in the whole model
    param: Tensor
    stepped: Tensor
    start: int
    adam: Any
    is_replicated: bool  # over data ranks

    @property
    def has_master(self) -> bool:
        return self.stepped.dtype != self.param.dtype


@torch.no_grad()
def add_state(file: BlockSink, learner: Learner, hf: dict, mesh: Mesh) -> None:
    """Add to `file` every piece that this rank writes. No communication.

    Raises RuntimeError where the optimizer's own count of steps is not the learner's.
    """
    _check_steps(learner)
    for piece in _pieces(learner):
        entry = hf_map.mapping(piece.name, critic=learner.gpt.is_critic)
        is_others = (entry.tp_dim is None and mesh.tp_rank != 0) or (piece.is_replicated and mesh.dp_rank != 0)
        if is_others or _is_tied_copy(piece.name, learner.gpt, hf):
            continue
        tensors = moments_of(piece.adam, piece.stepped)
        if piece.has_master:
            tensors[_MASTER] = piece.stepped
        for kind, tensor in tensors.items():
            file.add(_key(kind, mesh.tp_rank, piece.name), tensor.reshape(-1), (piece.param.numel(),), (piece.start,))


@torch.no_grad()
def restore_state(
    learner: Learner,
    stored: Mapping[str, GlobalTensor],
    hf: dict,
    mesh: Mesh,
    *,
    tp_size: int,
    updates: int,
    skipped: int,
) -> None:
    """Restore the optimizer's state after `updates` updates, `skipped` of which were left out.

    tp_size: tensor-parallel size of the run that saved. Reads only what this rank holds; where that size differs, the
    whole parameters that this rank holds a part of.
    Raises ValueError where `stored` lacks a tensor or has one of another shape.
    """
    learner.updates, learner.skipped, is_critic = updates, skipped, learner.gpt.is_critic
    for piece in _pieces(learner):
        name = EMBEDDING if _is_tied_copy(piece.name, learner.gpt, hf) else piece.name
        entry, shape = hf_map.mapping(name, critic=is_critic), hf_map.param_shape(name, hf, critic=is_critic)
        shards = _Shards(stored, name, entry, shape, tp_size)
        targets = {_MASTER: piece.stepped} if piece.has_master else {}
        if learner.steps:
            moments = {kind: torch.empty_like(piece.stepped) for kind in MOMENTS}
            piece.adam.state[piece.stepped].update(moments)
            targets |= moments
        for kind, target in targets.items():
            flat = shards.part(kind, mesh.tp_rank, mesh.tp_size, piece.start, piece.start + target.numel())
            target.copy_(flat.view(target.shape))
    if learner.steps:
        _set_steps(learner)
    _check_steps(learner)


@dataclass(frozen=True)
class _Shards:
    """The saved state of a parameter, as `tp_size` tensor ranks wrote it."""

    stored: Mapping[str, GlobalTensor]
    name: str
    entry: hf_map.Mapping
    shape: tuple[int, ...]  # of the full parameter
    tp_size: int

    def part(self, kind: str, rank: int, size: int, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of the flattened shard that tensor rank `rank` of `size` holds."""
        if self.entry.tp_dim is None:
            return self._find(kind, 0).read_range(start, stop)
        if size == self.tp_size:
            return self._find(kind, rank).read_range(start, stop)
        shards = [self._find(kind, old).read().view(self._shard_shape()) for old in range(self.tp_size)]
        full = hf_map.unshard(self.entry.kind, shards, self.entry.tp_dim, self.shape[0])
        return hf_map.shard(self.entry.kind, full, self.entry.tp_dim, rank, size).reshape(-1)[start:stop]

    def _find(self, kind: str, rank: int) -> GlobalTensor:
        key, expected = _key(kind, rank, self.name), (math.prod(self._shard_shape()),)
        tensor = self.stored.get(key)
        if tensor is None or tensor.shape != expected:
            found = "none" if tensor is None else f"one of {tensor.shape[0]} elements"
            raise ValueError(f"the optimizer state should hold {key} of {expected[0]} elements and holds {found}.")
        return tensor

    def _shard_shape(self) -> tuple[int, ...]:
        dim, size = self.entry.tp_dim, self.tp_size
        if dim is None:
            return self.shape
        return (*self.shape[:dim], -(-self.shape[dim] // size), *self.shape[dim + 1 :])  # a vocabulary is padded


def _key(kind: str, tp_rank: int, name: str) -> str:
    return f"{kind}.tp{tp_rank}.{name}"


def _is_tied_copy(name: str, gpt: GPTModel, hf: dict) -> bool:
    """Whether a parameter is the last stage's copy of tied embeddings, whose state is that of the first stage's."""
    return name == OUTPUT_LAYER and not gpt.is_critic and hf.get("tie_word_embeddings", False)


def _pieces(learner: Learner) -> Iterator[_Piece]:
    """The pieces of all parameters that this rank's optimizer steps."""
    offset = layer_offset(learner.gpt)
    names = {param: hf_map.full_name(name, offset) for name, param in learner.gpt.named_parameters()}
    for inner in inner_optimizers(learner.optimizer):
        is_replicated = not isinstance(inner, DistributedOptimizer)
        for param, stepped, start in stepped_parts(inner):
            yield _Piece(names[param], param, stepped, start, inner.optimizer, is_replicated)


def _set_steps(learner: Learner) -> None:
    """Set the optimizer's count of steps to the learner's."""
    for inner in inner_optimizers(learner.optimizer):
        adam = inner.optimizer
        for group in adam.param_groups:
            if not is_torch_adam(adam):
                group["step"] = learner.steps
                continue
            for stepped in group["params"]:
                adam.state[stepped]["step"] = torch.tensor(float(learner.steps), device=learner.mesh.device)


def _check_steps(learner: Learner) -> None:
    """Raise RuntimeError where the optimizer's count of steps is not the learner's."""
    steps: set[int] = set()
    for inner in inner_optimizers(learner.optimizer):
        adam = inner.optimizer
        if is_torch_adam(adam):
            steps |= {int(state["step"]) for state in adam.state.values()}
        else:
            steps |= {int(group["step"]) for group in adam.param_groups if group["params"] and "step" in group}
    if steps - {learner.steps}:
        raise RuntimeError(f"the optimizer counts {sorted(steps)} steps and its learner {learner.steps} updates.")
