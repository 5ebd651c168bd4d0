"""`simplerl distill` against an endpoint on loopback that fails, is slow and limits requests."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

from nemo_simplerl.cli.main import main
from nemo_simplerl.data.distill import kept, last_number_boxed, missing_requests, with_boxes
from nemo_simplerl.data.problems import Problem
from nemo_simplerl.reward.grade import grade_text

PROBLEMS = [Problem(f"row-{i}", f"{i} + 1?", str(i + 1), None, None) for i in range(12)]


@contextmanager
def endpoint(reply):
    """A server. `reply(question, seed, nth)` gives (status, text, headers) of the nth request for that sample.

    The header Sleep is for the server: seconds before it answers.
    """
    asked: Counter = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions" and body["model"] == "teacher"
            assert "boxed" in body["messages"][0]["content"]
            key = body["messages"][1]["content"], body["seed"]
            with lock:
                asked[key] += 1
            status, text, headers = reply(*key, asked[key])
            time.sleep(float(headers.pop("Sleep", 0)))
            if status is None:  # hangs up
                self.connection.close()
                return
            choice = {"message": {"content": text}, "finish_reason": "stop"}
            content = json.dumps({"choices": [choice]}).encode() if status == 200 else text.encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in PROBLEMS))
    return path


def _distill(problems, url, *options):
    out = problems.with_name("sft.jsonl")
    base = [str(problems), "--endpoint", url, "--model", "teacher", "--out", str(out), "--connections", "4"]
    status = main(["distill", *base, "--workers", "1", *options])
    return status, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else None


def _right(question):
    return f"Think. \\boxed{{{int(question.split()[0]) + 1}}}"


def test_errors_limits_and_lost_connections_lose_nothing_and_double_nothing(problems):
    def reply(question, seed, nth):
        if nth == 1 and int(question.split()[0]) % 3 == 0:
            return 429, "slow down", {"Retry-After": "0"}
        if nth == 1 and int(question.split()[0]) % 3 == 1:
            return None, "", {}
        return (500, "oops", {}) if nth == 2 and seed == 0 else (200, _right(question), {})

    with endpoint(reply) as (url, asked):
        status, rows = _distill(problems, url, "--samples", "2")
    assert status == 0
    assert [row["id"] for row in rows] == [f"row-{i}/0" for i in range(12)]  # both samples alike: one of them
    samples = [json.loads(line) for line in (problems.parent / "sft.jsonl.samples").read_text().splitlines()]
    every = [(problem.id, k) for problem in PROBLEMS for k in (0, 1)]
    assert Counter((row["id"], row["sample"]) for row in samples) == Counter(every)
    assert max(asked.values()) == 3


def test_a_call_that_was_broken_off_goes_on_with_what_is_missing(problems):
    broken = True

    def reply(question, seed, nth):
        return (401, "no key", {}) if broken and int(question.split()[0]) >= 5 else (200, _right(question), {})

    with endpoint(reply) as (url, asked):
        status, rows = _distill(problems, url, "--samples", "1")
        assert (status, len(rows)) == (1, 5)
        record = problems.parent / "sft.jsonl.samples"
        record.write_text(record.read_text() + '{"id": "row-7", "sam')  # as a kill leaves it
        broken = False
        before = dict(asked)
        status, rows = _distill(problems, url, "--samples", "1")
    assert (status, len(rows)) == (0, 12)
    assert all(asked[f"{i} + 1?", 0] == before[f"{i} + 1?", 0] for i in range(5))
    assert {row["source"] for row in rows} == {"teacher"}


def test_answers_count_for_the_question_and_the_settings_that_they_were_asked_for(problems, capsys):
    with endpoint(lambda question, seed, nth: (200, _right(question), {})) as (url, asked):
        assert _distill(problems, url, "--samples", "1")[0] == 0
        problems.write_text(problems.read_text().split("\n", 1)[1])  # each id is the next one's now
        status, rows = _distill(problems, url, "--samples", "1")
        assert sum(asked.values()) == 12
        assert (status, [row["id"] for row in rows]) == (0, [f"row-{i}/0" for i in range(11)])
        assert all(row["response"] == _right(row["question"]) for row in rows)
        assert "1 samples in" in capsys.readouterr().out
        _distill(problems, url, "--samples", "1", "--temperature", "0.1")
    assert sum(asked.values()) == 12 + 11


def test_a_question_that_is_there_twice_is_asked_for_twice_and_no_more(problems):
    problems.write_text(problems.read_text() + problems.read_text().splitlines(keepends=True)[0])
    with endpoint(lambda question, seed, nth: (200, _right(question), {})) as (url, asked):
        for _ in range(2):
            status, rows = _distill(problems, url, "--samples", "1")
            assert (status, len(rows), sum(asked.values())) == (0, 13, 13)


def test_ids_of_several_problems_are_refused(problems, capsys):
    problems.write_text('{"id": "a", "question": "1 + 1?", "answer": "2"}\n' * 2)
    assert _distill(problems, "http://localhost:1") == (2, None)
    assert "1 ids stand for several problems, such as 'a'" in capsys.readouterr().err


def test_a_reply_that_takes_too_long_is_asked_for_again(problems):
    def reply(question, seed, nth):
        return 200, _right(question), {"Sleep": "3" if nth == 1 and question == PROBLEMS[3].question else "0"}

    with endpoint(reply) as (url, asked):
        status, rows = _distill(problems, url, "--samples", "1", "--timeout", "1")
    assert (status, len(rows)) == (0, 12)
    assert asked == Counter({(problem.question, 0): 1 + (problem is PROBLEMS[3]) for problem in PROBLEMS})


def test_an_endpoint_that_never_works_is_left_after_a_few_requests(problems, capsys):
    with endpoint(lambda question, seed, nth: (403, "forbidden", {})) as (url, asked):
        status, rows = _distill(problems, url, "--samples", "50")
    assert (status, rows) == (1, [])
    assert sum(asked.values()) < 20
    assert "answered 403: forbidden" in capsys.readouterr().err


def test_answers_of_before_do_not_make_a_dead_endpoint_look_alive(problems, capsys):
    with endpoint(lambda question, seed, nth: (200, _right(question), {})) as (url, _):
        assert _distill(problems, url, "--samples", "4")[0] == 0
    with endpoint(lambda question, seed, nth: (403, "forbidden", {})) as (url, asked):
        assert _distill(problems, url, "--samples", "50")[0] == 1
    assert sum(asked.values()) < 20


def test_only_right_whole_and_different_responses_are_kept():
    def sample(k, response, verdict="correct", finish_reason="stop"):
        return {"id": "row-0", "sample": k, "response": response, "verdict": verdict, "finish_reason": finish_reason}

    samples = [sample(3, "c"), sample(0, "a  b\n"), sample(1, "a b"), sample(2, "x", "incorrect")]
    samples += [sample(4, "cut", finish_reason="length"), sample(5, "d")]
    assert [row["response"] for row in kept(PROBLEMS, samples, 2, "m")] == ["a  b", "c"]
    assert [request.key for request in missing_requests(PROBLEMS[:2], 2, samples[1:2])] == [
        ("row-1", 0),
        ("row-0", 1),
        ("row-1", 1),
    ]


@pytest.mark.parametrize(
    ("said", "boxed"),
    [
        ("3 + 4 = 7.", r"3 + 4 = \boxed{7}."),
        ("It costs $1,250.50, she says", r"It costs $\boxed{1,250.50}, she says"),
        ("5-3 is -2", r"5-3 is \boxed{-2}"),
        ("so 3/4 of **8kg**", r"so 3/4 of **\boxed{8}kg**"),
        (r"3 + 4 = 7. The answer is \boxed{ }.", r"3 + 4 = 7. The answer is \boxed{7}."),
        (r"The answer is \boxed{7", r"The answer is \boxed{7}"),
        (r"\boxed{} holds x2 of 5", r"\boxed{} holds x2 of \boxed{5}"),
        ("none at all", None),
    ],
)
def test_the_last_number_is_boxed_where_it_stands_or_in_the_empty_box_after_it(said, boxed):
    assert last_number_boxed(said) == boxed


def test_a_right_number_without_a_box_is_kept_in_one_and_comes_after_what_was_said_with_one():
    def sample(k, response, verdict):
        return {"id": "row-0", "sample": k, "response": response, "verdict": verdict, "finish_reason": "stop"}

    samples = [sample(0, " 0 + 1 = 1.\nQ: 2?", "no_answer"), sample(1, " \\boxed{1}\n", "correct")]
    samples += [sample(2, "It is 3.", "no_answer"), sample(3, "words", "no_answer")]

    class Graded(NamedTuple):
        verdict: str

    boxed = with_boxes(PROBLEMS, samples, lambda items: [Graded(grade_text(*item)) for item in items])
    assert [row["verdict"] for row in boxed] == [
        "no_answer",
        "correct",
        "no_answer",
        "no_answer",
    ]  # 2 is the last number
    samples[0] = sample(0, " 0 + 1 = 1.\n", "no_answer")
    boxed = with_boxes(PROBLEMS, samples, lambda items: [Graded(grade_text(*item)) for item in items])
    rows = kept(PROBLEMS, boxed, 2, "m", ends=["\n"])
    assert [row["response"] for row in rows] == ["\\boxed{1}", "0 + 1 = \\boxed{1}."]
    assert [row.get("rewritten", False) for row in rows] == [False, True]


def test_boxes_are_put_in_by_option_and_counted(problems, capsys):
    def reply(question, seed, nth):
        return 200, f"The sum is {int(question.split()[0]) + 1 + (question == '3 + 1?')}.", {}

    with endpoint(reply) as (url, _):
        assert _distill(problems, url, "--samples", "1")[1] == []
        status, rows = _distill(problems, url, "--samples", "1", "--box")
        assert (status, len(rows)) == (0, 11) and all(row["rewritten"] for row in rows)
        assert rows[0]["response"] == "The sum is \\boxed{1}."
        assert "11 that box nothing end in the right number" in capsys.readouterr().out
        assert _distill(problems, url, "--examples", "shots.jsonl")[0] == 2
        assert "--examples shots.jsonl means nothing to an endpoint" in capsys.readouterr().err
