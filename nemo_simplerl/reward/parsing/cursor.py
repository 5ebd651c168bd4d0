"""A reading position in a sequence of tokens, and the bound on how deeply parsers call themselves."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.brackets import Tokens
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token


class _Nesting(Protocol):
    depth: int


_Parser = TypeVar("_Parser", bound=_Nesting)
_Arguments = ParamSpec("_Arguments")
_Read = TypeVar("_Read")


def bounded(
    method: Callable[Concatenate[_Parser, _Arguments], _Read],
) -> Callable[Concatenate[_Parser, _Arguments], _Read]:
    """A parser's method that counts the levels at which it is called: NotParsed beyond `LIMITS.depth`.

    Every way in which a parser calls itself has to pass one of these methods.
    """

    @wraps(method)
    def counted(parser: _Parser, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Read:
        parser.depth += 1
        if parser.depth > LIMITS.depth:
            raise NotParsed("nested too deeply")
        found = method(parser, *args, **kwargs)
        parser.depth -= 1
        return found

    return counted


class Cursor:
    """Reads tokens one after another; `at` is the index of the next one, `depth` the level of nesting so far."""

    def __init__(self, tokens: Tokens, depth: int = 0) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = depth

    def peek(self, ahead: int = 0) -> Token | None:
        """The next token, or the one `ahead` of it; None past the end."""
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else None

    def take(self) -> Token:
        """The next token; the cursor moves behind it. NotParsed at the end."""
        if self.at >= len(self.tokens):
            raise NotParsed("the text ends where a value should follow")
        self.at += 1
        return self.tokens[self.at - 1]

    def next_is(self, kind: str, *texts: str) -> bool:
        if self.at >= len(self.tokens):
            return False
        token = self.tokens[self.at]
        return token.text in texts and token.kind == kind
