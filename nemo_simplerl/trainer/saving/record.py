"""What is known of a step: enough to resume it in the middle, in any parallel layout."""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from nemo_simplerl.data.batch import Batch
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.base import Completion
from nemo_simplerl.rollout.completions import decode_completions, encode_completions

_FIRST_COLUMNS = ["old_logprobs", "values"]  # of records that do not list theirs
_COLUMN = "column."  # before a column's name among the arrays; older records have the name alone
_LISTS = ("texts", "versions", "seeds")  # of packed completions; its other entries are arrays


# Names in files whose Python name is another one; older runs wrote them too.
_IN_FILES = {"request_digest": "asked", "settings_digest": "lineage"}


@dataclass(frozen=True)
class StepKey:
    """What a record belongs to.

    `request_digest` is of prompts, sampling, seeds and sizes of the updates; `settings_digest` of every setting that
    affects the weights, and of the weights that the run began with.
    """

    step: int
    weight_version: int | None
    request_digest: str
    settings_digest: str


@dataclass
class StepRecord:
    """The step's rollout, of all samples in order, and its finished updates. None stands for what is not known yet.

    The last round's completions may have no grades yet. Columns are of the samples that are trained on.
    """

    key: StepKey
    completions: list[Completion] | None = None
    grades: list[Grade] | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # float32, one a response token, sample by sample
    finished_updates: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # metrics of each, by role

    @property
    def num_updates(self) -> int:
        """Finished updates of all roles together."""
        return sum(map(len, self.finished_updates.values()))

    @property
    def is_graded(self) -> bool:
        """Whether every completion has its grade."""
        return self.completions is not None and len(self.completions) == len(self.grades or [])

    def to_bytes(self) -> bytes:
        """Serialize as an .npz of arrays, none of them pickled. The completions must be there."""
        assert self.completions is not None, "a record is written from its completions on"
        packed = encode_completions(self.completions)
        head = {
            "key": {_IN_FILES.get(name, name): value for name, value in asdict(self.key).items()},
            "made": self.finished_updates,
            "grades": None if self.grades is None else [asdict(grade) for grade in self.grades],
        } | {name: packed.pop(name) for name in _LISTS}
        stream = io.BytesIO()
        columns = {_COLUMN + name: column for name, column in self.columns.items()}
        np.savez(stream, head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8), **packed, **columns)
        return stream.getvalue()


def record_from(content: bytes) -> StepRecord:
    """The inverse of `to_bytes`. Raises ValueError that says what is wrong with the content."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        head: dict[str, Any] = json.loads(arrays.pop("head").tobytes())
        columns = {name: arrays.pop(name) for name in _FIRST_COLUMNS if name in arrays}
        columns |= {name.removeprefix(_COLUMN): arrays.pop(name) for name in list(arrays) if name.startswith(_COLUMN)}
        record = StepRecord(
            key=_key_from(head["key"]),
            completions=decode_completions(arrays | {name: head[name] for name in _LISTS}),
            grades=None if head["grades"] is None else [Grade(**grade) for grade in head["grades"]],
            columns=columns,
            finished_updates=head["made"],
        )
    except (ValueError, KeyError, TypeError, IndexError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"it is no whole record of a step ({type(error).__name__}: {error})") from error
    return record


def _key_from(stored: dict[str, Any]) -> StepKey:
    return StepKey(**{name: stored[_IN_FILES.get(name, name)] for name in StepKey.__dataclass_fields__})


def digest_of(values: Any) -> str:
    """Digest of plain values: numbers, strings, lists, dictionaries."""
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def whole_column(shares: Sequence[np.ndarray], rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> np.ndarray:
    """One number a response token in the order of samples, joined from the shares of the data ranks.

    shares: the numbers of each data rank's samples. rows: the samples of each, in the order of its share. lengths: the
    response tokens of every sample.
    """
    parts: dict[int, np.ndarray] = {}
    for share, samples in zip(shares, rows, strict=True):
        ends = np.cumsum([lengths[sample] for sample in samples])
        parts |= dict(zip(samples, np.split(share, ends[:-1]), strict=True))
    return np.concatenate([parts[sample] for sample in sorted(parts)])


def local_column_BT(whole: np.ndarray, rows: Sequence[int], lengths: Sequence[int], batch: Batch) -> Tensor:
    """float32 [B, T]: the numbers of the samples `rows` where the batch has response tokens; 0 elsewhere."""
    ends = np.cumsum(lengths)
    tokens = np.concatenate([whole[ends[row] - lengths[row] : ends[row]] for row in rows])
    column_BT = torch.zeros_like(batch.mask_BT)
    column_BT[batch.mask_BT > 0] = torch.from_numpy(tokens).to(column_BT.device)
    return column_BT


def response_tokens(column_BT: Tensor, batch: Batch) -> np.ndarray:
    """float32: the column's numbers at response tokens, row by row."""
    return column_BT[batch.mask_BT > 0].cpu().numpy()


def is_first_of_replica(mesh: Mesh) -> bool:
    """Whether this rank speaks for all ranks that hold the same samples."""
    return mesh.tp_rank == 0 and mesh.pp_rank == 0
