"""Graded responses to a benchmark, generated chunk by chunk, so that what is on disk is not generated again."""

from collections.abc import Callable, Sequence

import torch.distributed as dist

from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.data.sampler import sample_seed
from nemo_simplerl.eval.run import GradeFn, SpreadRows, grade_sharded, sample_rows
from nemo_simplerl.reward.extract import final_answers
from nemo_simplerl.reward.parsing.normalize import normalize_answer
from nemo_simplerl.rollout.base import RolloutEngine, SamplingParams
from nemo_simplerl.rollout.distribute import generate_sharded


def generate_graded(
    prompts: Sequence[Prompt],
    engine: RolloutEngine | None,
    grade: GradeFn,
    params: SamplingParams,
    *,
    seed: int,
    chunk_size: int,
    num_done: int,
    keep: Callable[[list[dict]], None],
    group: dist.ProcessGroup | None,
) -> None:
    """Generate and grade responses to the prompts after the first `num_done`. Collective.

    `keep` is called with each chunk's rows, on every rank. Chunks are cut from the prompts in order wherever an earlier
    run stopped (num_done must be a multiple of `chunk_size`, or all), so that each is computed as it would have been in
    one go.
    """
    assert num_done % chunk_size == 0 or num_done == len(prompts), "an earlier run keeps whole chunks"
    for first in range(num_done, len(prompts), chunk_size):
        chunk = prompts[first : first + chunk_size]
        seeds = [sample_seed(seed, 0, first + i, k) for i in range(len(chunk)) for k in range(params.n)]
        keep(graded_rows(chunk, seeds, engine, grade, params, first=first, group=group))


def graded_rows(
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    engine: RolloutEngine | None,
    grade: GradeFn,
    params: SamplingParams,
    *,
    first: int,
    group: dist.ProcessGroup | None,
) -> list[dict]:
    """Generate and grade `params.n` responses to each prompt; their rows, prompt by prompt, on every rank. Collective.

    seeds: one a response. first: number of the first of these prompts, from which `question` counts.
    """
    completions = generate_sharded(engine, [prompt.token_ids for prompt in prompts], params, seeds, group=group)
    grades = grade_sharded(grade, prompts, completions, group)
    scores = [float(grade.verdict == "correct") for grade in grades]
    held = [
        {"question": first + i // params.n} | row | {"answer": answer_of(row["response"])}
        for i, row in zip(completions.held_indices, sample_rows(prompts, completions, grades, scores), strict=True)
    ]
    return SpreadRows(held, completions.holders).gathered(group)


def answer_of(response: str) -> str | None:
    """The final answer, normalized so that equal candidates of a vote are equal texts; None where there is none."""
    answers = final_answers(response)
    return normalize_answer(", ".join(answers)) if answers else None
