"""Tables in files, CSV and parquet, as rows."""

import csv
import io
from pathlib import Path
from typing import Any

from nemo_simplerl.user_files import read_text, refuse_pointer


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, whose first line names the fields. Raises ValueError where it is none."""
    rows: list[dict[str, Any]] = []
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
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


def read_parquet(path: Path) -> list[dict[str, Any]]:
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
