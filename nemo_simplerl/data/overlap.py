"""Questions that are the same, or nearly: within a set, and between a training set and what it is evaluated on."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

OverlapKind = Literal["identical", "same_words", "near"]
# From sure to likely. identical: only white space differs. same_words: only case, punctuation and typesetting differ.
# near: most runs of words are shared, as when a question was reworded, or asks another thing about the same figure.
KINDS: tuple[OverlapKind, ...] = ("identical", "same_words", "near")
NEAR = 0.8  # of the runs of words of both (Jaccard)
_RUN = 8  # words
_COMMON = 200  # a run in more questions than these says nothing, and would cost their square
_TYPESETTING = re.compile(r"\\(?:left|right|[dt]frac|displaystyle|text|mathrm|mathbf|quad|qquad|[,;:! ])(?![a-z])")
_WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9$\\{}.,;:!?()'\"`*~]")


@dataclass(frozen=True)
class Match:
    """Two questions that match, by their indices; `similarity` is below 1 for near ones only."""

    first: int
    second: int
    kind: OverlapKind
    similarity: float


def words(text: str) -> list[str]:
    """The words, numbers and signs of a text, without case, punctuation and typesetting: what is compared."""
    text = text.lower()
    return _WORD.findall(_TYPESETTING.sub(lambda found: r"\frac" if "frac" in found[0] else " ", text))


def overlaps(questions: Sequence[str], others: Sequence[str]) -> list[Match]:
    """The surest match of each question among `others`, in the order of questions; most have none."""
    index = _Index(others)
    found = ((first, index.best(question)) for first, question in enumerate(questions))
    return [Match(first, *match) for first, match in found if match is not None]


def duplicates(questions: Sequence[str]) -> list[Match]:
    """The surest match of each question among those before it."""
    index = _Index([])
    found = []
    for second, question in enumerate(questions):
        match = index.best(question)
        if match is not None:
            found.append(Match(match[0], second, match[1], match[2]))
        index.add(question)
    return found


class _Index:
    """An index of questions by their text, their words, and their runs of words."""

    def __init__(self, questions: Sequence[str]):
        self._by_text: dict[str, int] = {}
        self._by_words: dict[tuple[str, ...], int] = {}
        self._by_run: dict[int, list[int]] = defaultdict(list)
        self._num_runs: list[int] = []
        for question in questions:
            self.add(question)

    def add(self, question: str) -> None:
        number, tokens = len(self._num_runs), words(question)
        self._by_text.setdefault(_plain(question), number)
        self._by_words.setdefault(tuple(tokens), number)
        runs = _runs(tokens)
        self._num_runs.append(len(runs))
        for run in runs:
            self._by_run[run].append(number)

    def best(self, question: str) -> tuple[int, OverlapKind, float] | None:
        if (number := self._by_text.get(_plain(question))) is not None:
            return number, "identical", 1.0
        tokens = words(question)
        if tokens and (number := self._by_words.get(tuple(tokens))) is not None:
            return number, "same_words", 1.0
        runs = _runs(tokens)
        shared: Counter[int] = Counter()
        for run in runs:
            owners = self._by_run.get(run, ())
            if len(owners) <= _COMMON:
                shared.update(owners)
        scores = [(count / (len(runs) + self._num_runs[number] - count), -number) for number, count in shared.items()]
        similarity, number = max(scores, default=(0.0, 0))
        return (-number, "near", similarity) if similarity >= NEAR else None


def _plain(text: str) -> str:
    return " ".join(text.split())


def _runs(tokens: Sequence[str]) -> set[int]:
    """Hashes of the runs of words; a short text is one run."""
    return {hash(tuple(tokens[start : start + _RUN])) for start in range(max(len(tokens) - _RUN + 1, 1))}
