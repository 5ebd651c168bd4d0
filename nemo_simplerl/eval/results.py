"""The figures of a benchmark, computed from its graded responses."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from nemo_simplerl.eval.benchmarks import AVERAGED, BENCHMARKS
from nemo_simplerl.eval.response_text import is_repetitive, num_reflections
from nemo_simplerl.eval.statistics import interval, majority, pass_at_k, standard_error

Rows = Sequence[Mapping[str, Any]]


def summarize(rows: Rows, num_unanswered: int = 0) -> dict[str, Any]:
    """Figures of one benchmark, shares from 0 to 1; `rows` are in the order of their questions, n of each.

    `accuracy` is the mean over all samples (pass@1 for one a problem, avg@n for more), with its 95 % interval and
    standard error over problems. pass@k and maj@n only where there are several samples. num_unanswered: problems
    beside those of the rows that got no response. They count as wrong; the other figures are of the responses.
    """
    samples = [list(group) for _, group in groupby(rows, key=itemgetter("question"))]
    n = len(samples[0])
    is_correct = [[row["verdict"] == "correct" for row in group] for group in samples]
    is_correct += [[False] * n] * num_unanswered
    scores = [sum(group) / n for group in is_correct]
    low, high = interval(scores)
    figures: dict[str, Any] = {
        "problems": len(is_correct),
        "unanswered": num_unanswered,
        "samples": n,
        "accuracy": _mean(scores),
        "low": low,
        "high": high,
        "standard_error": standard_error(scores),
        "format_rate": _mean([row["verdict"] != "no_answer" for row in rows]),
        "truncated_share": _mean([row["finish_reason"] == "length" for row in rows]),
        "length_mean": _mean([row["length"] for row in rows]),
        "length_correct_mean": _mean([row["length"] for row in rows if row["verdict"] == "correct"]),
        "length_wrong_mean": _mean([row["length"] for row in rows if row["verdict"] != "correct"]),
        "reflections_mean": _mean([num_reflections(row["response"]) for row in rows]),
        "repetitive_share": _mean([is_repetitive(row["response"]) for row in rows]),
        "ungraded_share": _mean([row["status"] in ("timeout", "crash") for row in rows]),
    }
    if n > 1:
        for k in _powers_of_two(n):
            figures[f"pass@{k}"] = _mean([pass_at_k(n, sum(group), k) for group in is_correct])
        votes = [majority([row["answer"] for row in group]) for group in samples] + [None] * num_unanswered
        figures[f"maj@{n}"] = _mean(
            [vote is not None and correct[vote] for vote, correct in zip(votes, is_correct, strict=True)]
        )
    return figures


def averages(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Unweighted mean accuracy of the original recipe's five benchmarks and of all eight, where none is missing.

    Files of the user's own count in neither.
    """
    found = {}
    if all(name in results for name in AVERAGED):
        found["average_5"] = _mean([results[name]["accuracy"] for name in AVERAGED])
    if all(name in results for name in BENCHMARKS):
        found["average_8"] = _mean([results[name]["accuracy"] for name in BENCHMARKS])
    return found


def _powers_of_two(n: int) -> list[int]:
    return [1 << power for power in range(n.bit_length()) if 1 << power <= n]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
