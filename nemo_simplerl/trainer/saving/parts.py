"""Files with the parts of a step's record that one rank holds: tokens and texts of completions, numbers of tokens.

Each part is an .npz of arrays, none of them pickled. A part says which samples it is of; what every rank knows of them
stands in the record's head (record.py).
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import xxhash

from nemo_simplerl.rollout.completions import (
    Completions,
    decode_text,
    encode_text,
    flat_of_rows,
    rows_of_flat,
)

_COLUMN = "column."  # before a column's name among the arrays


class Column(NamedTuple):
    """Numbers of the response tokens of some samples of those that are trained on, sample by sample."""

    samples: list[int]
    values: np.ndarray  # float32


@dataclass(frozen=True)
class Part:
    """What one rank holds of a step. samples: the indices of its completions in the rollout, in their order."""

    samples: list[int]
    token_ids: list[np.ndarray]  # int32, of each sample
    logprobs: list[np.ndarray]  # float32, likewise
    texts: list[str]
    columns: dict[str, Column] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Sequence[int], completions: Completions, columns: Mapping[str, Column]) -> "Part":
        return cls(list(samples), completions.token_ids, completions.logprobs, completions.texts, dict(columns))

    @property
    def is_empty(self) -> bool:
        return not self.samples and not any(column.samples for column in self.columns.values())

    def write(self, stream: BinaryIO) -> str:
        """Write to a stream; returns a digest of the content."""
        texts = [encode_text(text) for text in self.texts]
        arrays = {
            "samples": np.array(self.samples, dtype=np.int64),
            "lengths": np.array([len(row) for row in self.token_ids], dtype=np.int64),
            "token_ids": flat_of_rows(self.token_ids, np.int32),
            "logprobs": flat_of_rows(self.logprobs, np.float32),
            "text_lengths": np.array([len(text) for text in texts], dtype=np.int64),
            "texts": np.frombuffer(b"".join(texts), dtype=np.uint8),
        }
        for name, column in self.columns.items():
            arrays[f"{_COLUMN}samples.{name}"] = np.array(column.samples, dtype=np.int64)
            arrays[f"{_COLUMN}values.{name}"] = column.values
        np.savez(stream, **arrays)
        return _digest(arrays)

    def to_bytes(self) -> tuple[bytes, str]:
        """The content of a file of this part, and its digest."""
        stream = io.BytesIO()
        digest = self.write(stream)
        return stream.getvalue(), digest


def read_part(file: Any, digest: str) -> Part:
    """The part in a file (a path, or a stream). Raises ValueError that says what is wrong with it, and OSError."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if _digest(arrays) != digest:
            raise ValueError("its content is another one")
        texts = rows_of_flat(arrays["texts"], arrays["text_lengths"])
        prefix = f"{_COLUMN}samples."
        columns = {
            name.removeprefix(prefix): Column(
                arrays[name].tolist(), arrays[f"{_COLUMN}values.{name.removeprefix(prefix)}"]
            )
            for name in arrays
            if name.startswith(prefix)
        }
        return Part(
            arrays["samples"].tolist(),
            rows_of_flat(arrays["token_ids"], arrays["lengths"]),
            rows_of_flat(arrays["logprobs"], arrays["lengths"]),
            [decode_text(text.tobytes()) for text in texts],
            columns,
        )
    except (ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"it is no whole part of a record ({type(error).__name__}: {error})") from error


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    hasher = xxhash.xxh3_64()
    for name in sorted(arrays):
        hasher.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        hasher.update(np.ascontiguousarray(arrays[name]))
    return hasher.hexdigest()
