"""The labelled cases and the hostile inputs kept beside the repository, where they are there."""

import json
import time
from pathlib import Path

import pytest

from nemo_simplerl.reward.equivalence import parse_number
from nemo_simplerl.reward.extract import last_boxed
from nemo_simplerl.reward.grade import grade_text
from nemo_simplerl.reward.normalize import normalize_answer

CASES = Path(__file__).resolve().parents[3] / "shared" / "grader"
LABELLED, HOSTILE = CASES / "cases_labelled.jsonl", CASES / "adversarial.jsonl"


def _rows(path):
    if not path.exists():
        pytest.skip(f"no labelled cases: {path.parent.name}/{path.name} is not beside the repository")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _is_plain_number(text):
    return text is not None and "%" not in text and parse_number(normalize_answer(text)) is not None


def test_verdicts_on_plain_numbers_agree_with_the_labels():
    rows = [row for row in _rows(LABELLED) if row["tier"] == "core" and _is_plain_number(row["gold"])]
    rows = [row for row in rows if _is_plain_number(last_boxed(row["response"]))]
    assert len(rows) > 100
    wrong = [row["id"] for row in rows if grade_text(row["gold"], row["response"]) != row["label"]]
    assert wrong == []


def test_a_response_without_a_final_answer_is_recognised_in_every_labelled_case():
    rows = [row for row in _rows(LABELLED) if row["tier"] == "core" and row["label"] == "no_answer"]
    assert len(rows) > 20
    assert [row["id"] for row in rows if grade_text(row["gold"], row["response"]) != "no_answer"] == []


def test_no_hostile_input_is_called_correct_or_takes_long():
    for row in _rows(HOSTILE):
        response = row.get("response") or "".join(text * count for text, count in row["response_parts"])
        start = time.perf_counter()
        verdict = grade_text(row["gold"], response)
        assert time.perf_counter() - start < 3.0, row["id"]
        assert verdict != "correct" or row["expected"] == "any", row["id"]
