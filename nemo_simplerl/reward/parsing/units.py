r"""The suffix of a value: a unit, percent or degrees in words, a modulus, a currency, words that change the value."""

import re
from collections.abc import Callable

from nemo_simplerl.reward.parsing.brackets import Tokens, closing_index
from nemo_simplerl.reward.parsing.lexicon import (
    DEGREE_WORDS,
    PERCENT_WORDS,
    SCALE_WORDS,
    changes_value,
    is_unit,
    is_unit_word,
)
from nemo_simplerl.reward.parsing.notations.compound_units import compound_unit
from nemo_simplerl.reward.parsing.spoken import operated
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
from nemo_simplerl.reward.parsing.tree import ONE, Call, Degrees, Modular, Node, Percent, Quantity

_MAX_UNIT_WORDS = 6
_UNIT_SIGNS = frozenset({"/", "^", "-", "*", "{", "}", ".", "(", ")"})
_UNIT_COMMANDS = frozenset({"cdot", "currency", "centsign", "circ"})
_LETTERS = re.compile(r"[A-Za-z.']+(?: [A-Za-z.']+)*")
_WORD = re.compile(r"[A-Za-z.']+")


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
    if (at := _bracketed_unit(rest)) or (at := _temperature(rest)):
        return rest[:at], tuple(Token("word", token.text, True) for token in rest[at:] if token.text not in ("(", ")"))
    depth = 0
    for at, token in enumerate(rest):
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        if at and not depth and _begins_suffix(rest, at, token):
            return rest[:at], rest[at:]
    return rest, prefix


def _bracketed_unit(tokens: Tokens) -> int:
    """Where the words in brackets begin that end the tokens, as in 18 (cm); 0 without any."""
    at = next((at for at in range(len(tokens) - 1, 0, -1) if tokens[at].text == "("), 0)
    inside = tokens[at + 1 : -1]
    return at if inside and tokens[-1].text == ")" and all(token.kind == "word" for token in inside) else 0


def _temperature(tokens: Tokens) -> int:
    r"""Where the scale is that ends the tokens, as in 68^\circ F; 0 without one."""
    at = len(tokens) - 1
    if at < 2 or tokens[at].kind != "letter" or tokens[at].text not in ("C", "F"):
        return 0
    return at if any(token.text == "circ" for token in tokens[at - 2 : at]) else 0


def _begins_suffix(tokens: Tokens, at: int, token: Token) -> bool:
    if token.kind == "word":
        if len(token.text) == 1 and not is_unit_word(token.text) and token.text not in SCALE_WORDS:
            return False  # a symbol in upright letters
        return tokens[at - 1].text not in ("+", "-", "*", "/", "^", "_", "cdot", "times", "{", "(", "=")
    return token.kind == "command" and token.text in ("pmod", "bmod", "mod", "currency", "centsign")


def with_suffix(node: Node, suffix: Tokens, parse: Callable[[Tokens], Node], trusted: bool = False) -> Node:
    """The value with its suffix: a quantity, percentage, angle, modular value, or what words such as `thousand` make.

    `trusted`: the text is a gold answer, in which words that no table has are a unit. NotParsed for any other suffix.
    """
    if not suffix:
        return node
    if suffix[0].text in ("pmod", "bmod", "mod"):
        rest = suffix[1:]
        if rest and rest[0].text in ("{", "(") and closing_index(rest, 0) == len(rest) - 1:
            rest = rest[1:-1]
        modulus = parse(rest)
        return Call("mod", (node, modulus)) if suffix[0].text == "bmod" else Modular(node, modulus)
    if len(suffix) > 1 and (unit := compound_unit(suffix)) is not None:
        return Quantity(node, unit)
    node, suffix = operated(node, suffix, parse)
    if not suffix:
        return node
    text = _unit_text(suffix)
    if text in PERCENT_WORDS:
        return Percent(node)
    if text in DEGREE_WORDS:
        return Degrees(node)
    words = _without_powers(_WORD.findall(text.replace("/", " per ")))
    if len(words) > _MAX_UNIT_WORDS or any(map(changes_value, words)):
        raise NotParsed(f"{text!r} is no unit")
    if not trusted and not is_unit(words, one=node == ONE):
        raise NotParsed(f"{text!r} is no unit of the tables")
    return Quantity(node, text)


def _without_powers(words: list[str]) -> list[str]:
    """The words without the power of a unit, as in feet squared and squared feet."""
    return [
        word
        for at, word in enumerate(words)
        if word.lower() not in ("squared", "cubed") or not any(map(is_unit_word, words[max(0, at - 1) : at + 2]))
    ]


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
