"""The grader on labelled cases, hostile inputs and data sets, where these lie beside the repository."""

import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from nemo_simplerl.reward.extract import final_answers
from nemo_simplerl.reward.grade import grade_text

SHARED = Path(__file__).resolve().parents[3] / "shared"
LABELLED = SHARED / "grader" / "cases_labelled.jsonl"
HOSTILE = SHARED / "grader" / "adversarial.jsonl"
TRAINING = SHARED / "data" / "math_level3to5_data_processed_with_qwen_prompt.json"
EVALUATION = SHARED / "data" / "eval"


def _text(path):
    if not path.exists():
        pytest.skip(f"{path.parent.name}/{path.name} is not beside the repository")
    return path.read_text(encoding="utf-8")


def _rows(path):
    return [json.loads(line) for line in _text(path).splitlines()]


def _verdicts(tier):
    return [(row["label"], grade_text(row["gold"], row["response"])) for row in _rows(LABELLED) if row["tier"] == tier]


def test_core_verdicts_agree_with_the_labels_in_99_of_100_and_hardly_ever_reward_a_wrong_answer():
    counts = Counter((label, verdict == "correct") for label, verdict in _verdicts("core"))
    false_positives = counts["incorrect", True] + counts["no_answer", True]
    assert false_positives <= 2
    assert false_positives + counts["correct", False] <= counts.total() / 100


def test_hard_verdicts_agree_with_the_labels_in_65_of_100():
    counts = Counter((label, verdict == "correct") for label, verdict in _verdicts("hard"))
    assert counts["incorrect", True] <= 3
    assert counts["incorrect", True] + counts["correct", False] <= 0.35 * counts.total()


def test_a_response_without_a_final_answer_is_recognised_in_every_labelled_case():
    verdicts = [verdict for label, verdict in _verdicts("core") if label == "no_answer"]
    assert len(verdicts) > 20
    assert set(verdicts) == {"no_answer"}


def test_no_hostile_input_is_called_correct_or_takes_long():
    for row in _rows(HOSTILE):
        response = row.get("response") or "".join(text * count for text, count in row["response_parts"])
        start = time.perf_counter()
        verdict = grade_text(row["gold"], response)
        assert time.perf_counter() - start < 3.0, row["id"]
        assert verdict != "correct" or row["expected"] == "any", row["id"]


def test_every_training_gold_answer_is_right_for_itself_and_no_integer_for_its_successor():
    golds = [row["gt_answer"] for row in json.loads(_text(TRAINING))]
    assert len(golds) == 8523
    assert sum(not gold.strip() for gold in golds) == 2  # two rows of the data set have no answer
    assert grade_text("", r"\boxed{}") == "no_answer"
    assert [gold for gold in golds if gold.strip() and grade_text(gold, f"\\boxed{{{gold}}}") != "correct"] == []
    assert {grade_text(gold, "\\boxed{}") for gold in golds} == {"no_answer"}
    integers = [gold for gold in golds if re.fullmatch("-?[0-9]+", gold)]
    assert len(integers) > 4000
    assert [gold for gold in integers if grade_text(gold, f"\\boxed{{{int(gold) + 1}}}") != "incorrect"] == []


def _evaluation_golds():
    for path in sorted(EVALUATION.glob("*.jsonl")):
        for row in _rows(path):
            gold = row.get("final_answer", row.get("answer")) or (final_answers(row.get("solution", "")) or [""])[-1]
            gold = gold[0] if isinstance(gold, list) else str(gold)
            yield gold.rpartition("####")[2].strip() if path.stem == "gsm8k" else gold


def test_every_evaluation_gold_answer_is_right_for_itself_also_with_other_typesetting():
    if not EVALUATION.exists():
        pytest.skip("the evaluation sets are not beside the repository")
    golds = [gold for gold in _evaluation_golds() if gold.strip()]
    assert len(golds) > 6000
    balanced = [gold for gold in golds if final_answers(f"\\boxed{{{gold}}}") == [gold.strip()]]
    assert len(golds) - len(balanced) < 20  # a gold answer with a brace too many cannot be boxed
    assert [gold for gold in balanced if grade_text(gold, f"\\boxed{{{gold}}}") != "correct"] == []
    unended = [gold for gold in balanced if gold[-1] not in ".$\\"]
    spaced = [gold for gold in unended if grade_text(gold, f"\\boxed{{ \\displaystyle {gold}. }}") != "correct"]
    assert spaced == []
