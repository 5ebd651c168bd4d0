r"""Brackets among tokens: matching them, and splitting at separators outside all of them."""

from collections.abc import Callable

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token

Tokens = tuple[Token, ...]

_OPENING = frozenset({"(", "[", "{"})
_CLOSING = frozenset({")", "]", "}"})
_OPENING_COMMANDS = frozenset({"{", "lfloor", "lceil", "langle"})
_CLOSING_COMMANDS = frozenset({"}", "rfloor", "rceil", "rangle"})


def is_opening(token: Token) -> bool:
    if token.kind == "sign":
        return token.text in _OPENING
    return token.kind == "command" and (token.text in _OPENING_COMMANDS or token.text.startswith("begin "))


def is_closing(token: Token) -> bool:
    if token.kind == "sign":
        return token.text in _CLOSING
    return token.kind == "command" and (token.text in _CLOSING_COMMANDS or token.text.startswith("end "))


def check_nesting(tokens: Tokens) -> None:
    """Raise NotParsed where brackets do not balance or nest too deeply. Kinds may differ: [0, 1) balances."""
    depth = 0
    for token in tokens:
        if is_opening(token):
            depth += 1
            if depth > LIMITS.nesting:
                raise NotParsed("brackets nested too deeply")
        elif is_closing(token):
            depth -= 1
            if depth < 0:
                raise NotParsed("a bracket closes that was not open")
    if depth:
        raise NotParsed("a bracket does not close")


def split_top_level(tokens: Tokens, is_separator: Callable[[Token], bool]) -> tuple[list[Tokens], list[Token]]:
    """The parts between the separators outside all brackets, and the separators."""
    parts: list[Tokens] = []
    separators: list[Token] = []
    depth = start = 0
    for at, token in enumerate(tokens):
        if is_opening(token):
            depth += 1
        elif is_closing(token):
            depth -= 1
        elif depth == 0 and is_separator(token):
            parts.append(tokens[start:at])
            separators.append(token)
            start = at + 1
    parts.append(tokens[start:])
    return parts, separators


def closing_index(tokens: Tokens, start: int) -> int:
    """The index of the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(tokens)):
        if is_opening(tokens[at]):
            depth += 1
        elif is_closing(tokens[at]):
            depth -= 1
            if depth == 0:
                return at
    raise NotParsed("a bracket does not close")


def is_enclosed(tokens: Tokens) -> bool:
    """Whether one pair of brackets encloses all of the tokens."""
    return len(tokens) >= 2 and is_opening(tokens[0]) and closing_index(tokens, 0) == len(tokens) - 1
