"""Builds report.html: one file with figures, tables and samples that fetches nothing from the network."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path

from nemo_simplerl.eval.benchmarks import AVERAGED
from nemo_simplerl.eval.reported_results import REPORTED
from nemo_simplerl.files import atomic_write
from nemo_simplerl.report.evaluations import (
    EvaluationResult,
    draw_benchmarks,
    evaluations_of,
    load_evaluation,
    names_in,
    title_of,
)
from nemo_simplerl.report.figures import COLORS, Chart, LegendEntry, draw_all
from nemo_simplerl.report.mathml import is_available
from nemo_simplerl.report.payload import Payload, pack_samples
from nemo_simplerl.report.read import RunData, load_run, summary_so_far, warnings_of
from nemo_simplerl.report.samples import load_samples
from nemo_simplerl.report.table import caption_of, rows_of

MAX_BYTES = 4_900_000
_LEAST_SAMPLES = 1_000_000  # characters of base64, however large the figures are
_MOST_WARNINGS = 100  # of a run, on the page; messages.jsonl has all


def write_page(run_dirs: Sequence[Path | str], output: Path, eval_dirs: Sequence[Path | str] = ()) -> Path:
    """Write the page of `build_page` to `output`, and return that path."""
    atomic_write(output, build_page(run_dirs, eval_dirs))
    return output


def build_page(
    run_dirs: Sequence[Path | str],
    eval_dirs: Sequence[Path | str] = (),
    *,
    follow: str = "",
    max_bytes: int = MAX_BYTES,
) -> str:
    """The HTML of the page of some runs, also of runs without a step yet.

    `follow` is the version of a served page, which then asks its own server, and no other, for newer ones.
    FileNotFoundError where a folder is no run or no evaluation, ValueError where a file in it is damaged.
    """
    runs = [load_run(run_dir) for run_dir in run_dirs]
    labels = labels_of([run.path for run in runs])
    evaluations = _evaluations(runs, labels, eval_dirs)
    charts = draw_all(runs, labels) + draw_benchmarks(evaluations)
    script = _asset("page.js")
    parts = {
        "title": escape(" and ".join(labels)),
        "policy": escape(_policy(script, bool(follow))),
        "style": _asset("page.css"),
        "script": script,
        "follow": escape(follow),
        "runs": _runs(runs, labels),
        "charts": "\n".join(map(_figure, charts)) or "<p>No step has finished yet.</p>",
        "evaluations": _benchmarks(evaluations),
    }
    room = max(_LEAST_SAMPLES, max_bytes - sum(len(part.encode()) for part in parts.values()) - 8_000)
    payload = pack_samples([load_samples(run.path) for run in runs], labels, room)
    parts |= {"samples": payload.text, "kept": _kept(payload)}
    # In one pass: what a part holds is not looked through for another's place.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _asset("page.html"))


def labels_of(paths: Sequence[Path]) -> list[str]:
    """The names of the folders; their whole paths where two share a name."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _evaluations(runs: Sequence[RunData], labels: Sequence[str], extra: Sequence[Path | str]) -> list[EvaluationResult]:
    found = []
    for run, label in zip(runs, labels, strict=True):
        for one in evaluations_of(run.path):
            name = one.label if len(runs) == 1 else f"{label}: {one.label}"
            # Which run a step belongs to is not to be seen in one curve of several runs.
            found.append(replace(one, label=name, step=one.step if len(runs) == 1 else None))
    return found + [load_evaluation(Path(path)) for path in extra]


def _policy(script: str, is_served: bool) -> str:
    """The Content-Security-Policy: only the page's own script runs, and nothing is fetched, even if escaping failed."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    source = "'self'" if is_served else "'none'"
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        f"connect-src {source}; base-uri 'none'; form-action 'none'"
    )


def _runs(runs: Sequence[RunData], labels: Sequence[str]) -> str:
    sections = []
    for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
        summary = summary_so_far(run)
        swatch = _swatch(LegendEntry(label, number % len(COLORS), "solid"))
        heading = f"<h2>{swatch}{escape(label)}</h2>" if len(runs) > 1 else ""
        state = [] if run.summary is not None else ["not finished"]
        body = "".join(
            f"<tr><th scope=row>{escape(row.label)}</th>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in (row.before, row.after, row.change))
            + "</tr>"
            for row in rows_of(summary)
        )
        head = "<tr><td></td><th scope=col>before</th><th scope=col>after</th><th scope=col>change</th></tr>"
        table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>" if body else "<p>No evaluation yet.</p>"
        sections.append(
            f"<section class=run>{heading}<p class=note>{escape(', '.join([*state, caption_of(summary)]))}</p>{table}"
            f"{_warnings(warnings_of(run.path))}</section>"
        )
    return "\n".join(sections)


def _warnings(texts: Sequence[str]) -> str:
    """The run's warnings, the newest `_MOST_WARNINGS` of them, behind a line that counts them; empty without any."""
    if not texts:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts[-_MOST_WARNINGS:])
    return f"<details><summary>{len(texts)} warning{'s' * (len(texts) > 1)}</summary><ul>{items}</ul></details>"


def _figure(chart: Chart) -> str:
    entries = "".join(f"<li>{_swatch(entry)}{escape(entry.label)}</li>" for entry in chart.legend)
    legend = f"<ul class=keys>{entries}</ul>" if entries else ""
    note = f"<p class=note>{escape(chart.note)}</p>" if chart.note else ""
    return f"<figure><figcaption>{escape(chart.title)}</figcaption>{chart.svg}{legend}{note}</figure>"


def _swatch(entry: LegendEntry) -> str:
    color = "currentColor" if entry.color is None else f"var(--s{entry.color})"
    dashes = {"solid": "", "dashed": "6 3", "dotted": "2 2", "dashdot": "6 2 2 2"}[entry.dash]
    return (
        '<svg class=swatch viewBox="0 0 24 10" aria-hidden="true"><line x1="0" y1="5" x2="24" y2="5" '
        f'style="stroke:{color};stroke-dasharray:{dashes or "none"}"/></svg>'
    )


def _benchmarks(evaluations: Sequence[EvaluationResult]) -> str:
    """The table of evaluations by benchmark; below them what the recipe's authors reported."""
    if not evaluations:
        return ""
    names = names_in(evaluations)
    head = "<td></td>" + "".join(f"<th scope=col>{escape(title_of(name))}</th>" for name in names)
    rows = [
        (f"{one.label}, {one.engine}" if one.engine else one.label, [_cell(one.benchmarks.get(name)) for name in names])
        for one in evaluations
    ]
    if set(AVERAGED) & set(names):
        rows += [
            (f"reported: {title}", [f"{row[name]:.1f} %" if name in row else "" for name in names])
            for title, row in REPORTED.items()
        ]
    body = "".join(
        f"<tr><th scope=row>{escape(label)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for label, cells in rows
    )
    return (
        "<h2>Benchmarks</h2><p class=note>Accuracy with its 95 % interval; response length in tokens; the "
        "engine that sampled.</p>"
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(figures: Mapping[str, float] | None) -> str:
    if figures is None:
        return ""
    low, high, accuracy = (100 * float(figures[name]) for name in ("low", "high", "accuracy"))
    return f"{accuracy:.1f} % <small>{low:.1f} to {high:.1f}<br>{float(figures['length_mean']):.0f} tokens</small>"


def _kept(payload: Payload) -> str:
    if payload.num_written == 0:
        text = "No samples were written yet."
    elif payload.num_kept < payload.num_written:
        text = (
            f"{payload.num_kept:,} of {payload.num_written:,} samples: an even choice of each step's, so that this "
            "file stays small. The others are in the run directory's rollouts/ and eval/."
        )
    else:
        text = f"All {payload.num_written:,} samples."
    return text if is_available() else f"{text} Formulas stay as written: latex2mathml is not installed."


def _asset(name: str) -> str:
    return files("nemo_simplerl.report").joinpath(name).read_text(encoding="utf-8")
