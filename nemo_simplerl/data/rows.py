"""Rows of a user's file in any of its forms: JSON (.json), JSON lines (.jsonl), CSV and parquet."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_simplerl.files import atomic_write
from nemo_simplerl.user_files import read_text, refuse_pointer

Row = dict[str, Any]

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON writes it
_BLANKS = " \t\ufeff"  # around a field's name, where nobody sees them
_LINE_END = re.compile(r"\r\n|\n|\r")


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a .json list, of a .jsonl file with one a line (blank lines are skipped), of a .csv or a .parquet.

    Raises ValueError for a missing file, another ending, content that does not fit it, a row that is no object or holds
    half of a surrogate pair, no rows.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; bring one of {', '.join(_READERS)}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the path, relative paths start in {Path.cwd()}")
    rows = reader(path)
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


def value_at(row: Row, field: str) -> Any:
    """The value of a field; `a.b` is the field b of the object a where the row has no field of that name itself."""
    if field in row:
        return row[field]
    value: Any = row
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def fields_of(row: Row) -> list[str]:
    """The names by which `value_at` finds the row's values, those in objects as `a.b`."""
    return [
        name
        for field, value in row.items()
        for name in ([f"{field}.{inner}" for inner in fields_of(value)] if isinstance(value, dict) else [field])
    ]


def _read_json(path: Path) -> Any:
    text = read_text(path)
    rows = _parse(path, text, "the file")
    if _HALF_PAIR.search(text) and isinstance(rows, list):
        _refuse_half_pairs(path, [index for index, row in enumerate(rows) if not _is_whole(row)])
    return rows


def _read_json_lines(path: Path) -> list[Any]:
    # Not splitlines: JSON text may hold the other line separators of Unicode.
    lines = [(number, line) for number, line in enumerate(_LINE_END.split(read_text(path)), 1) if line.strip()]
    # A mark before a line is that of a file which was put behind another.
    rows = [_parse(path, line.lstrip("\ufeff"), f"line {number}") for number, line in lines]
    suspects = [index for index, (_, line) in enumerate(lines) if _HALF_PAIR.search(line)]
    _refuse_half_pairs(path, [index for index in suspects if not _is_whole(rows[index])])
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, whose first line names the fields. Raises ValueError where it is none."""
    rows: list[dict[str, Any]] = []
    text = read_text(path)
    first = _LINE_END.split(text, maxsplit=1)[0]
    if mark := next((mark for mark in ";\t" if mark in first and "," not in first), None):
        raise ValueError(f"{path}: its first line is divided by {mark!r}, and not by commas; save it with commas")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        names = [name.strip(_BLANKS) for name in reader.fieldnames or ()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{path}: its first line names {', '.join(map(repr, twice))} more than once; rename one")
        reader.fieldnames = names
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}: line {reader.line_num} has another number of fields than the first line, which names "
                    f"{len(reader.fieldnames or ())}; quote fields that hold commas or line breaks"
                )
            rows.append(dict(row))
    except csv.Error as error:
        raise ValueError(f"{path}: after row {len(rows)} it is no CSV: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no rows under its first line")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file. Raises ValueError where it is none, and without the package pyarrow."""
    with open(path, "rb") as file:
        refuse_pointer(file.read(64), path)
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(
            f'{path}: reading parquet needs the package pyarrow: pip install "nemo-simplerl[parquet]"'
        ) from error
    try:
        # Of this one file: a folder's name such as `split=train` is no column.
        return parquet.ParquetFile(path).read().to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no parquet file that can be read: {error}") from error


def _parse(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError alone
        raise ValueError(f"{path}: {place} is not JSON: {error}{_other_ending(path, text)}") from error


def _other_ending(path: Path, text: str) -> str:
    """Advice where a list of rows is named as JSON lines, or the other way round."""
    start = text.lstrip()[:1]
    if path.suffix.lower() == ".jsonl" and start == "[":
        return "; a list of rows is a .json: rename the file"
    if path.suffix.lower() == ".json" and start == "{" and "\n" in text.strip():
        return "; JSON lines, one row a line, are a .jsonl: rename the file"
    return ""


def _is_whole(value: Any) -> bool:
    """Whether no text in the value holds half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_half_pairs(path: Path, indices: Sequence[int]) -> None:
    if indices:
        raise ValueError(
            f"{path}: {name_rows(indices)} with half of a surrogate pair (such as \\ud83d without its other half), "
            "which no tokenizer takes: write the whole character, \\ufffd, or nothing in its place"
        )


_READERS = {".json": _read_json, ".jsonl": _read_json_lines, ".csv": _read_csv, ".parquet": _read_parquet}
