"""Megatron shards -> a stream of full, Hugging Face-named tensors. Feeds the rollout engines."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.hf_map import VALUE_HEAD, heads_of
from nemo_simplerl.model.network.value_head import ValueHead
from nemo_simplerl.model.sharding.load import layer_offset
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import gather_objects

# The second name leaves torch, the first is not in all of its supported versions.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_EXPORT_BYTES = 2**28
_ALIGNMENT = 16  # of tensors in a packed buffer: every dtype can view its part


@dataclass(frozen=True)
class _Entry:
    """One parameter of a stage, as the other stages must know it to receive it."""

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
    """Every weight once, full-sized on every rank, in buckets of at most `max_bytes`; a larger parameter travels alone.
    Collective: each rank must consume all of it.

    Stages follow each other, each in the order of its parameters, and the model is never gathered whole. Use a bucket's
    tensors before the next is asked for: they may be views of the parameters, or of the one buffer that all buckets
    pass through. Beside it a bucket's own tensors take memory, which they give back as the caller lets go of them.
    """
    params = dict(gpt.named_parameters())
    everyones = gather_objects(_stage_entries(gpt, hf), mesh.pipeline)
    stages = [_groups(entries, max_bytes, mesh.tp_size) for entries in everyones]
    largest = max(_offsets(group)[-1] for groups in stages for group in groups)
    is_alone = mesh.tp_size == mesh.pp_size == 1
    buffer = torch.empty(0 if is_alone else mesh.tp_size * largest, dtype=torch.uint8, device=mesh.device)
    for stage, groups in enumerate(stages):
        for group in groups:
            own = [params[entry.param_name].detach() for entry in group] if stage == mesh.pp_rank else None
            # Under no name here, nor in a decorator's frame, which would keep it alive while the next one is made.
            yield _bucket(group, own, stage, buffer, hf, mesh)


def hf_stream(gpt: GPTModel, hf: dict, mesh: Mesh, max_bytes: int = _EXPORT_BYTES) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `hf_buckets` one by one: use each before the next. Collective."""
    for bucket in hf_buckets(gpt, hf, mesh, max_bytes):
        yield from bucket
        del bucket


def _stage_entries(gpt: GPTModel, hf: dict) -> list[_Entry]:
    offset = layer_offset(gpt)
    entries = []
    for name, param in gpt.named_parameters():
        if name == "output_layer.weight":
            if isinstance(gpt.output_layer, ValueHead):
                entry = hf_map.Mapping((VALUE_HEAD,), "plain", None)
                entries.append(_Entry(name, entry, tuple(param.shape), param.dtype))
                continue
            if hf.get("tie_word_embeddings", False):
                continue  # the last stage's copy of the embeddings
        entries.append(_Entry(name, hf_map.mapping(name, offset), tuple(param.shape), param.dtype))
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
    """The Hugging Face tensors of a group of parameters. `own`: this rank's shards, on their stage. Collective."""
    bucket: list[tuple[str, Tensor]] = []
    for entry, shards in zip(group, _shards(group, own, stage, buffer, mesh), strict=True):
        bucket += _hf_tensors(entry.mapping, shards, hf)
    return bucket


def _hf_tensors(mapping: hf_map.Mapping, shards: list[Tensor], hf: dict) -> Iterable[tuple[str, Tensor]]:
    """Copies only where a parameter's shards, or its interleaved parts, lie apart; views of the shards elsewhere."""
    full = shards[0] if len(shards) == 1 else hf_map.unshard(mapping.kind, shards, mapping.tp_dim, hf["vocab_size"])
    if mapping.kind == "vocab":
        full = full[: hf["vocab_size"]]
    return zip(mapping.hf_names, hf_map.split(mapping.kind, full, heads_of(hf)), strict=True)


def _shards(
    group: list[_Entry], own: list[Tensor] | None, stage: int, buffer: Tensor, mesh: Mesh
) -> Iterator[list[Tensor]]:
    """Every parameter's shards by tensor rank, one for a replicated parameter; all but a rank's own ones are views of
    `buffer`, bytes. Collective: at most one broadcast and one all-gather.

    Shards go down the pipeline before they are gathered, so that the stages, which are far apart, exchange a tensor
    rank's part and only the ranks of a tensor group the whole.
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
    """Where each parameter's shard begins when they are packed one after the other, in bytes, and where all end."""
    return list(accumulate((-(-entry.shard_bytes // _ALIGNMENT) * _ALIGNMENT for entry in group), initial=0))


def _view(buffer: Tensor, offset: int, entry: _Entry) -> Tensor:
    return buffer[offset : offset + entry.shard_bytes].view(entry.dtype).view(entry.shard_shape)
