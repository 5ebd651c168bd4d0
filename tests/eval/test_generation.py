"""Graded responses to a benchmark, from a scripted engine."""

import pytest

from nemo_simplerl.data.problems import Problem, Prompt
from nemo_simplerl.eval.generation import answer_of, generate_graded
from nemo_simplerl.eval.results import averages, summarize
from nemo_simplerl.reward.grade import judge
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.base import Completion, SamplingParams

PROMPTS = [Prompt(Problem(f"p{i}", f"{i} + 1 = ?", str(i + 1), None, None), f"{i} + 1 = ?", (i,)) for i in range(10)]


def _sampling(n: int) -> SamplingParams:
    return SamplingParams(n=n, max_tokens=8, temperature=1.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=())


class Scripted:
    """An engine whose kth sample of prompt (i,) is right where `is_right(i, k)`; `asked` lists its prompts."""

    batch_size, generates, weight_version = 4, True, 0

    def __init__(self, is_right):
        self.is_right, self.asked = is_right, []

    def generate(self, prompts, params, seeds):
        self.asked += [prompt[0] for prompt in prompts]
        return [
            Completion((1, 2), (0.0, 0.0), f"so \\boxed{{{i + 1 if self.is_right(i, k) else -5 - k}}}", "stop", 0, 7)
            for (i,) in prompts
            for k in range(params.n)
        ]


def _grade(items):
    return [Grade(judge(gold, response).verdict, "ok", 0.1) for gold, response, *_ in items]


def _rows(engine, n=1, num_done=0):
    rows: list[dict] = []
    generate_graded(
        PROMPTS, engine, _grade, _sampling(n), seed=1, chunk_size=4, num_done=num_done, keep=rows.extend, group=None
    )
    return rows


def test_an_engine_that_knows_every_answer_scores_100_and_one_that_knows_none_0():
    assert summarize(_rows(Scripted(lambda i, k: True)))["accuracy"] == 1.0
    none = summarize(_rows(Scripted(lambda i, k: False)))
    assert (none["accuracy"], none["format_rate"], none["problems"]) == (0.0, 1.0, 10)


def test_what_is_done_is_not_asked_again_and_the_rest_is_as_before():
    whole = _rows(Scripted(lambda i, k: i % 3 == 0))
    engine = Scripted(lambda i, k: i % 3 == 0)
    rest = _rows(engine, num_done=8)
    assert sorted(engine.asked) == [8, 9]
    assert rest == whole[8:]
    assert [row["question"] for row in whole] == list(range(10))


def test_several_samples_give_pass_at_k_and_a_vote():
    # Problems 0 to 4: two of four samples right, alike, the wrong ones unlike; the others: one of four.
    figures = summarize(_rows(Scripted(lambda i, k: k < (2 if i < 5 else 1)), n=4))
    assert figures["accuracy"] == figures["pass@1"] == pytest.approx(0.375)
    assert figures["pass@2"] == pytest.approx((5 * (1 - 1 / 6) + 5 * (1 - 3 / 6)) / 10)
    assert figures["pass@4"] == 1.0
    assert figures["maj@4"] == 1.0  # a tie of one vote each goes to the first sample, which is right
    assert figures["samples"] == 4


def test_equal_answers_in_other_dress_are_one_candidate():
    assert answer_of(r"\boxed{ 1,234 }") == answer_of(r"\boxed{1,234}.")
    assert answer_of("no box") is None


def test_averages_are_over_the_five_and_the_eight_only_where_all_are_there():
    five = {name: {"accuracy": 0.5} for name in ("aime24", "math500", "amc23", "minerva_math", "olympiadbench")}
    assert averages(five) == {"average_5": 0.5}
    assert averages({"aime24": {"accuracy": 0.5}}) == {}
