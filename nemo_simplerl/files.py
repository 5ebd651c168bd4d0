"""Writing of a run's files such that a reader, or the run after a crash, never finds half a file or half a line.

A whole file appears at once or not at all; a line of a .jsonl file is on disk when `append_jsonl` returns. What a run
can do without on a full disk is written inside `Unessential.write`.
"""

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`, replacing what was there. Makes the folders above it."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Use as a context around writing `path`: what was there is replaced at its end, unless that raises. Makes the
    folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename is atomic only within a file system. The process id keeps two writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _named(path), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Use as a context around writing `path`: an error of the disk, which names no file of its own, names that one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def synced_beside(file: BinaryIO) -> Iterator[None]:
    """Use as a context around writing a large file: what is written so far goes to the disk meanwhile, so that a sync
    at its end has little left to wait for. Raises the OSError that the disk answered with."""
    written, errors = threading.Event(), []

    def sync() -> None:
        while not written.wait(0.1) and not errors:
            try:
                os.fdatasync(file.fileno())
            except OSError as error:  # the system tells it once: a sync at the end would find nothing wrong
                errors.append(error)

    thread = threading.Thread(target=sync, name="sync")
    thread.start()
    try:
        yield
    finally:
        written.set()
        thread.join()
    if errors:
        raise errors[0]


def jsonl_text(rows: list[dict[str, Any]]) -> str:
    """The rows as one JSON object a line, keys in their order. Raises ValueError at NaN and infinity."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def append_jsonl(path: Path, *rows: dict[str, Any]) -> None:
    """Append a line for each row, on disk on return. The file must end in a whole line: see `truncate_jsonl`.

    Raises OSError where that fails; the file then is as it was before.
    """
    content = memoryview(jsonl_text(list(rows)).encode())
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: nothing is left to be written when the file is closed after a failure.
    with _named(path), open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), size)
            raise
    if is_new:
        sync_folder(path.parent)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, without a last line that a crash cut short. A missing file has none.

    Raises ValueError where a whole line is not a JSON object: the file is not one of ours.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [_parse_line(path, number, line) for number, line in enumerate(lines, 1)]


def truncate_jsonl(path: Path, keep: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Drop the lines that `keep` refuses, and a last line that a crash cut short. Returns the rows that stay.

    The file changes at once, and only if something is dropped. Dropping the last lines takes no room on the disk.
    Raises as `read_jsonl`.
    """
    rows = read_jsonl(path)
    kept = [row for row in rows if keep(row)]
    if path.exists() and (len(kept) < len(rows) or not path.read_bytes().endswith(b"\n")):
        if kept == rows[: len(kept)]:
            lines = path.read_bytes().split(b"\n")[: len(kept)]
            os.truncate(path, sum(len(line) + 1 for line in lines))
        else:
            atomic_write(path, jsonl_text(kept))
    return kept


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is not JSON ({error}): mend or delete that line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number} is not a JSON object: mend or delete that line")
    return row


class NotSaved(RuntimeError):
    """Raised where a run could not write what it is run for: its last checkpoint, its models."""


class Unessential:
    """Writes that a run does without where the disk refuses them. Each kind of file is told once until it is written
    again."""

    def __init__(self) -> None:
        self._failing: set[str] = set()

    @contextmanager
    def write(self, what: str, folder: Path) -> Iterator[None]:
        """Use as a context around writing `what` below `folder`: an OSError is logged, with the room that is left."""
        try:
            yield
        except OSError as error:
            if what not in self._failing:
                log.warning(f"{what} was NOT saved: {reason_of(error)}. {room_in(folder)}; make room. The run goes on.")
            self._failing.add(what)
        else:
            if what in self._failing:
                log.info(f"{what} is saved again")
            self._failing.discard(what)


def reason_of(error: OSError) -> str:
    """Why the operation failed, and on which file."""
    return (error.strerror or str(error)) + (f" ({error.filename})" if error.filename else "")


def room_in(folder: Path) -> str:
    """The free space of the disk that holds `folder`, which need not exist, in words."""
    place = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), Path("/"))
    return f"{folder} has {shutil.disk_usage(place).free / 1e9:.3g} GB free"


def sync_folder(folder: Path) -> None:
    """Bring the folder's entries to disk: a new or renamed file survives a crash only after that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
