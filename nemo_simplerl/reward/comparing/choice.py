r"""Multiple-choice letters, and text that is no mathematics."""

import re

from nemo_simplerl.reward.parsing.lexicon import CHOICE_WORDS, words_of
from nemo_simplerl.reward.parsing.normalize import normalize_answer
from nemo_simplerl.reward.parsing.readings import readings
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token, tokenize

_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|bf|rm)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"\(?\s*([A-H])\s*\)?")
_LETTERS = frozenset("ABCDEFGH")
_GAP = "¦"  # where a font begins, or space is wider than between the factors of a product
_WIDE = re.compile(r"\\(?:qquad|quad|hspace\s*\{[^{}]*\})")
_NARROW = re.compile(r"\\[ ,;:]|~")
_CHOICE = re.compile(
    rf"(?:(?:the |my )?(?:final |correct |right )?(?:{'|'.join(CHOICE_WORDS)})(?: is)?\s*:?[\s{_GAP}]+)?"
    rf"(?:\(\s*([A-Ha-h])\s*\)(?=[\s{_GAP}]|$)|([A-Ha-h])\s*[).:](?=[\s{_GAP}]|$)|([A-Ha-h])(?=\s*(?:{_GAP}|$)))(.*)",
    re.IGNORECASE,
)
_OTHER_LETTER = re.compile(r"\([A-Ha-h]\)|(?<![A-Za-z\\^_{(])(?:[B-H]|A(?! [a-z]))(?![A-Za-z'^_})(=+*-])")
_OPERATORS = ("+", "*", "/", "^", "_", "=", "<", ">", "|", "&", "!", "%", "'", ",", ";", "- ")
_OPERATOR_COMMANDS = re.compile(
    r"\\(?:cdot|times|div|pm|mp|le|ge|ne|approx|equiv|in|notin|cup|cap|setminus|to|pmod|bmod|mod|circ|wedge|vee)(?![a-z])"
)
# A sentence about the choice begins with one of these, and is no text of the choice.
_BEGIN_REMARKS = words_of(
    "is are was isn isn't would could should might may can has does doesn seems looks must and or nor but if "
    "unless with because since then plus minus times squared cubed of to as for so not"
)
_DENIALS = words_of(
    "not never wrong incorrect maybe perhaps possibly probably instead rather unsure guess either neither nor else "
    "also except without impossible false untrue"
)
_ARTICLE = re.compile(r"^(?:an?|the) ")
_WORD = re.compile(r"[A-Za-z']+")


def choice_letter(text: str) -> str | None:
    """The letter of a gold answer that is a choice: B, (B), B). None for other answers."""
    if _LETTERS.isdisjoint(text):
        return None
    found = _LETTER.fullmatch(_plain(text).replace(_GAP, " ").strip())
    return found[1] if found else None


def chosen_letter(text: str) -> str | None:
    r"""The one letter that an answer chooses: (B), Option B, or with the text of the choice B. 12 and B \quad 12.

    None for none, for several, and where what follows is no text of a choice: B + 1, (B) is wrong, (B) or 5. `text` is
    not normalized, because a product is written without the space that \quad and \text make.
    """
    found = _CHOICE.fullmatch(_plain(text))
    if found is None:
        return None
    letter = found[1] or found[2] or found[3]
    rest = " ".join(found[4].replace(_GAP, " ").split())
    return letter if letter.isupper() and (not rest or _is_text_of_choice(rest)) else None


def _is_text_of_choice(text: str) -> bool:
    """Whether the text behind a letter is all of an answer by itself, and says nothing about the letter."""
    if text.startswith(_OPERATORS) or _OPERATOR_COMMANDS.match(text) or _OTHER_LETTER.search(text):
        return False
    words = [word.lower() for word in _WORD.findall(text)]
    if words and (words[0] in _BEGIN_REMARKS or not _DENIALS.isdisjoint(words)):
        return False
    return bool(readings(normalize_answer(text), trusted=True))


def _plain(text: str) -> str:
    r"""The text without fonts and `$`, and with a mark where \text or \quad sets it off."""
    marked = _FONT.sub(rf" {_GAP}\1", _WIDE.sub(f" {_GAP} ", _NARROW.sub(" ", text)))
    return " ".join(marked.replace("$", " ").split()).lstrip(_GAP + " ")


def comparable_tokens(text: str) -> tuple[str, ...] | None:
    """The tokens by which answers without a tree are compared: words in lower case and without an article."""
    try:
        tokens = tokenize(text)
    except NotParsed:
        return None
    words = [_ARTICLE.sub("", token.text.lower()) if token.kind == "word" else _mark(token) for token in tokens]
    dropped = {at for at, word in enumerate(words) if word in ("{", "}")} if len(words) > 2 else set()
    for at in range(2, len(words)):
        if words[at] == "}" and words[at - 2] == "{" and len(words[at - 1]) > 1 and words[at - 1].isdigit():
            dropped -= {at - 2, at}  # x^{12} may be x^{1}2 without them
    return tuple(word for at, word in enumerate(words) if at not in dropped) or None


def _mark(token: Token) -> str:
    r"""The text of a token that is no word; a brace that shows, `\{`, differs from one that only groups."""
    return "\\" + token.text if token.kind == "command" and token.text in "{}" else token.text
