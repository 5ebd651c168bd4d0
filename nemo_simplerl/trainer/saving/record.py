"""What is known of the step in hand: enough to take it up again in the middle, in any parallel layout."""

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
from nemo_simplerl.rollout.distribute import pack, unpack

COLUMNS = ("old_logprobs", "values")
_LISTS = ("texts", "versions", "seeds")  # of packed completions; its other entries are arrays


@dataclass(frozen=True)
class Key:
    """What a record belongs to. `asked` fingerprints prompts, sampling, seeds and sizes of the updates; `lineage` every
    setting that decides the weights, and those that the run began with."""

    step: int
    weight_version: int | None
    asked: str
    lineage: str


@dataclass
class StepRecord:
    """The step's rollout, of all samples in order, and its updates. None is not known yet."""

    key: Key
    completions: list[Completion] | None = None
    grades: list[Grade] | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # float32, one a response token, sample by sample
    made: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {"critic": [], "actor": []})

    @property
    def num_updates(self) -> int:
        """Of critic and actor together."""
        return sum(map(len, self.made.values()))

    def to_bytes(self) -> bytes:
        """An .npz of arrays, none of them pickled. The completions must be there."""
        assert self.completions is not None, "a record is written from its completions on"
        packed = pack(self.completions)
        head = {
            "key": asdict(self.key),
            "made": self.made,
            "grades": None if self.grades is None else [asdict(grade) for grade in self.grades],
        } | {name: packed.pop(name) for name in _LISTS}
        stream = io.BytesIO()
        np.savez(stream, head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8), **packed, **self.columns)
        return stream.getvalue()


def record_from(content: bytes) -> StepRecord:
    """The inverse of `to_bytes`. Raises ValueError that says what is wrong with the content."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        head: dict[str, Any] = json.loads(arrays.pop("head").tobytes())
        columns = {name: arrays.pop(name) for name in COLUMNS if name in arrays}
        record = StepRecord(
            key=Key(**head["key"]),
            completions=unpack(arrays | {name: head[name] for name in _LISTS}),
            grades=None if head["grades"] is None else [Grade(**grade) for grade in head["grades"]],
            columns=columns,
            made=head["made"],
        )
    except (ValueError, KeyError, TypeError, IndexError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"it is no whole record of a step ({type(error).__name__}: {error})") from error
    return record


def digest_of(asked: Any) -> str:
    """A fingerprint of plain values."""
    return xxhash.xxh3_128_hexdigest(json.dumps(asked, sort_keys=True).encode())


def whole_column(shares: Sequence[np.ndarray], rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> np.ndarray:
    """One number a response token in the order of samples, from each data rank's tokens, whose samples `rows` names."""
    parts: dict[int, np.ndarray] = {}
    for share, samples in zip(shares, rows, strict=True):
        ends = np.cumsum([lengths[sample] for sample in samples])
        parts |= dict(zip(samples, np.split(share, ends[:-1]), strict=True))
    return np.concatenate([parts[sample] for sample in sorted(parts)])


def local_column_BT(whole: np.ndarray, rows: Sequence[int], lengths: Sequence[int], batch: Batch) -> Tensor:
    """float32 [B, T]: those of `rows`, where the batch has response tokens; 0 elsewhere."""
    ends = np.cumsum(lengths)
    tokens = np.concatenate([whole[ends[row] - lengths[row] : ends[row]] for row in rows])
    column_BT = torch.zeros_like(batch.mask_BT)
    column_BT[batch.mask_BT > 0] = torch.from_numpy(tokens).to(column_BT.device)
    return column_BT


def response_tokens(column_BT: Tensor, batch: Batch) -> np.ndarray:
    """The numbers of the response tokens, row by row."""
    return column_BT[batch.mask_BT > 0].cpu().numpy()


def is_first_of_replica(mesh: Mesh) -> bool:
    """Of the ranks that hold the same samples, this one speaks for all."""
    return mesh.tp_rank == 0 and mesh.pp_rank == 0
