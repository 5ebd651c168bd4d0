"""Draws the figures of report.html as inline SVG, in colours that its style sheet sets for light and for dark.

Names that a person chose (runs, benchmarks) stand in the legends of the page, not in the drawings.
"""

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from nemo_simplerl.config.phases import PHASES, PHASES_OF
from nemo_simplerl.config.placement import ROLES
from nemo_simplerl.report.curves import smooth
from nemo_simplerl.report.panels import PANELS, Panel, Series
from nemo_simplerl.report.read import RunData

# Stand-ins in the drawing for the style sheet's var(--s0), var(--s1), ... and for its ink.
COLORS = tuple(f"#0a0b{number:02x}" for number in range(12))
_INK = "#0a0bff"
_DASHES = ("solid", "dashed", "dotted", "dashdot")
_MAX_POINTS = 600
_ROLE_OF = {phase: role for role, phases in PHASES_OF.items() for phase in phases}  # of other phases: the actor
_WAIT = "wait_"  # begins the names of times in which ranks waited for others
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "simplerl",
    "text.parse_math": False,
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}


@dataclass(frozen=True)
class LegendEntry:
    """One entry of a legend. `color` is the number of a series colour; None is the colour of text."""

    label: str
    color: int | None
    dash: str


@dataclass(frozen=True)
class Chart:
    """A figure of the page: its drawing, its legend and a note below it."""

    title: str
    svg: str
    legend: tuple[LegendEntry, ...]
    note: str


def draw_all(runs: Sequence[RunData], labels: Sequence[str]) -> list[Chart]:
    """A chart of every panel that some run has numbers for, then one of each run's time per phase."""
    charts = [chart for panel in PANELS if (chart := draw_panel(panel, runs)) is not None]
    for run, label in zip(runs, labels, strict=True):
        of_run = "" if len(runs) == 1 else f", {label}"
        found = [
            draw_phases(run, f"Time per phase{of_run}{of_roles}", roles) for of_roles, roles in _rooms(run).items()
        ]
        charts += [chart for chart in (*found, _draw_waits(run, f"Waits{of_run}")) if chart is not None]
    return charts


def _rooms(run: RunData) -> dict[str, tuple[str, ...]]:
    """The roles that share ranks, by words for a title; one without words where all roles share all ranks."""
    rooms: dict[str, tuple[str, ...]] = {}
    for role, ranks in run.placement.items():
        rooms[ranks] = (*rooms.get(ranks, ()), role)
    return {f", {' and '.join(roles)} on {ranks}": roles for ranks, roles in rooms.items()} or {"": ROLES}


def _draw_waits(run: RunData, title: str) -> Chart | None:
    """The chart of what ranks waited for, a curve each; None where nothing was measured."""
    names = sorted({name for row in run.rows for name in _timed(row) if name.startswith(_WAIT)})
    series = tuple(Series(f"time/{name}", name.removeprefix(_WAIT).replace("_", " ")) for name in names)
    return draw_panel(Panel(title, "seconds", series), [run])


def draw_panel(panel: Panel, runs: Sequence[RunData]) -> Chart | None:
    """The chart of a panel; None where no run has a number for it.

    One run: a colour for each series. Several: a colour for each run, a dash for each series.
    """
    series = [one for one in panel.series if any(run.series(one.key)[0] for run in runs)]
    if not series:
        return None
    is_single = len(runs) == 1
    figure, axes = blank_axes(panel.unit)
    longest = 1
    if panel.stacked and is_single:
        layers = [thinned(*runs[0].series(one.key)) for one in series]
        longest = _stack(axes, layers, [_color(one, number) for number, one in enumerate(series)])
    else:
        for run_number, run in enumerate(runs):
            for number, one in enumerate(series):
                color = COLORS[_color(one, number) if is_single else run_number % len(COLORS)]
                dash = "solid" if is_single else _dash(number)
                longest = max(longest, _curve(axes, run, one, color, dash))
    _scale(axes, panel)
    legend = tuple(
        LegendEntry(one.label, _color(one, number), "solid")
        if is_single
        else LegendEntry(one.label, None, _dash(number))
        for number, one in enumerate(series)
    )
    return Chart(panel.title, svg_of(figure), legend if len(legend) > 1 else (), _note(panel.note, longest))


def draw_phases(run: RunData, title: str, roles: Sequence[str] = ROLES) -> Chart | None:
    """A stacked chart of the seconds of every step by phase of these roles, the rest on top. Step 0 only evaluates: it
    is left out."""
    rows = [row for row in run.rows if row["step"] > 0 and row.get("time/total") is not None]
    if not rows:
        return None
    steps, layers = [row["step"] for row in rows], phase_layers(rows, roles)
    figure, axes = blank_axes("seconds")
    longest = _stack(axes, [thinned(steps, seconds) for seconds in layers.values()], range(len(layers)))
    axes.set_ylim(bottom=0)
    legend = tuple(
        LegendEntry(name.replace("_", " "), number % len(COLORS), "solid") for number, name in enumerate(layers)
    )
    return Chart(title, svg_of(figure), legend, _note("", longest))


def phase_layers(rows: Sequence[Mapping[str, Any]], roles: Sequence[str] = ROLES) -> dict[str, list[float]]:
    """Seconds of each phase of these roles in `rows`, in the order of a step; then other measured times; then "other",
    the rest of the total: of roles on ranks of their own also what they wait for others."""
    named = {name for row in rows for name in _timed(row) if not name.startswith(_WAIT)}
    named = {name for name in named if _ROLE_OF.get(name, "actor") in roles}
    names = [name for name in PHASES if name in named] + sorted(named - set(PHASES))
    layers = {name: [float(row.get(f"time/{name}") or 0.0) for row in rows] for name in names}
    spent = [sum(layer[number] for layer in layers.values()) for number in range(len(rows))]
    rest = [max(row["time/total"] - seconds, 0.0) for row, seconds in zip(rows, spent, strict=True)]
    return layers | {"other": rest}


def _timed(row: Mapping[str, Any]) -> list[str]:
    """The names of what took a part of a step's time."""
    names = [key.removeprefix("time/") for key in row if key.startswith("time/")]
    return [name for name in names if name != "total" and not name.endswith("_per_second")]


def blank_axes(unit: str, x_label: str = "step") -> tuple[Figure, Axes]:
    """An empty figure in the style of the page."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.3, 2.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(unit)
    axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if x_label == "step":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    return figure, axes


def svg_of(figure: Figure) -> str:
    """The <svg> element of a figure, with the style sheet's colours and with ids that no other figure has."""
    with matplotlib.rc_context(_STYLE):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r"#0a0b([0-9a-f]{2})", lambda match: _css_color(int(match[1], 16)), svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    # Clip paths and markers are referenced by id. All other ids are dropped.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r'\s+id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    prefix = f"f{_checksum(svg)}-"
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


def thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """The series in at most 600 points: means of neighbours, at the first step of each group."""
    width = -(-len(steps) // _MAX_POINTS)
    if width <= 1:
        return list(steps), list(values)
    groups = [values[start : start + width] for start in range(0, len(values), width)]
    return list(steps[::width]), [sum(group) / len(group) for group in groups]


def _curve(axes: Axes, run: RunData, series: Series, color: str, dash: str) -> int:
    """Draw one series and return the number of its points; 0 for an evaluation, which is never thinned out."""
    measured, numbers = run.series(series.key)
    if not measured:
        return 0
    steps, values = thinned(measured, numbers)
    if series.kind == "evaluation":
        axes.plot(steps, values, color=color, linestyle=dash, linewidth=1, marker="o", markersize=4)
        return 0
    if series.kind == "plain":
        axes.plot(steps, values, color=color, linestyle=dash, linewidth=1.3, marker=_lone(steps))
    else:
        axes.plot(steps, values, color=color, linestyle=dash, linewidth=0.8, alpha=0.3, marker=_lone(steps))
        # Short runs are smoothed less: about a tenth of the run.
        weight = 1 - 1 / max(1.0, len(values) / 10)
        axes.plot(steps, smooth(values, weight), color=color, linestyle=dash, linewidth=1.8)
    return len(measured)


def _lone(steps: Sequence[int]) -> str:
    return "o" if len(steps) == 1 else ""


def _color(series: Series, number: int) -> int:
    return number % len(COLORS) if series.color is None else series.color


def _dash(number: int) -> str:
    return _DASHES[number % len(_DASHES)]


def _stack(axes: Axes, layers: Sequence[tuple[list[int], list[float]]], numbers: Sequence[int]) -> int:
    """Stack layers measured at the same steps, in the colours of these numbers; returns the number of steps."""
    steps = next(steps for steps, _ in layers if steps)
    columns = np.zeros((len(layers), len(steps)))
    for number, (own_steps, values) in enumerate(layers):
        columns[number, np.searchsorted(steps, own_steps).clip(max=len(steps) - 1)] = values
    colors = [COLORS[number % len(COLORS)] for number in numbers]
    if len(steps) == 1:
        base = np.concatenate([[0.0], np.cumsum(columns[:, 0])[:-1]])
        axes.bar([steps[0]] * len(layers), columns[:, 0], width=0.5, bottom=base, color=colors)
    else:
        axes.stackplot(steps, columns, colors=colors, alpha=0.85, linewidth=0)
        axes.margins(x=0)
    return len(steps)


def _scale(axes: Axes, panel: Panel) -> None:
    if panel.scale == "share":
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif panel.scale == "log" and any(value > 0 for line in axes.lines for value in np.asarray(line.get_ydata())):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif panel.scale == "count":
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1))
    elif panel.scale == "fit":
        axes.set_ylim(max(axes.get_ylim()[0], -1.0), 1.02)
        axes.axhline(0, color=_INK, linewidth=0.6, alpha=0.6)


def _note(note: str, num_points: int) -> str:
    width = -(-num_points // _MAX_POINTS)
    return " ".join([note, f"Each point is the mean of {width} steps."] if width > 1 else [note]).strip()


def _css_color(number: int) -> str:
    return "currentColor" if number == 0xFF else f"var(--s{number})"


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
