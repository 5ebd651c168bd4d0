"""Weights of older `.nemo` archives: zarr checkpoints, and one torch.save file a model-parallel rank."""

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.archive import Extent
from nemo_simplerl.model.torch_zip import StoredTensor, bytes_of, stored_objects

_RANK_FILE = re.compile(r"(?:.*/)?(?:mp_rank_(\d+)|tp_rank_(\d+)_pp_rank_(\d+))/model_weights\.ckpt")
_SINGLE_FILE = "model_weights.ckpt"
_ZARR_DTYPES = {
    "<f4": torch.float32,
    "<f2": torch.float16,
    "<f8": torch.float64,
    "bfloat16": torch.bfloat16,
    "<V2": torch.bfloat16,  # numpy's word for two bytes it has no type for
}


@dataclass(frozen=True)
class Lazy:
    """A tensor that is put together when read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def without_prefix(key: str) -> str:
    """NeMo puts `model.` before Megatron's names, and `module.` too under megatron_amp_O2."""
    return key.removeprefix("model.").removeprefix("module.")


def tensors_of(files: Mapping[str, Extent], config: dict) -> dict[str, Any] | None:
    """Full tensors by canonical name, or None where the archive is of neither kind.

    Raises ValueError for ranks that are missing or do not fit together, and for zarr that is compressed.
    """
    ranks = _rank_files(files)
    if ranks:
        return _from_rank_files(ranks, config)
    arrays = {name.removesuffix("/.zarray"): file for name, file in files.items() if name.endswith("/.zarray")}
    return _from_zarr(arrays, files) if arrays else None


def _rank_files(files: Mapping[str, Extent]) -> dict[tuple[int, int], Extent]:
    """Files by (pipeline stage, tensor rank)."""
    ranks = {}
    for name, file in files.items():
        if match := _RANK_FILE.fullmatch(name):
            mp, tp, pp = match.groups()
            ranks[int(pp or 0), int(tp or mp)] = file
        elif name == _SINGLE_FILE:
            ranks[0, 0] = file
    return ranks


def _from_rank_files(ranks: dict[tuple[int, int], Extent], config: dict) -> dict[str, Lazy]:
    stages, size = 1 + max(stage for stage, _ in ranks), 1 + max(rank for _, rank in ranks)
    if missing := [f"stage {s}, tensor rank {r}" for s in range(stages) for r in range(size) if (s, r) not in ranks]:
        raise ValueError(f"the archive holds no weights of {'; '.join(missing)}.")
    if not config.get("mcore_gpt", False):
        raise ValueError("mcore_gpt is not true: NeMo's own GPT of before Megatron-core is not supported.")
    tensors: dict[str, Lazy] = {}
    first_layer = 0
    for stage in range(stages):
        shards = [_rank_tensors(ranks[stage, rank], f"stage {stage}, tensor rank {rank}") for rank in range(size)]
        layers = {int(name.split(".")[2]) for name in shards[0] if name.startswith("decoder.layers.")}
        for name in shards[0]:
            if absent := [rank for rank, shard in enumerate(shards) if name not in shard]:
                raise ValueError(f"{name} is in the weights of tensor rank 0, but not of {absent}.")
            entry = hf_map.mapping(name) if name != "rm_head.weight" else hf_map.Mapping(("score.weight",), "plain", 1)
            tensors[hf_map.full_name(name, first_layer)] = _joined([shard[name] for shard in shards], entry)
        first_layer += len(layers)
    return tensors


def _rank_tensors(file: Extent, where: str) -> dict[str, StoredTensor]:
    state = stored_objects(file, where)
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    tensors = {without_prefix(key): value for key, value in state.items() if isinstance(value, StoredTensor)}
    if not tensors:
        raise ValueError(f"the weights of {where} hold no tensors.")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(("_extra_state", "inv_freq"))}


def _joined(shards: list[StoredTensor], entry: hf_map.Mapping) -> Lazy:
    shape = list(shards[0].shape)
    if entry.tp_dim is not None:
        shape[entry.tp_dim] *= len(shards)
    rows = shape[0]

    def read() -> Tensor:
        if entry.tp_dim is None:
            return shards[0].read()
        return hf_map.unshard(entry.kind, [shard.read() for shard in shards], entry.tp_dim, rows)

    return Lazy(tuple(shape), shards[0].dtype, read)


def _from_zarr(arrays: Mapping[str, Extent], files: Mapping[str, Extent]) -> dict[str, Lazy]:
    tensors: dict[str, Lazy] = {}
    for folder, description in arrays.items():
        array = _Array(folder, json.loads(description.read()), files)
        name = without_prefix(folder.rpartition("/")[2])
        if name.startswith("decoder.layers.") and not name.split(".")[2].isdigit():
            rest = name.removeprefix("decoder.layers.")
            for row in range(array.shape[0]):
                read = lambda row=row, array=array: array.read(row)  # noqa: E731
                full_name = hf_map.canonical(f"decoder.layers.{row}.{rest}")
                tensors[full_name] = Lazy(array.shape[1:], array.dtype, read)
        else:
            tensors[hf_map.canonical(name)] = Lazy(array.shape, array.dtype, array.read)
    return tensors


class _Array:
    """An uncompressed zarr (version 2) array (https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html)."""

    def __init__(self, folder: str, description: dict, files: Mapping[str, Extent]):
        self._folder, self._files = folder, files
        dtype = description.get("dtype")
        if description.get("compressor") is not None or description.get("filters"):
            raise ValueError(f"{folder} is compressed zarr, which is not read; save it again as torch_dist.")
        if dtype not in _ZARR_DTYPES or description.get("order", "C") != "C":
            raise ValueError(f"{folder} is zarr of dtype {dtype!r}; supported: {', '.join(_ZARR_DTYPES)}, in C order.")
        self.dtype = _ZARR_DTYPES[dtype]
        self.shape, self._chunk = tuple(description["shape"]), tuple(description["chunks"])
        self._separator = description.get("dimension_separator", ".")

    def read(self, row: int | None = None) -> Tensor:
        """The whole array, or index `row` of its first axis."""
        counts = [math.ceil(length / part) for length, part in zip(self.shape, self._chunk, strict=True)]
        first = range(counts[0]) if row is None else range(row // self._chunk[0], row // self._chunk[0] + 1)
        base = first[0] * self._chunk[0]
        shape = (min(self.shape[0] - base, len(first) * self._chunk[0]), *self.shape[1:])
        target = torch.empty(shape, dtype=self.dtype)
        for index in itertools.product(range(len(first)), *map(range, counts[1:])):
            chunk = self._read_chunk([index[0] + first[0], *index[1:]])
            starts = [i * part for i, part in zip(index, self._chunk, strict=True)]
            sizes = [min(part, length - s) for s, part, length in zip(starts, self._chunk, shape, strict=True)]
            into = tuple(slice(s, s + size) for s, size in zip(starts, sizes, strict=True))
            target[into] = chunk[tuple(slice(0, size) for size in sizes)]
        return target if row is None else target[row - base]

    def _read_chunk(self, index: list[int]) -> Tensor:
        name = f"{self._folder}/{self._separator.join(map(str, index))}"
        if name not in self._files:
            raise ValueError(f"{name} is missing.")
        chunk = torch.empty(self._chunk, dtype=self.dtype)
        self._files[name].read_into(bytes_of(chunk))
        return chunk
