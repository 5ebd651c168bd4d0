r"""Reads the normalized text of an answer as trees: one, or several where the notation is ambiguous."""

import re

from nemo_simplerl.reward.parsing.answer import AnswerParser
from nemo_simplerl.reward.parsing.brackets import Tokens
from nemo_simplerl.reward.parsing.tokens import NotParsed, tokenize
from nemo_simplerl.reward.parsing.tree import Node

_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_SPACE_GROUPED = re.compile(r"(?<![0-9.,/^_])[0-9]{1,3}(?: [0-9]{3})+(?![0-9/]| [0-9])")


def readings(text: str) -> list[Node]:
    """The trees of normalized text, likeliest first; an empty list where it does not parse.

    Two habits of writing leave two readings each: commas that may group thousands or separate items, and a
    division followed by a factor without a sign between them.
    """
    text = _SPACE_GROUPED.sub(lambda number: number.group().replace(" ", ""), text)
    texts = [text]
    grouped = _grouped(text)
    if grouped != text:
        texts.insert(0, grouped)
    nodes: list[Node] = []
    for reading in texts:
        try:
            tokens = tokenize(reading)
        except NotParsed:
            continue
        for tight in (False, True) if _has_open_division(tokens) else (False,):
            try:
                node = AnswerParser(tight).answer(tokens)
            except (NotParsed, RecursionError):
                continue
            if node not in nodes:
                nodes.append(node)
    return nodes


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


def _has_open_division(tokens: Tokens) -> bool:
    return any(token.kind == "sign" and token.text == "/" for token in tokens)
