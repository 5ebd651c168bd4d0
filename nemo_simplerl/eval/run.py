"""Evaluation of the engine's weights on a set of problems: greedy pass@1, and sampled accuracy beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch.distributed as dist

from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.data.sampler import sample_seed
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.reward.serving.pool import Grade, Item, Sample
from nemo_simplerl.rollout.base import Completion, RolloutEngine, SamplingParams
from nemo_simplerl.rollout.distribute import generate_sharded

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
        grades = grade_sharded(grade, responses_of(prompts, completions, params.n), group)
        is_correct = [grade.verdict == "correct" for grade in grades]
        if name == "greedy":
            metrics["eval/accuracy"] = _mean(is_correct)
            metrics["eval/format_rate"] = _mean([grade.verdict != "no_answer" for grade in grades])
            metrics["eval/length_mean"] = _mean([len(c.token_ids) for c in completions])
            metrics["eval/truncated_share"] = _mean([c.finish_reason == "length" for c in completions])
        else:
            metrics["eval/sampled_accuracy"] = _mean(is_correct)
        scores = [float(correct) for correct in is_correct]
        rows += [{"mode": name} | row for row in sample_rows(prompts, completions, grades, scores)]
    return Evaluation(metrics, rows)


def responses_of(prompts: Sequence[Prompt], completions: Sequence[Completion], n: int) -> list[Sample]:
    """What is to be graded of each completion; `completions` holds n of each prompt in order."""
    return [_sample(prompts[i // n], completion) for i, completion in enumerate(completions)]


def _sample(prompt: Prompt, completion: Completion) -> Sample:
    problem = prompt.problem
    facts = {
        "prompt": prompt.text,
        "completion_ids": list(completion.token_ids),
        "question": problem.question,
        "id": problem.id,
        "level": problem.level,
        "subject": problem.subject,
    }
    return Sample(problem.answer, completion.text, facts)


def grade_sharded(grade: GradeFn, responses: Sequence[Item], group: dist.ProcessGroup | None) -> list[Grade]:
    """Grades of all responses on every rank, each rank having graded its share. Collective."""
    rank, size = (0, 1) if group is None else (group.rank(), group.size())
    with waiting("reward.grade"):
        mine = grade(responses[rank::size])
    shares = gather_objects(mine, group, "grades")
    return [shares[i % size][i // size] for i in range(len(responses))]


def sample_rows(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    grades: Sequence[Grade],
    scores: Sequence[float],
) -> list[dict]:
    """One dict a completion with what a person needs to judge it, for the run directory's JSONL files."""
    n = len(completions) // len(prompts)
    return [
        {
            "id": prompts[i // n].problem.id,
            "prompt": prompts[i // n].text,
            "response": completion.text,
            "gold": prompts[i // n].problem.answer,
            "verdict": grade.verdict,
            "status": grade.status,
            "reward": score,
            "length": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "weight_version": completion.weight_version,
            "seed": completion.seed,
        }
        for i, (completion, grade, score) in enumerate(zip(completions, grades, scores, strict=True))
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
