"""Files of a folder or of a `.nemo` tar, found without unpacking it; and a tar written in one pass.

Archives are hostile until proven: a name that leaves the archive, a link, a device or a cut-off file is refused before
anything is read.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Extent:
    """`size` bytes of the file `path` from `offset` on."""

    path: Path
    offset: int
    size: int

    def read_into(self, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the bytes from `start` on. Raises ValueError where the file ends before."""
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
        content = bytearray(self.size - start if size is None else size)
        self.read_into(memoryview(content), start)
        return bytes(content)

    def part(self, start: int, size: int) -> "Extent":
        """Raises ValueError when the part is not inside."""
        if start < 0 or size < 0 or start + size > self.size:
            raise ValueError(f"{self.path}: bytes {start} to {start + size} lie outside a part of {self.size} bytes.")
        return Extent(self.path, self.offset + start, size)


def list_files(path: str | Path) -> dict[str, Extent]:
    """Every regular file of a folder, or of an uncompressed tar, by its name relative to the root.

    Raises ValueError for anything else, and for links, devices, names that lead outside, and cut-off archives.
    """
    path = Path(path)
    if path.is_dir():
        return dict(_files_of_folder(path))
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    if _starts_with(path, b"\x1f\x8b"):
        raise ValueError(f"{path} is compressed with gzip; unpack it first: gunzip -c {path} > plain.nemo")
    try:
        return dict(_files_of_tar(path))
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is no complete tar archive ({error}).") from error


class TarWriter:
    """An uncompressed tar of files whose sizes are known only once they are written.

    `add` opens one file at a time; its header is filled in when it is closed.
    """

    def __init__(self, file: BinaryIO):
        self._file = file

    @contextmanager
    def add(self, name: str) -> Iterator[BinaryIO]:
        """A stream whose `tell` counts from the file's start."""
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
        self._file.seek(header)
        self._file.write(info.tobuf(tarfile.GNU_FORMAT))
        self._file.seek(end)

    def finish(self) -> None:
        """The two empty blocks that end an archive."""
        self._file.write(bytes(2 * _BLOCK))


class _Counted:
    """What torch.save asks of a file, counting from its own start."""

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


def _files_of_tar(path: Path) -> Iterator[tuple[str, Extent]]:
    length = path.stat().st_size
    seen = set()
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise ValueError(f"{path} holds {member.name!r}, which leads outside the archive; it was not opened.")
            if member.isdir():
                continue
            if not member.isreg():
                raise ValueError(f"{path} holds {member.name!r}, a link or special file; it was not opened.")
            if str(name) in seen:
                raise ValueError(f"{path} holds {member.name!r} twice; it was not opened.")
            if member.offset_data + member.size > length:
                raise ValueError(f"{path} is cut off: {member.name!r} ends beyond the archive's {length} bytes.")
            seen.add(str(name))
            yield str(name), Extent(path, member.offset_data, member.size)


def _starts_with(path: Path, prefix: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(prefix)) == prefix
