"""Signs in the text of a response: second thoughts, and loops."""

import re

# What a reasoning model says when it looks at its own work again; whole words, so that a waiter is no reflection.
_REFLECTION = re.compile(
    r"\b(?:wait|re-?check|re-?think|try again|alternatively|re-?try|however|let me (?:check|verify))\b", re.IGNORECASE
)
_WINDOW = 60  # characters; a stretch of that length that comes again and again is a loop
_LOOPS = 4


def num_reflections(text: str) -> int:
    """Number of words and phrases of second thoughts in the text."""
    return sum(1 for _ in _REFLECTION.finditer(text))


def is_repetitive(text: str) -> bool:
    """Whether the end of a response is a loop: its last characters stand at least four times in its last part."""
    tail = text[-_WINDOW * 40 :]
    last = tail[-_WINDOW:]
    return len(last) == _WINDOW and bool(last.strip()) and tail.count(last) >= _LOOPS
