"""GGUF files, llama.cpp's form of a model: their header, which describes model, tokenizer and tensors.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): a magic word, a version, two counts, pairs of
keys and values, then name, shape, type and offset of every tensor, and the tensors' bytes from the next multiple of
general.alignment on. The package gguf reads it too, but trusts every count and takes seconds for a large vocabulary;
a run reads the header several times. Imports nothing but the standard library.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # little-endian, and alike to a reader
_MAX_HEADER = 1 << 28
_MAX_COUNT = 1 << 22  # of keys, of tensors, and of values in an array: beyond any vocabulary and its merges
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header lists it. shape: rows first, as in torch. offset: in the file."""

    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file that begins as GGUF does, whatever its name."""
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def read_header(path: Path) -> Header:
    """The header of a GGUF file. Raises ValueError where it is damaged, cut off, or one part of several."""
    with open(path, "rb", buffering=1 << 20) as stream:
        cursor = _Cursor(stream, path)
        if cursor.take(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path} is no GGUF file.")
        version = cursor.number("I")
        if version not in _VERSIONS:
            found = "big-endian" if version in (2 << 24, 3 << 24) else f"of version {version}"
            raise ValueError(f"{path} is {found}; GGUF is read in versions 2 and 3, little-endian. Convert it anew.")
        num_tensors, num_keys = cursor.count(24), cursor.count(13)
        metadata = {}
        for _ in range(num_keys):
            key = cursor.text()
            if key in metadata:
                raise ValueError(f"{path} is damaged: its key {key} stands there twice.")
            metadata[key] = cursor.value(cursor.number("I"))
        if (parts := metadata.get("split.count", 0)) not in (0, 1):
            raise ValueError(f"{path} is one of {parts} parts; join them: llama-gguf-split --merge PART_1 WHOLE.")
        listed = [cursor.tensor() for _ in range(num_tensors)]
        start = _aligned(cursor.position, metadata.get("general.alignment", 32), path)
    tensors = {name: TensorEntry(shape, type_id, start + offset) for name, shape, type_id, offset in listed}
    if len(tensors) < len(listed):
        raise ValueError(f"{path} is damaged: it lists a tensor twice.")
    return Header(path, metadata, tensors)


class _Cursor:
    """Reads a header from its beginning to its end. No length or count is believed that the file has no bytes for."""

    def __init__(self, stream: BinaryIO, path: Path):
        self._stream, self._path = stream, path
        self._size = min(path.stat().st_size, _MAX_HEADER)
        self.position = 0

    def take(self, size: int) -> bytes:
        content = self._stream.read(size) if size <= self._size - self.position else b""
        if len(content) < size:
            raise ValueError(
                f"{self._path} ends inside its header, at byte {self.position} of {self._size}: it is cut off or "
                "damaged; fetch it again."
            )
        self.position += size
        return content

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._path} is damaged: a text before byte {self.position} is not UTF-8.") from error

    def count(self, smallest: int) -> int:
        """A number of items, each of which takes `smallest` bytes or more."""
        count = self.number("Q")
        if count > _MAX_COUNT or count * smallest > self._size - self.position:
            raise ValueError(f"{self._path} is damaged or cut off: it announces {count} items at {self.position}.")
        return count

    def value(self, kind: int, *, is_inner: bool = False) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind != _ARRAY or is_inner:  # no key of a language model holds arrays of arrays
            raise ValueError(f"{self._path} is damaged: byte {self.position} names {kind} as a type of values.")
        inner = self.number("I")
        if inner in _NUMBERS:
            code = _NUMBERS[inner]
            size = struct.calcsize("<" + code)
            count = self.count(size)
            return list(struct.unpack(f"<{count}{code}", self.take(count * size)))
        return [self.value(inner, is_inner=True) for _ in range(self.count(8))]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset, which counts from the first tensor."""
        name, num_axes = self.text(), self.number("I")
        if num_axes > 4:
            raise ValueError(f"{self._path} is damaged: {name} has {num_axes} axes.")
        shape = tuple(self.number("Q") for _ in range(num_axes))
        return name, shape[::-1], self.number("I"), self.number("Q")


def _aligned(position: int, alignment: Any, path: Path) -> int:
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"{path} is damaged: general.alignment is {alignment!r}, no power of two.")
    return -(-position // alignment) * alignment
