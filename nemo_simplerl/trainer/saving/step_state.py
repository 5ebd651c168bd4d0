"""The step in hand: what is known of it is not computed again, whether a kill, a stop or nothing came between."""

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
from nemo_simplerl.trainer.learners.updates import UpdateSeries
from nemo_simplerl.trainer.saving.journal import Journal
from nemo_simplerl.trainer.saving.record import (
    Key,
    StepRecord,
    is_first_of_replica,
    local_column_BT,
    response_tokens,
    whole_column,
)


class StepInHand:
    """Keeps the step's record as the verbs of the page fill it. All ranks call alike.

    journal: where completions and grades go as soon as they are there. safe_point: raises where the run is to stop.
    should_stop: whether to break off a rollout.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        safe_point: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        self.should_stop = should_stop
        self._journal, self._safe_point = journal, safe_point
        self._resumed: StepRecord | None = None
        self._record: StepRecord | None = None
        self._local: dict[str, tuple[list[int], np.ndarray]] = {}  # this data rank's samples and their tokens' numbers
        self.was_sampled_before = False

    @property
    def record(self) -> StepRecord:
        assert self._record is not None, "a step is taken in hand first"
        return self._record

    def num_updates(self, step: int) -> int:
        """Made of `step`, by both models."""
        record = self._record or self._resumed
        return record.num_updates if record is not None and record.key.step == step else 0

    def resume(self, record: StepRecord) -> None:
        """The next step is this one, with some of its updates made."""
        self._resumed = record

    def take(self, key: Key, series: Mapping[str, UpdateSeries]) -> None:
        """Begin the step, with what a checkpoint or the journal knows of it. Collective.

        Raises ValueError where the checkpoint's step asked for something else than this one.
        """
        found, self._resumed = self._resumed, None
        if found is not None and (found.key.step, found.key.asked) != (key.step, key.asked):
            raise ValueError(
                f"step {key.step} is to go on after {found.num_updates} of its updates, but it was begun with other "
                "prompts, sampling or sizes of updates. Keep data, rollout, algo.ppo_epochs and the global_batch_size "
                "of both models until it is done, or name an older checkpoint in checkpoints/latest."
            )
        if found is None and self._journal is not None:
            found = self._journal.find(key)
        self._record, self._local = found or StepRecord(key), {}
        self.was_sampled_before = self._record.completions is not None
        for role, made in self._record.made.items():
            series[role].begin_with(made)

    def completions(self, sample: Callable[[], list[Completion]]) -> list[Completion]:
        """Of the whole rollout. Collective."""
        if self.record.completions is None:
            try:
                self.record.completions = sample()
            except BrokenOff:
                self._safe_point()
                raise
            self._write()
        return self.record.completions

    def grades(self, grade: Callable[[], list[Grade]]) -> list[Grade]:
        """Of the whole rollout. Collective."""
        if self.record.grades is None:
            self.record.grades = grade()
            self._write()
        return self.record.grades

    def column(self, name: str, batch: Batch, rows: Sequence[int], compute: Callable[[Batch], Tensor]) -> Tensor:
        """float32 [B, T] of this data rank's samples, whose numbers in the rollout are `rows`. Collective."""
        whole = self.record.columns.get(name)
        column_BT = compute(batch) if whole is None else local_column_BT(whole, rows, self._lengths, batch)
        self._local[name] = (list(rows), response_tokens(column_BT, batch))
        return column_BT

    def whole_record(self, mesh: Mesh) -> StepRecord:
        """With the columns of all ranks. Collective."""
        gathered = gather_objects(self._local if is_first_of_replica(mesh) else None, dist.group.WORLD)
        shares = [share for share in gathered if share is not None]
        for name in self._local:
            rows, tokens = zip(*(share[name] for share in shares), strict=True)
            self.record.columns[name] = whole_column(tokens, rows, self._lengths)
        return self.record

    @property
    def _lengths(self) -> list[int]:
        assert self.record.completions is not None
        return [len(completion.token_ids) for completion in self.record.completions]

    def _write(self) -> None:
        if self._journal is not None:
            self._journal.write(self.record)
