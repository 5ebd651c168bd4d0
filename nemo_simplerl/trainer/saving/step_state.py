"""State of the current PPO step.

Completions, grades, log-probabilities, values and finished updates are kept, so that a run that is stopped or killed in
the middle of a step resumes there instead of sampling again.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.data.batch import Batch
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.base import Completion
from nemo_simplerl.rollout.distribute import BrokenOff
from nemo_simplerl.trainer.learners.updates import UpdateLoop
from nemo_simplerl.trainer.saving.journal import Journal
from nemo_simplerl.trainer.saving.record import (
    StepKey,
    StepRecord,
    is_first_of_replica,
    local_column_BT,
    response_tokens,
    whole_column,
)


class StepState:
    """What is known of the current step, filled in as the verbs of `ppo_step` run. All ranks call alike.

    journal: where completions and grades are written as soon as they exist. safe_point: raises where the run is to
    stop. should_stop: whether to break off a rollout.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        safe_point: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        self.should_stop = should_stop
        self._journal, self._safe_point = journal, safe_point
        self._restored: StepRecord | None = None
        self._record: StepRecord | None = None
        self._rows: list[int] = []  # this data rank's samples of those that are trained on
        self._lengths: list[int] = []  # response tokens of each of the latter
        self._local: dict[str, np.ndarray] = {}  # one number a response token of theirs, by column
        self.was_sampled_before = False
        self.num_sampled = 0  # completions of the step's rounds so far

    @property
    def record(self) -> StepRecord:
        assert self._record is not None, "call begin() first"
        return self._record

    @property
    def lengths(self) -> Sequence[int]:
        """Response tokens of each sample that is trained on."""
        return self._lengths

    def num_updates(self, step: int) -> int:
        """Updates of all models that `step` has made so far."""
        record = self._record or self._restored
        return record.num_updates if record is not None and record.key.step == step else 0

    def restore(self, record: StepRecord) -> None:
        """Have the next step continue from `record`, which a checkpoint holds."""
        self._restored = record

    def begin(self, key: StepKey, update_loops: Mapping[str, UpdateLoop]) -> None:
        """Begin the step of `key`, with what a checkpoint or the journal knows of it. Collective.

        Raises ValueError where the checkpoint's step was begun with other prompts, sampling or update sizes.
        """
        found, self._restored = self._restored, None
        if found is not None and (found.key.step, found.key.request_digest) != (key.step, key.request_digest):
            raise ValueError(
                f"step {key.step} is to go on after {found.num_updates} of its updates, but it was begun with other "
                "prompts, sampling or sizes of updates. Keep data, rollout, algo.ppo_epochs and the global_batch_size "
                "of both models until it is done, or name an older checkpoint in checkpoints/latest."
            )
        if found is None and self._journal is not None:
            found = self._journal.find(key)
        self._record, self._rows, self._lengths, self._local = found or StepRecord(key), [], [], {}
        self.was_sampled_before = self._record.completions is not None
        self.num_sampled = 0
        for role, update_loop in update_loops.items():
            update_loop.skip_finished(self._record.finished_updates.setdefault(role, []))

    def completions(self, sample: Callable[[], list[Completion]], count: int) -> list[Completion]:
        """The `count` completions of the step's next round, from the record or else from `sample`. Collective."""
        known = self.record.completions or []
        if len(known) == self.num_sampled:
            try:
                known = self.record.completions = known + sample()
            except BrokenOff:
                self._safe_point()
                raise
            self._write()
        self.num_sampled += count
        return known[self.num_sampled - count : self.num_sampled]

    def grades(self, grade: Callable[[], list[Grade]], count: int) -> list[Grade]:
        """The grades of that round's `count` completions, from the record or else from `grade`. Collective."""
        known = self.record.grades or []
        if len(known) == self.num_sampled - count:
            known = self.record.grades = known + grade()
            self._write()
        return known[self.num_sampled - count : self.num_sampled]

    def assign_rows(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Say which of the samples that are trained on are this data rank's, in the order of its batch.

        lengths: response tokens of all that are trained on.
        """
        self._rows, self._lengths = list(rows), list(lengths)

    def column(self, name: str, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """float32 [B, T] of this data rank's samples, from the record or else from `compute`. Collective."""
        whole = self.record.columns.get(name)
        column_BT = compute(batch) if whole is None else local_column_BT(whole, self._rows, self._lengths, batch)
        self._local[name] = response_tokens(column_BT, batch)
        return column_BT

    def gather_record(self, mesh: Mesh) -> StepRecord:
        """The record with the columns of all ranks. Collective."""
        share = (self._rows, self._local) if is_first_of_replica(mesh) else None
        shares = [share for share in gather_objects(share, dist.group.WORLD) if share is not None]
        rows = [rows for rows, _ in shares]
        for name in self._local:
            self.record.columns[name] = whole_column([local[name] for _, local in shares], rows, self._lengths)
        return self.record

    def _write(self) -> None:
        if self._journal is not None:
            self._journal.write(self.record)


def kept_in_step(name: str) -> Callable:
    """Have a method `(batch) -> float32 [B, T]` answer from the record of a resumed step: see StepState.column.

    The method's object has the step's state as `step_state`.
    """

    def decorate(compute: Callable) -> Callable:
        @functools.wraps(compute)
        def kept(self, batch: Batch) -> Tensor:
            return self.step_state.column(name, batch, functools.partial(compute, self))

        return kept

    return decorate
