"""What is known of a step: enough to resume it in the middle, in any parallel layout.

On disk a record is a head, which one rank writes, and the parts of the ranks that hold something of it (parts.py).
Heads of earlier versions hold everything themselves.
"""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from nemo_simplerl.data.batch import Batch
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.completions import Completions, rows_of_flat, seeds_of
from nemo_simplerl.rollout.spread import SpreadCompletions
from nemo_simplerl.trainer.saving.parts import Column, Part, read_part

_FIRST_COLUMNS = ["old_logprobs", "values"]  # of records that do not list theirs
_COLUMN = "column."  # before a column's name among the arrays of a record without parts


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

    The last round's completions may have no grades yet. Columns are of the samples that are trained on: each rank has
    some samples' numbers.
    """

    key: StepKey
    completions: SpreadCompletions | None = None
    grades: list[Grade] | None = None
    columns: dict[str, Column] = field(default_factory=dict)
    finished_updates: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # metrics of each, by role

    @property
    def num_updates(self) -> int:
        """Finished updates of all roles together."""
        return sum(map(len, self.finished_updates.values()))

    @property
    def is_graded(self) -> bool:
        """Whether every completion has its grade."""
        return self.completions is not None and len(self.completions) == len(self.grades or [])

    @property
    def own_part(self) -> Part:
        """What this rank holds."""
        assert self.completions is not None, "a record is written from its completions on"
        return Part.of(self.completions.held_indices, self.completions.held, self.columns)


class PartFile(NamedTuple):
    """A file with a part of a record, beside its head, and the digest of its content."""

    name: str
    digest: str


def head_bytes(record: StepRecord, parts: Sequence[PartFile], part_of: Sequence[int] | np.ndarray) -> bytes:
    """The head of a record as an .npz of arrays, none of them pickled. The completions must be there.

    record: with the finished updates of all roles. part_of: the part that holds each completion, by its index among
    `parts`.
    """
    completions = record.completions
    assert completions is not None, "a record is written from its completions on"
    head = {
        "key": {_IN_FILES.get(name, name): value for name, value in asdict(record.key).items()},
        "made": record.finished_updates,
        "grades": None if record.grades is None else [asdict(grade) for grade in record.grades],
        "parts": [list(part) for part in parts],
    }
    stream = io.BytesIO()
    np.savez(
        stream,
        head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
        lengths=completions.lengths,
        stopped=completions.is_stopped,
        versions=completions.versions,
        seeds=completions.seeds,
        part_of=np.array(part_of, dtype=np.int64),
    )
    return stream.getvalue()


@dataclass(frozen=True)
class Head:
    """A head as it was read. whole: all that is in it where it was written before there were parts."""

    record: StepRecord  # its completions are held by nobody yet
    parts: list[PartFile]
    part_of: np.ndarray  # int64, the part that holds each completion
    whole: Part | None = None


def head_from(content: bytes) -> Head:
    """The inverse of `head_bytes`. Raises ValueError that says what is wrong with the content."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        head: dict[str, Any] = json.loads(arrays["head"].tobytes())
        lengths, count = arrays["lengths"].astype(np.int64), len(arrays["lengths"])
        completions = SpreadCompletions(
            lengths,
            arrays["stopped"].astype(bool),
            np.array(head["versions"] if "versions" in head else arrays["versions"], dtype=np.int64),
            seeds_of(head["seeds"]) if "seeds" in head else arrays["seeds"].astype(np.int64),
            np.full(count, -1),
            rank=-1,
            held=Completions.of([]),
        )
        record = StepRecord(
            key=_key_from(head["key"]),
            completions=completions,
            grades=None if head["grades"] is None else [Grade(**grade) for grade in head["grades"]],
            finished_updates=head["made"],
        )
        if "parts" in head:
            return Head(record, [PartFile(*part) for part in head["parts"]], arrays["part_of"])
        return Head(record, [], np.zeros(count, dtype=np.int64), _whole_part(arrays, head, lengths))
    except (ValueError, KeyError, TypeError, IndexError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"it is no whole record of a step ({type(error).__name__}: {error})") from error


def _whole_part(arrays: dict[str, np.ndarray], head: dict[str, Any], lengths: np.ndarray) -> Part:
    """What a record of an earlier version holds, as one part. Its columns are of all samples that are trained on, in
    order; a column that names no samples stands for that."""
    columns = {name: arrays[name] for name in _FIRST_COLUMNS if name in arrays}
    columns |= {name.removeprefix(_COLUMN): arrays[name] for name in arrays if name.startswith(_COLUMN)}
    return Part(
        list(range(len(lengths))),
        rows_of_flat(arrays["token_ids"].astype(np.int32), lengths),
        rows_of_flat(arrays["logprobs"].astype(np.float32), lengths),
        head["texts"],
        {name: Column([], values) for name, values in columns.items()},
    )


def read_record(
    head: Head | None, read: Callable[[str], Any], group: dist.ProcessGroup | None
) -> tuple[StepRecord, Head] | None:
    """The record of a head that the group's first rank has read, its parts dealt out to the ranks of the group in turn,
    and the head. Collective; `group` None is this rank alone. Holders are ranks of the group.

    head: on the first rank; None is None everywhere. read: the file of a part, by its name. Raises ValueError on every
    rank where a part cannot be read.
    """
    rank, size = (0, 1) if group is None else (group.rank(), group.size())
    whole = None if head is None else head.whole
    found = gather_objects(None if head is None else replace(head, whole=None), group, "journal")[0]
    if found is None:
        return None
    mine: dict[int, Part] = {0: whole} if whole is not None else {}
    problem = None
    try:
        for index, part in list(enumerate(found.parts))[rank::size]:
            if part.name:  # else its rank held nothing
                mine[index] = read_part(read(part.name), part.digest)
    except (OSError, ValueError) as error:
        problem = str(error)
    for one in gather_objects(problem, group, "journal"):
        if one is not None:
            raise ValueError(f"a part of it is missing or damaged ({one})")
    record = found.record
    completions = record.completions
    assert completions is not None, "a head is written from its completions on"
    holders = found.part_of % size
    samples = [sample for part in mine.values() for sample in part.samples]
    order = np.argsort(np.array(samples, dtype=np.int64))
    sorted_samples = np.array(samples, dtype=np.int64)[order]
    held = Completions(
        [row for part in mine.values() for row in part.token_ids],
        [row for part in mine.values() for row in part.logprobs],
        [text for part in mine.values() for text in part.texts],
        *(getattr(completions, name)[samples] for name in ("is_stopped", "versions", "seeds")),
    ).select(order)
    assert np.array_equal(sorted_samples, np.flatnonzero(holders == rank)), "a head says what its parts hold"
    columns: dict[str, Column] = {}
    for part in mine.values():
        for name, (of_samples, values) in part.columns.items():
            before = columns.get(name, Column([], np.empty(0, np.float32)))
            columns[name] = Column([*before.samples, *of_samples], np.concatenate([before.values, values]))
    whole_rollout = replace(completions, holders=holders, rank=rank, held=held)
    return replace(record, completions=whole_rollout, columns=columns), found


def _key_from(stored: dict[str, Any]) -> StepKey:
    return StepKey(**{name: stored[_IN_FILES.get(name, name)] for name in StepKey.__dataclass_fields__})


def digest_of(values: Any) -> str:
    """Digest of plain values: numbers, strings, lists, dictionaries."""
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def local_column_BT(tokens: np.ndarray, batch: Batch) -> Tensor:
    """float32 [B, T]: the numbers of the batch's response tokens, row by row, where they stand; 0 elsewhere."""
    column_BT = torch.zeros_like(batch.mask_BT)
    column_BT[batch.mask_BT > 0] = torch.from_numpy(tokens).to(column_BT.device)
    return column_BT


def response_tokens(column_BT: Tensor, batch: Batch) -> np.ndarray:
    """float32: the column's numbers at response tokens, row by row."""
    return column_BT[batch.mask_BT > 0].cpu().numpy()


def is_first_of_replica(mesh: Mesh) -> bool:
    """Whether this rank speaks for all ranks that hold the same samples."""
    return mesh.tp_rank == 0 and mesh.pp_rank == 0
