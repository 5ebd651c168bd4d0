r"""Equality by values at random points.

Two expressions that agree to 30 digits at several random points, and to more where more digits are written
(`precision.py`), are equal for every purpose of a grader; one disagreement shows that they are not. Where a formula
changes at a corner, as |x - 10| does, that holds between two corners only: then the points are also far away, at
integers, at the corners and in every gap between them.
"""

import contextlib
import math
import random
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any

from nemo_simplerl.reward.comparing.evaluate import Evaluator, Unevaluable, real_number
from nemo_simplerl.reward.comparing.exact import Undefined, exact
from nemo_simplerl.reward.comparing.precision import precision_for, tolerance_bits
from nemo_simplerl.reward.comparing.reals.roots import OutOfReach, turning_points
from nemo_simplerl.reward.parsing.tree import (
    IMAGINARY,
    PI,
    Call,
    Node,
    Number,
    Power,
    Sum,
    children,
    contains,
    contains_node,
    negative,
    rebuilt,
    substituted,
    symbols_of,
)

_ZERO_BITS = 100  # a smaller value may be zero but for rounding
_REAL_POINTS = 4  # points where both are real that have to agree
_COMPLEX_POINTS = 3
_ATTEMPTS = 14
_FAR = (Fraction(60), Fraction(3_000), Fraction(10**6))
_INTEGER_POINTS = 8
_MAX_SOLVED = 12  # times that the zeros of a corner's expression are looked for
_MAX_NAMES = 3
_PARAMETERS = frozenset("kmn")
_PERIODIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_INVERSES = ("arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc")


def same_values(left: Node, right: Node) -> bool:
    """Whether both have the same values wherever both are real or, where they never are, the same complex values.

    A symbol that cancels, as in sin^2 x + cos^2 x, may be missing on the other side. False where the values are out
    of reach.
    """
    bases = ("e", "10") if contains_plain_log(left) or contains_plain_log(right) else ("e",)
    return any(_same_values(left, right, base) for base in bases)


def contains_plain_log(node: Node) -> bool:
    """Whether a `log` without a base occurs in the expression."""
    if not contains(node, Call):
        return False
    if isinstance(node, Call) and node.name == "log" and len(node.args) == 1:
        return True
    return any(contains_plain_log(child) for child in children(node))


def _same_values(left: Node, right: Node, log_base: str) -> bool:
    names, precision = sorted(symbols_of(left) | symbols_of(right)), precision_for(left, right)
    if precision is None:
        return False
    if not names:
        return _agree(left, right, {}, precision, log_base) is not None
    real = unreal = unlike = 0
    for point in random_points(tuple(names), _integers(left) | _integers(right)):
        try:
            kind = _agree(left, right, point, precision, log_base)
        except Undefined:
            continue
        except Unevaluable:
            return False
        if kind is None:
            return False
        real, unreal, unlike = real + (kind == "real"), unreal + (kind == "complex"), unlike + (kind == "unlike")
        if real >= _REAL_POINTS + 2:
            break
    if real < _REAL_POINTS and (real or unlike or unreal < _COMPLEX_POINTS):
        return False
    corners = [*corner_expressions(left), *corner_expressions(right)]
    return not any(_differ(left, right, point, precision, log_base) for point in points_at_corners(corners, names))


@lru_cache(maxsize=256)
def random_points(names: tuple[str, ...], integers: frozenset[str] = frozenset()) -> list[dict[str, Fraction]]:
    """Values for the symbols at each point: of both signs, within and beyond 1, the same on every call."""
    draw = random.Random("/".join(names))
    points = []
    for attempt in range(_ATTEMPTS):
        scale = (Fraction(1), Fraction(3), Fraction(7))[attempt % 3]
        point = {}
        for name in names:
            size = Fraction(draw.randint(10**6, 10**9), 10**9) * scale
            if name in integers:
                size = Fraction(math.ceil(2 * size))
            point[name] = -size if attempt % 4 == 3 or (attempt % 4 == 1 and draw.random() < 0.5) else size
        points.append(point)
    return points


def _integers(node: Node) -> frozenset[str]:
    """The symbols that can only be integers: n in (-1)^n and i^n, and k, m or n beside pi in a sine."""
    found: frozenset[str] = frozenset()
    if isinstance(node, Power) and symbols_of(node.exponent) and _alternates(node.base):
        found = symbols_of(node.exponent)
    elif isinstance(node, Call) and node.name in _PERIODIC and contains_node(node, PI):
        found = symbols_of(node) & _PARAMETERS
    for child in children(node):
        found |= _integers(child)
    return found


def _alternates(base: Node) -> bool:
    value = exact(base)
    return base == IMAGINARY or (value is not None and value < 0)


def corner_expressions(node: Node) -> list[Node]:
    """The expressions at whose zeros the formula of a node may change: x - 10 for |x - 10|, a - b for max(a, b)."""
    found: list[Node] = []
    if isinstance(node, Call) and symbols_of(node):
        if node.name in ("abs", "sgn", *_INVERSES):
            found += node.args
        elif node.name in ("floor", "ceil"):
            found += [Sum((arg, Number(Fraction(step)))) for arg in node.args for step in (-1, 0, 1)]
        elif node.name in ("max", "min"):
            found += [Sum((one, negative(two))) for one, two in combinations(node.args, 2)]
    elif isinstance(node, Power) and isinstance(node.exponent, Number) and node.exponent.value.denominator > 1:
        found += [node.base] if symbols_of(node.base) else []
    for child in children(node):
        found += corner_expressions(child)
    return found


def points_at_corners(corners: list[Node], names: list[str]) -> Iterator[dict[str, Fraction]]:
    """Points for formulas that may change where one of these expressions is zero; none for formulas without corners."""
    if not corners:
        return
    draw = random.Random("corners/" + "/".join(names))
    several = len(names) > 1
    for scale in _FAR:
        for signs in ((1, 1), (-1, -1), (1, -1), (-1, 1))[: 4 if several else 2]:
            yield {name: signs[at % 2] * scale * draw.randint(500, 999) / 500 for at, name in enumerate(names)}
    for _ in range(_INTEGER_POINTS):
        yield {name: Fraction(draw.randint(-9, 9)) for name in names}
    bases = random_points(tuple(names))[2 : 4 if several else 3]  # the others all positive, then all negative
    moved = names[:_MAX_NAMES]
    smooth = list({_smoothed(corner): None for corner in corners})[: _MAX_SOLVED // (len(bases) * len(moved))]
    for base in bases:
        for name in moved:
            ends: set[Fraction] = set()
            for corner in smooth:
                for other in names:
                    corner = corner if other == name else substituted(corner, other, Number(base[other]))
                with contextlib.suppress(OutOfReach):
                    ends.update(map(_fraction_near, turning_points(corner, name)))
            yield from ({**base, name: value} for value in _around(sorted(ends)))


def _smoothed(node: Node) -> Node:
    """The expression without rounding, whose corners are near: floor(x) - 10 has one near x = 10."""
    parts = tuple(map(_smoothed, children(node)))
    if isinstance(node, Call) and node.name in ("floor", "ceil"):
        return parts[0]
    return rebuilt(node, parts) if parts else node


def _fraction_near(node: Node) -> Fraction:
    value, number = exact(node), real_number(node)
    return Fraction(int(number * 2**150), 2**150) if value is None and number is not None else value or Fraction(0)


def _around(ends: list[Fraction]) -> Iterator[Fraction]:
    """The ends, two points in each gap between them, and two beyond each of the outermost, in no symmetric place."""
    if not ends:
        return
    reach = 1 + max(map(abs, ends)) / 7
    beyond = [ends[0] - 3 * reach, *ends, ends[-1] + 3 * reach]
    yield from ends
    for low, high in pairwise(beyond):
        yield from (low + (high - low) * part for part in (Fraction(381, 1000), Fraction(929, 1000)))


def _differ(left: Node, right: Node, point: dict[str, Fraction], precision: int, log_base: str) -> bool:
    """Whether both are real at a point, with all that they are made of, and differ."""
    try:
        if _agree(left, right, point, precision, log_base) is not None:
            return False
        evaluator = Evaluator(point, precision, log_base)
        evaluator.value(left), evaluator.value(right)
    except (Undefined, Unevaluable):
        return False
    return evaluator.stays_real


def _agree(left: Node, right: Node, point: dict[str, Fraction], precision: int, log_base: str) -> str | None:
    """How the values agree at a point: as `real` or `complex` numbers; None where they differ.

    At a point with symbols, `skip` where only one value is real and `unlike` where two complex values differ:
    branches of roots and logarithms differ where the problem is not defined.
    """
    try:
        one, two = _pair(left, right, point, precision, log_base)
    except (Undefined, Unevaluable):
        if point:
            raise
        return None
    complex_ = [
        value.__class__.__name__ == "mpc" and abs(value.imag) > 2**-120 * (1 + abs(value)) for value in (one, two)
    ]
    if point and complex_[0] != complex_[1]:
        return "skip"
    size = max(abs(one), abs(two))
    if size == 0:
        return "real"
    if abs(one - two) > size / 2 ** tolerance_bits(precision):
        if size > 2.0**-_ZERO_BITS:
            return "unlike" if point and complex_[0] else None
        again = _pair(left, right, point, 2 * precision, log_base)  # both zero but for rounding?
        if max(abs(value) for value in again) > size / 2 ** (precision // 2):
            return None
    return "complex" if complex_[0] else "real"


def _pair(left: Node, right: Node, point: dict[str, Fraction], precision: int, log_base: str) -> tuple[Any, Any]:
    evaluator = Evaluator(point, precision, log_base)
    return evaluator.value(left), evaluator.value(right)
