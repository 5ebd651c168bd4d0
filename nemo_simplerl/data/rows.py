"""JSON rows in files: lists (.json) and lines (.jsonl)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_simplerl.files import atomic_write

Row = dict[str, Any]


def read_rows(path: str | Path) -> list[Row]:
    """The objects of a .json list, or of a .jsonl file with one a line (blank lines are skipped).

    Raises ValueError for a missing file, another ending, text that is not JSON, a row that is no object, no
    rows.
    """
    path = Path(path)
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(
            f"{path} ends in {path.suffix or 'nothing'}; bring a .json list of objects, or .jsonl, one a line"
        )
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the path, relative paths start in {Path.cwd()}")
    text = path.read_text(encoding="utf-8")
    rows = _parse_lines(path, text) if path.suffix == ".jsonl" else _parse(path, text, "the file")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds no rows; it must be a list of objects")
    strangers = [index for index, row in enumerate(rows) if not isinstance(row, dict)]
    if strangers:
        raise ValueError(f"{path}: {name_rows(strangers)} that are not JSON objects; write each row as {{...}}")
    return rows


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write .jsonl. Another process sees the whole file or none."""
    atomic_write(Path(path), "".join(json.dumps(row) + "\n" for row in rows))


def name_rows(indices: Sequence[int], shown: int = 5) -> str:
    """Rows for an error message: "3 rows (0, 4, 7; counted from 0)"."""
    first = ", ".join(map(str, indices[:shown])) + (", ..." if len(indices) > shown else "")
    rows = "1 row" if len(indices) == 1 else f"{len(indices)} rows"
    return f"{rows} ({first}; counted from 0)"


def _parse_lines(path: Path, text: str) -> list[Any]:
    # Not splitlines: JSON text may hold the other line separators of Unicode.
    lines = enumerate(text.split("\n"), start=1)
    return [_parse(path, line, f"line {number}") for number, line in lines if line.strip()]


def _parse(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {place} is not JSON: {error}") from error
