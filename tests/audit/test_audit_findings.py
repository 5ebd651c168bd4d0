"""The audit of rows with known findings, and `simplerl audit` on a run directory."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_simplerl.audit.findings import FINDING_KINDS, ask_math_verify, audit, regrade_findings
from nemo_simplerl.audit.math_verify import math_verify_installed
from nemo_simplerl.audit.rows import ResponseRow, read_responses, response_files
from nemo_simplerl.reward.serving.pool import Grade

ROOT = Path(__file__).parents[2]


def row(gold: str, response: str, verdict: str | None, status: str = "ok", prompt: str = "What?") -> dict:
    return {"prompt": prompt, "response": response, "gold": gold, "verdict": verdict, "status": status, "reward": 0.0}


# Row -> the kinds that it shows.
ROWS = [
    (row("2", r"It is \boxed{2} indeed", "correct"), set()),
    (row("2", "It is 2.", "no_answer"), set()),
    (row("2", r"It is certainly \boxed{3}", "incorrect"), set()),
    (row("0.5", r"One half is \boxed{\frac{1}{2}}", "incorrect"), {"false_negative"}),
    (row("7", r"Slow, but \boxed{9!}", "incorrect", "timeout"), {"timeout"}),
    (row("7", r"Bad, but \boxed{9!}", "incorrect", "crash"), {"crash"}),
    (row("7", r"Odd, but \boxed{@@}", "incorrect", "parse_failed"), {"parse_failed"}),
    (row("2", r"It is \boxed{1}. No, it must be \boxed{2}.", "correct"), {"several_boxes"}),
    (row("1, 2", r"Both \boxed{1}, \boxed{2}", "correct"), set()),
    (row("2", r"It may be \boxed{2 \text{ or } 3}", "incorrect"), {"hedge"}),
    (row("144", r"It is \boxed{144} as said", "correct", prompt="Hint: 144. What?"), {"gold_in_prompt"}),
    (row("2", r"$\boxed{2}$", "correct"), {"only_a_box"}),
]


def as_row(values: dict, place: str = "here:1") -> ResponseRow:
    return ResponseRow(place, values["gold"], values["response"], values["prompt"], values["verdict"], values["status"])


def refuse(items):
    raise AssertionError(f"asked to grade {items}")


@pytest.mark.parametrize(("values", "kinds"), ROWS)
def test_each_row_shows_what_it_was_made_to_show(values, kinds):
    found = audit([as_row(values)], refuse)
    assert set(found.rows_by_kind) == kinds


def test_rows_alike_are_one_finding_with_a_count_and_the_first_place():
    rows = [as_row(row("0.5", rf"Try {k}: \boxed{{1/2}}", "incorrect"), f"f:{k}") for k in range(5)]
    rows += [as_row(row("0.5", r"or \boxed{50/100}", "incorrect"), "f:9"), None]
    found = audit(rows, refuse)
    assert [(f.count, f.answer, f.first) for f in found.most_frequent("false_negative", 9)] == [
        (5, "1/2", "f:0"),
        (1, "50/100", "f:9"),
    ]
    assert found.most_frequent("false_negative", 1)[0].count == 5
    assert (found.num_rows, found.num_unreadable, found.verdicts["incorrect"]) == (6, 1, 6)


def test_only_rows_without_a_verdict_are_graded():
    asked = []

    def grade(items):
        asked.extend(items)
        return [Grade("incorrect", "parse_failed", 1.0) for _ in items]

    found = audit([as_row(row("2", "x", "correct")), as_row(row("3", r"\boxed{@}", None))], grade)
    assert asked == [("3", r"\boxed{@}")] and found.num_regraded == 1
    assert found.verdicts == {"correct": 1, "incorrect": 1} and found.rows_by_kind["parse_failed"] == 1


def test_the_peer_is_asked_about_the_most_frequent_wrong_answers():
    rows = [
        as_row(row("2", rf"so \boxed{{{k % 3 + 5}}}", "incorrect"), f"f:{k}") for k in range(8)
    ]  # 5, 6 thrice, 7 twice
    found = audit(rows, refuse)
    said = {("2", "5"): "incorrect", ("2", "6"): "correct"}
    assert ask_math_verify(found, lambda items: [Grade(said[item], "ok", 1.0) for item in items], most=2) == 2
    (finding,) = found.most_frequent("peer_disagrees", None)
    assert (finding.answer, finding.count, finding.first) == ("6", 3, "f:1")


def test_the_present_grader_is_asked_about_likely_mistakes():
    found = audit([as_row(row("0.5", r"so \boxed{1/2}", "incorrect"))], refuse)
    regrade_findings(
        found, lambda items: [Grade("correct", "ok", 1.0) for item in items if item == ("0.5", r"\boxed{1/2}")], 5
    )
    assert found.most_frequent("false_negative", 5)[0].now == "correct"


def test_a_run_directory_has_rollouts_and_evaluations_and_bad_lines_are_passed_over(tmp_path):
    for folder in ("rollouts", "eval"):
        (tmp_path / folder).mkdir()
        lines = [json.dumps(values) for values, _ in ROWS]
        (tmp_path / folder / "step_000001.jsonl").write_text("\n".join(lines) + '\n{"response": "torn\n[1]\n\n{}\n')
    rows = list(read_responses(response_files(tmp_path)))
    assert len(rows) == 2 * (len(ROWS) + 3) and rows.count(None) == 6
    assert rows[1].place == "rollouts/step_000001.jsonl:2"
    with pytest.raises(FileNotFoundError, match="give a trainer.run_dir"):
        response_files(tmp_path / "nothing")


WITHOUT_TORCH = (
    "import sys; from nemo_simplerl.cli.main import main; status = main(sys.argv[1:]);"
    "assert 'torch' not in sys.modules; raise SystemExit(status)"
)


def simplerl_audit(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT_TORCH, "audit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_the_command_prints_tables_and_writes_json_without_torch(tmp_path):
    file, report = tmp_path / "rows.jsonl", tmp_path / "report.json"
    hostile = row("2", "\x1b[31mred [bold] \\boxed{2;\x1b]0;title\x07}", "incorrect")
    rows = [*(values for values, _ in ROWS), hostile, {"gold": 3, "response": r"nobody graded \boxed{3}"}]
    file.write_text("".join(json.dumps(values) + "\n" for values in rows))
    done = simplerl_audit(file, "--json", report)
    assert done.returncode == 0, done.stderr
    assert "14 responses" in done.stdout and "\x1b]0" not in done.stdout
    told = json.loads(report.read_text())
    assert (told["rows"], told["graded_here"], told["verdicts"]["correct"]) == (14, 1, 6)
    assert set(told["kinds"]) == set(FINDING_KINDS)
    (finding,) = told["kinds"]["false_negative"]["findings"]
    assert (finding["gold"], finding["answer"], finding["now"]) == ("0.5", r"\frac{1}{2}", "correct")


def test_what_is_no_run_is_told_with_status_2(tmp_path):
    done = simplerl_audit(tmp_path)
    assert done.returncode == 2 and "give a trainer.run_dir" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not math_verify_installed(), reason="math-verify is not installed")
def test_math_verify_has_its_say(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("x+1", r"so \boxed{1+x}", "incorrect")) + "\n")
    done = simplerl_audit(tmp_path / "rows.jsonl", "--json", tmp_path / "report.json")
    assert "asked about 1 of 1" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["kinds"]["peer_disagrees"]["rows"] == 1


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds_and_little_memory(tmp_path):
    words = "We compute $x^2 + \\frac{1}{2}$ and so it follows. " * 40
    with (tmp_path / "rows.jsonl").open("w") as file:
        for k in range(100_000):
            verdict = "correct" if k % 3 == 0 else "incorrect"
            file.write(json.dumps(row(f"{k % 5000}", rf"{words}{k} \boxed{{{k % 5000 + k % 3 / 2}}}", verdict)) + "\n")
    start = time.monotonic()
    found = audit(read_responses(response_files(tmp_path / "rows.jsonl")), refuse)
    assert found.num_rows == 100_000 and time.monotonic() - start < 60
    assert len(found.findings) <= 50_000 and len(found.incorrect) <= 5000
