"""Evaluation of the engine's weights on a set of problems: greedy pass@1, and sampled accuracy beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.distributed as dist

from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.data.sampler import sample_seed
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.reward.serving.pool import Grade, Item, Sample
from nemo_simplerl.rollout.base import RolloutEngine, SamplingParams
from nemo_simplerl.rollout.completions import FINISH_REASONS, decode_text, encode_text
from nemo_simplerl.rollout.distribute import generate_sharded
from nemo_simplerl.rollout.spread import SpreadCompletions, deliver

GradeFn = Callable[[Sequence[Item]], list[Grade]]


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`: `metrics` under eval/ keys; `rows` has one dict a response, greedy ones first."""

    metrics: dict[str, float]
    rows: list[dict]


def evaluate(
    prompts: Sequence[Prompt],
    engine: RolloutEngine,
    grade: GradeFn,
    sampling: SamplingParams,
    *,
    num_samples: int,
    seed: int,
    group: dist.ProcessGroup | None,
) -> Evaluation:
    """Generate and grade one greedy response a problem, and `num_samples` sampled under `sampling` (0: none).

    Every rank of `group` calls with the same arguments and gets the same answer. Collective.
    """
    metrics: dict[str, float] = {}
    rows: list[dict] = []
    modes = {"greedy": replace(sampling, n=1, temperature=0.0, top_p=1.0, top_k=0)}
    if num_samples:
        modes["sampled"] = replace(sampling, n=num_samples)
    for name, params in modes.items():
        seeds = [sample_seed(seed, 0, i, k) for i in range(len(prompts)) for k in range(params.n)]
        completions = generate_sharded(engine, [p.token_ids for p in prompts], params, seeds, group=group)
        grades = grade_sharded(grade, prompts, completions, group)
        is_correct = [grade.verdict == "correct" for grade in grades]
        if name == "greedy":
            metrics["eval/accuracy"] = _mean(is_correct)
            metrics["eval/format_rate"] = _mean([grade.verdict != "no_answer" for grade in grades])
            metrics["eval/length_mean"] = _mean(completions.lengths.tolist())
            metrics["eval/truncated_share"] = _mean((~completions.is_stopped).tolist())
        else:
            metrics["eval/sampled_accuracy"] = _mean(is_correct)
        scores = [float(correct) for correct in is_correct]
        held = [{"mode": name} | row for row in sample_rows(prompts, completions, grades, scores)]
        rows += SpreadRows(held, completions.holders).gathered(group)
    return Evaluation(metrics, rows)


class _Samples(Sequence[Sample]):
    """What is to be graded of completions that this rank holds; each is made when it is asked for."""

    def __init__(self, problems: Sequence[Prompt], texts: Sequence[str], token_ids: Sequence[np.ndarray]):
        self._prompts, self._texts, self._token_ids = problems, texts, token_ids

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        prompt = self._prompts[index]
        facts = {
            "prompt": prompt.text,
            "completion_ids": self._token_ids[index].tolist(),
            "question": prompt.problem.question,
            "id": prompt.problem.id,
            "level": prompt.problem.level,
            "subject": prompt.problem.subject,
        }
        return Sample(prompt.problem.answer, self._texts[index], facts)


def grade_sharded(
    grade: GradeFn, prompts: Sequence[Prompt], completions: SpreadCompletions, group: dist.ProcessGroup | None
) -> list[Grade]:
    """Grades of all completions, an equal number of each prompt in turn, on every rank. Collective.

    Each rank grades what it holds where that is at most a quarter more than an even share; else texts and tokens are
    dealt out to all ranks first, as where only some of them have an engine.
    """
    count, size = len(completions), 1 if group is None else group.size()
    held_by = np.bincount(completions.holders, minlength=size)
    if 4 * size * held_by.max(initial=0) <= 5 * (count + size):
        graders, held = completions.holders, completions.held
        texts, token_ids = held.texts, held.token_ids
    else:
        graders = np.arange(count) % size
        texts, token_ids = _dealt(completions, graders, group)
    n = count // max(len(prompts), 1)
    mine = np.flatnonzero(graders == completions.rank).tolist()
    with waiting("reward.grade"):
        graded = grade(_Samples([prompts[i // n] for i in mine], texts, token_ids))
    shares = [iter(share) for share in gather_objects(graded, group, "grades")]
    return [next(shares[grader]) for grader in graders.tolist()]


def _dealt(
    completions: SpreadCompletions, graders: np.ndarray, group: dist.ProcessGroup | None
) -> tuple[list[str], list[np.ndarray]]:
    """Texts and token ids of the completions that this rank grades, from the ranks that hold them. Collective."""
    encoded = [np.frombuffer(encode_text(text), dtype=np.uint8) for text in completions.held.texts]
    sizes = np.zeros(len(completions), dtype=np.int64)
    for indices, lengths in gather_objects((completions.held_indices, [len(text) for text in encoded]), group):
        sizes[indices] = lengths
    owners = [np.flatnonzero(graders == rank).tolist() for rank in range(graders.max(initial=0) + 1)]
    owners += [[] for _ in range(0 if group is None else group.size() - len(owners))]
    texts = deliver([encoded], [np.uint8], sizes, completions.holders, owners, group)
    ids = deliver([completions.held.token_ids], [np.int32], completions.lengths, completions.holders, owners, group)
    return [decode_text(row.tobytes()) for (row,) in texts], [row for (row,) in ids]


@dataclass(frozen=True)
class SpreadRows:
    """Rows of samples for the run directory, spread over the ranks: `held` those of this rank, in the order of samples;
    `holders` the rank that has each."""

    held: list[dict]
    holders: np.ndarray

    @classmethod
    def alone(cls, rows: list[dict]) -> "SpreadRows":
        """Rows that are all on this rank, the first of its group."""
        return cls(rows, np.zeros(len(rows), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.holders)

    def gathered(self, group: dist.ProcessGroup | None) -> list[dict]:
        """All rows, in the order of samples, on every rank. Collective."""
        shares = [iter(share) for share in gather_objects(self.held, group, "rows")]
        return [next(shares[holder]) for holder in self.holders.tolist()]


def sample_rows(
    prompts: Sequence[Prompt],
    completions: SpreadCompletions,
    grades: Sequence[Grade],
    scores: Sequence[float],
) -> list[dict]:
    """One dict a completion that this rank holds, with what a person needs to judge it, for the run directory's JSONL
    files. The other arguments are of all completions."""
    n = len(completions) // len(prompts)
    facts = zip(
        completions.held_indices,
        completions.held.texts,
        completions.lengths[completions.held_indices].tolist(),
        completions.held.is_stopped.tolist(),
        completions.held.versions.tolist(),
        completions.held.seeds.tolist(),
        strict=True,
    )
    return [
        {
            "id": prompts[i // n].problem.id,
            "prompt": prompts[i // n].text,
            "response": text,
            "gold": prompts[i // n].problem.answer,
            "verdict": grades[i].verdict,
            "status": grades[i].status,
            "reward": scores[i],
            "length": length,
            "finish_reason": FINISH_REASONS[is_stopped],
            "weight_version": version,
            "seed": seed,
        }
        for i, text, length, is_stopped, version, seed in facts
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
