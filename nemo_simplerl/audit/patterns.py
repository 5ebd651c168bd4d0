r"""Patterns of suspicious responses: pure functions of strings, in time linear in their length.

They are lenient where the grader is strict: a person looks at what they find.
"""

import difflib
import math
import re

MAX_COMPARED_CHARS = 200  # longer answers are compared as they stand

_TOKEN = re.compile(r"(?P<box>\\{1,2}(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
_FIRST_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_DRESS = re.compile(
    r"\\(?:left|right|displaystyle|quad|qquad|[,;:! ])|\\(?:text|textbf|textrm|mathrm|mathbf|operatorname|mbox)(?=\{)"
    r"|\\?[$%{}]|\^ ?\{?\\circ\}?|°|[\s~]"
)
_SYNONYMS = ((r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\cdot", "*"), (r"\times", "*"), ("−", "-"), ("π", r"\pi"))
_NAMED = re.compile(r"[a-z](?:_?\w)?(?:\([a-z]\))?=")
_UNIT = re.compile(r"(?<=[0-9)])[a-z.]{2,}(?:\^[0-9])?$")
_DIGITS_AND_SIGNS = re.compile(r"\d+|[-+]")
_DECIMAL = re.compile(r"\d*\.?\d+")
_FRACTION = re.compile(r"\\d?frac\{([^{}]*(?:\{[^{}]*\})?[^{}]*)\}\{([^{}]*(?:\{[^{}]*\})?[^{}]*)\}")
_ROOT = re.compile(r"(.*)\\sqrt\{([^{}]*)\}")
_ALTERNATIVES = re.compile(r"\b(?:or|and)\b|\\(?:lor|vee)\b|;", re.IGNORECASE)
_SPACING = re.compile(r"\\[,;:! ]")
_THOUSANDS = re.compile(r"(?<![\d,])\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+(?![\d,])")
_OPENING, _CLOSING = "([{", ")]}"
_ALMOST = 0.9  # similarity of difflib, from 0 to 1
_TOLERANCE = 1e-3


def boxes(text: str) -> list[str]:
    r"""The contents of every complete `\boxed{...}` that is not blank, by where it opens."""
    first = _FIRST_BOX.search(text)
    if first is None:
        return []
    openings: list[int] = []  # start of the content of a box, or -1 for a plain brace
    found: list[tuple[int, str]] = []
    for token in _TOKEN.finditer(text, max(first.start() - 1, 0)):
        kind = token.lastgroup
        if kind == "box":
            openings.append(token.end())
        elif kind == "open":
            openings.append(-1)
        elif kind == "close" and openings and (start := openings.pop()) >= 0:
            # Nested boxes by the thousand would make a quadratic pile of copies.
            found.append((start, text[start : min(token.start(), start + 10 * MAX_COMPARED_CHARS)].strip()))
    return [content for _, content in sorted(found) if content]


def is_almost(gold: str, answer: str) -> str | None:
    """Why an answer that was graded as wrong may be right, in words; None where it looks wrong."""
    if max(len(gold), len(answer)) > MAX_COMPARED_CHARS:
        return None
    one, other = skeleton(gold), skeleton(answer)
    if not one or not other:
        return None
    if one == other:
        return "the same but for the way it is written"
    if _UNIT.sub("", one) == _UNIT.sub("", other):
        return "the same but for a unit"
    if "," in one and not set("()[]") & set(one + other) and sorted(one.split(",")) == sorted(other.split(",")):
        return "the same elements in another order"
    if (reason := _numbers_agree(gold, answer)) is not None:
        return reason
    same_numbers = _DIGITS_AND_SIGNS.findall(one) == _DIGITS_AND_SIGNS.findall(other)
    if same_numbers and min(len(one), len(other)) >= 8 and difflib.SequenceMatcher(None, one, other).ratio() >= _ALMOST:
        return "differs in a few letters"
    return None


def skeleton(text: str) -> str:
    """The answer in lower case without typesetting: spaces, braces, fonts, currency and percent signs, `x =`."""
    text = text.strip().rstrip(".").lower()
    for spelling, plain in _SYNONYMS:
        text = text.replace(spelling, plain)
    text = _THOUSANDS.sub(lambda number: re.sub(r"\D", "", number.group()), text)
    return _NAMED.sub("", _DRESS.sub("", text), count=1) if "=" in text else _DRESS.sub("", text)


def value_of(text: str) -> float | None:
    r"""The value of `-1.5`, `3/4`, `\frac{\pi}{2}`, `2\sqrt{3}` and the like; None for any other text."""
    text = re.sub(r"\\(?:left|right|[,;:! ])|\\?[$%]|\s", "", text.strip().rstrip("."))
    text = _THOUSANDS.sub(lambda number: re.sub(r"\D", "", number.group()), text).replace("−", "-").replace("π", r"\pi")
    return _value(text) if len(text) <= MAX_COMPARED_CHARS else None


def hedges(gold: str, answer: str) -> bool:
    """Whether the box offers several answers to a problem that has one."""
    return _num_alternatives(gold) == 1 and _num_alternatives(answer) > 1


def is_in_prompt(gold: str, prompt: str) -> bool:
    """Whether the gold answer, unless it is one or two characters, stands in the prompt on its own."""
    gold = gold.strip()
    if len(gold) < 3:
        return False
    start = prompt.find(gold)
    while start >= 0:
        around = prompt[max(start - 1, 0) : start] + prompt[start + len(gold) : start + len(gold) + 1]
        if not any(character.isalnum() or character == "." for character in around.rstrip(".")):
            return True
        start = prompt.find(gold, start + 1)
    return False


def is_only_a_box(response: str) -> bool:
    """Whether the response is a box and little else: fewer than three letters or digits stand outside it."""
    box = _FIRST_BOX.search(response)
    if box is None:
        return False
    before = response[: box.start()]
    if len(before) > MAX_COMPARED_CHARS or sum(map(str.isalnum, before)) >= 3:
        return False
    content = boxes(response)
    rest = response[box.end() :].strip()
    return bool(content) and sum(map(str.isalnum, rest)) - sum(map(str.isalnum, content[0])) < 3


def _numbers_agree(gold: str, answer: str) -> str | None:
    one, other = value_of(gold), value_of(answer)
    if one is None or other is None:
        return None
    if math.isclose(one, other, rel_tol=1e-9):
        return "numbers of the same value"
    percent = ("%" in gold) != ("%" in answer)
    if percent and (math.isclose(100 * one, other, rel_tol=1e-9) or math.isclose(one, 100 * other, rel_tol=1e-9)):
        return "the same as a percentage"
    both_whole = one == int(one) and other == int(other)
    return None if both_whole or not math.isclose(one, other, rel_tol=_TOLERANCE) else "numbers that agree to 0.1 %"


def _value(text: str) -> float | None:
    if text.startswith("-"):
        positive = _value(text[1:]) if not text.startswith("--") else None
        return None if positive is None else -positive
    if _DECIMAL.fullmatch(text):
        return float(text)
    if text == r"\pi":
        return math.pi
    if found := _FRACTION.fullmatch(text):
        return _quotient(_value(found[1]), _value(found[2]))
    if "/" in text:
        top, _, bottom = text.rpartition("/")
        return _quotient(_value(top.strip("()")), _value(bottom.strip("()")))
    if text.endswith(r"\pi"):
        return _product(_value(text.removesuffix(r"\pi").removesuffix("*")), math.pi)
    if found := _ROOT.fullmatch(text):
        inside = _value(found[2])
        root = None if inside is None or inside < 0 else math.sqrt(inside)
        return root if not found[1] else _product(_value(found[1].removesuffix("*")), root)
    return None


def _product(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one * other


def _quotient(top: float | None, bottom: float | None) -> float | None:
    return None if top is None or not bottom else top / bottom


def _num_alternatives(answer: str) -> int:
    """The number of alternatives that `or`, `and`, semicolons and commas outside brackets separate."""
    text = answer[: 10 * MAX_COMPARED_CHARS].replace("{,}", ",").replace(r"\{", "(").replace(r"\}", ")")
    text = _THOUSANDS.sub("0", _SPACING.sub("", text)).rstrip(" ,;")
    count, depth = len([part for part in _ALTERNATIVES.split(text) if part.strip(" {}$")]), 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        count += character == "," and depth <= 0
    return count
