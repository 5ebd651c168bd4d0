"""safetensors files read and written one tensor at a time.

The format (https://huggingface.co/docs/safetensors): the length of a JSON header as a little-endian u64, the header
with each tensor's dtype, shape and byte range, then the bytes. The library maps whole files into memory to read and
holds a whole shard to write; here neither is ever more than a tensor.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_simplerl.files import synced_beside
from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.model.formats.torch_zip import StoredTensor, bytes_of
from nemo_simplerl.user_files import refuse_pointer

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100 << 20  # the library's own bound


@dataclass(frozen=True)
class Spec:
    """Name, shape and dtype of a tensor that is not read or made yet."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_folder(files: Mapping[str, Extent], where: Path) -> dict[str, StoredTensor]:
    """The tensors of a Hugging Face folder by name, none of them read yet. An index, if any, names the files.

    Raises ValueError for a missing file or tensor, a cut-off file, a damaged header, or no *.safetensors at all.
    """
    weight_map: dict[str, str] = {}
    if _SINGLE in files:  # transformers, too, takes it where there is an index beside it
        names = [_SINGLE]
    elif INDEX in files:
        weight_map = _weight_map(files[INDEX], where / INDEX)
        names = sorted(set(weight_map.values()))
        if missing := [name for name in names if name not in files]:
            raise ValueError(f"{where}: files that {INDEX} names are missing: {', '.join(missing)}.")
    else:
        names = sorted(name for name in files if name.endswith(".safetensors") and "/" not in name)
    if not names:
        raise ValueError(f"{where} holds no *.safetensors file; save the model with save_pretrained().")
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        found = read_header(files[name], where / name)
        if twice := sorted(tensors.keys() & found.keys()):
            raise ValueError(f"{where / name}: {twice[0]} is in another file too; a folder holds each tensor once.")
        tensors |= found
    if lost := [name for name in weight_map if name not in tensors]:
        raise ValueError(f"{where}: {INDEX} names {lost[0]} and {len(lost) - 1} more tensors that no file holds.")
    return tensors


def _weight_map(index: Extent, where: Path) -> dict[str, str]:
    refuse_pointer(index.head(), where)
    try:
        weight_map = json.loads(index.read())["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where} is damaged ({type(error).__name__}: {error}).") from error


def read_header(file: Extent, where: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name, none of them read yet. Raises ValueError for a damaged or cut-off file."""
    refuse_pointer(file.head(), where)
    try:
        (length,) = struct.unpack("<Q", file.read(0, 8))
        if length > min(_MAX_HEADER, file.size - 8):
            raise ValueError(f"its header would have {length} bytes")
        header = json.loads(file.read(8, length))
        header.pop("__metadata__", None)
        tensors = {name: _stored(entry, file, 8 + length) for name, entry in header.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where} is no complete safetensors file ({type(error).__name__}: {error}).") from error
    _check_contiguous([tensor.data for tensor in tensors.values()], file.offset + 8 + length, file, where)
    return tensors


def _stored(entry: dict, file: Extent, base: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensors of dtype {entry['dtype']} are not supported")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise ValueError("a shape or an offset is no size")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} and {entry['dtype']} has {end - start} bytes")
    return StoredTensor(file.part(base + start, end - start), dtype, shape)


def _check_contiguous(parts: list[Extent], start: int, file: Extent, where: Path) -> None:
    """Raise ValueError for holes, overlaps and bytes after the last tensor, none of which the format allows."""
    for part in sorted(parts, key=lambda part: (part.offset, part.size)):
        if part.offset != start:
            raise ValueError(f"{where} is damaged: its tensors overlap or leave a hole at byte {start}.")
        start += part.size
    if start != file.offset + file.size:
        raise ValueError(f"{where} is damaged: {file.offset + file.size - start} bytes follow its last tensor.")


def write_folder(folder: Path, specs: Sequence[Spec], tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
    """Write the tensors, which come in the order of `specs`, as `model.safetensors` or as shards with an index.

    A shard is closed before the tensor that would make it larger than `shard_bytes`. Files are on disk on return.
    """
    shards = _shards(specs, shard_bytes)
    if len(shards) == 1:
        files = [_SINGLE]
    else:
        files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    source = iter(tensors)
    for file, shard in zip(files, shards, strict=True):
        with open(folder / file, "wb") as stream, synced_beside(stream):
            stream.write(_header(shard))
            for spec in shard:
                name, tensor = next(source)
                found = Spec(name, tuple(tensor.shape), tensor.dtype)
                assert found == spec, f"{found} came where {spec} was announced"
                stream.write(bytes_of(tensor.cpu().contiguous()))
            stream.flush()
            os.fsync(stream.fileno())
    assert next(source, None) is None, "more tensors came than were announced"
    if len(shards) > 1:
        weight_map = {spec.name: file for file, shard in zip(files, shards, strict=True) for spec in shard}
        index = {"metadata": {"total_size": sum(spec.num_bytes for spec in specs)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(specs: Sequence[Spec], shard_bytes: int) -> list[list[Spec]]:
    shards: list[list[Spec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.num_bytes
    return shards


def _header(specs: Sequence[Spec]) -> bytes:
    header: dict = {"__metadata__": {"format": "pt"}}
    start = 0
    for spec in specs:
        end = start + spec.num_bytes
        header[spec.name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
