"""Megatron shards -> a stream of full, Hugging Face-named tensors. Feeds the rollout engines."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.hf_map import VALUE_HEAD, heads_of
from nemo_simplerl.model.load import layer_offset
from nemo_simplerl.model.value_head import ValueHead
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

    Stages follow each other, each in the order of its parameters, and the model is never gathered whole. Tensors may be
    views of the parameters: use them before the next bucket is asked for. The rest of a bucket is freed when the caller
    lets go of it; making the next takes twice its size, gathered and under its new names.
    """
    params = dict(gpt.named_parameters())
    for stage, entries in enumerate(gather_objects(_stage_entries(gpt, hf), mesh.pipeline)):
        for group in _groups(entries, max_bytes, mesh.tp_size):
            own = [params[entry.param_name].detach() for entry in group] if stage == mesh.pp_rank else None
            # Under no name here, nor in a decorator's frame, which would keep it alive while the next one is made.
            yield _bucket(group, own, stage, hf, mesh)


def hf_stream(gpt: GPTModel, hf: dict, mesh: Mesh, max_bytes: int = _EXPORT_BYTES) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `hf_buckets` one by one. Collective."""
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


def _groups(entries: list[_Entry], max_bytes: int, tp_size: int) -> Iterator[list[_Entry]]:
    """The entries in their order, cut before the full tensors of a group would pass `max_bytes`."""
    group: list[_Entry] = []
    size = 0
    for entry in entries:
        full_bytes = entry.shard_bytes * (tp_size if entry.is_sharded else 1)
        if group and size + full_bytes > max_bytes:
            yield group
            group, size = [], 0
        group.append(entry)
        size += full_bytes
    if group:
        yield group


@torch.no_grad()
def _bucket(
    group: list[_Entry], own: list[Tensor] | None, stage: int, hf: dict, mesh: Mesh
) -> list[tuple[str, Tensor]]:
    """The Hugging Face tensors of a group of parameters. `own`: this rank's shards, on their stage. Collective."""
    bucket: list[tuple[str, Tensor]] = []
    for entry, shards in zip(group, _shards(group, own, stage, mesh), strict=True):
        bucket += _hf_tensors(entry.mapping, shards, hf)
    return bucket


def _hf_tensors(mapping: hf_map.Mapping, shards: list[Tensor], hf: dict) -> Iterable[tuple[str, Tensor]]:
    """Copies only where a parameter's shards, or its interleaved parts, lie apart; views of the shards elsewhere."""
    full = shards[0] if len(shards) == 1 else hf_map.unshard(mapping.kind, shards, mapping.tp_dim, hf["vocab_size"])
    if mapping.kind == "vocab":
        full = full[: hf["vocab_size"]]
    return zip(mapping.hf_names, hf_map.split(mapping.kind, full, heads_of(hf)), strict=True)


def _shards(group: list[_Entry], own: list[Tensor] | None, stage: int, mesh: Mesh) -> Iterator[list[Tensor]]:
    """Every parameter's shards by tensor rank, one for a replicated parameter. Collective: at most one broadcast and
    one all-gather.

    Shards go down the pipeline before they are gathered, so that the stages, which are far apart, exchange a tensor
    rank's part and only the ranks of a tensor group the whole.
    """
    offsets, gathered_bytes, total_bytes = _packing(group, mesh.tp_size)
    flat = torch.empty(total_bytes if mesh.pp_size > 1 else gathered_bytes, dtype=torch.uint8, device=mesh.device)
    for offset, param in zip(offsets, own or (), strict=False):
        if offset < len(flat):
            flat[offset : offset + param.nbytes] = param.contiguous().view(-1).view(torch.uint8)
    if mesh.pp_size > 1:
        dist.broadcast(flat, mesh.stage_rank(stage), group=mesh.pipeline)
    gathered = flat.new_empty(mesh.tp_size, gathered_bytes)
    if gathered_bytes:
        _all_gather(gathered.view(-1), flat[:gathered_bytes], group=mesh.tensor)
        flat = flat[gathered_bytes:].clone()  # the large part is free while the gathered one is in use
    for index, (entry, offset) in enumerate(zip(group, offsets, strict=True)):
        if offset < gathered_bytes:
            yield [_view(row, offset, entry) for row in gathered]
        else:
            yield [_view(flat, offset - gathered_bytes, entry) if own is None else own[index]]


def _packing(group: list[_Entry], tp_size: int) -> tuple[list[int], int, int]:
    """Where each parameter lies in a flat buffer of shards, in bytes; where the gathered ones, which come first, end;
    where all end."""
    offsets = [0] * len(group)
    gathered_bytes = end = 0
    is_gathered = [tp_size > 1 and entry.is_sharded for entry in group]
    for index in sorted(range(len(group)), key=lambda index: not is_gathered[index]):
        offsets[index] = end
        end += -(-group[index].shard_bytes // _ALIGNMENT) * _ALIGNMENT
        if is_gathered[index]:
            gathered_bytes = end
    return offsets, gathered_bytes, end


def _view(buffer: Tensor, offset: int, entry: _Entry) -> Tensor:
    return buffer[offset : offset + entry.shard_bytes].view(entry.dtype).view(entry.shard_shape)
