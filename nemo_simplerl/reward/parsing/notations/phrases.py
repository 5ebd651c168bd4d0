"""Values in words: fixed phrases and times of day."""

from nemo_simplerl.reward.parsing.brackets import Tokens
from nemo_simplerl.reward.parsing.lexicon import EMPTY_PHRASES, INFINITE_PHRASES, NUMBER_SETS, SYNONYMS
from nemo_simplerl.reward.parsing.spoken import number_in_words
from nemo_simplerl.reward.parsing.tree import EMPTY_SET, INFINITY, ClockTime, Node, Number, Symbol, Words


def read_phrase(tokens: Tokens) -> Node | None:
    """The meaning of words alone: a number word, a set, infinity, or text. None for other tokens."""
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
    for name, phrases in NUMBER_SETS.items():
        if text in phrases:
            return Symbol(name)
    text = SYNONYMS.get(text, text)
    number = number_in_words(text.split())
    return Words(text) if number is None else Number(number)


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
