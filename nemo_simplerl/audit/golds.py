"""Gold answers that the grader cannot read as mathematics or words, by kind, and what becomes of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from nemo_simplerl.audit.table import plain_cell
from nemo_simplerl.reward.comparing.equivalence import gold_readings
from nemo_simplerl.reward.parsing.answer import AnswerParser
from nemo_simplerl.reward.parsing.normalize import MAX_ANSWER_CHARS, normalize_answer
from nemo_simplerl.reward.parsing.tokens import NotParsed, tokenize

# Kind -> what it means, in the order in which a gold answer is tried against them.
GOLD_KINDS = {
    "too_long": "beyond the length that is read",
    "sentence": "sentences",
    "piecewise": "formulas by cases",
    "matrices": "matrices among other things",
    "series": "sums that go on with dots",
    "words": "formulas and words between them",
    "several": "several formulas that are no list",
    "formula": "a formula in a notation that is not read",
}
# What the grader does with every one of them.
WITHOUT_TREE = (
    "Such an answer is compared token by token: spaces, typesetting and the case of words are free, the rest is not. "
    "A response that says the same in another form is incorrect."
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z*]+\}(?:\s*\{[lcr|]*\})?")
_COMMAND = re.compile(r"\\[A-Za-z]+\*?")
_WORD = re.compile(r"[^\W\d_]{3,}")
_MATHS = re.compile(r"\$[^$]*\$|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_CASES = re.compile(r"\\begin\s*\{(?:cases|rcases|dcases)\}|\\\{\s*\\begin\s*\{array\}")
_MATRIX = re.compile(r"\\begin\s*\{(?:[bpvBV]?matrix|smallmatrix|array)\}")
_SERIES = re.compile(r"\\[cl]?dots|\\sum|\\prod|\.\.\.")
_SEVERAL = re.compile(r"\$\s*\n?\s*\$|;|\\quad|\n")
_SENTENCE_WORDS = 6


@dataclass(frozen=True, slots=True)
class UnreadGold:
    """A gold answer without a tree. `why` is the first thing at which the parser stopped, `row` counts from 0."""

    row: int
    gold: str
    kind: str
    why: str


@dataclass
class GoldAudit:
    """The gold answers of a file: how many there are, and those that have no tree."""

    num_golds: int
    unread: list[UnreadGold] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[UnreadGold]:
        """The gold answers of a kind, in the order of the file."""
        return [gold for gold in self.unread if gold.kind == kind]


def audit_golds(golds: Sequence[str]) -> GoldAudit:
    """Try to read every gold answer as the grader does. Empty ones are none."""
    found = GoldAudit(sum(bool(gold.strip()) for gold in golds))
    for row, gold in enumerate(golds):
        if gold.strip() and (why := why_unread(gold)) is not None:
            found.unread.append(UnreadGold(row, gold, kind_of(gold), why))
    return found


def why_unread(gold: str) -> str | None:
    """Why a gold answer has no tree; None where it has one."""
    text = normalize_answer(gold)
    if len(gold) > MAX_ANSWER_CHARS:
        return f"longer than {MAX_ANSWER_CHARS} characters"
    if any(True for _ in gold_readings(text)):
        return None
    try:
        AnswerParser().answer(tokenize(text))
    except (NotParsed, RecursionError) as error:
        return str(error)
    return "no reading of it is whole"


def kind_of(gold: str) -> str:
    """The kind, of GOLD_KINDS, of a gold answer without a tree."""
    if len(gold) > MAX_ANSWER_CHARS:
        return "too_long"
    text = _ENVIRONMENT.sub(" ", gold)
    outside = _WORD.findall(_COMMAND.sub(" ", _MATHS.sub(" ", text) if "$" in text else text))
    if len(outside) >= _SENTENCE_WORDS:
        return "sentence"
    if _CASES.search(gold):
        return "piecewise"
    if _MATRIX.search(gold):
        return "matrices"
    if _SERIES.search(gold):
        return "series"
    if outside or r"\text" in gold:
        return "words"
    return "several" if _SEVERAL.search(gold) else "formula"


def golds_as_dict(found: GoldAudit) -> dict[str, Any]:
    """The audit as values for JSON: every gold answer without a tree, by kind."""
    return {
        "golds": found.num_golds,
        "without_tree": len(found.unread),
        "then": WITHOUT_TREE,
        "kinds": {
            kind: {
                "means": means,
                "golds": [{"row": gold.row, "gold": gold.gold, "why": gold.why} for gold in found.of_kind(kind)],
            }
            for kind, means in GOLD_KINDS.items()
        },
    }


def gold_tables(found: GoldAudit, limit: int | None) -> list[Table]:
    """One table of the kinds and their counts, and one for each kind with its first gold answers."""
    counts = Table(
        title=f"{len(found.unread)} of {found.num_golds} gold answers are compared as text", title_justify="left"
    )
    for column, justify in (("kind", "left"), ("golds", "right"), ("share", "right"), ("what they are", "left")):
        counts.add_column(column, justify=justify)  # type: ignore[arg-type]
    tables = [counts]
    for kind, means in GOLD_KINDS.items():
        if not (golds := found.of_kind(kind)):
            continue
        counts.add_row(kind, str(len(golds)), f"{100 * len(golds) / max(found.num_golds, 1):.2f} %", means)
        table = Table(title=f"{kind}: {means}", title_justify="left")
        table.add_column("row", justify="right")
        for column in ("gold", "where reading stopped"):
            table.add_column(column, overflow="fold")
        for gold in golds[:limit]:
            table.add_row(str(gold.row), plain_cell(gold.gold), plain_cell(gold.why))
        tables.append(table)
    return tables
