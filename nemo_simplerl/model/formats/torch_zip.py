"""Tensors of a torch.save file, found without loading the file and without running what its pickle asks for.

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

from nemo_simplerl.config.forms.pickles import MAX_PICKLE, DataUnpickler, Inert, Refused, sizes
from nemo_simplerl.model.formats.archive import Extent

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


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk. data: its bytes and no others. strides: in elements, None where it is contiguous."""

    data: Extent
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def read(self) -> Tensor:
        """The tensor, contiguous."""
        if self.strides is not None:
            stored = torch.empty(self.data.size // self.dtype.itemsize, dtype=self.dtype)
            self.data.read_into(bytes_of(stored))
            return stored.as_strided(self.shape, self.strides).contiguous()
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.data.read_into(bytes_of(tensor))
        return tensor

    def read_into(self, target: Tensor, first: int = 0) -> None:
        """Fill a contiguous tensor of the same dtype with the elements from `first` on."""
        assert target.dtype == self.dtype and target.is_contiguous()
        if self.strides is not None:
            target.copy_(self.read().flatten()[first : first + target.numel()].view_as(target))
        else:
            self.data.read_into(bytes_of(target), first * target.element_size())


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, as bytes."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def stored_objects(extent: Extent, where: str) -> Any:
    """The object that was given to torch.save, each tensor as a StoredTensor. `where` names the file in errors.

    Raises ValueError for a file that is no torch.save file, or whose pickle asks for anything but tensors and plain
    containers of them.
    """
    try:
        with zipfile.ZipFile(io.BufferedReader(_Reader(extent))) as archive:
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if records["data.pkl"].file_size > MAX_PICKLE:
                raise ValueError(f"its index has more than {MAX_PICKLE} bytes")
            content = archive.read(records["data.pkl"])
    except Exception as error:  # a damaged zip raises a dozen kinds
        raise ValueError(f"{where} is no complete torch.save file ({type(error).__name__}: {error}).") from error
    return _Unpickler(io.BytesIO(content), extent, records, where).read_all(where)


class _Unpickler(DataUnpickler):
    def __init__(self, file, extent: Extent, records: dict[str, zipfile.ZipInfo], where: str):
        super().__init__(file)
        self._extent, self._records, self._where = extent, records, where

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            ("collections", "OrderedDict"): _ordered_dict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
            # Transformer Engine's extra state, which is not read: a BytesIO, and how protocol 2 spells its bytes.
            ("_io", "BytesIO"): Inert,
            ("_codecs", "encode"): Inert,
        }
        if (module, name) not in known:
            raise Refused(
                f"{self._where} asks for {module}.{name} when it is loaded; only tensors are, so it was refused."
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> tuple[Extent, torch.dtype]:
        _, dtype, key, _, numel = pid
        if not isinstance(key, str):
            raise pickle.UnpicklingError(f"the name of a tensor storage is a {type(key).__name__}")
        record = self._records[f"data/{key}"]
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != numel * dtype.itemsize:
            raise pickle.UnpicklingError(f"the bytes of tensor storage {key} do not have the size its index says")
        # The local header repeats the name and may pad: its own lengths say where the bytes begin.
        name_size, extra_size = struct.unpack("<HH", self._extent.read(record.header_offset + 26, 4))
        start = record.header_offset + 30 + name_size + extra_size
        return self._extent.part(start, record.file_size), dtype

    def _tensor(self, storage: tuple[Extent, torch.dtype], offset: int, size, stride, *_) -> StoredTensor:
        data, dtype = storage
        shape, strides = sizes(size), sizes(stride)
        if not all(type(number) is int and 0 <= number < 1 << 63 for number in (offset, *shape, *strides)):
            raise pickle.UnpicklingError("a tensor's shape or strides are not sizes")
        numel = math.prod(shape)
        span = 1 + sum((length - 1) * step for length, step in zip(shape, strides, strict=True)) if numel else 0
        if span < numel:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} repeats its {span} stored elements")
        part = data.part(offset * dtype.itemsize, span * dtype.itemsize)
        return StoredTensor(part, dtype, shape, None if _is_contiguous(shape, strides) else strides)


def _ordered_dict(*args) -> OrderedDict:
    if args:
        raise pickle.UnpicklingError("an OrderedDict is built from other objects")
    return OrderedDict()


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for length, step in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and step != expected:
            return False
        expected *= length
    return True


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
