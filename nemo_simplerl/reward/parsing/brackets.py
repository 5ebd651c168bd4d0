r"""Brackets among tokens: matching them, and splitting at separators outside all of them."""

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token, TokenKind

Tokens = tuple[Token, ...]

_STEPS = {("sign", bracket): 1 for bracket in "([{"} | {("sign", bracket): -1 for bracket in ")]}"}
_STEPS |= {("command", opening): 1 for opening in ("{", "lfloor", "lceil", "langle")}
_STEPS |= {("command", closing): -1 for closing in ("}", "rfloor", "rceil", "rangle")}
_BRACKETS = frozenset(text for _, text in _STEPS)


def _step(token: Token) -> int:
    """1 where the token opens a bracket or an environment, -1 where it closes one, 0 for other tokens."""
    text = token.text
    if text in _BRACKETS:
        return _STEPS.get((token.kind, text), 0)
    if " " in text and token.kind == "command":
        return text.startswith("begin ") - text.startswith("end ")
    return 0


def check_nesting(tokens: Tokens) -> None:
    """Raise NotParsed where brackets do not balance or nest too deeply. Kinds may differ: [0, 1) balances."""
    depth = 0
    for token in tokens:
        if step := _step(token):
            depth += step
            if depth > LIMITS.nesting:
                raise NotParsed("brackets nested too deeply")
            if depth < 0:
                raise NotParsed("a bracket closes that was not open")
    if depth:
        raise NotParsed("a bracket does not close")


class Separators:
    """Tokens at which a text is split, each by its kind and its text."""

    def __init__(self, *tokens: tuple[TokenKind, str]) -> None:
        self.tokens = frozenset(tokens)
        self.texts = frozenset(text for _, text in tokens)

    def __contains__(self, token: Token) -> bool:
        return token.text in self.texts and (token.kind, token.text) in self.tokens


def split_top_level(tokens: Tokens, separators: Separators) -> tuple[list[Tokens], list[Token]]:
    """The parts between the separators outside all brackets, and the separators."""
    if separators.texts.isdisjoint([token.text for token in tokens]):  # as nearly always
        return [tokens], []
    parts: list[Tokens] = []
    found: list[Token] = []
    depth = start = 0
    for at, token in enumerate(tokens):
        if step := _step(token):
            depth += step
        elif depth == 0 and token in separators:
            parts.append(tokens[start:at])
            found.append(token)
            start = at + 1
    parts.append(tokens[start:])
    return parts, found


def closing_index(tokens: Tokens, start: int) -> int:
    """The index of the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(tokens)):
        if step := _step(tokens[at]):
            depth += step
            if depth == 0 and step < 0:
                return at
    raise NotParsed("a bracket does not close")


def is_enclosed(tokens: Tokens) -> bool:
    """Whether one pair of brackets encloses all of the tokens."""
    return len(tokens) >= 2 and _step(tokens[0]) > 0 and closing_index(tokens, 0) == len(tokens) - 1
