"""Megatron shards -> a stream of full, Hugging Face-named tensors. Feeds the rollout engines and the exporters."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.hf_io import VALUE_HEAD, heads_of, layer_offset, save_folder
from nemo_simplerl.model.value_head import ValueHead
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import gather_objects


@dataclass(frozen=True)
class _Entry:
    """One parameter of a stage, as the other stages must know it to receive it."""

    param_name: str
    mapping: hf_map.Mapping
    full_shape: tuple[int, ...]
    dtype: torch.dtype


@torch.no_grad()
def hf_stream(gpt: GPTModel, hf: dict, mesh: Mesh) -> Iterator[tuple[str, Tensor]]:
    """Every weight once, stage by stage, full-sized on every rank. Collective: each rank must consume all of it.

    A tensor is gathered over the tensor ranks of its own stage, then broadcast down the pipeline: one full tensor is in
    flight at a time, and the model is never gathered whole.
    """
    heads, vocab_size = heads_of(hf), hf["vocab_size"]
    params = dict(gpt.named_parameters())
    for stage, entries in enumerate(gather_objects(_stage_entries(gpt, hf, mesh), mesh.pipeline)):
        for entry in entries:
            if stage == mesh.pp_rank:
                full = _gather_over_tensor_ranks(params[entry.param_name].detach(), entry.mapping, vocab_size, mesh)
            else:
                full = torch.empty(entry.full_shape, dtype=entry.dtype, device=mesh.device)
            if mesh.pp_size > 1:
                full = full.contiguous()
                dist.broadcast(full, mesh.stage_rank(stage), group=mesh.pipeline)
            yield from zip(entry.mapping.hf_names, hf_map.split(entry.mapping.kind, full, heads), strict=True)


def export_folder(path: str | Path, gpt: GPTModel, hf: dict, tokenizer_path: str | Path, mesh: Mesh) -> None:
    """Write the model as a Hugging Face folder; a critic's value head is one more tensor in it. Collective.

    Raises ValueError when `path` exists and is not empty.
    """
    stream = hf_stream(gpt, hf, mesh)
    if mesh.rank == 0:
        save_folder(path, stream, hf, tokenizer_path)
    else:
        for _ in stream:  # the gathers behind it need every rank
            pass
    dist.barrier()


def _stage_entries(gpt: GPTModel, hf: dict, mesh: Mesh) -> list[_Entry]:
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
        entry = hf_map.mapping(name, offset)
        shape = list(param.shape)
        if entry.tp_dim is not None:
            shape[entry.tp_dim] *= mesh.tp_size
        if entry.kind == "vocab":
            shape[0] = hf["vocab_size"]
        entries.append(_Entry(name, entry, tuple(shape), param.dtype))
    return entries


def _gather_over_tensor_ranks(param: Tensor, entry: hf_map.Mapping, vocab_size: int, mesh: Mesh) -> Tensor:
    if entry.tp_dim is None:
        return param
    shards = [param]
    if mesh.tp_size > 1:
        shards = [torch.empty_like(param) for _ in range(mesh.tp_size)]
        dist.all_gather(shards, param.contiguous(), group=mesh.tensor)
    return hf_map.unshard(entry.kind, shards, entry.tp_dim, vocab_size)
