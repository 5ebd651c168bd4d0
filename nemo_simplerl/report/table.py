"""The before-and-after table of a run, for a terminal and as plain text."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.table import Table

from nemo_simplerl.report.read import BEFORE_AFTER

_LABELS = {
    "accuracy": "accuracy, greedy",
    "sampled_accuracy": "accuracy, sampled",
    "format_rate": "answers found",
    "length": "response length, tokens",
}
_HEADER = ("", "before", "after", "change")


class TableRow(NamedTuple):
    """A measure before and after training, as text."""

    label: str
    before: str
    after: str
    change: str


def rows_of(summary: Mapping[str, Any]) -> list[TableRow]:
    """One row for each measure taken before and after. Shares are in per cent, their change in points."""
    rows = []
    for name in BEFORE_AFTER:
        before, after = summary.get(f"{name}_before"), summary.get(f"{name}_after")
        if before is None or after is None:
            continue
        if name == "length":
            rows.append(TableRow(_LABELS[name], f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"))
        else:
            change = f"{100 * (after - before):+.1f} points"
            rows.append(TableRow(_LABELS[name], f"{100 * before:.1f} %", f"{100 * after:.1f} %", change))
    return rows


def caption_of(summary: Mapping[str, Any]) -> str:
    """The settings below the table: `80 steps in 312 s, seed 1, 1 process, vllm engine`."""
    parts = []
    if (steps := summary.get("steps")) is not None:
        seconds = summary.get("train_seconds")
        parts.append(f"{steps} steps" + (f" in {seconds:.0f} s" if seconds is not None else ""))
    if (seed := summary.get("seed")) is not None:
        parts.append(f"seed {seed}")
    if (ranks := summary.get("world_size")) is not None:
        parts.append(f"{ranks} process" + ("es" if ranks != 1 else ""))
    if (engine := summary.get("engine")) is not None:
        parts.append(f"{engine} engine")
    if (placement := summary.get("placement")) is not None:
        parts.append(placement)
    return ", ".join(parts)


def rich_table(summary: Mapping[str, Any]) -> Table:
    """The table for a terminal."""
    table = Table(caption=caption_of(summary))
    for number, name in enumerate(_HEADER):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows_of(summary):
        table.add_row(*row)
    return table


def plain_text(summary: Mapping[str, Any]) -> str:
    """The table in columns of spaces, for a log or a mail."""
    lines = [_HEADER, *rows_of(summary)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    texts = []
    for label, *numbers in lines:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        texts.append("  ".join([label.ljust(widths[0]), *cells]))
    return "\n".join([*texts, caption_of(summary)]).rstrip() + "\n"
