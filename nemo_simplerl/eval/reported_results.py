"""Accuracies by the SimpleRL authors (simpleRL-reason, January 2025), in percent; greedy, one sample a problem."""

from nemo_simplerl.eval.benchmarks import AVERAGED

# By benchmark in the order of AVERAGED: AIME24, MATH500, AMC23, Minerva, OlympiadBench.
_ROWS = {
    "Qwen2.5-Math-7B base": (16.7, 52.4, 52.5, 12.9, 16.4),
    "base + 8K MATH SFT": (3.3, 54.6, 22.5, 32.7, 19.6),
    "base + 8K QwQ distillation": (16.7, 76.6, 55.0, 34.9, 36.9),
    "SimpleRL-Zero": (33.3, 77.2, 62.5, 33.5, 37.6),
    "SimpleRL": (26.7, 82.4, 62.5, 39.7, 43.3),
}
REPORTED = {name: dict(zip(AVERAGED, row, strict=True)) for name, row in _ROWS.items()}


def average(row: dict[str, float]) -> float:
    """Unweighted mean over the benchmarks of the original recipe's "Avg." column."""
    return sum(row[name] for name in AVERAGED) / len(AVERAGED)
