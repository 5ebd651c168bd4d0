import json
import re
from pathlib import Path

import pytest

from nemo_simplerl.data.problems import Problem, Prompt
from nemo_simplerl.eval.benchmarks import AVERAGED, BENCHMARKS, load_benchmark
from nemo_simplerl.eval.generation import generate_graded
from nemo_simplerl.eval.reported_results import REPORTED, average
from nemo_simplerl.eval.results import summarize
from nemo_simplerl.eval.statistics import binomial_error
from nemo_simplerl.eval.table import comparison_table, results_table
from nemo_simplerl.reward.grade import grade_text
from nemo_simplerl.reward.serving.pool import RewardPool
from nemo_simplerl.rollout.base import Completion, SamplingParams

DATA = Path(__file__).parents[3] / "shared" / "data" / "eval"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the evaluation sets are not beside the project")
NUM_ROWS = {
    "aime24": 30,
    "amc23": 40,
    "math500": 500,
    "minerva_math": 272,
    "olympiadbench": 675,
    "gsm8k": 1319,
    "gaokao2023en": 385,
    "college_math": 2818,
}
# Golds that are a page of prose: no box can hold them, so nobody's answer counts. Rows of college_math.
PROSE = {2064, 2156, 2218, 2263, 2317, 2461, 2500}
# 107 is `$145$solution:`; in a box, without its dollar signs, its letters are symbols. 145 is right for it.
UNREACHABLE = {"college_math": PROSE, "gaokao2023en": {107}}


def _written(folder: Path, name: str, *rows: dict) -> Path:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("name", "row", "gold"),
    [
        ("aime24", {"problem": "p", "answer": "204"}, "204"),
        ("amc23", {"question": "p", "answer": 27.0}, "27"),
        (
            "math500",
            {"problem": "p", "solution": r"$\boxed{1}$, no: $\boxed{\frac{1}{2}}$."},
            r"\frac{1}{2}",
        ),
        ("minerva_math", {"problem": "p", "solution": r"\boxed{1.6} cm"}, "1.6"),
        ("olympiadbench", {"question": "p", "final_answer": ["$69$,$84$"]}, "$69, 84$"),
        ("gsm8k", {"question": "p", "answer": "2+2=<<4>>4\n#### 1,234"}, "1234"),
        ("gaokao2023en", {"question": "Which?(A) 1 (B) 2 Answer: A", "answer": ""}, "A"),
        ("college_math", {"question": "p", "answer": "$x=3$"}, "$x=3$"),
    ],
)
def test_each_benchmark_keeps_its_gold_answer_in_its_own_place(tmp_path, name, row, gold):
    (problem,) = load_benchmark(name, _written(tmp_path, name, row))
    assert problem.answer == gold
    assert "Answer:" not in problem.question


def test_a_yes_or_no_gold_tells_in_the_question_what_may_be_answered(tmp_path):
    (problem,) = load_benchmark("aime24", _written(tmp_path, "aime24", {"problem": "Is it?", "answer": "False"}))
    assert problem.question == "Is it? (True or False)"


def test_a_missing_file_an_unknown_name_and_a_row_without_gold_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"neither .*gsm8k.jsonl nor .*test.jsonl is there"):
        load_benchmark("gsm8k", tmp_path)
    with pytest.raises(ValueError, match="no benchmark 'gsm9k'; choose of aime24"):
        load_benchmark("gsm9k", tmp_path)
    _written(tmp_path, "aime24", {"problem": "p", "answer": "1"}, {"problem": "p", "answer": r"\frac{1}{2"})
    with pytest.raises(ValueError, match=r"of 1 of 2 rows of themselves \(first: aime24/1#1, '.*frac"):
        load_benchmark("aime24", tmp_path)
    _written(tmp_path, "amc23", {"problem": "p", "answer": float("nan")})
    with pytest.raises(ValueError, match="1 of 1 rows have no question or no gold answer"):
        load_benchmark("amc23", tmp_path)
    _written(tmp_path, "math500", {"problem": "p", "solution": r"\boxed{1}"}, {"problem": "p", "solution": "none"})
    with pytest.raises(ValueError, match=r"1 of 2 rows have no question or no gold.*math500/1#1"):
        load_benchmark("math500", tmp_path)


class Scripted:
    """An engine that answers prompt (i,) with the ith response."""

    batch_size, generates, weight_version = 64, True, 0

    def __init__(self, responses: list[str]):
        self.responses = responses

    def generate(self, prompts, params, seeds):
        return [
            Completion((1,), (0.0,), self.responses[i], "stop", 0, seed)
            for (i,), seed in zip(prompts, seeds, strict=True)
        ]


def _answered(problems: list[Problem], responses: list[str], pool: RewardPool) -> list[dict]:
    prompts = [Prompt(problem, "", (i,)) for i, problem in enumerate(problems)]
    params = SamplingParams(n=1, max_tokens=8, temperature=0.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=())
    engine, rows = Scripted(responses), []
    generate_graded(
        prompts, engine, pool.grade, params, seed=1, chunk_size=128, num_done=0, keep=rows.extend, group=None
    )
    return rows


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_engine_that_boxes_every_gold_scores_100_percent_and_one_that_boxes_another_number_0(name):
    problems = load_benchmark(name, DATA)
    assert len(problems) == BENCHMARKS[name].num_rows == NUM_ROWS[name]
    boxed = [re.sub(r"(?<!\\)\$", "", problem.answer) for problem in problems]  # a box is in math already
    with RewardPool(1, timeout_s=20.0, memory_limit_mb=1024) as pool:
        right = _answered(problems, [rf"Thus \boxed{{{gold}}}." for gold in boxed], pool)
        wrong = _answered(problems, [r"Thus \boxed{-987654321/7}."] * len(problems), pool)
    unreachable = UNREACHABLE.get(name, set())
    assert {row["question"] for row in right if row["verdict"] != "correct"} == unreachable
    assert summarize(right)["accuracy"] == 1 - len(unreachable) / len(problems)
    assert summarize(wrong)["accuracy"] == 0.0 and summarize(wrong)["format_rate"] == 1.0


def test_the_order_of_olympiad_answers_does_not_matter():
    assert grade_text("$69, 84$", r"\boxed{84, 69}") == "correct"


def test_the_reported_rows_have_the_averages_and_intervals_of_the_documentation():
    assert [round(average(row), 1) for row in REPORTED.values()] == [30.2, 26.5, 44.0, 48.8, 50.9]
    documented = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text().splitlines()
        if "±" in line and line.startswith("|")
    ]
    assert documented == [
        [
            title,
            *(f"{row[name]:.1f} ± {196 * binomial_error(row[name] / 100, NUM_ROWS[name]):.1f}" for name in AVERAGED),
            f"{average(row):.1f}",
        ]
        for title, row in REPORTED.items()
    ]


def test_a_difference_within_the_noise_stands_in_brackets():
    result = {"problems": 30, "samples": 1, "accuracy": 0.267, "low": 0.142, "high": 0.444, "format_rate": 1.0}
    result |= {"truncated_share": 0.0, "length_mean": 9.0, "repetitive_share": 0.0}
    results = {"aime24": result, "math500": result | {"low": 0.23, "high": 0.31}}
    table = comparison_table(results)
    (zero,) = [line for line in table.splitlines() if line.startswith("| SimpleRL-Zero ")]
    assert zero.split("|")[2].strip() == "33.3 (-6.6)"
    assert zero.split("|")[3].strip() == "77.2 -50.5"
    assert "Avg." not in table  # three of the five are not there
    assert "| AIME 2024           | 30       | 26.7     | 14.2 to 44.4 |" in results_table(results, {"average_5": 0.3})


def test_golds_behind_the_limit_are_not_graded(tmp_path):
    rows = [{"problem": "p", "answer": "1"}, {"problem": "p", "answer": r"\boxed{1"}]
    folder = _written(tmp_path, "aime24", *rows)
    assert len(load_benchmark("aime24", folder, limit=1)) == 1
    with pytest.raises(ValueError, match="does not accept"):
        load_benchmark("aime24", folder)
