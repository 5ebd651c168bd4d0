"""Hugging Face folders: weights streamed in and out through safetensors, one tensor at a time."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.value_head import ValueHead
from nemo_simplerl.parallel.mesh import Mesh

_INDEX = "model.safetensors.index.json"
VALUE_HEAD = "value_head.weight"


class HfWeights:
    """Tensors of a Hugging Face folder by name, read from disk when asked for."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        files = sorted(self.path.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{path} holds no *.safetensors file; save the model with save_pretrained().")
        self._handles = [safe_open(file, framework="pt") for file in files]
        self._where = {name: handle for handle in self._handles for name in handle.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def get(self, name: str) -> Tensor:
        """Raises ValueError when the folder has no tensor of that name."""
        if name not in self._where:
            raise ValueError(f"{self.path} has no tensor {name!r}; its config.json and weights do not belong together.")
        return self._where[name].get_tensor(name)


def heads_of(hf: dict) -> hf_map.Heads:
    """Attention shape of an HF config."""
    num_heads = hf["num_attention_heads"]
    return hf_map.Heads(
        num_heads,
        hf.get("num_key_value_heads", num_heads),
        hf.get("head_dim") or hf["hidden_size"] // num_heads,
    )


def layer_offset(gpt: GPTModel) -> int:
    """Global index of the stage's first layer."""
    return gpt.decoder.layers[0].layer_number - 1 if len(gpt.decoder.layers) else 0


@torch.no_grad()
def load_weights(gpt: GPTModel, hf: dict, path: str | Path, mesh: Mesh) -> None:
    """Fill every parameter of this rank's stage from a Hugging Face folder, sharded to its tensor rank.

    A critic's value head is taken from the folder where it holds one, and keeps its fresh values otherwise.
    Raises ValueError on a missing tensor or a shape that does not fit.
    """
    weights = HfWeights(path)
    offset, heads = layer_offset(gpt), heads_of(hf)
    for name, param in gpt.named_parameters():
        if isinstance(gpt.output_layer if gpt.post_process else None, ValueHead) and name == "output_layer.weight":
            if VALUE_HEAD in weights:
                param.copy_(weights.get(VALUE_HEAD))
            continue
        entry = hf_map.mapping(name, offset)
        names = entry.hf_names
        if names == ("lm_head.weight",) and hf.get("tie_word_embeddings", False):
            names = ("model.embed_tokens.weight",)  # the last stage's copy of tied embeddings
        full = hf_map.merge(entry.kind, [weights.get(hf_name) for hf_name in names], heads)
        part = hf_map.shard(entry.kind, full, entry.tp_dim, mesh.tp_rank, mesh.tp_size)
        if part.shape != param.shape:
            raise ValueError(
                f"{path}: {', '.join(names)} fill {tuple(part.shape)}, but {name} is {tuple(param.shape)} "
                "by config.json; the weights belong to another model."
            )
        param.copy_(part)


def save_folder(
    path: str | Path,
    stream: Iterable[tuple[str, Tensor]],
    hf: dict,
    tokenizer_path: str | Path | None,
    *,
    shard_gb: float = 4.0,
) -> None:
    """Write config.json, tokenizer files and sharded safetensors under a temporary name, then rename.

    Raises ValueError when `path` exists and is not empty.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise ValueError(f"{path} exists and is not empty; choose another folder or remove it.")
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if tokenizer_path is not None:
        for file in Path(tokenizer_path).iterdir():
            if file.suffix in {".json", ".txt", ".model", ".jinja"} and file.name not in {
                "config.json",
                _INDEX,
            }:
                shutil.copy2(file, partial / file.name)
    (partial / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    _write_shards(partial, stream, int(shard_gb * 1e9))
    for file in partial.iterdir():
        _fsync(file)
    _fsync(partial)
    if path.exists():
        path.rmdir()
    os.replace(partial, path)
    _fsync(path.parent)


def _write_shards(folder: Path, stream: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal pending, pending_bytes
        save_file(pending, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(pending))
        pending, pending_bytes = {}, 0

    for name, tensor in stream:
        size = tensor.numel() * tensor.element_size()
        if pending and pending_bytes + size > shard_bytes:
            flush()
        pending[name] = tensor.detach().cpu().contiguous().clone()
        pending_bytes += size
        total_bytes += size
    flush()
    if len(shards) == 1:
        os.replace(folder / "0.part", folder / "model.safetensors")
        return
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / f"{number}.part", folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
