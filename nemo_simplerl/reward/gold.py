r"""Gold answers as data sets hold them: the answer itself, in a box, after `####`, as a number, or nothing of use.

What is taken out of a longer text is taken by rule, and only where the rule is sure.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from nemo_simplerl.reward.comparing.choice import choice_letter, chosen_letter
from nemo_simplerl.reward.extract import boxes_in, final_answers, without_ending
from nemo_simplerl.reward.grade import grade_text
from nemo_simplerl.reward.parsing.normalize import normalize_answer
from nemo_simplerl.reward.parsing.readings import readings
from nemo_simplerl.reward.parsing.tree import Words

# What pandas and databases write for a missing value, and no other case: Nat is a name. "None" answers some questions.
_MISSING = frozenset({"NaN", "nan", "<NA>", "NaT", "null", "NULL"})
# Written where there is no answer, and the answer to a few questions: what they are shows where a file is full of them.
_PLACEHOLDERS = frozenset({"none", "n/a", "na", "-", "?", "unknown", "nil"})
_LABEL = re.compile(
    r"(?is)[\s*_]*(?:(?:(?-i:A)|ans|(?:final )?answer)[\s*_]*:[\s*_]+|(?:therefore|thus|hence|so)\b[,:]?\s+"
    r"|答案[是为]?[:：]\s*)(\S.*)"
)
_TAG = re.compile(r"(?is).*<answer>(.*?)</answer>")
_THOUGHT = "</think>"
_PYTHON_LIST = re.compile(r"\['([^']*)'\]")  # as str() and tables write a list of one text
# What JSON and Python make of \frac, \boxed, \text, \right, \approx or \vec where the backslash stands there once.
_LOST_BACKSLASH = re.compile(
    r"[\a\b\f\v](?=[a-z])|\r(?=ight|m\b|ho\b|angle)"
    r"|\t(?=ext(?:bf|it|rm|tt)?\s*\{|frac\s*[{0-9\\]|imes|heta|an\b(?! ?[a-z]{2}))"  # and no word behind a tab
)
_STATED = re.compile(r"(?is).*\banswer\s*(?:is|:)\s*(?P<answer>\S[^\n]*?)\.?(?:\s+I hope (?:it|this) is correct\.?)?")
_GROUPED = re.compile(r"[-+$\\]*[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?:\\?\$)?")  # a whole number, not a list
_FINAL = re.compile(r"(?i)####|final answer")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[\u3040-\u9fff\uac00-\ud7af]|[^\W\d_]{2,}")  # Chinese writes no spaces between words
_MIN_PROSE_WORDS = 6


class Gold(NamedTuple):
    """A gold answer: its text, and the form that it was taken out of. Where `fault` says why, there is none."""

    text: str
    form: str | None = None
    fault: str | None = None


def read_gold(value: Any) -> Gold:
    """The gold answer in a row's value, which may be anything that JSON or parquet can hold."""
    if isinstance(value, list) and len(value) == 1:
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        inner = read_gold(value)
        return inner if inner.fault else Gold(inner.text, "a list of one")
    if isinstance(value, str):
        found = _read_text(value)
        # From the character before it: blanks around an answer are taken off, and some of these are blanks.
        start = max(value.rfind(found.text) - 1, 0)
        if found.fault is None and _LOST_BACKSLASH.search(value, start):
            return Gold("", fault="it has lost a backslash, which JSON writes twice")
        return found
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return Gold("", fault=_describe(value))
    if isinstance(value, int):
        return Gold(str(value))
    if not Decimal(value).is_finite():
        return Gold("", fault=f"it is {value}")
    return Gold(str(int(value)) if value == int(value) else str(value))


@dataclass(frozen=True)
class GoldCheck:
    """Places, from 0, of the golds that need a look."""

    unreachable: list[int]  # not right by the grader even against themselves: no response can be right
    prose: list[int]  # sentences, which a response would have to repeat word for word
    text_alone: list[
        int
    ]  # neither mathematics nor words, so that their text alone is compared, or in an answer's place


def check_golds(golds: Sequence[str]) -> GoldCheck:
    """Give the grader each gold answer in a box, and see how it is read."""
    verdicts = {gold: _judge(gold) for gold in set(golds)}  # a training set repeats small numbers
    places: dict[str | None, list[int]] = {"unreachable": [], "prose": [], "text_alone": [], None: []}
    for index, gold in enumerate(golds):
        places[verdicts[gold]].append(index)
    return GoldCheck(places["unreachable"], places["prose"], places["text_alone"])


def _judge(gold: str) -> Literal["unreachable", "prose", "text_alone"] | None:
    if grade_text(gold, rf"\boxed{{{gold}}}") != "correct":
        return "unreachable"
    found = readings(normalize_answer(gold), trusted=True)
    is_letter_and_text = choice_letter(gold) is None and chosen_letter(gold) is not None
    if gold.lower() in _PLACEHOLDERS or is_letter_and_text:
        return "text_alone"
    if _num_words(gold) >= _MIN_PROSE_WORDS and all(isinstance(reading, Words) for reading in found):
        return "prose"
    return None if found else "text_alone"


def _num_words(text: str) -> int:
    return len(_WORD.findall(_COMMAND.sub(" ", text)))


def _read_text(text: str) -> Gold:
    text = without_ending(text).strip()
    if not text:
        return Gold("", fault="it is empty")
    if text in _MISSING:
        return Gold("", fault=f"it is {text}")
    if (quoted := _listed(text)) is not None:
        return quoted
    if _THOUGHT in text:
        inner = read_gold(text.rpartition(_THOUGHT)[2])
        return inner if inner.fault else Gold(inner.text, inner.form or _THOUGHT)
    if tagged := _TAG.match(text):
        inner = read_gold(tagged[1])
        return inner if inner.fault else Gold(inner.text, "<answer>")
    before, hashes, after = text.rpartition("####")
    after = after.strip()
    is_heading = not hashes or "\n" in after
    if boxed := _boxed(text, 0 if is_heading or not after else len(before)):
        return boxed
    if not is_heading:
        found = after.replace(",", "") if _GROUPED.fullmatch(after) else after
        return Gold(found, "####") if found else Gold("", fault="nothing follows its ####")
    if (labelled := _LABEL.fullmatch(text)) and _is_mathematics(rest := labelled[1].rstrip(".*_ ")):
        return Gold(rest, "a label before it")
    stated = None if readings(normalize_answer(text), trusted=True) else _STATED.fullmatch(text)
    if stated and _is_mathematics(stated["answer"]):
        return Gold(stated["answer"].strip(), '"the answer is"')
    return Gold(text)


def _boxed(text: str, start: int) -> Gold | None:
    """The gold in the last box of a text; None where no box ends after `start`.

    The last is sure where the others say the same, or stand before the first words that announce a final answer.
    """
    answers, boxes = final_answers(text), boxes_in(text)
    if not answers or boxes[-1][2] < start:
        return None
    last, gold = len(boxes) - len(answers), ", ".join(answers)
    announced = _FINAL.search(text, 0, boxes[last][0])
    others = {text[box[1] : box[2]].strip() for box in boxes[:last] if not announced or box[0] > announced.start()}
    if any(grade_text(gold, rf"\boxed{{{other}}}") != "correct" for other in others - set(answers)):
        return Gold("", fault="it has several boxes with different answers")
    return Gold(gold, r"\boxed{}")


def _listed(text: str) -> Gold | None:
    """The gold of text that is a JSON list of texts, as some data sets write it; None for any other text."""
    if quoted := _PYTHON_LIST.fullmatch(text):
        return read_gold([quoted[1]])
    if not text.startswith('["'):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):  # lists in lists in lists
        return None
    return read_gold(items) if isinstance(items, list) else None


def _is_mathematics(text: str) -> bool:
    found = readings(normalize_answer(text), trusted=True)
    return bool(found) and not any(isinstance(reading, Words) for reading in found)


def _describe(value: Any) -> str:
    if value is None:
        return "it is missing"
    if isinstance(value, bool):
        return f"it is {str(value).lower()}, and no text"
    if isinstance(value, list):
        return f"it is a list of {len(value)}"
    if isinstance(value, dict):
        return f"it is an object of {', '.join(map(str, value))}"
    return f"it is of type {type(value).__name__}"
