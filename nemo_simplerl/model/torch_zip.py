"""Tensors of a torch.save file, found without loading it and without running what its pickle asks for.

The file is a zip of uncompressed records: `data.pkl` names the tensors' shapes and storages, `data/KEY` holds the bytes
(https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_simplerl.model.archive import Extent

_DTYPES = {
    "FloatStorage": torch.float32,
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAX_PICKLE = 256 << 20


@dataclass(frozen=True)
class StoredTensor:
    """A contiguous tensor on disk."""

    data: Extent
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(tensor)
        return tensor

    def read_into(self, target: Tensor, first: int = 0) -> None:
        """Fill a contiguous tensor of the same dtype with what lies from element `first` on."""
        assert target.dtype == self.dtype and target.is_contiguous()
        self.data.read_into(bytes_of(target), first * target.element_size())


class Inert:
    """Stands for an object of a class that is not ours to build: it takes what the pickle says of it, and does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        self.state = state


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def stored_objects(extent: Extent, where: str) -> Any:
    """What was given to torch.save, each tensor as a StoredTensor. `where` names the file in errors.

    Raises ValueError for a file that is no torch.save file, or whose pickle asks for anything but tensors and plain
    containers of them.
    """
    try:
        with zipfile.ZipFile(io.BufferedReader(_Reader(extent))) as archive:
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if records["data.pkl"].file_size > _MAX_PICKLE:
                raise ValueError(f"{where}: its index is larger than {_MAX_PICKLE} bytes.")
            content = archive.read(records["data.pkl"])
        return _Unpickler(io.BytesIO(content), extent, records, where).load()
    except (zipfile.BadZipFile, KeyError, EOFError, struct.error, pickle.UnpicklingError) as error:
        raise ValueError(f"{where} is no complete torch.save file ({type(error).__name__}: {error}).") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, extent: Extent, records: dict[str, zipfile.ZipInfo], where: str):
        super().__init__(file)
        self._extent, self._records, self._where = extent, records, where

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("_io", "BytesIO"): Inert,  # Transformer Engine's extra state, which is not read
        }
        if (module, name) not in known:
            raise ValueError(
                f"{self._where} asks for {module}.{name} when it is loaded; only tensors are, so it was refused."
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> tuple[Extent, torch.dtype]:
        _, dtype, key, _, numel = pid
        record = self._records[f"data/{key}"]
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != numel * dtype.itemsize:
            raise ValueError(f"{self._where}: the bytes of tensor storage {key} do not have the size its index says.")
        # The local header repeats the name and may pad: its own lengths say where the bytes begin.
        name_size, extra_size = struct.unpack("<HH", self._extent.read(record.header_offset + 26, 4))
        start = record.header_offset + 30 + name_size + extra_size
        return self._extent.part(start, record.file_size), dtype

    def _tensor(self, storage: tuple[Extent, torch.dtype], offset: int, size, stride, *_) -> StoredTensor:
        data, dtype = storage
        shape = tuple(size)
        steps = zip(shape, stride, _strides(shape), strict=True)
        if any(length > 1 and step != expected for length, step, expected in steps):
            raise ValueError(f"{self._where}: a tensor of shape {shape} is stored with strides {tuple(stride)}.")
        return StoredTensor(data.part(offset * dtype.itemsize, math.prod(shape) * dtype.itemsize), dtype, shape)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class _Reader(io.RawIOBase):
    """A seekable file over an extent."""

    def __init__(self, extent: Extent):
        self._extent, self._at = extent, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._extent.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self._extent.size - self._at))
        self._extent.read_into(memoryview(buffer)[:count], self._at)
        self._at += count
        return count
