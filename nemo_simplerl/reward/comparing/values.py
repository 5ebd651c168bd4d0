r"""Equality of expressions: structure, exact numbers, canonical rational functions, values. The cheap come first."""

from fractions import Fraction

from nemo_simplerl.reward.comparing.evaluate import real_number
from nemo_simplerl.reward.comparing.exact import Undefined, exact
from nemo_simplerl.reward.comparing.points import same_values
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
    Sum,
    children,
    contains,
    rebuilt,
    symbols_of,
)

_HUNDREDTH = Number(Fraction(1, 100))
_OF_COMPLEX = frozenset({"overline", "Re", "Im"})
_RADIAN = Product((PI, Number(Fraction(1, 180))))
# Significant digits that a gold decimal needs before an exact answer may round to it: 6.67 accepts 20/3. One more where
# the exact answer has pi, e or a function, because 3.14 may as well stand for a problem that says "use 3.14".
_ROUNDED_DIGITS = 3
_ROUNDED_DIGITS_TRANSCENDENTAL = 4


def same_expression(gold: Node, answer: Node) -> bool:
    """Whether two expressions have the same value under one of the readings of a percent or degree sign."""
    if {type(gold), type(answer)} == {Percent, Degrees}:
        return False
    in_degrees = bool(symbols_of(gold)) and contains(gold, Degrees) != contains(answer, Degrees)
    if in_degrees and _same(_in_degrees(gold), _in_degrees(answer)):
        return True
    for left in _value_readings(gold, isinstance(answer, (Percent, Degrees))):
        for right in _value_readings(answer, isinstance(gold, (Percent, Degrees))):
            if _same(left, right):
                return True
    return False


def _in_degrees(node: Node) -> Node:
    r"""The sum or product without its degree signs: 180^\circ - 2x is 180 - 2x, where all angles are in degrees."""
    if isinstance(node, Degrees):
        return node.body
    return rebuilt(node, tuple(map(_in_degrees, children(node)))) if isinstance(node, (Sum, Product)) else node


def _value_readings(node: Node, other_has_sign: bool) -> list[Node]:
    """The values that a percent or degree sign allows: 50 and 0.5 for 50%, 60 and pi/3 for 60 degrees."""
    if isinstance(node, Percent):
        plain = [node.body]
        return plain if other_has_sign else [*plain, Product((node.body, _HUNDREDTH))]
    if isinstance(node, Degrees):
        plain = [node.body]
        return plain if other_has_sign else [*plain, Product((node.body, _RADIAN))]
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
        if _complex_parts(gold) != _complex_parts(answer):
            return False
        return same_values(gold, answer)
    except Undefined:
        return False


def _complex_parts(node: Node) -> frozenset[Node]:
    """The calls that the values at real points do not tell from their argument: the conjugate of z, and its parts."""
    own = isinstance(node, Call) and node.name in _OF_COMPLEX and symbols_of(node)
    found = frozenset((node,)) if own else frozenset()
    for child in children(node):
        found |= _complex_parts(child)
    return found


def _rounds_to(gold: Node, gold_value: Fraction, answer: Node) -> bool:
    """Whether the gold answer is a decimal to which an exact answer rounds. Never the other way: 0.333 is not 1/3."""
    decimal = _decimal(gold)
    if decimal is None or _has_decimal(answer):
        return False
    needed = _ROUNDED_DIGITS_TRANSCENDENTAL if contains(answer, (Constant, Call)) else _ROUNDED_DIGITS
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
    """The decimal that a gold answer consists of, apart from a minus or percent sign; None for any other answer."""
    if isinstance(node, Number):
        return node if node.places is not None else None
    if isinstance(node, Product) and len(node.factors) == 2:
        first, second = node.factors
        if second == _HUNDREDTH or (isinstance(first, Number) and first.value == -1):
            return _decimal(first if second == _HUNDREDTH else second)
    return None


def _has_decimal(node: Node) -> bool:
    """Whether a number in the expression is written with a decimal point."""
    if isinstance(node, Number):
        return node.places is not None
    return any(_has_decimal(child) for child in children(node))
