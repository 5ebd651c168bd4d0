"""A reading position in a sequence of tokens."""

from nemo_simplerl.reward.parsing.brackets import Tokens
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token


class Cursor:
    """Reads tokens one after another; `at` is the index of the next one."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.at = 0

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
        token = self.peek()
        return token is not None and token.kind == kind and token.text in texts
