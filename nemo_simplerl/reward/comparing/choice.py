r"""Multiple-choice letters, and text that is no mathematics."""

import re

from nemo_simplerl.reward.parsing.lexicon import CHOICE_WORDS
from nemo_simplerl.reward.parsing.tokens import NotParsed, tokenize

_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|bf|rm)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"\(?\s*([A-H])\s*\)?")
_CHOICE = re.compile(
    rf"(?:(?:{'|'.join(CHOICE_WORDS)})\s*:?\s+)?(?:\(\s*([A-H])\s*\)|([A-H])\s*[).:](?=\s|$)|([A-H])$)\s*(.*)",
    re.IGNORECASE,
)
_CONTINUES = re.compile(r"\s*(?:and|or|,|;|/|&)(?![a-z])|.*\([A-H]\)", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:an?|the) ")


def choice_letter(text: str) -> str | None:
    """The letter of a gold answer that is a choice: B, (B), B). None for other answers."""
    found = _LETTER.fullmatch(_plain(text))
    return found[1] if found else None


def chosen_letter(text: str) -> str | None:
    """The one letter that an answer chooses: (B), B. 12, Option B. None for none and for several."""
    found = _CHOICE.fullmatch(_plain(text))
    if found is None or _CONTINUES.match(found[4]):
        return None
    letter = found[1] or found[2] or found[3]
    return letter if letter.isupper() else None


def _plain(text: str) -> str:
    return " ".join(_FONT.sub(r" \1 ", text).replace("$", " ").split())


def comparable_tokens(text: str) -> tuple[str, ...] | None:
    """The tokens by which answers without a tree are compared: words in lower case and without an article."""
    try:
        tokens = tokenize(text)
    except NotParsed:
        return None
    words = [_ARTICLE.sub("", token.text.lower()) if token.kind == "word" else token.text for token in tokens]
    return tuple(word for word in words if word not in ("{", "}") or len(words) < 3) or None
