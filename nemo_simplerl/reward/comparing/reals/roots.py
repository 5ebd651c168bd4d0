r"""Where an expression in one symbol may change its sign (zeros and poles that have a formula), and its signs between.

Absolute values, maxima and minima are taken branch by branch, so that some of the points found are neither.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from nemo_simplerl.reward.comparing.evaluate import Evaluator, Unevaluable, real_number
from nemo_simplerl.reward.comparing.exact import Undefined, exact
from nemo_simplerl.reward.comparing.reals.intervals import close
from nemo_simplerl.reward.parsing.tree import (
    ONE,
    ZERO,
    Call,
    Node,
    Number,
    Power,
    Product,
    Sum,
    Symbol,
    children,
    negative,
    quotient,
    rebuilt,
    substituted,
    symbols_of,
)

_MAX_BRANCHES = 16
_MAX_DEGREE = 8
_MAX_CANDIDATES = 400  # for a rational root
_MAX_COEFFICIENT = 10**6  # whose divisors are tried
_ROUNDING = 2.0**-150
_SIGN_PRECISION_BITS = 720
_SIGN_ROUNDING = 2.0**-300
_POINT_BITS = 200

# The coefficients of a polynomial, from the constant upwards. They have no symbols.
_Polynomial = tuple[Node, ...]


class OutOfReach(Exception):
    """The expression is no quotient of polynomials in the symbol, or its zeros have no formula known here."""


def turning_points(node: Node, name: str) -> list[Node]:
    """The real numbers at which an expression in one symbol is zero or undefined, and perhaps some others. OutOfReach.

    The numbers are trees without symbols, each once, in rising order.
    """
    found: list[tuple[Any, Node]] = []
    for branch in _branches(node):
        try:
            for part in _fraction(branch, name):
                found += [(_value(root), root) for root in _roots(part)]
        except Undefined as error:
            raise OutOfReach(str(error)) from error
    found.sort(key=lambda entry: entry[0])
    return [root for at, (value, root) in enumerate(found) if not at or not close(found[at - 1][0], value)]


def signs_between(node: Node, name: str, ends: list[Node]) -> Iterator[int | None]:
    """The sign of an expression left of all its turning points, at the first, between it and the next, and so on.

    -1, 0 or 1, and None where the expression is undefined. OutOfReach where it has no real value.
    """
    values = [_value(end) for end in ends]
    if not values:
        yield _sign(node, name, ZERO)
        return
    yield _sign(node, name, _near(values[0] - 1))
    for end, value, above in zip(ends, values, [*values[1:], values[-1] + 2], strict=True):
        yield _sign(node, name, end)
        yield _sign(node, name, _near((value + above) / 2))


def _near(value: Any) -> Node:
    return Number(Fraction(int(value * 2**_POINT_BITS), 2**_POINT_BITS))


def _sign(node: Node, name: str, at: Node) -> int | None:
    try:
        value = Evaluator({}, _SIGN_PRECISION_BITS).value(substituted(node, name, at))
    except Undefined:
        return None
    except Unevaluable as error:
        raise OutOfReach(str(error)) from error
    if value.imag:
        raise OutOfReach("a complex value")
    return 0 if abs(value.real) < _SIGN_ROUNDING else 1 if value.real > 0 else -1


def _branches(node: Node) -> list[Node]:
    """The expression with each absolute value, maximum and minimum replaced by each of its branches."""
    parts = children(node)
    if not parts:
        return [node]
    choices: list[tuple[Node, ...]] = [()]
    for part in parts:
        choices = [(*chosen, branch) for chosen in choices for branch in _branches(part)]
        if len(choices) > _MAX_BRANCHES:
            raise OutOfReach("too many branches")
    if not isinstance(node, Call):
        return [rebuilt(node, chosen) for chosen in choices]
    if node.name == "abs":
        return [branch for (body,) in choices for branch in (body, negative(body))]
    if node.name in ("max", "min"):
        return [branch for chosen in choices for branch in chosen]
    return [rebuilt(node, chosen) for chosen in choices]


def _fraction(node: Node, name: str) -> tuple[_Polynomial, _Polynomial]:
    """Numerator and denominator of an expression as polynomials in the symbol `name`."""
    if name not in symbols_of(node):
        return (_folded(node),), (ONE,)
    if isinstance(node, Symbol):
        return (ZERO, ONE), (ONE,)
    if isinstance(node, Sum):
        top, bottom = _fraction(node.terms[0], name)
        for term in node.terms[1:]:
            above, below = _fraction(term, name)
            top, bottom = _plus(_times(top, below), _times(above, bottom)), _times(bottom, below)
        return top, bottom
    if isinstance(node, Product):
        top, bottom = (ONE,), (ONE,)
        for factor in node.factors:
            above, below = _fraction(factor, name)
            top, bottom = _times(top, above), _times(bottom, below)
        return top, bottom
    exponent = exact(node.exponent) if isinstance(node, Power) else None
    if not isinstance(node, Power) or exponent is None or exponent.denominator != 1 or abs(exponent) > _MAX_DEGREE:
        raise OutOfReach(type(node).__name__)
    above, below = _fraction(node.base, name)
    if exponent < 0:
        above, below = below, above
    top, bottom = (ONE,), (ONE,)
    for _ in range(abs(exponent.numerator)):
        top, bottom = _times(top, above), _times(bottom, below)
    return top, bottom


def _plus(one: _Polynomial, two: _Polynomial) -> _Polynomial:
    longer, shorter = (one, two) if len(one) >= len(two) else (two, one)
    sums = tuple(_folded(Sum(pair)) for pair in zip(longer, shorter, strict=False))
    return sums + longer[len(shorter) :]


def _times(one: _Polynomial, two: _Polynomial) -> _Polynomial:
    if one == (ONE,) or two == (ONE,):
        return two if one == (ONE,) else one
    if len(one) + len(two) - 2 > _MAX_DEGREE:
        raise OutOfReach("a degree too high")
    found: list[Node] = [ZERO] * (len(one) + len(two) - 1)
    for at, left in enumerate(one):
        for to, right in enumerate(two):
            found[at + to] = _folded(Sum((found[at + to], Product((left, right)))))
    return tuple(found)


def _folded(node: Node) -> Node:
    """The number that an expression without symbols is, where it is rational; the expression itself elsewhere."""
    value = exact(node)
    return node if value is None else Number(value)


def _roots(polynomial: _Polynomial) -> list[Node]:
    """The real roots of a polynomial: by formula up to degree two, beyond that where they come down to it."""
    while polynomial and _value(polynomial[-1]) == 0:
        polynomial = polynomial[:-1]
    low = next((at for at, coefficient in enumerate(polynomial) if _value(coefficient) != 0), 0)
    roots: list[Node] = [ZERO] if low else []
    polynomial = polynomial[low:]
    degree = len(polynomial) - 1
    step = math.gcd(*(at for at in range(1, degree + 1) if _value(polynomial[at]) != 0)) if degree > 0 else 1
    if step > 1:  # a polynomial in x^step
        return roots + [root for power in _roots(polynomial[::step]) for root in _real_roots_of(power, step)]
    if degree < 1:
        return roots
    if degree == 1:
        return [*roots, _folded(negative(quotient(polynomial[0], polynomial[1])))]
    if degree == 2:
        return roots + _quadratic_roots(*polynomial)
    root = _rational_root(polynomial)
    return [*roots, Number(root), *_roots(_deflated(polynomial, root))]


def _real_roots_of(power: Node, index: int) -> list[Node]:
    """The real numbers whose `index`-th power is this number."""
    value = _value(power)
    if value < 0 and index % 2 == 0:
        return []
    positive = _folded(negative(power) if value < 0 else power)
    root = _folded(Power(positive, Number(Fraction(1, index))))
    if value < 0:
        return [_folded(negative(root))]
    return [root, _folded(negative(root))] if index % 2 == 0 and value else [root]


def _quadratic_roots(constant: Node, linear: Node, square: Node) -> list[Node]:
    inside = _folded(Sum((Product((linear, linear)), Product((Number(Fraction(-4)), constant, square)))))
    if _value(inside) < 0:
        return []
    root = _folded(Power(inside, Number(Fraction(1, 2)))) if _value(inside) else ZERO
    bottom = Product((Number(Fraction(2)), square))
    return [_folded(quotient(Sum((negative(linear), end)), bottom)) for end in (root, negative(root))]


def _rational_root(polynomial: _Polynomial) -> Fraction:
    values = [exact(coefficient) for coefficient in polynomial]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise OutOfReach("a high degree with irrational coefficients")
    scale = math.lcm(*(value.denominator for value in known))
    first, last = (abs(int(value * scale)) for value in (known[0], known[-1]))
    if max(first, last) > _MAX_COEFFICIENT:
        raise OutOfReach("coefficients too large")
    tops, bottoms = _divisors(first), _divisors(last)
    if len(tops) * len(bottoms) > _MAX_CANDIDATES:
        raise OutOfReach("too many candidates for a root")
    for size in {Fraction(top, bottom) for top in tops for bottom in bottoms}:
        for root in (size, -size):
            if sum(value * root**at for at, value in enumerate(known)) == 0:
                return root
    raise OutOfReach("no rational root")


def _divisors(value: int) -> list[int]:
    small = [number for number in range(1, math.isqrt(value) + 1) if value % number == 0]
    return small + [value // number for number in small]


def _deflated(polynomial: _Polynomial, root: Fraction) -> _Polynomial:
    """The polynomial divided by x - root."""
    rest: list[Node] = []
    carried = Fraction(0)
    for coefficient in reversed(polynomial[1:]):
        value = exact(coefficient)
        assert value is not None
        carried = carried * root + value
        rest.append(Number(carried))
    return tuple(reversed(rest))


def _value(node: Node) -> Any:
    """The real value of an expression without symbols, in which rounding is no difference from zero. OutOfReach."""
    number = real_number(node)
    if number is None or abs(number) > 2.0**200:
        raise OutOfReach("a coefficient without a real value")
    return number if abs(number) >= _ROUNDING or exact(node) is not None else number * 0
