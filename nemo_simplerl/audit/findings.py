"""Findings in graded responses: equal ones are counted together, in memory that does not grow with the rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from nemo_simplerl.audit import patterns
from nemo_simplerl.audit.rows import ResponseRow
from nemo_simplerl.reward.extract import final_answers
from nemo_simplerl.reward.serving.pool import Grade, Item

# Kind -> what it means, in the order of the report.
FINDING_KINDS = {
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

BatchGrader = Callable[[Sequence[Item]], list[Grade]]


@dataclass(frozen=True, slots=True)
class Finding:
    """Rows of one kind, gold answer and answer. `now` is the verdict of today's grader, where it was asked."""

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
    """The result of an audit: counts of rows, verdicts and statuses, and the findings with their counts."""

    num_rows: int = 0
    num_unreadable: int = 0
    num_regraded: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    rows_by_kind: Counter[str] = field(default_factory=Counter)
    findings: dict[tuple[str, str, str], Finding] = field(default_factory=dict)
    incorrect: Counter[Item] = field(default_factory=Counter)  # (gold, answer) as they are, for a second opinion
    first_incorrect: dict[Item, str] = field(default_factory=dict)

    def most_frequent(self, kind: str, limit: int | None) -> list[Finding]:
        """The most frequent findings of a kind; None lists all."""
        of_kind = [finding for finding in self.findings.values() if finding.kind == kind]
        return sorted(of_kind, key=lambda finding: -finding.count)[:limit]

    def add_row(self, row: ResponseRow) -> None:
        """Count a graded row and its findings."""
        assert row.verdict is not None
        self.num_rows += 1
        self.verdicts[row.verdict] += 1
        self.statuses[row.status] += 1
        answers = final_answers(row.response)
        answer = ", ".join(answers)
        for kind, why in _found(row, answers):
            self.add_finding(Finding(kind, why, row.gold, answer or row.response, row.verdict, row.place))
        if row.verdict == "incorrect" and max(len(row.gold), len(answer)) <= _MAX_SHOWN:
            pair = (row.gold, answer)
            if pair in self.incorrect or len(self.incorrect) < _MAX_GROUPS:
                self.incorrect[pair] += 1
                self.first_incorrect.setdefault(pair, row.place)

    def add_finding(self, finding: Finding) -> None:
        """Count a finding together with equal ones."""
        self.rows_by_kind[finding.kind] += finding.count
        finding = replace(finding, gold=finding.gold[:_MAX_SHOWN], answer=finding.answer[:_MAX_SHOWN])
        key = (finding.kind, finding.gold, finding.answer)
        known = self.findings.get(key)
        if known is not None:
            self.findings[key] = replace(known, count=known.count + finding.count)
        elif len(self.findings) < _MAX_GROUPS * len(FINDING_KINDS):
            self.findings[key] = finding


def audit(rows: Iterable[ResponseRow | None], grade: BatchGrader) -> Audit:
    """Audit every row. Rows without a verdict are graded by `grade`."""
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
            found.add_row(row)
    return found


def ask_math_verify(found: Audit, grade: BatchGrader, most: int) -> int:
    """Ask math-verify, through `grade`, about the `most` frequent wrong answers, and add those that it calls correct.

    Returns how many answers it was asked about.
    """
    asked = found.incorrect.most_common(most)
    for (pair, count), opinion in zip(asked, grade([pair for pair, _ in asked]), strict=True):
        if opinion.verdict == "correct":
            why = FINDING_KINDS["peer_disagrees"]
            found.add_finding(Finding("peer_disagrees", why, *pair, "incorrect", found.first_incorrect[pair], count))
    return len(asked)


def regrade_findings(found: Audit, grade: BatchGrader, limit: int | None) -> None:
    """Fill `now` of the listed findings that may be mistakes of the grader: today's grader may know better."""
    asked = [
        finding
        for kind in ("false_negative", "peer_disagrees", "parse_failed")
        for finding in found.most_frequent(kind, limit)
        if max(len(finding.gold), len(finding.answer)) < _MAX_SHOWN
    ]
    grades = grade([(finding.gold, rf"\boxed{{{finding.answer}}}") for finding in asked])
    for finding, graded in zip(asked, grades, strict=True):
        found.findings[finding.kind, finding.gold, finding.answer] = replace(finding, now=graded.verdict)


def _found(row: ResponseRow, answers: list[str]) -> Iterator[tuple[str, str]]:
    """The kinds that one row shows, each with its reason."""
    answer = ", ".join(answers)
    if row.status in ("timeout", "crash", "parse_failed"):
        yield row.status, FINDING_KINDS[row.status]
    if row.verdict == "incorrect" and answer and (why := patterns.is_almost(row.gold, answer)):
        yield "false_negative", why
    contents = patterns.boxes(row.response)
    if len(set(contents)) > len(set(answers)):
        yield "several_boxes", f"{len(set(contents))} different contents in {len(contents)} boxes"
    if answer and patterns.hedges(row.gold, answer):
        yield "hedge", FINDING_KINDS["hedge"]
    if row.verdict == "correct" and patterns.is_in_prompt(row.gold, row.prompt):
        yield "gold_in_prompt", FINDING_KINDS["gold_in_prompt"]
    if patterns.is_only_a_box(row.response):
        yield "only_a_box", FINDING_KINDS["only_a_box"]
