"""Findings in graded responses: alike ones counted together, in memory that does not grow with the rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from nemo_simplerl.audit import patterns
from nemo_simplerl.audit.rows import Row
from nemo_simplerl.reward.extract import final_answers
from nemo_simplerl.reward.serving.pool import Grade, Item

# Kind -> what it means, in the order of the report.
KINDS = {
    "false_negative": "incorrect, but the answer looks like the gold answer",
    "peer_disagrees": "incorrect here, correct to math-verify",
    "timeout": "the grading took too long",
    "crash": "the grading broke its worker",
    "parse_failed": "the answer could not be read as mathematics",
    "several_boxes": "more boxes, with other contents, than those of the final answer",
    "hedge": "several answers in the box, where the gold answer is one",
    "gold_in_prompt": "correct, and the gold answer stands in the prompt",
    "only_a_box": "nothing but a box",
}
_MAX_GROUPS = 5_000  # of a kind, and of pairs kept for the second opinion
_MAX_SHOWN = 300  # characters of a gold answer, an answer or a response that are kept
_BATCH = 512

Grader = Callable[[Sequence[Item]], list[Grade]]


@dataclass(frozen=True, slots=True)
class Finding:
    """Rows alike in kind, gold answer and answer. `now` is the present grader's verdict, where it was asked."""

    kind: str
    why: str
    gold: str
    answer: str
    verdict: str
    first: str  # file:line
    count: int = 1
    now: str | None = None


@dataclass
class Audit:
    """Counts of everything, and by kind the findings with their counts."""

    num_rows: int = 0
    num_unreadable: int = 0
    num_regraded: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    rows_by_kind: Counter[str] = field(default_factory=Counter)
    findings: dict[tuple[str, str, str], Finding] = field(default_factory=dict)
    incorrect: Counter[Item] = field(default_factory=Counter)  # (gold, answer) as they are, for a second opinion
    first_incorrect: dict[Item, str] = field(default_factory=dict)

    def listed(self, kind: str, limit: int | None) -> list[Finding]:
        """The most frequent findings of a kind; None lists all."""
        of_kind = [finding for finding in self.findings.values() if finding.kind == kind]
        return sorted(of_kind, key=lambda finding: -finding.count)[:limit]

    def add(self, row: Row) -> None:
        """Count a graded row and what is to be found in it."""
        assert row.verdict is not None
        self.num_rows += 1
        self.verdicts[row.verdict] += 1
        self.statuses[row.status] += 1
        answers = final_answers(row.response)
        answer = ", ".join(answers)
        for kind, why in _found(row, answers):
            self.put(Finding(kind, why, row.gold, answer or row.response, row.verdict, row.place))
        if row.verdict == "incorrect" and max(len(row.gold), len(answer)) <= _MAX_SHOWN:
            pair = (row.gold, answer)
            if pair in self.incorrect or len(self.incorrect) < _MAX_GROUPS:
                self.incorrect[pair] += 1
                self.first_incorrect.setdefault(pair, row.place)

    def put(self, finding: Finding) -> None:
        """Count a finding, with those like it."""
        self.rows_by_kind[finding.kind] += finding.count
        finding = replace(finding, gold=finding.gold[:_MAX_SHOWN], answer=finding.answer[:_MAX_SHOWN])
        key = (finding.kind, finding.gold, finding.answer)
        known = self.findings.get(key)
        if known is not None:
            self.findings[key] = replace(known, count=known.count + finding.count)
        elif len(self.findings) < _MAX_GROUPS * len(KINDS):
            self.findings[key] = finding


def audit(rows: Iterable[Row | None], grade: Grader) -> Audit:
    """Look at every row once. `grade` is asked for rows that have no verdict yet."""
    found = Audit()
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        readable = [row for row in batch if row is not None]
        found.num_unreadable += len(batch) - len(readable)
        ungraded = [row for row in readable if row.verdict is None]
        grades = iter(grade([(row.gold, row.response) for row in ungraded]) if ungraded else [])
        found.num_regraded += len(ungraded)
        for row in readable:
            if row.verdict is None:
                graded = next(grades)
                row = replace(row, verdict=graded.verdict, status=graded.status)
            found.add(row)
    return found


def ask_peer(found: Audit, grade: Grader, most: int) -> int:
    """Add what a second grader calls correct of the `most` frequent wrong answers. Returns how many it was asked."""
    asked = found.incorrect.most_common(most)
    for (pair, count), opinion in zip(asked, grade([pair for pair, _ in asked]), strict=True):
        if opinion.verdict == "correct":
            why = KINDS["peer_disagrees"]
            found.put(Finding("peer_disagrees", why, *pair, "incorrect", found.first_incorrect[pair], count))
    return len(asked)


def ask_again(found: Audit, grade: Grader, limit: int | None) -> None:
    """What the present grader says of the listed findings that may be mistakes of the one that graded them."""
    asked = [
        finding
        for kind in ("false_negative", "peer_disagrees", "parse_failed")
        for finding in found.listed(kind, limit)
        if max(len(finding.gold), len(finding.answer)) < _MAX_SHOWN
    ]
    grades = grade([(finding.gold, rf"\boxed{{{finding.answer}}}") for finding in asked])
    for finding, graded in zip(asked, grades, strict=True):
        found.findings[finding.kind, finding.gold, finding.answer] = replace(finding, now=graded.verdict)


def _found(row: Row, answers: list[str]) -> Iterator[tuple[str, str]]:
    """Kinds and reasons of one row."""
    answer = ", ".join(answers)
    if row.status in ("timeout", "crash", "parse_failed"):
        yield row.status, KINDS[row.status]
    if row.verdict == "incorrect" and answer and (why := patterns.is_almost(row.gold, answer)):
        yield "false_negative", why
    contents = patterns.boxes(row.response)
    if len(set(contents)) > len(set(answers)):
        yield "several_boxes", f"{len(set(contents))} different contents in {len(contents)} boxes"
    if answer and patterns.hedges(row.gold, answer):
        yield "hedge", KINDS["hedge"]
    if row.verdict == "correct" and patterns.is_in_prompt(row.gold, row.prompt):
        yield "gold_in_prompt", KINDS["gold_in_prompt"]
    if patterns.is_only_a_box(row.response):
        yield "only_a_box", KINDS["only_a_box"]
