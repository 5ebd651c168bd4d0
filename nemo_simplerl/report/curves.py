"""Draws report.png: reward, accuracy and response length against the step."""

import io
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nemo_simplerl.files import atomic_write
from nemo_simplerl.report.read import RunData, load_run


@dataclass(frozen=True)
class PngLine:
    """A metric that a panel of report.png draws."""

    key: str
    label: str
    color: str
    every_step: bool  # a training metric, drawn faint and smoothed; else an evaluation, drawn as points


@dataclass(frozen=True)
class PngPanel:
    """One of the panels side by side in report.png."""

    title: str
    unit: str
    lines: tuple[PngLine, ...]
    is_share: bool = False


# Blue and orange are distinguishable with any kind of colour blindness; evaluations also have markers.
_TRAIN, _GREEDY, _SAMPLED = "#1f6fb4", "#d95f02", "#7a7a7a"
PNG_PANELS = (
    PngPanel("Reward", "mean of a step's samples", (PngLine("reward/mean", "training", _TRAIN, True),)),
    PngPanel(
        "Accuracy",
        "share of answers that are correct",
        (
            PngLine("reward/correct_share", "training, sampled", _TRAIN, True),
            PngLine("eval/accuracy", "evaluation, greedy", _GREEDY, False),
            PngLine("eval/sampled_accuracy", "evaluation, sampled", _SAMPLED, False),
        ),
        is_share=True,
    ),
    PngPanel(
        "Response length",
        "tokens, mean",
        (
            PngLine("rollout/length_mean", "training", _TRAIN, True),
            PngLine("eval/length_mean", "evaluation, greedy", _GREEDY, False),
        ),
    ),
)


def write_png(run_dir: Path | str) -> Path:
    """Draw report.png into the run directory. Errors of `load_run`, and ValueError where nothing was measured yet."""
    run = load_run(run_dir)
    if not any(run.series(line.key)[0] for panel in PNG_PANELS for line in panel.lines):
        raise ValueError(f"{run.path} has no step and no evaluation yet: there is nothing to draw")
    figure = Figure(figsize=(12, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(run.path.resolve().name)
    for panel, axes in zip(PNG_PANELS, figure.subplots(1, len(PNG_PANELS)), strict=True):
        _draw(panel, run, axes)
    path = run.path / "report.png"
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    atomic_write(path, stream.getvalue())
    return path


def smooth(values: list[float], weight: float) -> list[float]:
    """Exponential moving average, `weight` on the past, divided by the weights so far: it starts at values[0]
    (the bias correction of Adam, arXiv:1412.6980, section 3)."""
    smoothed, average, total = [], 0.0, 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        smoothed.append(average / total)
    return smoothed


def _draw(panel: PngPanel, run: RunData, axes: Axes) -> None:
    for line in panel.lines:
        steps, values = run.series(line.key)
        if not steps:
            continue
        style = {"color": line.color, "label": line.label}
        if line.every_step:
            axes.plot(steps, values, color=line.color, alpha=0.25, linewidth=1)
            # Short runs are smoothed less: about a tenth of the run.
            weight = 1 - 1 / max(1.0, len(values) / 10)
            axes.plot(steps, smooth(values, weight), linewidth=2, **style)
        else:
            axes.plot(steps, values, linewidth=1, marker="o", markersize=4, **style)
    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.set_ylabel(panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.is_share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize="small")
