"""What the ranks that sampled a step tell all others: everything but tokens and texts, some 25 bytes a completion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.trainer.groups import SampledGroups
from nemo_simplerl.trainer.saving.record import StepRecord


@dataclass(frozen=True)
class Announcement:
    """A sampled step. was_known: whether it was read from the journal.

    record: its completions are held by the ranks of the world that it names, and here by none. sizes: the number of
    prompts of each round.
    """

    record: StepRecord
    sizes: list[int]
    was_known: bool

    @classmethod
    def of(cls, groups: SampledGroups, record: StepRecord, was_known: bool, ranks: range) -> "Announcement":
        """What `ranks` of the world have sampled, where their record counts them from 0."""
        completions = groups.sampled.completions
        bare = replace(completions, holders=completions.holders + ranks[0], rank=-1, held=Completions.of([]))
        return cls(replace(record, completions=bare), groups.sizes, was_known)

    def record_on(self, rank: int, sampled: SampledGroups) -> StepRecord:
        """The record on a rank of the world, which has sampled these groups, or nothing."""
        assert self.record.completions is not None, "what is announced was sampled"
        held = sampled.sampled.completions.held if sampled.rounds else Completions.of([])
        return replace(self.record, completions=replace(self.record.completions, rank=rank, held=held))

    def fill(
        self, groups: SampledGroups, record: StepRecord, rewards_of: Callable[[Sequence[Grade]], list[float]]
    ) -> SampledGroups:
        """The groups, to which each round of a record that `record_on` gave is added."""
        assert record.completions is not None and record.grades is not None, "what is announced was graded"
        first = 0
        for size in self.sizes:
            samples = range(first * groups.n, (first + size) * groups.n)
            grades = record.grades[samples.start : samples.stop]
            prompts = groups.offered[first : first + size]
            groups.add(prompts, record.completions.select(samples), grades, rewards_of(grades))
            first += size
        return groups
