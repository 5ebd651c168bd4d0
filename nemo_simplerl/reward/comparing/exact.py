r"""The exact rational value of an expression, where it has one of moderate size."""

import math
import operator
from collections.abc import Callable
from fractions import Fraction

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.tree import (
    BasedNumber,
    Call,
    Constant,
    Node,
    Number,
    Percent,
    Power,
    Product,
    Quantity,
    Sum,
    Symbol,
)


class Undefined(Exception):
    """The expression divides by zero, or is undefined in another way."""


def exact(node: Node) -> Fraction | None:
    """The value as a fraction; None where it is irrational, has symbols, or would be a huge integer.

    Undefined where the expression divides by zero.
    """
    if isinstance(node, Number):
        return node.value
    if isinstance(node, (Symbol, Constant)):
        return None
    if isinstance(node, Product):
        return _folded(node.factors, operator.mul, _ONE)
    if isinstance(node, Power):
        base, exponent = exact(node.base), exact(node.exponent)
        return None if base is None or exponent is None else power(base, exponent)
    if isinstance(node, Sum):
        return _folded(node.terms, operator.add, _ZERO)
    if isinstance(node, Percent):
        value = exact(node.body)
        return None if value is None else value / 100
    if isinstance(node, Quantity):
        return exact(node.body)
    if isinstance(node, Call) and node.name in _FUNCTIONS:
        values = [exact(arg) for arg in node.args]
        known = [value for value in values if value is not None]
        return _FUNCTIONS[node.name](known) if len(known) == len(values) else None
    return None


def exact_in_base(node: Node) -> Fraction | None:
    """The exact value of a node that may be a number in a written base."""
    if not isinstance(node, BasedNumber):
        return exact(node)
    whole, _, fraction = node.digits.partition(".")
    value = Fraction(int(whole + fraction, node.base), node.base ** len(fraction))
    return value if bits(value) <= LIMITS.bits else None


_ZERO, _ONE = Fraction(0), Fraction(1)


def _folded(
    nodes: tuple[Node, ...], combine: Callable[[Fraction, Fraction], Fraction], neutral: Fraction
) -> Fraction | None:
    total = neutral
    for value in [exact(node) for node in nodes]:  # all of them first: one of the rest may be undefined
        if value is None:
            return None
        total = value if total is neutral else combine(total, value)
        if bits(total) > LIMITS.bits:
            return None
    return total


def bits(value: Fraction) -> int:
    """The bits of the larger of numerator and denominator."""
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """The value of base^exponent; None where it is irrational or too large. Odd roots of negative numbers are real."""
    if base == 0:
        if exponent <= 0:
            raise Undefined("zero to a power that is not positive" if exponent else "zero to the power zero")
        return base
    if base == 1:
        return base
    root = _root(base, exponent.denominator)
    if root is None or bits(root) * abs(exponent.numerator) > LIMITS.bits:
        return Fraction((-1) ** (exponent.numerator % 2)) if root == -1 else root if root == 1 else None
    return root**exponent.numerator


def _root(base: Fraction, index: int) -> Fraction | None:
    if index == 1:
        return base
    if index > LIMITS.bits or (base < 0 and index % 2 == 0):
        return None
    if base < 0:
        root = _root(-base, index)
        return None if root is None else -root
    top, bottom = _integer_root(base.numerator, index), _integer_root(base.denominator, index)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _integer_root(value: int, index: int) -> int | None:
    """The integer whose index-th power is `value`, by bisection; None where there is none."""
    low, high = 0, 1 << (value.bit_length() // index + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**index < value:
            low = middle + 1
        else:
            high = middle
    return low if low**index == value else None


def _factorial(values: list[Fraction]) -> Fraction | None:
    (value,) = values
    if value.denominator != 1 or not 0 <= value <= 500:  # 500! has 3768 bits
        return None
    return Fraction(math.factorial(value.numerator))


def _double_factorial(values: list[Fraction]) -> Fraction | None:
    (value,) = values
    if value.denominator != 1 or not 0 <= value <= 800:
        return None
    return Fraction(math.prod(range(value.numerator, 0, -2)))


def _binomial(values: list[Fraction]) -> Fraction | None:
    upper, lower = values
    if upper.denominator != 1 or lower.denominator != 1 or not 0 <= lower <= upper or upper > LIMITS.bits:
        return None
    return Fraction(math.comb(upper.numerator, lower.numerator))


def _integers(values: list[Fraction]) -> list[int] | None:
    return [value.numerator for value in values] if all(value.denominator == 1 for value in values) else None


def _gcd(values: list[Fraction]) -> Fraction | None:
    numbers = _integers(values)
    return None if numbers is None else Fraction(math.gcd(*numbers))


def _lcm(values: list[Fraction]) -> Fraction | None:
    numbers = _integers(values)
    return None if numbers is None else Fraction(math.lcm(*numbers))


def _remainder(values: list[Fraction]) -> Fraction | None:
    numbers = _integers(values)
    return None if numbers is None or numbers[1] <= 0 else Fraction(numbers[0] % numbers[1])


_FUNCTIONS: dict[str, Callable[[list[Fraction]], Fraction | None]] = {
    "factorial": _factorial,
    "doublefactorial": _double_factorial,
    "binomial": lambda values: _binomial(values) if len(values) == 2 else None,
    "abs": lambda values: abs(values[0]),
    "floor": lambda values: Fraction(math.floor(values[0])),
    "ceil": lambda values: Fraction(math.ceil(values[0])),
    "max": lambda values: max(values),
    "min": lambda values: min(values),
    "gcd": _gcd,
    "lcm": _lcm,
    "mod": _remainder,
}
