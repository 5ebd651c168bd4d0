r"""Equality by values at random points.

Two expressions in the same symbols that agree to 30 digits at several random points are equal for every
purpose of a grader; one disagreement shows that they are not.
"""

import random
from fractions import Fraction
from typing import Any

from nemo_simplerl.reward.comparing.evaluate import PRECISION_BITS, Evaluator, Unevaluable
from nemo_simplerl.reward.comparing.exact import Undefined
from nemo_simplerl.reward.parsing.tree import Call, Node, children, contains, symbols_of

_TOLERANCE_BITS = 100  # of the relative difference: 30 digits
_REAL_POINTS = 4  # points where both are real that have to agree
_COMPLEX_POINTS = 3
_ATTEMPTS = 14


def same_values(left: Node, right: Node) -> bool:
    """Whether both have the same values wherever both are real or, where they never are, the same complex values.

    False for different symbols, and where the values are out of reach.
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
    names = symbols_of(left)
    if names != symbols_of(right):
        return False
    if not names:
        return _agree(left, right, {}, log_base) is not None
    real = unreal = unlike = 0
    for point in random_points(sorted(names)):
        try:
            kind = _agree(left, right, point, log_base)
        except Undefined:
            continue
        except Unevaluable:
            return False
        if kind is None:
            return False
        real, unreal, unlike = real + (kind == "real"), unreal + (kind == "complex"), unlike + (kind == "unlike")
        if real >= _REAL_POINTS + 2:
            return True
    return real >= _REAL_POINTS or (real == unlike == 0 and unreal >= _COMPLEX_POINTS)


def random_points(names: list[str]) -> list[dict[str, Fraction]]:
    """Values for the symbols at each point: of both signs, within and beyond 1, the same on every call."""
    draw = random.Random("/".join(names))
    points = []
    for attempt in range(_ATTEMPTS):
        scale = (Fraction(1), Fraction(3), Fraction(7))[attempt % 3]
        point = {}
        for name in names:
            size = Fraction(draw.randint(10**6, 10**9), 10**9) * scale
            point[name] = -size if attempt % 4 == 3 or (attempt % 4 == 1 and draw.random() < 0.5) else size
        points.append(point)
    return points


def _agree(left: Node, right: Node, point: dict[str, Fraction], log_base: str) -> str | None:
    """How the values agree at a point: as `real` or `complex` numbers; None where they differ.

    At a point with symbols, `skip` where only one value is real and `unlike` where two complex values differ:
    branches of roots and logarithms differ where the problem is not defined.
    """
    try:
        one, two = _pair(left, right, point, PRECISION_BITS, log_base)
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
    if abs(one - two) > size * 2.0**-_TOLERANCE_BITS:
        if size > 2.0**-_TOLERANCE_BITS:
            return "unlike" if point and complex_[0] else None
        again = _pair(left, right, point, 3 * PRECISION_BITS, log_base)  # both zero but for rounding?
        if max(abs(value) for value in again) > size * 2.0**-PRECISION_BITS:
            return None
    return "complex" if complex_[0] else "real"


def _pair(left: Node, right: Node, point: dict[str, Fraction], precision: int, log_base: str) -> tuple[Any, Any]:
    evaluator = Evaluator(point, precision, log_base)
    return evaluator.value(left), evaluator.value(right)
