"""State of the current PPO step.

Completions, grades, log-probabilities, values and finished updates are kept, so that a run that is stopped or killed in
the middle of a step resumes there instead of sampling again.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

import numpy as np
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.data.batch import Batch
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.completions import flat_of_rows, rows_of_flat
from nemo_simplerl.rollout.spread import Response, SpreadCompletions, deliver
from nemo_simplerl.trainer.learners.updates import UpdateLoop
from nemo_simplerl.trainer.saving.journal import Journal
from nemo_simplerl.trainer.saving.parts import Column
from nemo_simplerl.trainer.saving.record import (
    PartFile,
    StepKey,
    StepRecord,
    head_bytes,
    local_column_BT,
    response_tokens,
)
from nemo_simplerl.trainer.shares import Share

log = logging.getLogger(__name__)


class StepState:
    """What is known of a step, filled in as the verbs of `ppo_step` run.

    A step is sampled by the ranks of the engine: `begin`, `completions`, `grades`. `announce` has all ranks know it,
    and from `take` on they train on it; another may be sampled meanwhile.

    journal: where completions and grades are written as soon as they exist, on the ranks that sample. should_stop:
    whether to break off a rollout.
    """

    def __init__(self, journal: Journal | None = None, should_stop: Callable[[], bool] = lambda: False):
        self.should_stop = should_stop
        self._journal = journal
        self._restored: dict[int, StepRecord] = {}  # by step
        self._sampled: StepRecord | None = None  # the step that is being sampled
        self._record: StepRecord | None = None  # the step that is trained on
        self._local: dict[str, tuple[Share, np.ndarray]] = {}  # a number a response token of this rank's, by column
        self.shares: dict[str, Share] = {}  # by role, of the step that is trained on
        self._responses: dict[int, Sequence[Response]] = {}  # that this rank trains on, by the id of their share
        self.is_known_to_all = False  # whether every rank has the facts of the step that is sampled, or was last
        self.was_known = False  # whether that one was sampled before, and is read
        self.was_sampled_before = False  # the same of the step that is trained on
        self.num_sampled = 0  # completions of the sampled step's rounds so far
        self.new_tokens = 0  # sampled by this rank's group, and not read, since they were last counted

    @property
    def record(self) -> StepRecord:
        """What is known of the step that is trained on."""
        assert self._record is not None, "call take() first"
        return self._record

    @property
    def sampled(self) -> StepRecord:
        """What is known of the step that is being sampled."""
        assert self._sampled is not None, "call begin() first"
        return self._sampled

    @property
    def trained_step(self) -> int | None:
        """The step that is trained on, or was last; None before the first."""
        return None if self._record is None else self._record.key.step

    @property
    def lengths(self) -> Sequence[int]:
        """Response tokens of each sample that is trained on."""
        return self._lengths

    @property
    def versions(self) -> np.ndarray:
        """int64, of the weights that sampled each completion of the step."""
        assert self.record.completions is not None, "sample before you ask"
        return self.record.completions.versions

    def num_updates(self, step: int) -> int:
        """Updates of all models that `step` has made so far, as far as this rank knows."""
        known = (self._record, self._sampled, *self._restored.values())
        return next((record.num_updates for record in known if record is not None and record.key.step == step), 0)

    def restore(self, record: StepRecord) -> None:
        """Have its step continue from `record`, which a checkpoint holds."""
        self._restored[record.key.step] = record

    def begin(self, key: StepKey) -> None:
        """Begin to sample the step of `key`, with what a checkpoint or the journal knows of it. Collective.

        Raises ValueError where the checkpoint's step was begun with other prompts, sampling or update sizes.
        """
        found = self._restored.pop(key.step, None)
        if found is not None and found.key.request_digest != key.request_digest:
            if found.num_updates:
                raise ValueError(
                    f"step {key.step} is to go on after {found.num_updates} of its updates, but it was begun with "
                    "other prompts, sampling or sizes of updates. Keep data, rollout, algo.ppo_epochs and the "
                    "global_batch_size of both models until it is done, or name an older checkpoint in "
                    "checkpoints/latest."
                )
            log.warning(
                f"step {key.step} was sampled ahead under other settings, and is sampled again by newer weights"
            )
            found = None
        self.is_known_to_all = found is not None
        if found is None and self._journal is not None:
            found = self._journal.find(key)
        self._sampled = found or StepRecord(key)
        self.was_known = self._sampled.completions is not None
        self.num_sampled = 0

    def completions(self, sample: Callable[[], SpreadCompletions], count: int) -> SpreadCompletions:
        """The `count` completions of the step's next round, from the record or else from `sample`. Collective."""
        known = self.sampled.completions
        if known is None or len(known) == self.num_sampled:
            new = sample()
            self.new_tokens += int(new.lengths.sum())
            known = self.sampled.completions = new if known is None else SpreadCompletions.joined([known, new])
            self._write()
        self.num_sampled += count
        return known.select(range(self.num_sampled - count, self.num_sampled))

    def grades(self, grade: Callable[[], list[Grade]], count: int) -> list[Grade]:
        """The grades of that round's `count` completions, from the record or else from `grade`. Collective."""
        known = self.sampled.grades or []
        if len(known) == self.num_sampled - count:
            known = self.sampled.grades = known + grade()
            self._write()
        return known[self.num_sampled - count : self.num_sampled]

    def announce(self, record: StepRecord, *, was_known: bool) -> None:
        """Take the step that was sampled as all ranks know it."""
        self._sampled, self.was_known, self.is_known_to_all = record, was_known, True

    def take(self, update_loops: Mapping[str, UpdateLoop]) -> None:
        """Train on the step that was sampled from here on. The loops go on after its finished updates."""
        self._record, self._local, self.shares, self._responses = self.sampled, {}, {}, {}
        self.was_sampled_before = self.was_known
        for role, update_loop in update_loops.items():
            update_loop.skip_finished(self.record.finished_updates.setdefault(role, []))

    def share_out(self, completions: SpreadCompletions, shares: Mapping[str, Share]) -> None:
        """Say who trains on which of these completions, by role, and send them there. Collective over the world."""
        self._lengths, self.shares = completions.lengths, dict(shares)
        for share in shares.values():
            if id(share) not in self._responses:
                self._responses[id(share)] = completions.to_owners(share.owners, dist.group.WORLD)

    @property
    def is_delivered(self) -> bool:
        """Whether the responses of the step that is trained on are here and not taken yet."""
        return bool(self._responses)

    def responses(self, share: Share) -> Sequence[Response]:
        """The responses of the share that this rank trains on; they can be had once."""
        return self._responses.pop(id(share))

    def column(self, name: str, role: str, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """float32 [B, T] of this rank's samples for the role, from the record or else from `compute`. Collective."""
        share = self.shares[role]
        known = self._restored_column(name, share) if self.was_sampled_before else None
        column_BT = compute(batch) if known is None else local_column_BT(known, batch)
        self._local[name] = share, response_tokens(column_BT, batch)
        return column_BT

    def record_of(self) -> StepRecord:
        """The record, with the columns of the samples that this rank speaks for."""
        columns = {
            name: Column(share.spoken_for, values if share.spoken_for else values[:0])
            for name, (share, values) in self._local.items()
        }
        return replace(self.record, columns=columns)

    def agree_on_updates(self) -> None:
        """Learn of the finished updates of models on other ranks. Collective over the world."""
        known = {} if self._record is None else self._record.finished_updates
        for finished in gather_objects(dict(known), dist.group.WORLD, "updates"):
            known |= {role: made for role, made in finished.items() if len(made) > len(known.get(role, ()))}

    def files(self, rank: int, name: str, step: int) -> dict[str, bytes]:
        """The files with this rank's part of what is known of `step`, which all ranks know: on rank 0, its head under
        `name` too. Collective."""
        record = self.record_of() if self._record is not None and self._record.key.step == step else self.sampled
        assert record.key.step == step, f"nothing is known of step {step}"
        assert record.completions is not None, "a record is written from its completions on"
        part_name = str(PurePath(name).with_name(f"part_{rank:05d}.npz"))
        content, digest = record.own_part.to_bytes()
        parts = gather_objects(PartFile(PurePath(part_name).name, digest), dist.group.WORLD)
        head = {name: head_bytes(record, parts, record.completions.holders)} if rank == 0 else {}
        return head | {part_name: content}

    def _restored_column(self, name: str, share: Share) -> np.ndarray | None:
        """float32: the numbers of the response tokens of this rank's batch, where a record that was read has them."""
        found = self.record.columns.get(name)
        if found is not None and not found.samples and len(found.values):
            found = Column(list(range(len(self._lengths))), found.values)  # of an earlier version: all, in order
        samples_of_ranks = gather_objects([] if found is None else found.samples, dist.group.WORLD)
        holders = np.full(len(self._lengths), -1)
        for rank, samples in enumerate(samples_of_ranks):
            holders[samples] = rank
        if (holders < 0).any():
            return None
        rows: list[np.ndarray] = []
        if found is not None:
            by_sample = dict(zip(found.samples, rows_of_flat(found.values, self._lengths[found.samples]), strict=True))
            rows = [by_sample[sample] for sample in sorted(by_sample)]
        mine = deliver([rows], [np.float32], self._lengths, holders, share.owners, dist.group.WORLD)
        return flat_of_rows([row for (row,) in mine], np.float32)

    def _write(self) -> None:
        if self._journal is not None:
            self._journal.write(self.sampled)


def kept_in_step(name: str, role: str) -> Callable:
    """Have a method `(batch) -> float32 [B, T]` answer from the record of a resumed step: see StepState.column.

    role: whose batches it is asked for. The method's object has the step's state as `step_state`.
    """

    def decorate(compute: Callable) -> Callable:
        @functools.wraps(compute)
        def kept(self, batch: Batch) -> Tensor:
            return self.step_state.column(name, role, batch, functools.partial(compute, self))

        return kept

    return decorate
