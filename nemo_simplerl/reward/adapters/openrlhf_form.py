"""What OpenRLHF asks and expects, as plain values: for its function and for its HTTP request alike."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_simplerl.reward.adapters.scoring import gold_text
from nemo_simplerl.reward.grade import Verdict
from nemo_simplerl.reward.serving.pool import Grade, Sample

log = logging.getLogger(__name__)
_LEAST_OVERLAP = 16  # characters that a prompt and a query share by more than chance
_LISTS = ("query", "prompts", "labels")


def samples_in(request: Any) -> list[Sample]:
    """The samples of a request `{"query", "prompts", "labels"}`. Raises ValueError saying what it has instead."""
    lists: list[Any] = [request.get(name) for name in _LISTS] if isinstance(request, dict) else []
    if not lists or any(not isinstance(values, list) for values in lists) or len({*map(len, lists)}) != 1:
        raise ValueError('the body must be {"query": [...], "prompts": [...], "labels": [...]}, lists of one length')
    for name, values in zip(_LISTS[:2], lists, strict=False):
        for number, value in enumerate(values):
            if not isinstance(value, str):
                raise ValueError(f"{name}[{number}] must be a string")
    samples = []
    for number, (query, prompt, label) in enumerate(zip(*lists, strict=True)):
        try:
            samples.append(Sample(gold_text(label), response_of(query, prompt), {"prompt": prompt}))
        except ValueError as error:
            raise ValueError(f"labels[{number}]: {error}") from error
    return samples


def answer_of(grades: Sequence[Grade], values: Mapping[Verdict, float]) -> dict[str, Any]:
    """Rewards, scores and what OpenRLHF logs, a number a sample. Scores are 1 for a right answer and 0 for any other.
    Where a user's function scores, rewards are its own, and its metrics are logged too."""
    rewards = [values[grade.verdict] if grade.score is None else grade.score for grade in grades]
    names = sorted({name for grade in grades for name in grade.metrics or ()})
    return {
        "rewards": rewards,
        "scores": [float(grade.verdict == "correct") for grade in grades],
        "extra_logs": {
            "correct": [float(grade.verdict == "correct") for grade in grades],
            "no_answer": [float(grade.verdict == "no_answer") for grade in grades],
            "timeout_or_crash": [float(grade.status in ("timeout", "crash")) for grade in grades],
            **{name: [(grade.metrics or {}).get(name, 0.0) for grade in grades] for name in names},
        },
    }


def response_of(query: str, prompt: str) -> str:
    """The response in a query, which is the prompt and the response as their tokens are decoded.

    Decoding may have put a special token before the prompt and changed its white space, and a prompt that was too long
    was cut at its beginning. A prompt that is not found at all stays, with a warning: a box in it could be taken for an
    answer.
    """
    if (start := query.find(prompt)) >= 0:
        return query[start + len(prompt) :]
    squeezed, places = _without_spaces(query)
    wanted, _ = _without_spaces(prompt)
    if wanted and (start := squeezed.find(wanted)) >= 0:
        return query[places[start + len(wanted) - 1] + 1 :]
    if (overlap := _overlap(wanted, squeezed)) >= _LEAST_OVERLAP:
        return query[places[overlap - 1] + 1 :]
    log.warning("a query of OpenRLHF does not begin with its prompt: all of it is graded")
    return query


def _without_spaces(text: str) -> tuple[str, list[int]]:
    """The visible characters of a text, and where each of them stands in it."""
    places = [place for place, character in enumerate(text) if not character.isspace()]
    return "".join(text[place] for place in places), places


def _overlap(prompt: str, query: str) -> int:
    """The length of the longest end of the prompt with which the query begins (Knuth, Morris and Pratt 1977)."""
    pattern = query[: len(prompt)]
    borders = [0] * len(pattern)
    matched = 0
    for place in range(1, len(pattern)):
        while matched and pattern[place] != pattern[matched]:
            matched = borders[matched - 1]
        matched += pattern[place] == pattern[matched]
        borders[place] = matched
    matched = 0
    for character in prompt:
        while matched and (matched == len(pattern) or character != pattern[matched]):
            matched = borders[matched - 1]
        matched += bool(pattern) and character == pattern[matched]
    return matched
