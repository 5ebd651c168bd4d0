"""Weights of older `.nemo` archives: zarr checkpoints, and one torch.save file a model-parallel rank."""

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.model.formats.torch_zip import StoredTensor, bytes_of, stored_objects

_RANK_FILE = re.compile(r"(?:.*/)?(?:mp_rank_(\d+)|tp_rank_(\d+)_pp_rank_(\d+))/model_weights\.ckpt")
_SINGLE_FILE = "model_weights.ckpt"
# The value head of NeMo-Aligner's reward models and critics.
_HEADS = {
    "rm_head.weight": hf_map.Mapping((hf_map.VALUE_HEAD,), "plain", 1),
    "rm_head.bias": hf_map.Mapping((), "plain", None),
}
_MAX_DESCRIPTION = 1 << 20
_ZARR_DTYPES = {
    "<f4": torch.float32,
    "<f2": torch.float16,
    "<f8": torch.float64,
    "bfloat16": torch.bfloat16,
    "<V2": torch.bfloat16,  # numpy's name for two bytes that it has no type for
}


@dataclass(frozen=True)
class LazyTensor:
    """A full tensor that is assembled from its shards when it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def without_prefix(key: str) -> str:
    """Megatron's name in a NeMo key: NeMo puts `model.` before it, and under megatron_amp_O2 `module.` too."""
    return key.removeprefix("model.").removeprefix("module.")


def rank_files(files: Mapping[str, Extent]) -> dict[tuple[int, int], Extent]:
    """The torch.save files by (pipeline stage, tensor rank); empty where the archive has another layout."""
    ranks = {}
    for name, file in files.items():
        if match := _RANK_FILE.fullmatch(name):
            mp, tp, pp = match.groups()
            ranks[int(pp or 0), int(tp or mp)] = file
        elif name == _SINGLE_FILE:
            ranks[0, 0] = file
    return ranks


def from_rank_files(ranks: Mapping[tuple[int, int], Extent], config: dict) -> dict[str, LazyTensor]:
    """Full tensors by canonical name. Raises ValueError for ranks that are missing or do not fit together."""
    stages, size = 1 + max(stage for stage, _ in ranks), 1 + max(rank for _, rank in ranks)
    if stages * size != len(ranks):
        missing = next((s, r) for s in range(stages) for r in range(size) if (s, r) not in ranks)
        raise ValueError(
            f"the archive holds weights of {len(ranks)} ranks, not of {stages} pipeline stages x {size} tensor ranks: "
            f"those of stage {missing[0]}, tensor rank {missing[1]} are missing."
        )
    if not config.get("mcore_gpt", False):
        raise ValueError("mcore_gpt is not true: NeMo's own GPT of before Megatron-core is not supported.")
    tensors: dict[str, LazyTensor] = {}
    first_layer = 0
    for stage in range(stages):
        shards = [_rank_tensors(ranks[stage, rank], f"stage {stage}, tensor rank {rank}") for rank in range(size)]
        for name in shards[0]:
            parts = [shard[name] for shard in shards if name in shard]
            if len(parts) < size or len({(part.shape, part.dtype) for part in parts}) > 1:
                raise ValueError(
                    f"stage {stage}: {name} is not on all {size} tensor ranks in the same shape and dtype."
                )
            full_name = hf_map.full_name(name, first_layer)
            tensors[full_name] = _joined(parts, _HEADS.get(full_name) or hf_map.mapping(full_name))
        first_layer += len({name.split(".")[2] for name in shards[0] if name.startswith("decoder.layers.")})
    return tensors


def _rank_tensors(file: Extent, where: str) -> dict[str, StoredTensor]:
    state = stored_objects(file, where)
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    items = state.items() if isinstance(state, dict) else ()
    tensors = {without_prefix(str(key)): value for key, value in items if isinstance(value, StoredTensor)}
    if not tensors:
        raise ValueError(f"the weights of {where} hold no tensors.")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(("_extra_state", "inv_freq"))}


def _joined(shards: list[StoredTensor], entry: hf_map.Mapping) -> LazyTensor:
    shape = list(shards[0].shape)
    if entry.tp_dim is not None and entry.tp_dim < len(shape):
        shape[entry.tp_dim] *= len(shards)

    def read() -> Tensor:
        if entry.tp_dim is None:
            return shards[0].read()
        return hf_map.unshard(entry.kind, [shard.read() for shard in shards], entry.tp_dim, shape[0])

    return LazyTensor(tuple(shape), shards[0].dtype, read)


def zarr_arrays(files: Mapping[str, Extent]) -> dict[str, "ZarrArray"]:
    """The zarr arrays by NeMo's keys. Raises ValueError for those that are compressed, damaged or incomplete."""
    return {
        name.split("/")[-2]: ZarrArray(name.removesuffix("/.zarray"), file, files)
        for name, file in files.items()
        if name.endswith("/.zarray")
    }


class ZarrArray:
    """An uncompressed zarr (version 2) array (https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html)."""

    def __init__(self, folder: str, description: Extent, files: Mapping[str, Extent]):
        about = _description(folder, description)
        dtype, separator = about.get("dtype"), about.get("dimension_separator", ".")
        if about.get("compressor") is not None or about.get("filters"):
            raise ValueError(f"{folder} is compressed zarr, which is not read; save it again as torch_dist.")
        if str(dtype) not in _ZARR_DTYPES or about.get("order", "C") != "C" or separator not in (".", "/"):
            raise ValueError(f"{folder} is zarr of dtype {dtype!r}; supported: {', '.join(_ZARR_DTYPES)}, in C order.")
        self.dtype = _ZARR_DTYPES[dtype]
        self.shape, self._part = _sizes(folder, about, "shape"), _sizes(folder, about, "chunks")
        if len(self.shape) != len(self._part):
            raise ValueError(f"{folder}: chunks {self._part} do not fit shape {self.shape}.")
        counts = [math.ceil(length / part) for length, part in zip(self.shape, self._part, strict=True)]
        if math.prod(counts) > len(files):
            raise ValueError(f"{folder} lacks some of its {math.prod(counts)} chunks.")
        size = math.prod(self._part) * self.dtype.itemsize
        self._chunks: dict[tuple[int, ...], Extent] = {}
        for index in itertools.product(*map(range, counts)):
            name = f"{folder}/{separator.join(map(str, index))}"
            if name not in files or files[name].size != size:
                raise ValueError(f"{name} is missing, or has not the {size} bytes of a chunk.")
            self._chunks[index] = files[name]

    def read(self, row: int | None = None) -> Tensor:
        """The whole array, or index `row` of its first axis."""
        first = 0 if row is None else row // self._part[0]
        base = first * self._part[0]  # where what is read begins
        length = self.shape[0] if row is None else min(self._part[0], self.shape[0] - base)
        target = torch.empty((length, *self.shape[1:]), dtype=self.dtype)
        chunk = torch.empty(self._part, dtype=self.dtype)
        for index, file in self._chunks.items():
            if row is None or index[0] == first:
                file.read_into(bytes_of(chunk))
                starts = [i * part for i, part in zip(index, self._part, strict=True)]
                starts[0] -= base
                place = target[tuple(slice(s, s + part) for s, part in zip(starts, self._part, strict=True))]
                place.copy_(chunk[tuple(slice(length) for length in place.shape)])  # the last chunks stick out
        return target if row is None else target[row - base]


def _description(folder: str, file: Extent) -> dict:
    try:
        description = json.loads(file.read(0, min(file.size, _MAX_DESCRIPTION)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder}/.zarray is not JSON: {error}") from error
    return description if isinstance(description, dict) else {}


def _sizes(folder: str, description: dict, key: str) -> tuple[int, ...]:
    numbers = description.get(key)
    if not isinstance(numbers, list) or not numbers or not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError(f"{folder}/.zarray: {key} is {numbers!r}, not a row of sizes.")
    return tuple(numbers)
