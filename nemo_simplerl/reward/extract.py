r"""Finding the final answer of a response: the content of its last complete `\boxed{...}`."""

import re

# A box may stand after one backslash or two: a response quoted from JSON or Python keeps the escape.
# `\\.` comes after it and swallows `\{`, `\}` and `\\`, so that an escaped brace never counts as a brace.
_TOKEN = re.compile(r"(?P<box>\\{1,2}(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The stripped content of the last complete, non-blank `\boxed{...}` or `\fbox{...}`; None without one.

    "Last" is by where the box opens, so the innermost of nested boxes wins. A box that never closes and a box
    that holds only whitespace are passed over. Nothing else answers: a bare last number is not an answer.
    One pass over the text with a stack, so the time is linear in its length whatever it holds.
    """
    best_start, best_end = -1, -1
    openings: list[int] = []  # start of the content of a box, or -1 for a plain brace
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "box":
            openings.append(token.end())
        elif kind == "open":
            openings.append(-1)
        elif kind == "close" and openings:
            start = openings.pop()
            if start > best_start and not _is_blank(text, start, token.start()):
                best_start, best_end = start, token.start()
    return text[best_start:best_end].strip() if best_start >= 0 else None


_NOT_SPACE = re.compile(r"\S")


def _is_blank(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is whitespace. Looks no further than the first other character."""
    return _NOT_SPACE.search(text, start, end) is None
