r"""One spelling for the many ways of writing the same answer. String work only: nothing is evaluated."""

import re

MAX_ANSWER_CHARS = 4000  # a longer answer is left as it stands: no gold answer of the data sets comes near

_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\u200b-\u200f\u2060\ufeff]")
_SYMBOLS = str.maketrans({"−": "-", "–": "-", "π": r"\pi ", "×": r"\times ", "·": r"\cdot ", "∞": r"\infty "})
_SPACING = re.compile(r"\\[,;: ]|~|\\(?:quad|qquad|displaystyle|textstyle)(?![A-Za-z])")
_DELETED = re.compile(
    r"\\!|\\?\$|\\?%|°|\^ ?\\circ(?![A-Za-z])|\^ ?\{ ?\\circ ?\}|\\degrees?(?![A-Za-z])"
    r"|\\(?:left|right)(?![A-Za-z])"
)
_FRACTION_NAME = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_FIRST_DIGIT = re.compile(r"\\frac ?([0-9])")  # \frac12, \frac1{2}
_SECOND_DIGIT = re.compile(r"(\\frac\{[^{}]*\}) ?([0-9])")  # \frac{1}2
_FONT = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox) ?\{([^{}]*)\}"
_WHOLLY_FONT = re.compile(_FONT)
_TRAILING_WORDS = re.compile(_FONT + r"(?: ?\^ ?(?:[0-9]|\{[0-9]\}))?\Z")
_SAYS_MORE_THAN_A_UNIT = frozenset({"am", "pm"})
_LIST_BRACKETS = re.compile(r"[()\[\]]|\\\{")
_COMMA_GROUPS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])")
_GROUPED_NUMBER = re.compile(r"[+-]? ?[0-9]{1,3}(?:[, ][0-9]{3})+(?:\.[0-9]*)?")
_IDLE_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")


def normalize_answer(text: str) -> str:
    r"""The canonical spelling of an answer; applied twice it gives the same. Treat gold and response alike.

    Gone: `$`, `\left`, `\right`, spacing commands, percent and degree signs, a trailing full stop, a unit in
    `\text{...}` after a value, thousands separators, spaces. `\dfrac12` becomes `\frac{1}{2}`.
    Letters are never deleted by a list of words: that damages answers that are words. A space between two
    digits stays (`3 1/2` is not `31/2`), and a comma that separates a list is written `, `.
    """
    text = text.strip()
    if len(text) > MAX_ANSWER_CHARS:
        return text
    # Every pass that changes more than spaces shortens the text or settles a spelling, so this ends.
    while (shorter := _pass(text)) != text:
        text = shorter
    return text


def _pass(text: str) -> str:
    text = _INVISIBLE.sub("", text).translate(_SYMBOLS)
    text = _SPACING.sub(" ", text)
    text = " ".join(_DELETED.sub("", text).replace("{,}", ",").split())
    text = _unwrap(text)
    text = _FRACTION_NAME.sub(r"\\frac", text)
    text = _SECOND_DIGIT.sub(r"\1{\2}", _FIRST_DIGIT.sub(r"\\frac{\1}", text))
    text = _without_dangling(_without_unit(text))
    text = _without_thousands(text)
    text = _IDLE_SPACE.sub("", text.replace(" ,", ",").replace(", ", ","))
    return text.replace(",", ", ").strip()


def _unwrap(text: str) -> str:
    """Without the maths delimiters and the one font command that enclose all of it."""
    while len(text) >= 4 and (text[:2], text[-2:]) in {(r"\(", r"\)"), (r"\[", r"\]")}:
        text = text[2:-2].strip()
    font = _WHOLLY_FONT.fullmatch(text)
    return font.group(1).strip() if font else text


def _without_dangling(text: str) -> str:
    """Without line breaks, commas and a full stop at the end. Two full stops or more mean that it goes on."""
    while text.endswith((r"\\", ",")) or (text.endswith(".") and not text.endswith("..")):
        text = text[: -2 if text.endswith("\\") else -1].rstrip()
    return text


def _without_unit(text: str) -> str:
    r"""Without the `\text{...}` after a value with a digit, as in `12\text{ cm}^2`. `p.m.` stays."""
    found = _TRAILING_WORDS.search(text)
    if found is None:
        return text
    value = text[: found.start()].strip()
    letters = re.sub(r"[^a-z]", "", found.group(1).lower())
    is_value = re.search(r"[0-9]", value) and value[-1] not in "=<>+-*/,:;" and not _TRAILING_WORDS.search(value)
    return value if is_value and letters not in _SAYS_MORE_THAN_A_UNIT else text


def _without_thousands(text: str) -> str:
    """1,234 and 1 234 as 1234, where the commas cannot be those of a list or a tuple."""
    if _GROUPED_NUMBER.fullmatch(text):
        return re.sub(r"[, ]", "", text)
    if _LIST_BRACKETS.search(text):
        return text
    joined = _COMMA_GROUPS.sub(lambda group: group.group().replace(",", ""), text)
    return text if "," in joined else joined
