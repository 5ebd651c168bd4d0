"""Buckets of full tensors under Hugging Face names from a sharded Megatron model, for the rollout engines."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.hf_map import OUTPUT_LAYER, heads_of
from nemo_simplerl.model.sharding.load import layer_offset
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import gather_objects

# The second name leaves torch, the first is not in all of its supported versions.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_ALIGNMENT = 16  # of tensors in a packed buffer: every dtype can view its part


@dataclass(frozen=True)
class _Entry:
    """The description of one parameter of a pipeline stage by which the other stages receive it."""

    param_name: str
    mapping: hf_map.Mapping
    shard_shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def is_sharded(self) -> bool:
        return self.mapping.tp_dim is not None

    @property
    def shard_bytes(self) -> int:
        return math.prod(self.shard_shape) * self.dtype.itemsize


def hf_buckets(gpt: GPTModel, hf: dict, mesh: Mesh, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Every weight once, full-sized on every rank, as (Hugging Face name, tensor) pairs in buckets of at most
    `max_bytes`; a larger parameter has a bucket of its own. Collective: each rank must consume all buckets.

    Pipeline stages follow each other, each in the order of its parameters, and the model is never gathered whole. Use a
    bucket's tensors before the next bucket is asked for: they may be views of the parameters, or of the one buffer that
    all buckets share. Tensors that are no views take memory of their own until the caller drops them.
    """
    params = dict(gpt.named_parameters())
    stage_entries = gather_objects(_stage_entries(gpt, hf), mesh.pipeline)
    stages = [_groups(entries, max_bytes, mesh.tp_size) for entries in stage_entries]
    largest = max(_offsets(group)[-1] for groups in stages for group in groups)
    is_alone = mesh.tp_size == mesh.pp_size == 1
    buffer = torch.empty(0 if is_alone else mesh.tp_size * largest, dtype=torch.uint8, device=mesh.device)
    for stage, groups in enumerate(stages):
        for group in groups:
            own = [params[entry.param_name].detach() for entry in group] if stage == mesh.pp_rank else None
            # Neither a name here nor a decorator's frame may hold the bucket: it would stay alive beside the next one.
            yield _bucket(group, own, stage, buffer, hf, mesh)


def _stage_entries(gpt: GPTModel, hf: dict) -> list[_Entry]:
    offset = layer_offset(gpt)
    entries = []
    for name, param in gpt.named_parameters():
        if name == OUTPUT_LAYER and hf.get("tie_word_embeddings", False) and not gpt.is_critic:
            continue  # the last stage's copy of the embeddings
        mapping = hf_map.mapping(name, offset, critic=gpt.is_critic)
        entries.append(_Entry(name, mapping, tuple(param.shape), param.dtype))
    return entries


def _groups(entries: list[_Entry], max_bytes: int, tp_size: int) -> list[list[_Entry]]:
    """The entries in their order, cut before the full tensors of a group would pass `max_bytes`."""
    groups: list[list[_Entry]] = []
    size = max_bytes
    for entry in entries:
        full_bytes = entry.shard_bytes * (tp_size if entry.is_sharded else 1)
        if not groups or size + full_bytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += full_bytes
    return groups


@torch.no_grad()
def _bucket(
    group: list[_Entry], own: list[Tensor] | None, stage: int, buffer: Tensor, hf: dict, mesh: Mesh
) -> list[tuple[str, Tensor]]:
    """The Hugging Face tensors of a group of parameters. own: this rank's shards if it is of `stage`. Collective."""
    bucket: list[tuple[str, Tensor]] = []
    for entry, shards in zip(group, _shards(group, own, stage, buffer, mesh), strict=True):
        bucket += _hf_tensors(entry.mapping, shards, hf)
    return bucket


def _hf_tensors(mapping: hf_map.Mapping, shards: list[Tensor], hf: dict) -> Iterable[tuple[str, Tensor]]:
    """(Hugging Face name, full tensor) pairs of one parameter: views of its shards where they are contiguous, copies
    where shards or interleaved parts must be joined."""
    full = shards[0] if len(shards) == 1 else hf_map.unshard(mapping.kind, shards, mapping.tp_dim, hf["vocab_size"])
    if mapping.kind == "vocab":
        full = full[: hf["vocab_size"]]
    return zip(mapping.hf_names, hf_map.split(mapping.kind, full, heads_of(hf)), strict=True)


def _shards(
    group: list[_Entry], own: list[Tensor] | None, stage: int, buffer: Tensor, mesh: Mesh
) -> Iterator[list[Tensor]]:
    """Each parameter's shards in the order of tensor ranks, one shard for a replicated parameter. All but a rank's own
    shards are views of `buffer`, which is bytes. Collective: at most one broadcast and one all-gather.

    The stage broadcasts its shards along the pipeline before tensor ranks gather them: stages, which are far apart,
    then exchange one tensor rank's shards, and only the ranks of a tensor-parallel group exchange all of them.
    """
    if mesh.tp_size == mesh.pp_size == 1:
        assert own is not None
        yield from ([param] for param in own)
        return
    *offsets, packed_bytes = _offsets(group)
    rows = buffer[: mesh.tp_size * packed_bytes].view(mesh.tp_size, packed_bytes)
    mine = rows[mesh.tp_rank]
    for offset, param in zip(offsets, own or [], strict=own is not None):
        mine[offset : offset + param.nbytes] = param.contiguous().view(-1).view(torch.uint8)
    if mesh.pp_size > 1:
        dist.broadcast(mine, mesh.stage_rank(stage), group=mesh.pipeline)
    if mesh.tp_size > 1:
        _all_gather(rows.view(-1), mine, group=mesh.tensor)
    for index, (entry, offset) in enumerate(zip(group, offsets, strict=True)):
        if entry.is_sharded and mesh.tp_size > 1:
            yield [_view(row, offset, entry) for row in rows]
        else:
            yield [_view(mine, offset, entry) if own is None else own[index]]


def _offsets(group: list[_Entry]) -> list[int]:
    """Byte offset of each parameter's shard when they are packed one after the other, and the end of the last."""
    return list(accumulate((-(-entry.shard_bytes // _ALIGNMENT) * _ALIGNMENT for entry in group), initial=0))


def _view(buffer: Tensor, offset: int, entry: _Entry) -> Tensor:
    return buffer[offset : offset + entry.shard_bytes].view(entry.dtype).view(entry.shard_shape)
