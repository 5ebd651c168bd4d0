"""Megatron's `torch_dist` checkpoints: global tensors in `__RANK_0.distcp` files, and `.metadata`, their index.

They are read without running what their pickles ask for, one block at a time, and written one tensor at a time by any
number of ranks. The layout is that of torch.distributed.checkpoint (filesystem.py, metadata.py), with Megatron's
`common.pt` and `metadata.json` beside it.
"""

import io
import json
import math
import pickle
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from nemo_simplerl.config.forms.pickles import MAX_PICKLE, DataUnpickler, Inert, Refused
from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.model.formats.torch_zip import StoredTensor, stored_objects

METADATA = ".metadata"
_MAX_SIDE_BY_SIDE = 4096  # blocks of a tensor at one index of its first axis: as many as tensor ranks
_DTYPES = ("float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8", "bool")
# Objects of these modules that `.metadata` holds are read as bare fields; no class of theirs is built. The fields of
# Megatron's bookkeeping and of paths are not used at all.
_INERT_MODULES = (
    "torch.distributed.checkpoint.",
    "torch.distributed._shard.sharded_tensor.metadata",  # before torch 2.3
    "megatron.core.dist_checkpointing.",
    "pathlib",
)


@dataclass(frozen=True)
class Chunk:
    """A block of a global tensor: where it starts in it, its shape, and the torch.save record that holds it."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    record: Extent
    where: str  # for errors


@dataclass(frozen=True)
class GlobalTensor:
    """A full tensor of a checkpoint, whose chunks lie in the files of several ranks."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]

    def read(self, row: int | None = None) -> Tensor:
        """The whole tensor, or index `row` of its first axis. Raises ValueError where a chunk is damaged."""
        target = torch.empty(self.shape if row is None else self.shape[1:], dtype=self.dtype)
        for chunk in self.chunks:
            if row is None or chunk.offsets[0] <= row < chunk.offsets[0] + chunk.shape[0]:
                self._read_chunk(chunk, row, target)
        return target

    def read_range(self, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a tensor of one axis. Raises ValueError where a chunk is damaged."""
        target = torch.empty(stop - start, dtype=self.dtype)
        for chunk in self.chunks:
            first, last = max(start, chunk.offsets[0]), min(stop, chunk.offsets[0] + chunk.shape[0])
            if first < last:
                self._stored(chunk).read_into(target[first - start : last - start], first - chunk.offsets[0])
        return target

    def _stored(self, chunk: Chunk) -> StoredTensor:
        stored = stored_objects(chunk.record, chunk.where)
        if not isinstance(stored, StoredTensor) or (stored.dtype, stored.shape) != (self.dtype, chunk.shape):
            raise ValueError(f"{chunk.where}: {self.key} is not as the index says, {self.dtype} of {chunk.shape}.")
        return stored

    def _read_chunk(self, chunk: Chunk, row: int | None, target: Tensor) -> None:
        stored = self._stored(chunk)
        skipped, offsets, shape = 0, chunk.offsets, chunk.shape
        if row is not None:
            skipped = (row - offsets[0]) * math.prod(shape[1:])
            offsets, shape = offsets[1:], shape[1:]
        place = target[tuple(slice(start, start + length) for start, length in zip(offsets, shape, strict=True))]
        if place.is_contiguous():
            stored.read_into(place, skipped)
        else:
            part = torch.empty(shape, dtype=self.dtype)
            stored.read_into(part, skipped)
            place.copy_(part)


def read_index(
    files: Mapping[str, Extent], folder: str = "", wanted: Callable[[str], bool] = lambda key: True
) -> dict[str, GlobalTensor]:
    """The global tensors of the checkpoint in `folder` of `files`, by key; objects that are no tensors are left out.

    wanted: whether a key is looked at; of the others nothing has to be whole.
    Raises ValueError where `.metadata` is missing, asks for code, or names a file that is not there.
    """
    prefix = f"{folder}/" if folder else ""
    if prefix + METADATA not in files:
        raise ValueError(f"there is no {prefix}{METADATA}: the checkpoint is incomplete or of another kind.")
    where = f"{files[prefix + METADATA].path}:{prefix}{METADATA}"
    if files[prefix + METADATA].size > MAX_PICKLE:
        raise ValueError(f"{where} has more than {MAX_PICKLE} bytes, which no checkpoint's index needs.")
    index = _MetadataUnpickler(io.BytesIO(files[prefix + METADATA].read()), where).read_all(where)
    try:
        records = {_place(place): info for place, info in index.storage_data.items()}
        return {
            key: _global_tensor(key, entry, records, files, prefix)
            for key, entry in index.state_dict_metadata.items()
            if isinstance(entry, _Tensor) and wanted(_text(key))
        }
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{where} is damaged ({type(error).__name__}: {error}).") from error


def _place(index: Any) -> tuple[str, tuple[int, ...] | None]:
    return _text(index.fqn), None if index.offset is None else _sizes(index.offset)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is no text")
    return value


def _sizes(numbers: Any) -> tuple[int, ...]:
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise TypeError("a shape or a place is no row of sizes")
    return tuple(numbers)


def _global_tensor(key: str, entry: Any, records: Mapping, files: Mapping[str, Extent], prefix: str) -> GlobalTensor:
    shape, dtype = _sizes(entry.size), entry.properties.state[0]
    if not isinstance(dtype, torch.dtype):
        raise TypeError("a dtype is none")
    chunks = []
    for chunk in entry.chunks:
        offsets, sizes = _sizes(chunk.offsets), _sizes(chunk.sizes)
        info = records.get((_text(key), offsets))
        name = prefix + (_text(info.relative_path) if info else "?")
        if info is None or name not in files:
            raise ValueError(f"{key}: the file {name} that holds part {offsets} of it is missing.")
        where = f"{files[name].path.name}:{name}"
        if getattr(info, "transform_descriptors", None):
            raise ValueError(f"{where}: {key} is stored compressed or encrypted, which is not read.")
        start, length = _sizes((info.offset, info.length))
        if length < math.prod(sizes) * dtype.itemsize:
            raise ValueError(f"{where}: {length} bytes cannot hold part {offsets} of {key}.")
        if start + length > files[name].size:
            raise ValueError(f"{where} is cut off after {files[name].size} bytes: part {offsets} of {key} lies beyond.")
        chunks.append(Chunk(offsets, sizes, files[name].part(start, length), where))
    _check_tiling(key, shape, chunks)
    return GlobalTensor(key, shape, dtype, tuple(chunks))


def _check_tiling(key: str, shape: tuple[int, ...], chunks: Sequence[Chunk]) -> None:
    """Raise ValueError unless the chunks cover the shape, each element once."""
    covered = sum(math.prod(chunk.shape) for chunk in chunks)
    if covered != math.prod(shape):
        raise ValueError(f"{key}: the checkpoint holds {covered} of this tensor's {math.prod(shape)} elements.")
    alive: list[Chunk] = []  # that reach into the current chunk's part of the first axis
    for chunk in sorted(chunks, key=lambda chunk: chunk.offsets):
        ends = [start + length for start, length in zip(chunk.offsets, chunk.shape, strict=True)]
        if len(ends) != len(shape) or any(end > length for end, length in zip(ends, shape, strict=True)):
            raise ValueError(f"{chunk.where}: a part of {key} lies outside its shape {shape}.")
        alive = [other for other in alive if other.offsets[0] + other.shape[0] > chunk.offsets[0]]
        if len(alive) > _MAX_SIDE_BY_SIDE or any(_overlap(chunk, other) for other in alive):
            raise ValueError(f"{chunk.where}: parts of {key} overlap at {chunk.offsets}, or are far too many.")
        alive.append(chunk)


def _overlap(one: Chunk, other: Chunk) -> bool:
    return all(
        start < other_start + other_length and other_start < start + length
        for start, length, other_start, other_length in zip(
            one.offsets, one.shape, other.offsets, other.shape, strict=True
        )
    )


@dataclass(frozen=True)
class WrittenBlock:
    """One block that a rank has written and where: its share of `.metadata`."""

    key: str
    global_shape: tuple[int, ...] | None  # None: an object
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    file: str
    start: int
    length: int


class BlockSink(Protocol):
    """A receiver of the blocks that a rank holds: a RankFile, or one that passes them to a RankFile later."""

    def add(self, key: str, tensor: Tensor, global_shape: Sequence[int], offsets: Sequence[int]) -> None:
        """Take `tensor` as the block of the global tensor `key` that starts at `offsets`."""

    def add_object(self, key: str, value: Any) -> None:
        """Take an object that is no tensor."""


class RankFile:
    """One rank's `.distcp` file, written tensor by tensor; `written` lists its blocks for the index."""

    def __init__(self, stream: BinaryIO, name: str):
        self._stream, self._name = stream, name
        self.written: list[WrittenBlock] = []

    def add(self, key: str, tensor: Tensor, global_shape: Sequence[int], offsets: Sequence[int]) -> None:
        """Store `tensor` as the block of the global tensor `key` that starts at `offsets`."""
        start = self._stream.tell()
        shape = tuple(tensor.shape)
        tensor = tensor.detach()
        if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size() or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)  # torch.save stores a view's whole storage
        self._save(tensor.cpu())
        self._note(key, start, tuple(global_shape), tuple(offsets), shape, tensor.dtype)

    def add_object(self, key: str, value: Any) -> None:
        """Store an object that is no tensor."""
        start = self._stream.tell()
        self._save(value)
        self._note(key, start, None, (), (), None)

    def _save(self, value: Any) -> None:
        try:
            torch.save(value, self._stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # a full disk, which torch reports as "unexpected pos"
                raise error.__context__ from None
            raise

    def _note(self, key: str, start: int, global_shape, offsets, shape, dtype) -> None:
        length = self._stream.tell() - start
        self.written.append(WrittenBlock(key, global_shape, offsets, shape, dtype, self._name, start, length))


def rank_file_name(rank: int) -> str:
    """Name of the `.distcp` file of a rank."""
    return f"__{rank}_0.distcp"


def import_early() -> None:
    """Start in another thread the import that `write_index` needs: it takes a second."""
    threading.Thread(target=import_module, args=("torch.distributed.checkpoint.filesystem",), daemon=True).start()


def write_index(
    create: Callable[[str], AbstractContextManager[BinaryIO]],
    written: Iterable[WrittenBlock],
    common: Mapping[str, Any] | None = None,
) -> None:
    """Write the files that make the ranks' files a checkpoint: `common.pt`, `metadata.json`, and `.metadata` last.

    common: what `common.pt` holds, None for nothing. Megatron-core 0.19 needs no such file but reads it; 0.18 needs it.
    """
    with create("common.pt") as stream:
        torch.save(dict(common or {}), stream)
    with create("metadata.json") as stream:
        versions = {"sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
        stream.write(json.dumps({"sharded_backend": "torch_dist"} | versions).encode())
    with create(METADATA) as stream:
        stream.write(pickle.dumps(_metadata_of(written), protocol=4))


def _metadata_of(written: Iterable[WrittenBlock]) -> Any:
    from torch.distributed.checkpoint import metadata as dcp  # late: the import takes a second, and reading needs none
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    entries: dict[str, Any] = {}
    storage: dict[Any, Any] = {}
    for item in written:
        info = _StorageInfo(item.file, item.start, item.length)
        if item.global_shape is None:
            entries[item.key] = dcp.BytesStorageMetadata()
            storage[dcp.MetadataIndex(item.key)] = info
            continue
        properties = dcp.TensorProperties(dtype=item.dtype)
        entry = entries.setdefault(item.key, dcp.TensorStorageMetadata(properties, torch.Size(item.global_shape), []))
        entry.chunks.append(dcp.ChunkStorageMetadata(torch.Size(item.offsets), torch.Size(item.shape)))
        storage[dcp.MetadataIndex(item.key, item.offsets)] = info
    index = dcp.Metadata(entries, storage_data=storage)
    # Megatron looks here for the shapes of flattened tensors; no tensor here is flattened.
    index.mcore_data = {key: {} for key, entry in entries.items() if isinstance(entry, dcp.TensorStorageMetadata)}
    return index


class _Fields(Inert):
    """A dataclass of torch.distributed.checkpoint: its pickled fields as attributes."""

    def __setstate__(self, state):
        self.state = state
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Index(_Fields):
    offset = None  # the pickle leaves it out for objects that are no tensors


class _Tensor(_Fields):
    pass


class _MetadataUnpickler(DataUnpickler):
    def __init__(self, file: io.BytesIO, where: str):
        super().__init__(file)
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return getattr(torch, name)
        known = {
            ("torch", "Size"): tuple,
            # Python 3.11.0 to 3.11.3 pickle a member of an enumeration as getattr(class, name).
            ("builtins", "getattr"): lambda kind, name: None,
            ("torch.serialization", "_get_layout"): lambda name: torch.strided,
            ("torch.distributed.checkpoint.metadata", "MetadataIndex"): _Index,
            ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"): _Tensor,
        }
        if (module, name) in known:
            return known[module, name]
        if module.startswith(_INERT_MODULES):
            return _Fields
        raise Refused(f"{self._where} asks for {module}.{name} when it is loaded, as no index does; it was refused.")
