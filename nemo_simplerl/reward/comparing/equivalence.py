r"""Whether an answer says the same as the gold answer: first the same spelling, then the same tree, type by type.

Nothing is evaluated as code, and every step is bounded (`reward/limits.py`).
"""

from dataclasses import dataclass

from nemo_simplerl.reward.comparing.choice import choice_letter, chosen_letter, comparable_tokens
from nemo_simplerl.reward.comparing.reals.realset import is_set_like, same_set
from nemo_simplerl.reward.comparing.trees import same
from nemo_simplerl.reward.parsing.normalize import MAX_ANSWER_CHARS, normalize_answer
from nemo_simplerl.reward.parsing.readings import LazyReadings, readings
from nemo_simplerl.reward.parsing.tree import (
    IMAGINARY,
    PI,
    Node,
    Relation,
    Sum,
    Symbol,
    contains_node,
    substituted,
    symbols_of,
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a comparison. `parsed` is False where the answer has no tree: only its text could be compared."""

    equal: bool
    parsed: bool


def equivalent(gold: str, answer: str) -> bool:
    """Whether `answer` is right where `gold` is the gold answer. Blank text is equivalent to nothing."""
    return compare(gold, answer).equal


def compare(gold: str, answer: str) -> Comparison:
    """Compare two answers, in the spelling of a box or of a data set."""
    if max(len(gold), len(answer)) > MAX_ANSWER_CHARS:
        same_text = bool(gold.strip()) and gold.strip() == answer.strip()
        return Comparison(same_text, parsed=False)
    gold_text, answer_text = normalize_answer(gold), normalize_answer(answer)
    if not gold_text or not answer_text:
        return Comparison(False, parsed=False)
    if gold_text == answer_text:
        return Comparison(True, parsed=True)
    letter = choice_letter(gold_text)
    if letter is not None and (chosen := chosen_letter(answer)) is not None:
        return Comparison(letter == chosen, parsed=True)
    answers = LazyReadings(answer_text)
    golds = gold_readings(gold_text)
    if any(same(one, _in_terms_of(one, two)) for one in golds for two in answers):
        return Comparison(True, parsed=True)
    if _is_decimal_comma(gold_text, answer_text):
        return Comparison(True, parsed=True)
    mark = comparable_tokens(gold_text) if not golds or not answers else None
    return Comparison(mark is not None and mark == comparable_tokens(answer_text), parsed=bool(answers))


def gold_readings(gold_text: str) -> LazyReadings:
    """The trees of a gold answer's normalized text, likeliest first."""
    return LazyReadings(_stated_once(gold_text), trusted=True)


def _stated_once(gold: str) -> str:
    r"""A gold answer that states one set twice, as in x < -7: (-\infty, -7), without the second; any other as it is."""
    first, colon, second = gold.partition(":")
    if not colon or not second:
        return gold
    stated = next((node for node in readings(first, trusted=True) if is_set_like(node)), None)
    if stated is None:
        return gold
    again = readings(second, trusted=True)
    return first if any(not isinstance(node, Relation) and same_set(stated, node, same) for node in again) else gold


def _is_decimal_comma(gold: str, answer: str) -> bool:
    """Whether the answer is 1,5 where the gold answer is 1.5. Not 1,500, which is fifteen hundred or two numbers."""
    whole, comma, decimals = answer.partition(",")
    is_number = comma and whole.lstrip("-").isdigit() and decimals.isdigit() and len(decimals) != 3
    return bool(is_number) and gold == f"{whole}.{decimals}"


_CONSTANT = Symbol("C")  # of integration, which some write c
_PARAMETERS = frozenset("kmn")


def _in_terms_of(gold: Node, answer: Node) -> Node:
    """The answer in the letters of the gold answer: engineers write j for i, and n pi is k pi for any integer."""
    theirs = symbols_of(answer)
    if not theirs:
        return answer
    ours = symbols_of(gold)
    if "j" not in ours and "j" in theirs and contains_node(gold, IMAGINARY):
        return substituted(answer, "j", IMAGINARY)
    if isinstance(gold, Sum) and _CONSTANT in gold.terms and "c" not in ours:
        other = isinstance(answer, Sum) and Symbol("c") in answer.terms and "C" not in theirs
        return substituted(answer, "c", _CONSTANT) if other else answer
    ours, theirs = ours & _PARAMETERS, theirs & _PARAMETERS
    if len(ours) == len(theirs) == 1 and ours != theirs and contains_node(gold, PI) and contains_node(answer, PI):
        return substituted(answer, next(iter(theirs)), Symbol(next(iter(ours))))
    return answer
