"""Verdicts and speed of the math grader on labelled cases, beside a simple baseline and math-verify.

usage: python scripts/bench/grader.py [CASES.jsonl] [--tier core|hard|policy|all]

A case is a JSON object with `gold`, `response` and `label` (correct, incorrect or no_answer), and perhaps `tier`.
Prints one JSON line. `math_verify` is null where that package is not installed.
"""

import argparse
import json
import re
import sys
import time
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


def measure(grader: Grader, cases: list[dict[str, Any]]) -> dict[str, float]:
    """Accuracy in percent, false verdicts, cases per second and the 99th percentile of a case in ms."""
    false_positives = false_negatives = 0
    seconds = []
    for case in cases:
        start = time.perf_counter()
        correct = grader(case["gold"], case["response"])
        seconds.append(time.perf_counter() - start)
        false_positives += correct and case["label"] != "correct"
        false_negatives += not correct and case["label"] == "correct"
    return {
        "accuracy_percent": round(100 * (1 - (false_positives + false_negatives) / len(cases)), 2),
        "false_positives": false_positives,
        "false_negatives": false_negatives,
        "cases_per_s": round(len(cases) / sum(seconds), 1),
        "p99_ms": round(1000 * sorted(seconds)[int(0.99 * len(seconds))], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT.parent / "shared" / "grader" / "cases_labelled.jsonl"
    parser.add_argument("cases", nargs="?", type=Path, default=default)
    parser.add_argument("--tier", default="core", help="core (default), hard, policy or all")
    args = parser.parse_args()
    if not args.cases.exists():
        parser.error(f"no cases at {args.cases}; give the path of a file of labelled cases")
    lines = args.cases.read_text(encoding="utf-8").splitlines()
    cases = [case for case in map(json.loads, lines) if args.tier == "all" or case.get("tier", args.tier) == args.tier]
    if not cases:
        parser.error(f"{args.cases} has no cases of tier {args.tier}")
    other = math_verify()
    result = {
        "cases": len(cases),
        "tier": args.tier,
        "nemo_simplerl": measure(lambda gold, response: grade_text(gold, response) == "correct", cases),
        "normalize_and_compare": measure(normalize_and_compare, cases),
        "math_verify": None if other is None else measure(other, cases),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
