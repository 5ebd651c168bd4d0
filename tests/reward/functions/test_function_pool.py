"""A reward of one's own in the workers: its numbers, its failures, and what it may look at."""

import time

import pytest

from nemo_simplerl.reward.functions.pool import FunctionFails, FunctionPool
from nemo_simplerl.reward.serving.client import RewardClient
from nemo_simplerl.reward.serving.pool import Grade, Sample, score_of
from nemo_simplerl.rollout.base import Completion
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.trainer.logging.metrics import sample_metrics
from nemo_simplerl.user_functions import source_digest, user_function
from support.servers import reward_server

SOURCE = r"""
import math, time
from helper import LIMIT

def verl(data_source, solution_str, ground_truth, extra_info):
    assert extra_info["question"] == "1+1?" and extra_info["index"] == "p1" and "completion_ids" not in extra_info
    return {"score": len(solution_str), "limit": LIMIT, "gold": ground_truth, "is_two": ground_truth == "2"}

def trl(prompts, completions, completion_ids, answer, log_metric, **columns):
    assert (prompts, columns["question"]) == (["Q: 1+1?"], ["1+1?"])
    log_metric("tokens", len(completion_ids[0]))
    return [float(completions[0].endswith(answer[0]))]

async def openrlhf(queries, prompts, labels):
    return {"rewards": [len(queries[0]) - len(prompts[0])], "scores": [0.5], "extra_logs": {"x": [1.0]}}

def naughty(solution_str):
    print("noise" * 10_000)
    if solution_str == "raise":
        raise KeyError("of the function")
    if solution_str == "exit":
        raise SystemExit(0)
    if solution_str == "hang":
        time.sleep(600)
    if solution_str == "allocate":
        return len(bytearray(4_000_000_000))
    if solution_str == "die":
        import os
        os.abort()
    return math.nan if solution_str == "nan" else 7
"""
FACTS = {"prompt": "Q: 1+1?", "question": "1+1?", "id": "p1", "completion_ids": [5, 6, 7], "level": 1, "subject": None}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "helper.py").write_text("LIMIT = 12")
    (tmp_path / "json.py").write_text("raise SystemExit('beside the function')")
    path = tmp_path / "rewards.py"
    path.write_text(SOURCE)
    return path


def pool_of(file, name, timeout_s=2.0):
    return FunctionPool(f"{file}:{name}", 1, timeout_s, 1024)


def samples(*responses):
    return [Sample("2", response, FACTS) for response in responses]


def test_the_numbers_of_every_form_are_scores_and_metrics_and_the_verdict_stays_the_graders(file):
    with pool_of(file, "verl") as pool:
        right, none = pool.grade(samples(r"\boxed{2}", "none"))
    assert (right.verdict, right.score, right.metrics) == ("correct", 9.0, {"limit": 12.0, "is_two": 1.0})
    assert (none.verdict, none.status, none.score) == ("no_answer", "ok", 4.0)
    with pool_of(file, "trl") as pool:
        grades = pool.grade(samples("it is 2", "it is 3"))
    assert [(grade.score, grade.metrics) for grade in grades] == [(1.0, {"tokens": 3.0}), (0.0, {"tokens": 3.0})]
    with pool_of(file, "openrlhf") as pool:
        grades = pool.grade(samples("four", "four"))  # like another one, and scored all the same
    assert [(grade.score, grade.metrics) for grade in grades] == [(4.0, {"scores": 0.5, "x": 1.0})] * 2


def test_what_raises_or_runs_over_is_counted_and_pays_what_no_answer_pays(file):
    failing = ["raise", "exit", "nan", "hang", "allocate", "die"]
    with pool_of(file, "naughty", timeout_s=1.0) as pool:
        good, *bad, last = pool.grade(samples("fine", *failing, "fine"))
    assert good.score == last.score == 7.0
    assert {grade.verdict for grade in bad} == {"no_answer"} and {score_of(grade) for grade in bad} == {-1.0}
    assert [grade.status for grade in bad] == ["crash", "crash", "crash", "timeout", "crash", "crash"]
    assert "KeyError: 'of the function'" in bad[0].error and 'rewards.py", line' in bad[0].error
    assert "MemoryError" in bad[4].error


@pytest.mark.parametrize("count", [3, 200])
def test_a_function_that_fails_on_everything_ends_the_call_at_once_with_its_traceback(file, count):
    with pool_of(file, "naughty") as pool, pytest.raises(FunctionFails) as raised:
        pool.grade(samples(*["raise"] * count))
    assert f"rewards.py:naughty failed on everything, {min(count, 16)} responses in a row" in str(raised.value)
    assert "KeyError: 'of the function'" in str(raised.value)


def test_a_few_failures_in_a_function_that_worked_before_end_nothing(file):
    with pool_of(file, "naughty") as pool:
        pool.grade(samples("fine"))
        assert {grade.status for grade in pool.grade(samples(*["raise"] * 15))} == {"crash"}
        with pytest.raises(FunctionFails):
            pool.grade(samples(*["raise"] * 16))


def test_a_file_that_cannot_be_loaded_is_told_with_its_traceback(file):
    file.write_text("import no_such_module")
    with pytest.raises(FunctionFails, match="cannot be loaded(?s:.*)No module named 'no_such_module'"):
        pool_of(file, "verl")


def test_a_worker_that_starts_later_has_the_function_that_the_run_began_with(file):
    with pool_of(file, "naughty", timeout_s=0.5) as pool:
        file.write_text("def naughty(solution_str): return 8")
        grades = pool.grade(samples("fine", "die", "fine"))
        source = pool.worker_pids()
    assert source and [grade.score for grade in grades] == [7.0, None, 7.0]


def test_metrics_are_means_of_the_samples_that_have_them_and_displace_none_of_the_trainers():
    completions = Completions.of([Completion((7,), (0.0,), "", "stop", 0, 0)] * 3)
    grades = [
        Grade("correct", "ok", 1.0, 2.0, {"short": 1.0, "mean": 5.0}),
        Grade("incorrect", "ok", 1.0, 4.0, {"short": 0.0}),
        Grade("no_answer", "crash", 1.0, error="raised"),
    ]
    found = sample_metrics(completions, grades, [score_of(grade) for grade in grades])
    assert (found["reward/short"], found["reward/function_mean"]) == (0.5, 5.0)
    assert found["reward/mean"] == pytest.approx(5 / 3) and found["reward/crash_share"] == pytest.approx(1 / 3)


def test_a_server_scores_with_it_and_refuses_a_run_with_another(file):
    digest = source_digest(user_function(f"{file}:naughty"))
    with reward_server("--function", f"{file}:naughty", "--timeout-s", 1) as server:
        with RewardClient(server.url, function=digest) as client:
            assert client.check() == []
            good, bad = client.grade(samples("fine", "raise"))
            assert (good.score, bad.score, bad.verdict, bad.status) == (7.0, None, "no_answer", "crash")
            assert "KeyError" in bad.error
        with RewardClient(server.url, function="another") as client, pytest.raises(ValueError, match="scores with a"):
            client.check()
        with RewardClient(server.url) as client, pytest.raises(ValueError, match="and this run with the math grader"):
            client.check()
    file.write_text("def naughty(solution_str): raise KeyError('always')")
    digest = source_digest(user_function(f"{file}:naughty"))
    with reward_server("--function", f"{file}:naughty") as server, RewardClient(server.url, function=digest) as client:
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="cannot score|refuses(?s:.*)KeyError: 'always'"):
            client.grade(samples("fine"))
        assert time.monotonic() - start < 5


def test_the_page_of_a_proxy_is_not_taken_for_a_server_with_another_reward():
    with RewardClient("http://127.0.0.1:1", function="mine") as client:
        client._require_function("http://127.0.0.1:1", b"<html>busy</html>")  # asked again: it holds no grades
        with pytest.raises(RuntimeError, match="scores with the math grader"):
            client._require_function("http://127.0.0.1:1", b'{"results": []}')
