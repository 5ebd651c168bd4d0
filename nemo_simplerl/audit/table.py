"""An audit as tables for a terminal and as values for JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from nemo_simplerl.audit.findings import FINDING_KINDS, Audit, Finding

_WIDEST = 60  # characters of a cell


def audit_as_dict(found: Audit, limit: int | None, peer_asked: int | None) -> dict[str, Any]:
    """The audit as values for JSON: counts and, by kind, rows and findings, most frequent first."""
    return {
        "rows": found.num_rows,
        "unreadable_lines": found.num_unreadable,
        "graded_here": found.num_regraded,
        "verdicts": dict(found.verdicts),
        "statuses": dict(found.statuses),
        "peer_asked": peer_asked,
        "kinds": {
            kind: {
                "means": means,
                "rows": found.rows_by_kind[kind],
                "findings": [
                    {key: value for key, value in asdict(finding).items() if key != "kind"}
                    for finding in found.most_frequent(kind, limit)
                ],
            }
            for kind, means in FINDING_KINDS.items()
        },
    }


def audit_tables(found: Audit, limit: int | None) -> Iterator[Table]:
    """One table of counts, and one for each kind with findings."""
    yield _counts(found)
    for kind, means in FINDING_KINDS.items():
        if listed := found.most_frequent(kind, limit):
            yield _listing(f"{kind}: {means}", listed)


def _counts(found: Audit) -> Table:
    table = Table(title=f"{found.num_rows} responses")
    for column, justify in (("", "left"), ("rows", "right"), ("share", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    lines = [*found.verdicts.most_common(), *((kind, found.rows_by_kind[kind]) for kind in FINDING_KINDS)]
    for name, count in lines:
        table.add_row(name, str(count), f"{100 * count / max(found.num_rows, 1):.2f} %")
    return table


def _listing(title: str, findings: list[Finding]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("rows", "gold", "answer", "verdict", "now", "why", "first"):
        table.add_column(column, justify="right" if column == "rows" else "left", overflow="fold")
    for f in findings:
        cells = (str(f.count), f.gold, f.answer, f.verdict, f.now or "", f.why, f.first)
        table.add_row(*(plain_cell(text) for text in cells))
    return table


def plain_cell(text: str) -> Text:
    """Model text on one line, without control characters, which a terminal might obey."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    return Text(visible if len(visible) <= _WIDEST else visible[: _WIDEST - 1] + "…")
