r"""Equality of expressions: structure, exact numbers, canonical rational functions, values. Cheap rungs first."""

from fractions import Fraction

from nemo_simplerl.reward.comparing.evaluate import real_number, same_values
from nemo_simplerl.reward.comparing.exact import Undefined, exact
from nemo_simplerl.reward.comparing.polynomial import equal, rational_function
from nemo_simplerl.reward.parsing.tree import (
    PI,
    Call,
    Constant,
    Degrees,
    Node,
    Number,
    Percent,
    Product,
    children,
    contains,
    symbols_of,
)
from nemo_simplerl.reward.policy import POLICY

_HUNDREDTH = Number(Fraction(1, 100))
_RADIAN = Product((PI, Number(Fraction(1, 180))))


def same_expression(gold: Node, answer: Node) -> bool:
    """Whether two expressions have the same value, in one of the readings of a percent or degree sign."""
    if {type(gold), type(answer)} == {Percent, Degrees}:
        return False
    for left in _value_readings(gold, isinstance(answer, (Percent, Degrees))):
        for right in _value_readings(answer, isinstance(gold, (Percent, Degrees))):
            if _same(left, right):
                return True
    return False


def _value_readings(node: Node, other_has_sign: bool) -> list[Node]:
    """A percentage is right as 50 and as 0.5, an angle as 60 and as pi/3; but 50% is not 5000%."""
    if isinstance(node, Percent):
        plain = [node.body]
        return (
            plain if other_has_sign or not POLICY.percent_either_reading else [*plain, Product((node.body, _HUNDREDTH))]
        )
    if isinstance(node, Degrees):
        plain = [node.body]
        return plain if other_has_sign or not POLICY.degrees_as_radians else [*plain, Product((node.body, _RADIAN))]
    return [node]


def _same(gold: Node, answer: Node) -> bool:
    try:
        gold_value, answer_value = exact(gold), exact(answer)
        if gold_value is not None and answer_value is not None:
            return gold_value == answer_value or _rounds_to(gold, gold_value, answer)
        if gold == answer:
            return True
        if gold_value is not None and not symbols_of(answer) and _rounds_to(gold, gold_value, answer):
            return True
        gold_form, answer_form = rational_function(gold), rational_function(answer)
        if gold_form is not None and answer_form is not None:
            if equal(gold_form, answer_form):
                return True
            if gold_form.pure and answer_form.pure:
                return False
        return same_values(gold, answer)
    except Undefined:
        return False


def _rounds_to(gold: Node, gold_value: Fraction, answer: Node) -> bool:
    """Whether the gold answer is a decimal to which an exact answer rounds."""
    decimal = _decimal(gold)
    if decimal is None or not POLICY.gold_decimal_accepts_exact or _has_decimal(answer):
        return False
    needed = POLICY.rounded_gold_digits
    if contains(answer, (Constant, Call)):
        needed = POLICY.rounded_gold_digits_transcendental
    unit = 10 ** (decimal.places or 0)
    if (
        unit == 1
        or decimal.value == 0
        or len(str(abs(decimal.value.numerator * unit // decimal.value.denominator))) < needed
    ):
        return False
    value = exact(answer)
    if value is None:
        number = real_number(answer)
        if number is None:
            return False
        value = Fraction(int(number * 2**200), 2**200) if abs(number) < 2**60 else None
        if value is None:
            return False
    half_a_place = abs(gold_value / decimal.value) / (2 * unit)
    return abs(value - gold_value) < half_a_place


def _decimal(node: Node) -> Number | None:
    """The number written with a decimal point that a gold answer consists of, percent and sign aside."""
    if isinstance(node, Number):
        return node if node.places is not None else None
    if isinstance(node, Product) and len(node.factors) == 2:
        first, second = node.factors
        if second == _HUNDREDTH or (isinstance(first, Number) and first.value == -1):
            return _decimal(first if second == _HUNDREDTH else second)
    return None


def _has_decimal(node: Node) -> bool:
    if isinstance(node, Number):
        return node.places is not None
    return any(_has_decimal(child) for child in children(node))
