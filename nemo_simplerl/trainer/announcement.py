"""What the ranks that sampled a step tell all others: everything but tokens and texts, some 25 bytes a completion."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.rollout.spread import SpreadCompletions
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

    def record_on(self, rank: int, held: Completions) -> StepRecord:
        """The record on a rank of the world, which holds these completions."""
        assert self.record.completions is not None, "what is announced was sampled"
        return replace(self.record, completions=replace(self.record.completions, rank=rank, held=held))

    def rounds(
        self, record: StepRecord, groups: SampledGroups
    ) -> Iterator[tuple[list[Prompt], SpreadCompletions, list[Grade]]]:
        """Prompts, completions and grades of each round of a record that `record_on` gave."""
        assert record.completions is not None and record.grades is not None, "what is announced was graded"
        first = 0
        for size in self.sizes:
            samples = range(first * groups.n, (first + size) * groups.n)
            grades = record.grades[samples.start : samples.stop]
            yield list(groups.offered[first : first + size]), record.completions.select(samples), grades
            first += size
