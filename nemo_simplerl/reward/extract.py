r"""Finds the final answer of a response: the content of its last complete `\boxed{...}`."""

import re

# A box may stand after one backslash or two: a response quoted from JSON or Python keeps the escape.
# `\\.` comes after it and swallows `\{`, `\}` and `\\`, so that an escaped brace never counts as a brace.
# TeX boxes the token after `\boxed` where no brace follows; a number is taken whole.
_TOKEN = re.compile(
    r"(?P<box>\\{1,2}(?:boxed|fbox)\s*\{)|\\boxed +(?P<bare>-?[0-9][0-9.,/]{0,40})(?=[\s$.,]|\Z)"
    r"|\\.|(?P<open>\{)|(?P<close>\})",
    re.DOTALL,
)
_END_OF_SEQUENCE = re.compile(r"<\|(?:im_end|endoftext|eot_id|end_of_text)\|>|</s>|<｜end▁of▁sentence｜>")
_OPENINGS = (r"\boxed", r"\fbox")
_VISIBLE = re.compile(
    r"\\(?:[,;:! ]|quad(?![A-Za-z])|qquad(?![A-Za-z])|text\s*\{\s*\}|boxed\s*\{|fbox\s*\{)|[\s~${}]|(?P<visible>.)",
    re.DOTALL,
)
# What may stand between boxes that are one list: signs, a connector, a name with an equals sign, one word.
_BETWEEN = re.compile(
    r"[\s$;,.]*(?:\\[()\[\]])?(?:\\quad)?[\s$]*(?:[a-z]{1,12}\s+)?(?P<join>,|;|and|or|\\text\s*\{\s*,?\s*(?:and|or)\s*,?\s*\})"
    r"[\s$]*(?:\\quad)?[\s$]*(?:\\[()\[\]])?[\s$]*(?:[A-Za-z](?:_\{?[0-9A-Za-z]\}?)?\s*=\s*)?"
)
# Boxes are also one list where a wide space or the marks of a list or a table stand between them.
_BLANK = r"(?:[\s$]|\\[,;:! ()\[\]])*"
_SIDE_BY_SIDE = re.compile(
    rf"{_BLANK}(?:(?:\\q?quad(?![A-Za-z])|\\\\|&|\n\s*(?:[-*•]|[0-9]\.|\([0-9a-z]\))\s){_BLANK})+"
)
_MAX_BETWEEN_CHARS = 60
_MAX_JOINED = 20


def final_answers(text: str) -> list[str]:
    r"""The contents of the last box and of those before it that commas, "and", "or" or \quad join to it, in order.

    "Last" is by where the box opens, so the innermost of nested boxes wins. A box that never closes and a box
    that shows nothing are passed over. Nothing else answers: a bare last number is not an answer. Text after
    an end-of-sequence marker is not part of the response.
    """
    boxes = boxes_in(text)
    if not boxes:
        return []
    first = len(boxes) - 1
    while first > 0 and len(boxes) - first < _MAX_JOINED:
        end, start = boxes[first - 1][2] + 1, boxes[first][0]
        if not 0 < start - end <= _MAX_BETWEEN_CHARS:
            break
        if not (_BETWEEN.fullmatch(text, end, start) or _SIDE_BY_SIDE.fullmatch(text, end, start)):
            break
        first -= 1
    return [text[start:end].strip() for _, start, end in boxes[first:]]


def without_ending(text: str) -> str:
    """The text before an end-of-sequence marker."""
    marker = _END_OF_SEQUENCE.search(text)
    return text[: marker.start()] if marker else text


def boxes_in(text: str) -> list[tuple[int, int, int]]:
    """The complete, innermost boxes that show something, as (begin, start of the content, end of the content).

    One pass with a stack, so the time is linear in the length whatever the text holds. It begins at the first box:
    a brace that opens before it can only close after it, and one that closes before it closes none.
    """
    places = [at for at in map(text.find, _OPENINGS) if at >= 0]
    if not places:
        return []
    first = min(places)
    while first and text[first - 1] == "\\":  # of \\\boxed the first two backslashes are one token
        first -= 1
    marker = _END_OF_SEQUENCE.search(text)
    limit = marker.start() if marker else len(text)
    found: list[tuple[int, int, int]] = []
    blank = (-1, -1)  # a stretch known to show nothing: a box around it need not read it again
    openings: list[tuple[int, int]] = []  # where a box begins and where its content does; (-1, -1) for a brace
    for token in _TOKEN.finditer(text, first, limit):
        kind = token.lastgroup
        if kind == "box":
            openings.append((token.start(), token.end()))
        elif kind == "open":
            openings.append((-1, -1))
        elif kind == "bare":
            found.append((token.start(), token.start("bare"), token.end("bare")))
        elif kind == "close" and openings:
            begin, start = openings.pop()
            surrounds = found and found[-1][0] > begin
            if start < 0 or surrounds:
                continue
            parts = ((start, blank[0]), (blank[1], token.start())) if blank[0] >= start else ((start, token.start()),)
            if any(_shows_something(text, *part) for part in parts):
                found.append((begin, start, token.start()))
            else:
                blank = (begin, token.end())
    return found


def _shows_something(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] shows more than white space. Reads up to the first visible character."""
    return any(found.lastgroup for found in _VISIBLE.finditer(text, start, end))
