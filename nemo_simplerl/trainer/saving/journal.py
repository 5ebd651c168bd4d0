"""The journal: completions and grades of a step, on disk at once, so that a killed step repeats neither."""

import logging
import re
from pathlib import Path

import torch.distributed as dist

from nemo_simplerl.files import atomic_file, atomic_write, room_in
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.trainer.guard.faults import fault_point
from nemo_simplerl.trainer.saving.parts import Part
from nemo_simplerl.trainer.saving.record import (
    Head,
    PartFile,
    StepKey,
    StepRecord,
    head_bytes,
    head_from,
    read_record,
)

log = logging.getLogger(__name__)

JOURNAL = "journal"  # in the run directory


class Journal:
    """The files of RUN_DIR/journal, of each step since the last checkpoint.

    The ranks that sample write it and read it. step_NNNNNN.npz is the head of the step's record, which the first of
    them writes. step_NNNNNN.FROM.RANK.npz are the parts that it names: of the completions from number FROM on, those
    that one rank holds, written once by that rank. The head is written behind them and knows their digests, so that a
    kill in between leaves what the head before it says. A journal that cannot be written is logged once, and costs only
    the time to sample again.
    """

    def __init__(self, folder: Path, group: dist.ProcessGroup | None):
        """group: of the ranks that sample and so hold completions; None is this rank alone. On other ranks a journal
        can only delete."""
        self._folder, self._group = folder, group
        self._rank = 0 if group is None else group.rank()
        self._step: int | None = None  # that the parts are of
        self._parts: list[PartFile] = []
        self._part_of: list[int] = []  # of each completion that is on disk
        self._is_failing = False

    def find(self, key: StepKey) -> StepRecord | None:
        """The record with this key, each rank holding its share; None, with a warning, where the files are of another
        one. Collective."""
        head = self._head(key) if self._rank == 0 else None
        path = self._path(key.step)
        try:
            found = read_record(head, lambda name: self._folder / name, self._group)
        except ValueError as error:
            log.warning(f"{path} is not used: {error}.")
            return None
        if found is None:
            return None
        record, found_head = found
        if found_head.parts:  # else it is of an earlier version, and is written anew
            self._step, self._parts, self._part_of = key.step, found_head.parts, found_head.part_of.tolist()
        known = "sampled and graded" if record.is_graded else "sampled"
        log.info(f"step {key.step} was {known} before the run ended; it goes on from the journal")
        return record

    def write(self, record: StepRecord) -> None:
        """Write what the step's record has gained. Collective."""
        step, completions = record.key.step, record.completions
        assert completions is not None, "a record is written from its completions on"
        if step != self._step:
            self._step, self._parts, self._part_of = step, [], []
        error: OSError | None = None
        first, count = len(self._part_of), len(completions)
        if first < count:
            new = completions.select(range(first, count))
            held = [first + index for index in new.held_indices]
            name = f"step_{step:06d}.{first:06d}.{self._rank:05d}.npz"
            file = None
            try:
                if held:
                    with atomic_file(self._folder / name) as stream:
                        file = PartFile(name, Part.of(held, new.held, {}).write(stream))
            except OSError as caught:
                error = caught
            answers = gather_objects((file, None if error is None else _reason(error)), self._group, "journal")
            problems = [text for _, text in answers if text is not None]
            if problems:
                self._tell(step, problems[0])
                return
            number = {rank: len(self._parts) + rank for rank in range(len(answers))}
            self._parts += [file or PartFile("", "") for file, _ in answers]
            self._part_of += [number[holder] for holder in new.holders.tolist()]
        if self._rank == 0:
            try:
                fault_point("journal.write")
                atomic_write(self._path(step), head_bytes(record, self._parts, self._part_of))
                self._is_failing = False
            except OSError as caught:
                self._tell(step, _reason(caught))

    def delete(self, steps: int | None) -> None:
        """Remove the files that a checkpoint after `steps` steps makes superfluous; with None, all. On one rank alone.

        Raises OSError.
        """
        for path in [*self._folder.glob("step_*.npz"), *self._folder.glob(".step_*.tmp")]:  # of killed ranks
            match = re.fullmatch(r"\.?step_(\d+)(\.\d+)*\.npz(\.\d+\.tmp)?", path.name)
            if match and (steps is None or int(match[1]) <= steps):
                path.unlink(missing_ok=True)

    def _tell(self, step: int, reason: str) -> None:
        if not self._is_failing:
            log.warning(
                f"the journal of step {step} could not be written ({reason}): were the run killed now, the step would "
                f"be sampled and graded again. {room_in(self._folder)}; make room."
            )
        self._is_failing = True

    def _head(self, key: StepKey) -> Head | None:
        """The head of the key's step, where its record has this key."""
        path = self._path(key.step)
        try:
            head = head_from(path.read_bytes())
            if head.record.key != key:
                raise ValueError("it belongs to other weights, prompts or settings")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning(f"{path} is not used: {error}.")
            return None
        return head

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step:06d}.npz"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
