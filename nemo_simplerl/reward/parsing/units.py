r"""The suffix of a value: a unit, percent or degrees in words, a modulus, a currency."""

import re
from collections.abc import Callable

from nemo_simplerl.reward.parsing.brackets import Tokens, closing_index
from nemo_simplerl.reward.parsing.lexicon import DEGREE_WORDS, PERCENT_WORDS, words_of
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
from nemo_simplerl.reward.parsing.tree import Degrees, Modular, Node, Percent, Quantity

_MAX_UNIT_WORDS = 6
_UNIT_SIGNS = frozenset({"/", "^", "-", "*", "{", "}", ".", "(", ")"})
_UNIT_COMMANDS = frozenset({"cdot", "currency", "centsign", "circ"})
# Words that change or hedge the value before them.
_NOT_UNITS = words_of(
    "not no if for all is are was were but than can let so we it maybe perhaps either neither when where "
    "with such some every only except least most less approximately about undefined given because since "
    "then otherwise unless until"
)
_LETTERS = re.compile(r"[A-Za-z.']+(?: [A-Za-z.']+)*")


def split_suffix(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Split the tokens into a value and its suffix. A currency sign before a value counts as its suffix."""
    prefix: Tokens = ()
    start = 0
    while start < len(tokens) and tokens[start].text == "currency":
        start += 1
    if start:
        prefix = (Token("word", "dollars"),)
    elif len(tokens) > 2 and tokens[0].text == "-" and tokens[1].text == "currency":
        return (tokens[0], *tokens[2:]), (Token("word", "dollars"),)
    rest = tokens[start:]
    at = next((at for at, token in enumerate(rest) if _begins_suffix(rest, at, token)), len(rest))
    return rest[:at], rest[at:] or prefix


def _begins_suffix(tokens: Tokens, at: int, token: Token) -> bool:
    if at == 0 or _depth(tokens, at):
        return False
    if token.kind == "word":
        return tokens[at - 1].text not in ("+", "-", "*", "/", "^", "_", "cdot", "times", "{", "(", "=")
    return token.kind == "command" and token.text in ("pmod", "bmod", "mod", "currency", "centsign")


def _depth(tokens: Tokens, at: int) -> int:
    opening = sum(token.text in ("(", "[", "{") for token in tokens[:at])
    return opening - sum(token.text in (")", "]", "}") for token in tokens[:at])


def with_suffix(node: Node, suffix: Tokens, parse: Callable[[Tokens], Node]) -> Node:
    """The value with its suffix: a quantity, percentage, angle or modular value. NotParsed for any other suffix."""
    if not suffix:
        return node
    if suffix[0].text in ("pmod", "bmod", "mod"):
        rest = suffix[1:]
        if rest and rest[0].text in ("{", "(") and closing_index(rest, 0) == len(rest) - 1:
            rest = rest[1:-1]
        return Modular(node, parse(rest))
    text = _unit_text(suffix)
    words = text.split()
    if text in PERCENT_WORDS:
        return Percent(node)
    if text in DEGREE_WORDS:
        return Degrees(node)
    if len(words) > _MAX_UNIT_WORDS or any(word in _NOT_UNITS for word in words):
        raise NotParsed(f"{text!r} is no unit")
    return Quantity(node, text)


def _unit_text(suffix: Tokens) -> str:
    parts: list[str] = []
    for token in suffix:
        if token.kind == "word" and _LETTERS.fullmatch(token.text):
            parts.append(" " + token.text)
        elif token.kind == "command" and token.text in _UNIT_COMMANDS:
            parts.append({"currency": " dollars", "centsign": " cents"}.get(token.text, ""))
        elif token.kind == "number" and len(token.text) == 1 and parts and parts[-1] in ("^", "^-"):
            parts[-1] = "^" + token.text
        elif token.kind == "sign" and token.text == "-" and parts and parts[-1] == "^":
            parts[-1] = "^-"
        elif token.kind == "sign" and token.text in "{}()" or token.kind == "sign" and token.text in _UNIT_SIGNS:
            if token.text not in "{}()":
                parts.append(token.text)
        else:
            raise NotParsed(f"{token.text!r} is no part of a unit")
    return " ".join("".join(parts).split())
