"""Examples for the warm start, sampled from a stronger model or from the model itself: which to ask for and to keep."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from nemo_simplerl.data.chats import Turn
from nemo_simplerl.data.problems import Problem, question_as_written
from nemo_simplerl.data.templates import INSTRUCTION

Sample = Mapping[str, Any]  # id, sample, response, finish_reason, verdict; rewritten, where a box was put in

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
_EMPTY_BOX = re.compile(r"\\boxed\s*\{\s*\}")
_OPEN_BOX = re.compile(r"\\boxed\s*\{\s*\Z")


@dataclass(frozen=True)
class Request:
    """The request for one sample of a problem; samples are counted from 0."""

    problem: Problem
    sample: int

    @property
    def key(self) -> tuple[str, int]:
        return self.problem.id, self.sample

    def messages(self) -> list[dict[str, str]]:
        """The chat to send: the recipe's instruction as the system's turn, the question as the user's.

        Of a problem that is a chat the other turns go along.
        """
        turns = self.problem.chat or (Turn("user", self.problem.question),)
        asked = [turn._asdict() for turn in turns if turn.role != "system"]
        return [{"role": "system", "content": INSTRUCTION}, *asked]


def request_digest(problem: Problem, settings: Mapping[str, Any]) -> str:
    """Digest of a problem's question and gold answer and of the settings under which it is asked."""
    asked = json.dumps([question_as_written(problem), problem.answer, dict(settings)], sort_keys=True)
    return xxhash.xxh3_64_hexdigest(asked.encode())


def answers_to(
    problems: Sequence[Problem], settings: Mapping[str, Any], rows: Iterable[Sample]
) -> list[dict[str, Any]]:
    """The rows whose `asked` is the `request_digest` of one of the problems, with the ids that these have now."""
    ids_of: dict[str, list[str]] = {}  # questions may be there twice
    for problem in problems:
        ids_of.setdefault(request_digest(problem, settings), []).append(problem.id)
    known = [(row, ids_of[row["asked"]]) for row in rows if row.get("asked") in ids_of]
    return [{**row, "id": row["id"] if row["id"] in ids else ids[0]} for row, ids in known]


def require_different_ids(problems: Sequence[Problem]) -> None:
    """Raise ValueError where two problems have one id: their answers could not be told apart."""
    counts = Counter(problem.id for problem in problems)
    if again := [id_ for id_, count in counts.items() if count > 1]:
        raise ValueError(f"{len(again)} ids stand for several problems, such as {again[0]!r}. Give each its own.")


def missing_requests(problems: Sequence[Problem], num_samples: int, done: Iterable[Sample]) -> list[Request]:
    """The requests still to be sent: the first sample of every problem, then the second of each, and so on."""
    there = {(row["id"], row["sample"]) for row in done}
    wanted = (Request(problem, sample) for sample in range(num_samples) for problem in problems)
    return [request for request in wanted if request.key not in there]


def last_number_boxed(response: str) -> str | None:
    r"""The response with its last number as `\boxed{...}`: in the empty box after it, where there is one, or in its own
    place. None without a number."""
    last = next(reversed(list(_NUMBER.finditer(response))), None)
    if last is None:
        return None
    box = f"\\boxed{{{last[0]}}}"
    if empty := _EMPTY_BOX.search(response, last.end()):
        return response[: empty.start()] + box + response[empty.end() :]
    return _OPEN_BOX.sub("", response[: last.start()]) + box + response[last.end() :]


def with_boxes(
    problems: Sequence[Problem], samples: Sequence[Sample], grade: Callable[[list[tuple[str, str]]], Sequence[Any]]
) -> list[Sample]:
    """The samples, where responses that box nothing and end in the right number have it in a box, and say so.

    grade: gives the grade of each pair of gold answer and response.
    """
    golds = {problem.id: problem.answer for problem in problems}
    changed = {
        index: text
        for index, sample in enumerate(samples)
        if sample["verdict"] == "no_answer" and (text := last_number_boxed(sample["response"])) is not None
    }
    grades = grade([(golds[samples[index]["id"]], text) for index, text in changed.items()])
    right = {
        index: text for (index, text), found in zip(changed.items(), grades, strict=True) if found.verdict == "correct"
    }
    return [
        {**sample, "response": right[index], "verdict": "correct", "rewritten": True} if index in right else sample
        for index, sample in enumerate(samples)
    ]


def kept(
    problems: Sequence[Problem], samples: Iterable[Sample], per_problem: int, source: str, ends: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Rows of the warm start's file: up to `per_problem` correct and complete responses to each problem, in order.

    Each row names its source. Responses that differ in white space alone count as one; those that had to be rewritten
    come last. ends: texts that end a response and are no part of it.
    """
    by_problem: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample["verdict"] == "correct" and sample["finish_reason"] == "stop":
            by_problem.setdefault(sample["id"], []).append(sample)
    rows = []
    for problem in problems:
        seen: set[str] = set()
        for sample in sorted(by_problem.get(problem.id, ()), key=lambda row: ("rewritten" in row, row["sample"])):
            response = _without(sample["response"], ends).strip()
            text = " ".join(response.split())
            if text not in seen and len(seen) < per_problem:
                seen.add(text)
                rows.append(
                    {
                        "id": f"{problem.id}/{sample['sample']}",
                        "question": question_as_written(problem),
                        "response": response,
                        "answer": problem.answer,
                        "source": source,
                        **({"rewritten": True} if "rewritten" in sample else {}),
                    }
                )
    return rows


def _without(response: str, ends: Sequence[str]) -> str:
    """The response up to the first of the texts."""
    return response[: min((at for end in ends if (at := response.find(end)) > 0), default=len(response))]
