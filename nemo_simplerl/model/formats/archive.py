"""Files of a folder or of a `.nemo` tar, found without unpacking it; and a tar written in one pass.

Archives are hostile until proven: a name that leaves the archive, a link, a device or a cut-off file is refused before
anything is read.
"""

import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from nemo_simplerl.user_files import refuse_pointer

_BLOCK = tarfile.BLOCKSIZE
_MAX_NAME = 1 << 16
_MAX_POINTER = 1 << 10  # git-lfs's own bound on the size of its pointers


@dataclass(frozen=True)
class Extent:
    """`size` bytes of the file `path` from `offset` on."""

    path: Path
    offset: int
    size: int

    def read_into(self, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the bytes from `start` on. Raises ValueError where the extent or the file ends before."""
        if start < 0 or start + len(buffer) > self.size:
            raise ValueError(f"{self.path}: {len(buffer)} bytes at {start} were asked of a part of {self.size} bytes.")
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            done = 0
            while done < len(buffer):
                count = os.preadv(descriptor, [buffer[done:]], self.offset + start + done)
                if count == 0:
                    raise ValueError(f"{self.path} ended while it was read: it is cut off or was changed.")
                done += count
        finally:
            os.close(descriptor)

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """`size` bytes from `start` on; None reads to the end."""
        content = bytearray(self.size - start if size is None else size)
        self.read_into(memoryview(content), start)
        return bytes(content)

    def head(self) -> bytes:
        """Its first bytes, by which a form of files is told."""
        return self.read(0, min(self.size, 64))

    def part(self, start: int, size: int) -> "Extent":
        """The `size` bytes from `start` on as an extent. Raises ValueError when they are not inside."""
        if start < 0 or size < 0 or start + size > self.size:
            raise ValueError(f"{self.path}: bytes {start} to {start + size} lie outside a part of {self.size} bytes.")
        return Extent(self.path, self.offset + start, size)


def list_files(path: str | Path) -> dict[str, Extent]:
    """Every regular file of a folder, or of an uncompressed tar, by its name relative to the root.

    Raises ValueError for anything else, and for links, devices, names that lead outside, cut-off archives, and
    pointers of git-lfs.
    """
    path = Path(path)
    if path.is_dir():
        files = dict(_files_of_folder(path))
        for file in files.values():
            if file.size < _MAX_POINTER:
                refuse_pointer(file.head(), file.path)
        return files
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder.")
    refuse_pointer(Extent(path, 0, path.stat().st_size).head(), path)
    if _starts_with(path, b"\x1f\x8b"):
        raise ValueError(f"{path} is compressed with gzip; unpack it first: gunzip -c {path} > plain.nemo")
    try:
        members = list(_members(Extent(path, 0, path.stat().st_size)))
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"{path} is no complete tar archive: {error}.") from error
    return dict(_regular_files(path, members))


class TarWriter:
    """An uncompressed tar of files whose sizes are known only once they are written.

    `add` opens one file at a time; its header is filled in when it is closed.
    """

    def __init__(self, file: BinaryIO):
        self._file = file

    @contextmanager
    def add(self, name: str) -> Iterator[BinaryIO]:
        """Use as a context: a stream to write the file `name` to. Its `tell` counts from the start of that file."""
        header = self._file.tell()
        self._file.write(bytes(_BLOCK))
        stream = _Counted(self._file)
        yield stream
        size = stream.tell()
        self._file.write(bytes(-size % _BLOCK))
        end = self._file.tell()
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        # GNU's header holds sizes beyond 8 GiB in its one block, where POSIX's needs blocks in front of it.
        block = info.tobuf(tarfile.GNU_FORMAT)
        assert len(block) == _BLOCK, f"{name} is too long a name"
        self._file.seek(header)
        self._file.write(block)
        self._file.seek(end)

    def finish(self) -> None:
        """Write the two empty blocks that end an archive."""
        self._file.write(bytes(2 * _BLOCK))


class _Counted:
    """The methods of a file that torch.save calls; positions count from the start of this file of the archive."""

    def __init__(self, file: BinaryIO):
        self._file, self._count = file, 0

    def write(self, data) -> int:
        count = self._file.write(data)
        self._count += count
        return count

    def tell(self) -> int:
        return self._count

    def flush(self) -> None:
        self._file.flush()


def _files_of_folder(folder: Path) -> Iterator[tuple[str, Extent]]:
    for entry in sorted(folder.rglob("*")):
        mode = entry.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise ValueError(f"{entry} is a link or a special file, which a model folder may not hold; copy the file.")
        yield entry.relative_to(folder).as_posix(), Extent(entry, 0, entry.stat().st_size)


def _regular_files(path: Path, members: Iterable[tarfile.TarInfo]) -> Iterator[tuple[str, Extent]]:
    seen = set()
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{path} holds {member.name!r}, which leads outside the archive; it was not opened.")
        if member.type == tarfile.DIRTYPE:
            continue
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ValueError(f"{path} holds {member.name!r}, a link or special file; it was not opened.")
        if str(name) in seen:
            raise ValueError(f"{path} holds {member.name!r} twice; it was not opened.")
        seen.add(str(name))
        yield str(name), Extent(path, member.offset_data, member.size)


def _members(archive: Extent) -> Iterator[tarfile.TarInfo]:
    """The headers of an uncompressed tar's files, each read once and in order.

    tarfile's own walk takes a damaged header for the end, and older ones follow negative sizes in a circle
    (CVE-2025-8194); its parser of a single header is used.
    """
    position = 0
    names: dict[str, str] = {}  # pax fields, or the long name of GNU's, of the member that follows
    while True:
        block = archive.read(position, _BLOCK) if position + _BLOCK <= archive.size else b""
        if not block:
            raise tarfile.ReadError("it is cut off before its end")
        if not any(block):
            return
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        header.offset_data = position + _BLOCK
        is_about_next = header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if not is_about_next and header.type != tarfile.XGLTYPE:
            header.name = names.get("path", header.name)
            header.size = 0 if header.type == tarfile.DIRTYPE else int(names.get("size", header.size))
        if not 0 <= header.size <= archive.size - header.offset_data:
            raise tarfile.ReadError(f"{header.name!r} ends beyond the {archive.size} bytes there are")
        if is_about_next:
            if header.size > _MAX_NAME:
                raise tarfile.ReadError(f"a name of {header.size} bytes")
            names |= _names(header.type, archive.read(header.offset_data, header.size))
        elif header.type != tarfile.XGLTYPE:
            names = {}
            yield header
        position = header.offset_data + header.size + -header.size % _BLOCK


def _names(kind: bytes, content: bytes) -> dict[str, str]:
    """The fields that a header's extension sets for the member after it: its name (`path`), or any pax fields."""
    if kind != tarfile.XHDTYPE:
        is_name = kind == tarfile.GNUTYPE_LONGNAME
        return {"path": content.rstrip(b"\0").decode(errors="surrogateescape")} if is_name else {}
    fields = {}
    while content:  # records of the form "LENGTH KEY=VALUE\n"
        length = int(content.partition(b" ")[0])
        key, separator, value = content[:length].partition(b" ")[2].partition(b"=")
        if length < 5 or not separator:
            raise tarfile.ReadError("a damaged pax header")
        fields[key.decode()] = value[:-1].decode(errors="surrogateescape")
        content = content[length:]
    if sparse := [key for key in fields if key.startswith("GNU.sparse")]:
        raise tarfile.ReadError(f"{sparse[0]}: files with holes are not read")
    return fields


def _starts_with(path: Path, prefix: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(prefix)) == prefix
