"""Buckets of full tensors under Hugging Face names from a sharded Megatron model, for the rollout engines."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
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


class HfExport:
    """Every weight once, full-sized, under its Hugging Face name, in buckets of at most `max_bytes`; a larger parameter
    has a bucket of its own. Iterate over it once. Collective over the ranks of a replica: each must go to the end.

    Iterating yields each bucket as an iterator of (name, tensor) pairs, whose parameters are gathered already and made
    into full tensors one after the other, on the ranks that ask for them alone. Pipeline stages follow each other, each
    in the order of its parameters, and the model is never gathered whole. Use a bucket's tensors before the next bucket
    is asked for: they may be views of the parameters, or of the one buffer that all buckets share. Tensors that are no
    views take memory of their own until the caller drops them.
    """

    def __init__(self, gpt: GPTModel, hf: dict, mesh: Mesh, max_bytes: int):
        self._gpt, self._hf, self._mesh, self._max_bytes = gpt, hf, mesh, max_bytes
        self.has_buffer = mesh.tp_size * mesh.pp_size > 1  # else all tensors are the parameters' own or copies
        self.device = mesh.device

    @cached_property
    def contents(self) -> list[list[tuple[str, Tensor]]]:
        """Names, shapes and dtypes of each bucket's tensors, as tensors without bytes (device `meta`). Collective."""
        return [list(self._meta_tensors(group)) for groups in self._stages for group in groups]

    def __iter__(self) -> Iterator[Iterator[tuple[str, Tensor]]]:
        params, mesh = dict(self._gpt.named_parameters()), self._mesh
        largest = max(_offsets(group)[-1] for groups in self._stages for group in groups)
        num_bytes = mesh.tp_size * largest if self.has_buffer else 0
        buffer = torch.empty(num_bytes, dtype=torch.uint8, device=mesh.device)
        for stage, groups in enumerate(self._stages):
            for group in groups:
                own = [params[entry.param_name].detach() for entry in group] if stage == mesh.pp_rank else None
                yield self._tensors(group, list(_shards(group, own, stage, buffer, mesh)))

    @cached_property
    def _stages(self) -> list[list[list[_Entry]]]:
        """The parameters of each bucket of each stage. Collective."""
        stage_entries = gather_objects(_stage_entries(self._gpt, self._hf), self._mesh.pipeline)
        return [_groups(entries, self._max_bytes, self._mesh.tp_size) for entries in stage_entries]

    def _tensors(self, group: list[_Entry], shards: list[list[Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for entry, shards_of_entry in zip(group, shards, strict=True):
            yield from _hf_tensors(entry.mapping, shards_of_entry, self._hf)

    def _meta_tensors(self, group: list[_Entry]) -> Iterator[tuple[str, Tensor]]:
        for entry in group:
            shard = torch.empty(entry.shard_shape, dtype=entry.dtype, device="meta")
            shards = [shard] * (self._mesh.tp_size if entry.is_sharded else 1)
            yield from _hf_tensors(entry.mapping, shards, self._hf)


def hf_buckets(gpt: GPTModel, hf: dict, mesh: Mesh, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    """The buckets of an HfExport, with all tensors of a bucket made on every rank. Collective over the replica.

    Where a rank fails to make a tensor, it takes part in gathering the others before it raises: other ranks are in the
    same collectives.
    """
    buckets = iter(HfExport(gpt, hf, mesh, max_bytes))
    try:
        for tensors in buckets:
            # Neither a name here nor a decorator's frame may hold the bucket: it would stay alive beside the next one.
            yield list(tensors)
    except Exception:
        for _ in buckets:
            pass
        raise


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
