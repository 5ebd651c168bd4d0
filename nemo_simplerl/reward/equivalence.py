r"""Whether an answer says the same as the gold answer: the same spelling, or the same rational number.

Numbers are compared exactly. A tolerance would call 10001 right where the gold answer is 10000.
"""

import re
from fractions import Fraction

from nemo_simplerl.reward.normalize import MAX_ANSWER_CHARS, normalize_answer

MAX_DIGITS = 1000  # in one number: keeps integer arithmetic in microseconds

_DECIMAL = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:\\frac\{{(?P<top>{_DECIMAL})\}}\{{(?P<bottom>{_DECIMAL})\}}"
    rf"|(?P<left>{_DECIMAL})(?:/(?P<right>{_DECIMAL}))?)"
)
_PERCENT = re.compile(r"[0-9.}] *(?:\\[,;: ] *)?\\?%[ .$]*$|[0-9.}] *\\text *\{ *percent *\}[ .$]*$")


def equivalent(gold: str, answer: str) -> bool:
    """Whether `answer` is right where `gold` is. Symmetric; blank text is equivalent to nothing.

    A percentage is right in both of its readings, 25 and 0.25, but only a percent sign on exactly one side
    allows the second: without one, 25 is not 0.25.
    """
    if max(len(gold), len(answer)) > MAX_ANSWER_CHARS:
        return bool(gold.strip()) and gold.strip() == answer.strip()
    gold_text, answer_text = normalize_answer(gold), normalize_answer(answer)
    if not gold_text or not answer_text:
        return False
    if gold_text == answer_text:
        return True
    gold_number, answer_number = parse_number(gold_text), parse_number(answer_text)
    if gold_number is None or answer_number is None:
        return False
    gold_percent, answer_percent = _is_percentage(gold), _is_percentage(answer)
    if gold_number == answer_number:
        return True
    if gold_percent == answer_percent:
        return False
    return gold_number / 100 == answer_number if gold_percent else gold_number == answer_number / 100


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of a plain number in canonical spelling: `-3`, `.5`, `2/4`, `-\frac{1}{2}`.

    None for all else, for a zero denominator and for a number of more than `MAX_DIGITS` digits.
    """
    if len(text) > MAX_DIGITS:
        return None
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    bottom = Fraction(found["bottom"] or found["right"] or 1)
    if bottom == 0:
        return None
    value = Fraction(found["top"] or found["left"]) / bottom
    return -value if found["sign"] == "-" else value


def _is_percentage(text: str) -> bool:
    return len(text) <= MAX_DIGITS and _PERCENT.search(text) is not None
