r"""Values in a notation of their own: fixed phrases, times of day, numbers in a written base."""

import re

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.brackets import Tokens
from nemo_simplerl.reward.parsing.expression import parse_expression
from nemo_simplerl.reward.parsing.lexicon import EMPTY_PHRASES, INFINITE_PHRASES, NUMBER_WORDS
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
from nemo_simplerl.reward.parsing.tree import EMPTY_SET, INFINITY, BasedNumber, ClockTime, Node, Words


def read_phrase(tokens: Tokens) -> Node | None:
    """The meaning of words alone: a number word, the empty set, infinity, or text. None for other tokens."""
    if any(
        token.kind not in ("word", "sign") or (token.kind == "sign" and token.text not in ".,'-") for token in tokens
    ):
        return None
    if tokens[0].kind != "word" or (len(tokens) == 1 and len(tokens[0].text) == 1):
        return None
    text = " ".join(token.text for token in tokens if token.kind == "word").lower()
    if text in EMPTY_PHRASES:
        return EMPTY_SET
    if text in INFINITE_PHRASES:
        return INFINITY
    if text in NUMBER_WORDS:
        return parse_expression((Token("number", str(NUMBER_WORDS[text])),))
    return Words(text)


_HALVES = {"am": "am", "a.m": "am", "pm": "pm", "p.m": "pm", "a.m.": "am", "p.m.": "pm"}


def read_clock_time(tokens: Tokens) -> Node | None:
    """The time of day 4:30 p.m.; None for other tokens. A time without a.m. or p.m. is read as a ratio."""
    if len(tokens) < 2 or tokens[-1].kind != "word" or tokens[-1].text.lower() not in _HALVES:
        return None
    numbers, colons = tokens[0:-1:2], tokens[1:-1:2]
    if not all(number.kind == "number" and number.text.isdigit() and len(number.text) <= 2 for number in numbers):
        return None
    if any(colon.text != ":" for colon in colons) or len(numbers) > 3:
        return None
    parts = [int(number.text) for number in numbers]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return ClockTime(tuple(parts), _HALVES[tokens[-1].text.lower()])


def read_based_number(tokens: Tokens) -> Node | None:
    """The number in a written base, 1101_2 or 52_{eight}; None for other tokens."""
    if len(tokens) > 3 and tokens[0].text == "-":
        found = read_based_number(tokens[1:])
        return BasedNumber("-" + found.digits, found.base) if isinstance(found, BasedNumber) else None
    mark = next((at for at, token in enumerate(tokens) if token.text == "_"), 0)
    if not 0 < mark < len(tokens) - 1 or any(not token.text.isalnum() for token in tokens[:mark]):
        return None
    rest = tokens[mark + 1 :]
    if rest[0].text == "{" and len(rest) == 3:
        rest = rest[1:2]
    if len(rest) != 1 or not any(token.kind == "number" for token in tokens[:mark]):
        return None
    base = int(rest[0].text) if re.fullmatch("[0-9]{1,2}", rest[0].text) else NUMBER_WORDS.get(rest[0].text.lower())
    digits = "".join(token.text for token in tokens[:mark]).lower()
    if tokens[0].kind != "number" and (base or 0) <= 10:  # x_1, but A5_{11}
        return None
    if base is None or not 2 <= base <= 36 or len(digits) > LIMITS.digits:
        return None
    try:
        int(digits, base)
    except ValueError:
        raise NotParsed(f"{digits!r} has digits beyond base {base}") from None
    return BasedNumber(digits.lstrip("0") or "0", base)
