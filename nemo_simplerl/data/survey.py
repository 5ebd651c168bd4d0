"""Survey of a set of problems before training: what is in it, what is left out, and why."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_simplerl.data.overlap import KINDS, Match, OverlapKind, duplicates, overlaps
from nemo_simplerl.data.problems import Problem

# The SimpleRL authors' file (math_level3to5_data_processed_with_qwen_prompt.json), 8,523 problems.
SIMPLERL_SHA256 = "e3663dfbf2f42ae201e2b14a1c2dce9e4ffa8f8776fc17ff02e0f440b60da257"
_PERCENTILES = (5, 50, 95, 100)
_SHOWN = 20  # pairs of each list in a report


@dataclass(frozen=True)
class Rules:
    """Which problems to leave out: matches as sure as `overlap` or `duplicate`, or surer (None: none); long prompts."""

    overlap: OverlapKind | None = None
    duplicate: OverlapKind | None = None
    max_prompt_tokens: int | None = None


@dataclass
class Survey:
    """The problems that are kept, and a report on all of them."""

    kept: list[Problem]
    report: dict[str, Any] = field(default_factory=dict)


def survey(
    problems: Sequence[Problem],
    held_out: Mapping[str, Sequence[Problem]],
    rules: Rules,
    num_tokens: Callable[[Sequence[Problem]], list[int]] | None,
) -> Survey:
    """The problems that `rules` keep, and a report of plain values on all of them.

    held_out: what the model will be evaluated on, by name. num_tokens: lengths of the prompts; None leaves them out.
    """
    others = [(name, problem) for name, group in held_out.items() for problem in group]
    questions = [problem.question for problem in problems]
    in_set = duplicates(questions)
    outside = overlaps(questions, [problem.question for _, problem in others])
    lengths = num_tokens(problems) if num_tokens is not None else None
    reasons = {index: "no gold answer" for index, problem in enumerate(problems) if not problem.answer}
    for match in outside:
        if is_as_sure(match.kind, rules.overlap):
            name, problem = others[match.second]
            reasons.setdefault(match.first, f"{match.kind} in {name} ({problem.id})")
    if lengths is not None and rules.max_prompt_tokens is not None:
        for index, length in enumerate(lengths):
            if length > rules.max_prompt_tokens:
                reasons.setdefault(index, f"prompt of {length} tokens")
    # Of those that are left, the first copy stays.
    left = [index for index in range(len(problems)) if index not in reasons]
    for match in duplicates([questions[index] for index in left]) if rules.duplicate else []:
        if is_as_sure(match.kind, rules.duplicate):
            reasons.setdefault(left[match.second], f"{match.kind} to {problems[left[match.first]].id}")
    kept = [problem for index, problem in enumerate(problems) if index not in reasons]
    report = {
        "problems": len(problems),
        "kept": len(kept),
        "dropped": [{"id": problems[index].id, "reason": reasons[index]} for index in sorted(reasons)],
        "levels": _counts(problem.level for problem in problems),
        "subjects": _counts(problem.subject for problem in problems),
        "question_chars": _percentiles([len(question) for question in questions]),
        "prompt_tokens": None if lengths is None else _percentiles(lengths),
        "duplicates": _matches(in_set, problems, [("", problem) for problem in problems]),
        "overlaps": _matches(outside, problems, others),
    }
    return Survey(kept, report)


def is_as_sure(kind: OverlapKind, wanted: OverlapKind | None) -> bool:
    """Whether a match of this kind is as sure as `wanted`, or surer; False where `wanted` is None."""
    return wanted is not None and KINDS.index(kind) <= KINDS.index(wanted)


def _counts(values) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items(), key=lambda item: str(item[0]))}


def _percentiles(values: Sequence[int]) -> dict[str, int]:
    ordered = sorted(values)
    return {f"p{share}": ordered[min(len(ordered) * share // 100, len(ordered) - 1)] for share in _PERCENTILES}


def _matches(
    found: Sequence[Match], problems: Sequence[Problem], others: Sequence[tuple[str, Problem]]
) -> dict[str, Any]:
    """The number of matches and the first of them, by kind."""
    return {
        kind: {
            "count": sum(match.kind == kind for match in found),
            "first": [_pair(match, problems, others) for match in found if match.kind == kind][:_SHOWN],
        }
        for kind in KINDS
    }


def _pair(match: Match, problems: Sequence[Problem], others: Sequence[tuple[str, Problem]]) -> dict[str, Any]:
    name, other = others[match.second]
    mine = problems[match.first]
    pair = {"id": mine.id, "other": other.id, "similarity": round(match.similarity, 3)}
    pair |= {"question": mine.question[:200], "other_question": other.question[:200]}
    return pair | ({"in": name} if name else {})
