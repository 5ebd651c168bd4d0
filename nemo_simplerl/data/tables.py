"""Rows of a user's file in any of its forms: JSON, JSON lines, CSV, parquet."""

import csv
from collections.abc import Mapping
from pathlib import Path

from nemo_simplerl.data.problems import Problem, to_problems
from nemo_simplerl.data.rows import Row, read_rows

ENDINGS = (".json", ".jsonl", ".csv", ".parquet")


def read_table(path: Path) -> list[Row]:
    """The rows of the file. Raises ValueError where it is missing, damaged, without rows or of another ending."""
    if path.suffix in (".csv", ".parquet") and not path.is_file():
        raise ValueError(f"there is no file {path}; check the path, relative paths start in {Path.cwd()}")
    if path.suffix == ".csv":
        return _read_csv(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; bring one of {', '.join(ENDINGS)}")
    return read_rows(path)


def _read_csv(path: Path) -> list[Row]:
    """The rows of a CSV file, whose first line names the fields."""
    rows: list[Row] = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}: line {reader.line_num} has another number of fields than the first line, which names "
                        f"{len(reader.fieldnames or ())}; quote fields that hold commas or line breaks"
                    )
                rows.append(dict(row))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: after row {len(rows)} it is no CSV in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no rows under its first line")
    return rows


def _read_parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading parquet needs the package pyarrow (pip install pyarrow)") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is no parquet file: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


def problems_of(path: Path, fields: Mapping[str, str]) -> list[Problem]:
    """The problems of all rows of the file; the answer of a row without a gold is empty.

    `fields` maps id, question, answer, level and subject to the names that the file has for them. Raises ValueError.
    """
    rows = [_renamed(row, fields) for row in read_table(path)]
    question, answer = fields.get("question", "question"), fields.get("answer", "answer")
    return to_problems(rows, path, question, answer, without_gold="keep")[0]


def _renamed(row: Row, fields: Mapping[str, str]) -> Row:
    names = {own: theirs for own, theirs in fields.items() if own in ("id", "level", "subject")}
    return row | {own: row[theirs] for own, theirs in names.items() if theirs in row}
