r"""Reads the normalized text of an answer as trees: one, or several where the notation is ambiguous."""

import re
from collections.abc import Iterator

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.answer import AnswerParser
from nemo_simplerl.reward.parsing.brackets import Tokens
from nemo_simplerl.reward.parsing.lexicon import FUNCTIONS
from nemo_simplerl.reward.parsing.notations.compound_units import with_text_units
from nemo_simplerl.reward.parsing.notations.counting import with_counts_written_out
from nemo_simplerl.reward.parsing.tokens import NotParsed, tokenize
from nemo_simplerl.reward.parsing.tree import Node, is_deeper

_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_ZERO_GROUP = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})*,0[0-9]{2}(?![0-9])")  # no list has an item 007
_SPACE_GROUPED = re.compile(r"(?<![0-9.,/^_])[0-9]{1,3}(?: [0-9]{3})+(?![0-9/]| [0-9])")

_SPELLED = (with_text_units, with_counts_written_out)


def readings(text: str, trusted: bool = False) -> list[Node]:
    """The trees of normalized text, likeliest first; an empty list where it does not parse."""
    return list(each_reading(text, trusted))


class LazyReadings:
    """The `readings` of a text, each of them parsed once, and only when those before it have not sufficed."""

    def __init__(self, text: str, trusted: bool = False) -> None:
        self._known: list[Node] = []
        self._others = each_reading(text, trusted)

    def __iter__(self) -> Iterator[Node]:
        yield from self._known
        for node in self._others:
            self._known.append(node)
            yield node

    def __bool__(self) -> bool:
        return any(True for _ in self)


def each_reading(text: str, trusted: bool = False) -> Iterator[Node]:
    """Parse the trees of normalized text one after another, likeliest first.

    Four habits of writing leave two readings each: commas that may group thousands or separate items, a division
    followed by a factor without a sign between them, letters that may be units, and C(8, 2), a number or a point.
    `trusted`: the text is a gold answer, in which any noun behind a value is taken for its unit.
    """
    if " " in text:
        text = _SPACE_GROUPED.sub(lambda number: number.group().replace(" ", ""), text)
    texts = [text]
    grouped = _grouped(text)
    if grouped != text:
        texts = [grouped] if _ZERO_GROUP.search(text) else [grouped, text]
    texts += [other for spelled in _SPELLED if (other := spelled(texts[0])) != texts[0]]
    nodes: list[Node] = []
    for reading in texts:
        try:
            tokens = tokenize(reading)
        except NotParsed:
            continue
        for tight in (False, True) if _has_open_division(tokens) else (False,):
            try:
                node = AnswerParser(tight, trusted).answer(tokens)
            except NotParsed:
                continue
            if 2 * len(tokens) > LIMITS.depth and is_deeper(node, LIMITS.depth):
                continue  # x!!!!! and 1/2/3 are read without recursion, but not compared
            if node not in nodes:
                nodes.append(node)
                yield node


def _grouped(text: str) -> str:
    """The text without commas between thousands, outside brackets or where other commas are followed by a space."""
    if "," not in text:
        return text
    spaced = ", " in text
    depth, depths = 0, []
    for letter in text:
        depth += letter in "([{"
        depth -= letter in ")]}"
        depths.append(depth)
    return _GROUPED.sub(
        lambda number: number.group().replace(",", "") if depths[number.start()] == 0 or spaced else number.group(),
        text,
    )


_DIVISION_ENDS = frozenset("+-=,;)]}<>")


def _has_open_division(tokens: Tokens) -> bool:
    """Whether there is a division that may go on behind its first divisor, or stand within a function's argument."""
    slashes = [at for at, token in enumerate(tokens) if token.kind == "sign" and token.text == "/"]
    if not slashes:
        return False
    if any(token.kind == "command" and token.text in FUNCTIONS for token in tokens):
        return True
    return not all(_is_closed(tokens[at + 1 : at + 3]) for at in slashes)


def _is_closed(behind: Tokens) -> bool:
    """Whether a division ends with its first divisor, a number or a letter."""
    if not behind or behind[0].kind not in ("number", "letter"):
        return False
    return len(behind) == 1 or (behind[1].kind == "sign" and behind[1].text in _DIVISION_ENDS)
