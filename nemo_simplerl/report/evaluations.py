"""The results of `simplerl eval` on the page: results.json files, drawn by benchmark."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_simplerl.eval.benchmarks import BENCHMARKS, title_of
from nemo_simplerl.report.figures import COLORS, Chart, LegendEntry, blank_axes, svg_of

_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class EvaluationResult:
    """One results.json. `step` is the number at the end of its folder's name (eval_step_000040), if any.

    `benchmarks` maps each benchmark to its measures: accuracy, low, high, length_mean. `engine` sampled the answers.
    """

    label: str
    step: int | None
    benchmarks: Mapping[str, Mapping[str, Any]]
    engine: str | None


def evaluations_of(run_dir: Path) -> list[EvaluationResult]:
    """The results of every RUN_DIR/eval_*/, by step. Errors of `load_evaluation`."""
    found = [load_evaluation(path.parent) for path in sorted(run_dir.glob("eval_*/results.json"))]
    return sorted(found, key=lambda one: (one.step is None, one.step or 0))


def load_evaluation(path: Path) -> EvaluationResult:
    """The results in the folder of `simplerl eval --out`, or in its results.json.

    FileNotFoundError where there are none, ValueError where they are damaged.
    """
    file = path if path.name.endswith(".json") else path / "results.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no results.json; give the folder named by `simplerl eval --out`")
    try:
        results = json.loads(file.read_bytes())
        benchmarks, engine = results["benchmarks"], results.get("settings", {}).get("engine")
        for figures in benchmarks.values():
            float(figures["accuracy"]), float(figures["low"]), float(figures["high"]), float(figures["length_mean"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not what `simplerl eval` writes: {error!r}") from error
    folder = file.resolve().parent.name
    step = re.search(r"(\d+)$", folder)
    return EvaluationResult(folder, int(step[1]) if step else None, benchmarks, engine)


def names_in(evaluations: Sequence[EvaluationResult]) -> list[str]:
    """The benchmarks of the evaluations: the recipe's in its order, then others by name."""
    found = {name for one in evaluations for name in one.benchmarks}
    return [name for name in BENCHMARKS if name in found] + sorted(found - set(BENCHMARKS))


def draw_benchmarks(evaluations: Sequence[EvaluationResult]) -> list[Chart]:
    """Charts of accuracy and response length by benchmark: curves over the steps where the evaluations have several
    steps, else points beside each other."""
    if not evaluations:
        return []
    steps = {one.step for one in evaluations}
    draw = _over_steps if len(steps) > 1 and None not in steps else _beside
    accuracy = draw(evaluations, "Accuracy by benchmark", "share correct, 95 % interval", "accuracy")
    return [accuracy, draw(evaluations, "Response length by benchmark", "tokens, mean", "length_mean")]


def _over_steps(evaluations: Sequence[EvaluationResult], title: str, unit: str, measure: str) -> Chart:
    names = names_in(evaluations)
    figure, axes = blank_axes(unit)
    for number, name in enumerate(names):
        having = sorted((one for one in evaluations if name in one.benchmarks), key=lambda one: one.step or 0)
        axes.errorbar(
            [one.step or 0 for one in having],
            [one.benchmarks[name][measure] for one in having],
            yerr=_errors([one.benchmarks[name] for one in having]) if measure == "accuracy" else None,
            color=COLORS[number % len(COLORS)],
            marker=_MARKS[number % len(_MARKS)],
            markersize=4,
            linewidth=1.2,
            elinewidth=0.8,
        )
    if measure == "accuracy":
        axes.set_ylim(-0.02, 1.02)
    legend = [LegendEntry(title_of(name), number % len(COLORS), "solid") for number, name in enumerate(names)]
    return Chart(title, svg_of(figure), tuple(legend), "")


def _beside(evaluations: Sequence[EvaluationResult], title: str, unit: str, measure: str) -> Chart:
    names = names_in(evaluations)
    figure, axes = blank_axes(unit, x_label="")
    for number, one in enumerate(evaluations):
        places = [place for place, name in enumerate(names) if name in one.benchmarks]
        having = [one.benchmarks[names[place]] for place in places]
        shift = 0.6 * ((number + 0.5) / len(evaluations) - 0.5)
        axes.errorbar(
            [place + shift for place in places],
            [figures[measure] for figures in having],
            yerr=_errors(having) if measure == "accuracy" else None,
            color=COLORS[number % len(COLORS)],
            marker=_MARKS[number % len(_MARKS)],
            markersize=5,
            linestyle="",
            elinewidth=1.2,
        )
    axes.set_xticks(range(len(names)), [title_of(name) for name in names], rotation=35, ha="right")
    if measure == "accuracy":
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.set_ylim(bottom=0)
    legend = [LegendEntry(one.label, number % len(COLORS), "solid") for number, one in enumerate(evaluations)]
    return Chart(title, svg_of(figure), tuple(legend) if len(legend) > 1 else (), "")


def _errors(having: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    below = [max(figures["accuracy"] - figures["low"], 0.0) for figures in having]
    return [below, [max(figures["high"] - figures["accuracy"], 0.0) for figures in having]]
