"""The journal: completions and grades of a step, on disk at once, so that a killed step repeats neither."""

import logging
from pathlib import Path

from nemo_simplerl.files import atomic_write, room_in
from nemo_simplerl.parallel.reductions import of_first_rank
from nemo_simplerl.trainer.guard.faults import fault_point
from nemo_simplerl.trainer.saving.record import StepKey, StepRecord, record_from

log = logging.getLogger(__name__)

JOURNAL = "journal"  # in the run directory


class Journal:
    """The files RUN_DIR/journal/step_NNNNNN.npz, one for each step since the last checkpoint.

    Only the writer, rank 0, reads and writes. A journal that cannot be written is logged once, and costs only the time
    to sample again.
    """

    def __init__(self, folder: Path, *, is_writer: bool):
        self._folder, self._is_writer = folder, is_writer
        self._is_failing = False

    def find(self, key: StepKey) -> StepRecord | None:
        """The record with this key, on every rank; None, with a warning, where the file has another one. Collective."""
        content = of_first_rank(self._content(key) if self._is_writer else None, "journal")
        return None if content is None else record_from(content)

    def write(self, record: StepRecord) -> None:
        """Write the step's record in place of an earlier one."""
        if not self._is_writer:
            return
        try:
            fault_point("journal.write")
            atomic_write(self._path(record.key.step), record.to_bytes())
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                log.warning(
                    f"the journal of step {record.key.step} could not be written ({error.strerror or error}): were the "
                    f"run killed now, the step would be sampled and graded again. {room_in(self._folder)}; make room."
                )
            self._is_failing = True

    def delete(self, steps: int | None) -> None:
        """Remove the files that a checkpoint after `steps` steps makes superfluous; with None, all. Only on the writer.

        Raises OSError.
        """
        for path in self._folder.glob("step_*.npz"):
            if path.stem[5:].isdecimal() and (steps is None or int(path.stem[5:]) <= steps):
                path.unlink()

    def _content(self, key: StepKey) -> bytes | None:
        """The file of the key's step, where its record has this key."""
        path = self._path(key.step)
        try:
            content = path.read_bytes()
            found = record_from(content)
            if found.key != key:
                raise ValueError("it belongs to other weights, prompts or settings")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning(f"{path} is not used: {error}.")
            return None
        known = "sampled and graded" if found.is_graded else "sampled"
        log.info(f"step {key.step} was {known} before the run ended; it goes on from the journal")
        return content

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step:06d}.npz"
