"""Grading for a function that a trainer calls: in a pool of killable workers that starts with the first call."""

import functools
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from nemo_simplerl.reward.gold import read_gold
from nemo_simplerl.reward.grade import SIMPLERL_REWARDS, Verdict
from nemo_simplerl.reward.serving.pool import Grade, RewardPool

Values = Literal["recipe", "binary"]
# What the verdicts pay: as in the SimpleRL recipe, or 1 for a right answer and 0 for anything else.
VALUES: dict[Values, Mapping[Verdict, float]] = {
    "recipe": SIMPLERL_REWARDS,
    "binary": {"correct": 1.0, "incorrect": 0.0, "no_answer": 0.0},
}
MEMORY_LIMIT_MB = 2048
_START = threading.Lock()


def values_of(name: Values) -> Mapping[Verdict, float]:
    """The rewards of the verdicts. Raises ValueError for a name that is not one of VALUES."""
    if name not in VALUES:
        raise ValueError(f"values={name!r} is none of {', '.join(VALUES)}")
    return VALUES[name]


def grade(
    golds: Sequence[Any], responses: Sequence[str], *, num_workers: int = 2, timeout_s: float = 10.0
) -> list[Grade]:
    """The grades of responses, in order. Thread-safe. Raises ValueError for a gold answer that cannot be used.

    A response that takes longer than `timeout_s`, or brings its worker down, is incorrect. The others do not wait for
    it where another worker is free.
    """
    items = [(gold_text(gold), response) for gold, response in zip(golds, responses, strict=True)]
    with _START:  # several threads may call first
        pool = _pool(os.getpid(), num_workers, timeout_s)
    return pool.grade(items)


def gold_text(gold: Any) -> str:
    """The gold answer in a value of a data set. Raises ValueError where there is none."""
    found = _read_text(gold) if isinstance(gold, str) else read_gold(gold)
    if found.fault:
        raise ValueError(f"the gold answer {gold!r:.80} cannot be used: {found.fault}")
    return found.text


_read_text = functools.lru_cache(maxsize=10_000)(read_gold)  # every response to a question brings its gold answer


@functools.lru_cache(maxsize=8)
def _pool(process: int, num_workers: int, timeout_s: float) -> RewardPool:
    """The pool of a process: one that was forked has none of its parent's threads. It ends with the process."""
    return RewardPool(num_workers, timeout_s, MEMORY_LIMIT_MB)
