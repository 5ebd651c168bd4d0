"""Long chains of thought for the warm start, sampled from a stronger model: which to ask for, and which to keep."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from nemo_simplerl.data.chats import Turn
from nemo_simplerl.data.problems import Problem, question_as_written
from nemo_simplerl.data.templates import INSTRUCTION

Sample = Mapping[str, Any]  # id, sample, response, finish_reason, verdict


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


def kept(problems: Sequence[Problem], samples: Iterable[Sample], per_problem: int, source: str) -> list[dict[str, Any]]:
    """Rows of the warm start's file: up to `per_problem` correct and complete responses to each problem, in order.

    Each row names its source. Responses that differ in white space alone count as one.
    """
    by_problem: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample["verdict"] == "correct" and sample["finish_reason"] == "stop":
            by_problem.setdefault(sample["id"], []).append(sample)
    rows = []
    for problem in problems:
        seen: set[str] = set()
        for sample in sorted(by_problem.get(problem.id, ()), key=lambda sample: sample["sample"]):
            text = " ".join(sample["response"].split())
            if text not in seen and len(seen) < per_problem:
                seen.add(text)
                rows.append(
                    {
                        "id": f"{problem.id}/{sample['sample']}",
                        "question": question_as_written(problem),
                        "response": sample["response"].strip(),
                        "answer": problem.answer,
                        "source": source,
                    }
                )
    return rows
