"""Writing of a run's files such that a reader, or the run after a crash, never finds half a file or half a line.

A whole file appears at once or not at all; a line of a .jsonl file is on disk when `append_jsonl` returns.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`, replacing what was there. Makes the folders above it."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename is atomic only within a file system. The process id keeps two writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def jsonl_text(rows: list[dict[str, Any]]) -> str:
    """The rows as one JSON object a line, keys in their order. Raises ValueError at NaN and infinity."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def append_jsonl(path: Path, *rows: dict[str, Any]) -> None:
    """Append a line for each row, on disk on return. The file must end in a whole line: see `truncate_jsonl`."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(jsonl_text(list(rows)))
        file.flush()
        os.fsync(file.fileno())
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

    The whole file is replaced at once, and only if something is dropped. Raises as `read_jsonl`.
    """
    rows = read_jsonl(path)
    kept = [row for row in rows if keep(row)]
    if path.exists() and (len(kept) < len(rows) or not path.read_bytes().endswith(b"\n")):
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


def sync_folder(folder: Path) -> None:
    """Bring the folder's entries to disk: a new or renamed file survives a crash only after that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
