"""The groups of a step, each a prompt with its n graded responses: which are trained on, and how many more to sample.

Under rollout.keep_groups=mixed a step keeps the groups in which some responses are right and some are not, and samples
further prompts in place of the others: the dynamic sampling of DAPO (arXiv:2503.14476, equation 11). What counts is the
verdict, whatever a response's length costs it: with overlong shaping an all-right group has unequal rewards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.eval.run import SpreadRows, sample_rows
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.spread import SpreadCompletions
from nemo_simplerl.trainer.logging.metrics import sample_metrics


class Rollout(NamedTuple):
    """Prompts, and n completions of each in turn, with their grades and scores. Every rank has the grades of all."""

    prompts: list[Prompt]
    completions: SpreadCompletions
    grades: list[Grade]
    scores: list[float]


@dataclass
class SampledGroups:
    """The groups that a step has sampled so far, in order; `add` is called once a round.

    offered: the prompts that the step may take, in order. wanted: groups that it trains on. n: responses of each.
    only_mixed: whether the others make room for further prompts, in at most `max_rounds` rounds. terms_of: the terms of
    a response's score, beside the reward of its verdict, by its number of tokens.
    """

    step: int
    offered: Sequence[Prompt]
    wanted: int
    n: int
    only_mixed: bool
    max_rounds: int
    terms_of: Callable[[int], dict[str, float]]
    parts: list[Rollout] = field(default_factory=list)  # of each round
    terms: list[dict[str, float]] = field(default_factory=list)  # of each response

    def add(
        self,
        prompts: Sequence[Prompt],
        completions: SpreadCompletions,
        grades: Sequence[Grade],
        rewards: Sequence[float],
    ) -> None:
        """Take the groups of one round. rewards: of the verdicts; the other terms of the scores are added to them."""
        terms = [self.terms_of(length) for length in completions.lengths.tolist()]
        scores = [reward + sum(named.values()) for reward, named in zip(rewards, terms, strict=True)]
        self.parts.append(Rollout(list(prompts), completions, list(grades), scores))
        self.terms.extend(terms)

    @property
    def sizes(self) -> list[int]:
        """The number of prompts of each round so far."""
        return [len(part.prompts) for part in self.parts]

    @property
    def rounds(self) -> int:
        """Rounds sampled so far."""
        return len(self.parts)

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts sampled so far."""
        return [prompt for part in self.parts for prompt in part.prompts]

    @property
    def grades(self) -> list[Grade]:
        """The grades of all responses so far."""
        return [grade for part in self.parts for grade in part.grades]

    @property
    def sampled(self) -> Rollout:
        """All groups, of at least one round."""
        completions = SpreadCompletions.joined(part.completions for part in self.parts)
        scores = [score for part in self.parts for score in part.scores]
        return Rollout(self.prompts, completions, self.grades, scores)

    @property
    def num_correct(self) -> list[int]:
        """Right responses of each group."""
        is_correct = [grade.verdict == "correct" for grade in self.grades]
        return [sum(is_correct[start : start + self.n]) for start in range(0, len(is_correct), self.n)]

    @property
    def kept(self) -> list[bool]:
        """Whether each group need not make room for another."""
        return [not self.only_mixed or 0 < count < self.n for count in self.num_correct]

    def next_prompts(self) -> list[Prompt]:
        """Prompts to sample next; none where the step is full, was given all its rounds, or met every one on offer."""
        left = self.offered[len(self.prompts) :] if self.rounds < self.max_rounds else []
        return list(left[: round_size(self.kept, self.wanted, most=min(self.wanted, len(left)))])

    @property
    def trained(self) -> Rollout:
        """The groups that the step trains on, in the order of sampling."""
        chosen = chosen_groups(self.kept, self.wanted)
        samples = [group * self.n + k for group in chosen for k in range(self.n)]
        sampled = self.sampled
        return Rollout(
            [sampled.prompts[group] for group in chosen],
            sampled.completions.select(samples),
            [sampled.grades[i] for i in samples],
            [sampled.scores[i] for i in samples],
        )

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of all that was sampled, whether it is trained on or not."""
        metrics = sample_metrics(*self.sampled[1:], self.terms)
        if self.only_mixed:
            metrics |= {
                "rollout/rounds": float(self.rounds),
                "rollout/prompts_sampled": float(len(self.prompts)),
                "rollout/groups_all_correct": float(self.num_correct.count(self.n)),
                "rollout/groups_none_correct": float(self.num_correct.count(0)),
                "rollout/groups_left_out": float(len(self.prompts) - self.wanted),
                "rollout/groups_filled": float(max(self.wanted - sum(self.kept), 0)),
            }
        return metrics

    @property
    def rows(self) -> SpreadRows:
        """A row for each response that was sampled, for the run directory, on the rank that holds its text."""
        sampled = self.sampled
        held = sampled.completions.held_indices
        rows = [row | self.terms[i] for i, row in zip(held, sample_rows(*sampled), strict=True)]
        if self.only_mixed:
            chosen = set(chosen_groups(self.kept, self.wanted))
            rows = [row | {"trained_on": i // self.n in chosen} for i, row in zip(held, rows, strict=True)]
        return SpreadRows(rows, sampled.completions.holders)

    @property
    def warning(self) -> str | None:
        """What to say where groups without a difference fill the step, in words; None where it is full without."""
        mixed, num_prompts = sum(self.kept), len(self.prompts)
        if mixed >= self.wanted:
            return None
        right, wrong = self.num_correct.count(self.n), self.num_correct.count(0)
        limit = (
            "raise rollout.max_rounds" if self.rounds == self.max_rounds else "bring more problems: it has met them all"
        )
        easier = "bring harder problems" if right > wrong else "bring easier ones, and check their gold answers"
        return (
            f"{mixed} of {num_prompts} prompts had right and wrong responses after {self.rounds} rounds ({right} had "
            f"only right ones, {wrong} none), and {self.wanted - mixed} of the others fill the step of {self.wanted}: "
            f"a baseline of the group learns nothing from them{', nor from this step' if mixed == 0 else ''}. To find "
            f"more, {easier}, raise rollout.n_samples_per_prompt, or {limit}."
        )


def round_size(kept: Sequence[bool], wanted: int, *, most: int) -> int:
    """Prompts to sample next, at most `most`: as many as fill the step at the share of groups kept so far.

    kept: whether each group sampled so far is trained on, of which the step wants `wanted`.
    """
    lacking, num_kept = max(wanted - sum(kept), 0), sum(kept)
    expected = -(-lacking * len(kept) // num_kept) if num_kept else most
    return min(expected, most) if lacking else 0


def chosen_groups(kept: Sequence[bool], wanted: int) -> list[int]:
    """The groups that are trained on, in order: the first `wanted` of those kept, filled up with the first others."""
    first_kept_then_others = sorted(range(len(kept)), key=lambda group: not kept[group])
    return sorted(first_kept_then_others[:wanted])
