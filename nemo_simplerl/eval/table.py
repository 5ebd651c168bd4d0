"""Results as Markdown: the figures of each benchmark, and beside them what the SimpleRL authors reported."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nemo_simplerl.eval.benchmarks import AVERAGED, BENCHMARKS, title_of
from nemo_simplerl.eval.reported_results import REPORTED, average
from nemo_simplerl.eval.statistics import Z95, binomial_error, differ

Results = Mapping[str, Mapping[str, Any]]


def results_table(results: Results, averages: Mapping[str, float]) -> str:
    """Markdown table of one row a benchmark; accuracy in percent with its 95 % interval."""
    extra = [key for key in next(iter(results.values()), {}) if key.startswith(("pass@", "maj@")) and key != "pass@1"]
    header = ["benchmark", "problems", "accuracy", "95 %", *extra, "answers", "cut", "tokens", "repeats"]
    body = [
        [
            title_of(name),
            str(result["problems"]) + (f" x {result['samples']}" if result["samples"] > 1 else ""),
            _percent(result["accuracy"]),
            f"{_percent(result['low'])} to {_percent(result['high'])}",
            *(_percent(result[key]) for key in extra),
            _percent(result["format_rate"]),
            _percent(result["truncated_share"]),
            f"{result['length_mean']:.0f}",
            _percent(result["repetitive_share"]),
        ]
        for name, result in results.items()
    ]
    titles = {"average_5": "average of the five", "average_8": "average of the eight"}
    body += [[titles[key], "", _percent(value)] + [""] * (len(header) - 3) for key, value in averages.items()]
    return _markdown(header, body)


def comparison_table(results: Results) -> str:
    """Markdown table of every reported row beside these results: reported accuracy, and ours minus theirs.

    A difference in brackets is within the noise of both (95 %, one sample a problem there).
    """
    names = [name for name in AVERAGED if name in results]
    header = ["", *(BENCHMARKS[name].title for name in names)]
    ours = {name: 100 * results[name]["accuracy"] for name in names}
    rows = [["this run", *(f"{ours[name]:.1f}" for name in names)]]
    is_complete = len(names) == len(AVERAGED)
    if is_complete:
        header.append("Avg.")
        rows[0].append(f"{average(ours):.1f}")
    for title, reported in REPORTED.items():
        cells = [_difference(results[name], reported[name] / 100, BENCHMARKS[name].num_rows) for name in names]
        if is_complete:
            cells.append(_average_difference(results, reported))
        rows.append([title, *cells])
    return _markdown(header, rows) + "\nDifferences in brackets are within the noise of both figures (95 %).\n"


def _difference(result: Mapping[str, Any], reported: float, num_problems: int) -> str:
    is_news = differ(result["accuracy"], _error(result), reported, binomial_error(reported, num_problems))
    return _delta_cell(reported, result["accuracy"] - reported, is_news)


def _average_difference(results: Results, reported: Mapping[str, float]) -> str:
    n = len(AVERAGED)
    ours = sum(results[name]["accuracy"] for name in AVERAGED) / n
    our_error = math.hypot(*(_error(results[name]) for name in AVERAGED)) / n
    errors = [binomial_error(reported[name] / 100, BENCHMARKS[name].num_rows) for name in AVERAGED]
    theirs = average(dict(reported)) / 100
    return _delta_cell(theirs, ours - theirs, differ(ours, our_error, theirs, math.hypot(*errors) / n))


def _error(result: Mapping[str, Any]) -> float:
    """Standard error from the width of the interval: the spread of the scores is 0 where none or all are right."""
    return (result["high"] - result["low"]) / 2 / Z95


def _delta_cell(reported: float, delta: float, is_news: bool) -> str:
    change = f"{100 * delta:+.1f}"
    return f"{100 * reported:.1f} {change if is_news else f'({change})'}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * max(width, 3) for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)
