"""Verdicts and speed of the math grader on labelled cases, beside a simple baseline and math-verify.

usage: python scripts/bench/grader.py [CASES.jsonl] [--tier core|hard|policy|all] [--categories]

A case is a JSON object with `gold`, `response` and `label` (correct, incorrect or no_answer), and perhaps `tier` and
`category`. Prints one JSON line. `math_verify` is null where that package is not installed; where it is,
`correct_to_one_alone` counts the responses that it or nemo_simplerl alone calls correct. With --categories each grader
also has its false verdicts by category.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from nemo_simplerl.reward.extract import final_answers  # noqa: E402
from nemo_simplerl.reward.grade import grade_text  # noqa: E402

Grader = Callable[[str, str], bool]


def normalize_and_compare(gold: str, response: str) -> bool:
    """What graders of the MATH data set did first: normalise two strings, then compare them or two fractions."""
    boxes = final_answers(response)
    if not boxes:
        return False
    left, right = _normalized(gold), _normalized(boxes[-1])
    if left == right:
        return True
    one, two = _fraction(left), _fraction(right)
    return one is not None and one == two


def _normalized(text: str) -> str:
    text = re.sub(r"\\(?:left|right|displaystyle|[!,; ])|\\?\$|\\?%|\^\{?\\circ\}?|[{},]{,}(?=\s*$)", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\(?:text|mbox|mathrm)\{[^{}]*\}\s*$", "", text)
    text = re.sub(r"\\frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return re.sub(r"\s+", "", text).rstrip(".").lower()


def _fraction(text: str) -> Fraction | None:
    try:
        return Fraction(text) if len(text) < 100 else None
    except (ValueError, ZeroDivisionError):
        return None


def math_verify() -> Grader | None:
    """math-verify on the last box; None where it is not installed."""
    try:
        from math_verify import parse, verify
    except ImportError:
        return None

    def grade(gold: str, response: str) -> bool:
        boxes = final_answers(response)
        if not boxes:
            return False
        return bool(verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{boxes[-1]}}}")))

    return grade


def measure(grader: Grader, cases: list[dict[str, Any]], categories: bool) -> tuple[list[bool], dict[str, Any]]:
    """The verdicts; and accuracy in percent, false verdicts, cases per second, the 99th percentile of a case in ms."""
    verdicts, seconds = [], []
    for case in cases:
        start = time.perf_counter()
        verdicts.append(grader(case["gold"], case["response"]))
        seconds.append(time.perf_counter() - start)
    pairs = list(zip(cases, verdicts, strict=True))
    false_positives = [case for case, correct in pairs if correct and case["label"] != "correct"]
    false_negatives = [case for case, correct in pairs if not correct and case["label"] == "correct"]
    figures: dict[str, Any] = {
        "accuracy_percent": round(100 * (1 - (len(false_positives) + len(false_negatives)) / len(cases)), 2),
        "false_positives": len(false_positives),
        "false_negatives": len(false_negatives),
        "cases_per_s": round(len(cases) / sum(seconds), 1),
        "p99_ms": round(1000 * sorted(seconds)[int(0.99 * len(seconds))], 2),
    }
    if categories:
        for name, wrong in (("false_positives_in", false_positives), ("false_negatives_in", false_negatives)):
            figures[name] = dict(Counter(case.get("category", "") for case in wrong).most_common())
    return verdicts, figures


def only_one(cases: list[dict[str, Any]], ours: list[bool], other: list[bool]) -> dict[str, dict[str, int]]:
    """How many responses one of two graders alone calls correct, by whether that is right."""
    found = {"nemo_simplerl": {"right": 0, "wrong": 0}, "math_verify": {"right": 0, "wrong": 0}}
    for case, one, two in zip(cases, ours, other, strict=True):
        if one != two:
            found["nemo_simplerl" if one else "math_verify"]["right" if case["label"] == "correct" else "wrong"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT.parent / "shared" / "grader" / "cases_labelled.jsonl"
    parser.add_argument("cases", nargs="?", type=Path, default=default)
    parser.add_argument("--tier", default="core", help="core (default), hard, policy or all")
    parser.add_argument("--categories", action="store_true", help="also the false verdicts by category")
    args = parser.parse_args()
    if not args.cases.exists():
        parser.error(f"no cases at {args.cases}; give the path of a file of labelled cases")
    lines = args.cases.read_text(encoding="utf-8").splitlines()
    cases = [case for case in map(json.loads, lines) if args.tier == "all" or case.get("tier", args.tier) == args.tier]
    if not cases:
        parser.error(f"{args.cases} has no cases of tier {args.tier}")
    graders: dict[str, Grader | None] = {
        "nemo_simplerl": lambda gold, response: grade_text(gold, response) == "correct",
        "normalize_and_compare": normalize_and_compare,
        "math_verify": math_verify(),
    }
    measured = {name: measure(grader, cases, args.categories) for name, grader in graders.items() if grader}
    result: dict[str, Any] = {"cases": len(cases), "tier": args.tier} | dict.fromkeys(graders)
    result |= {name: figures for name, (_, figures) in measured.items()}
    if "math_verify" in measured:
        ours, other = measured["nemo_simplerl"][0], measured["math_verify"][0]
        result["correct_to_one_alone"] = only_one(cases, ours, other)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
