r"""Intervals of real numbers and their arithmetic: unions, intersections, complements."""

from dataclasses import dataclass
from typing import Any

from nemo_simplerl.reward.comparing.evaluate import real_number
from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.tree import INFINITY, Node, Number, Product, negative

MINUS_INFINITY = negative(INFINITY)


class NotReal(Exception):
    """The node is not a set of real numbers that this grader can read."""


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval or, with equal closed ends, a point."""

    low: Node
    high: Node
    low_closed: bool
    high_closed: bool


LINE = Piece(MINUS_INFINITY, INFINITY, False, False)


def bound_of(node: Node) -> Node:
    """The bound of an interval; a multiple of infinity is infinity."""
    if isinstance(node, Product) and len(node.factors) == 2 and node.factors[1] == INFINITY:
        first = node.factors[0]
        if isinstance(first, Number) and first.value:
            return INFINITY if first.value > 0 else MINUS_INFINITY
    return node


def is_infinite(node: Node) -> bool:
    return node in (INFINITY, MINUS_INFINITY)


def point(node: Node) -> Piece:
    """The piece that holds one number."""
    return Piece(node, node, True, True)


def half_line(operator: str, bound: Node) -> list[Piece]:
    """The numbers x with `x operator bound`."""
    if operator == "=":
        return [point(bound)]
    below = Piece(MINUS_INFINITY, bound, False, operator == "<=")
    above = Piece(bound, INFINITY, operator == ">=", False)
    if operator == "!=":
        return [below, above]
    return [below] if operator in ("<", "<=") else [above]


def chained(one: list[Piece], two: list[Piece]) -> list[Piece]:
    """The pieces of a chain: a < x and x < b are one piece, also where a and b cannot be ordered."""
    if len(one) == len(two) == 1:
        for left, right in ((one[0], two[0]), (two[0], one[0])):
            if left.high == INFINITY and right.low == MINUS_INFINITY:
                return [Piece(left.low, right.high, left.low_closed, right.high_closed)]
    return intersection(one, two)


def merged(pieces: list[Piece]) -> list[Piece]:
    """The pieces in order, empty ones dropped and touching ones joined; as they are where ends have symbols."""
    try:
        valued = [(_value(piece.low), _value(piece.high), piece) for piece in pieces]
    except NotReal:
        return pieces
    for low, high, piece in valued:
        if high < low and not close(low, high):
            raise NotReal("an interval from high to low")
        if close(low, high) and not (piece.low_closed and piece.high_closed):
            raise NotReal("an empty interval")
    valued.sort(key=lambda entry: (entry[0], not entry[2].low_closed))
    rising: list[tuple[Any, Any, Piece]] = []
    for low, high, piece in valued:
        if rising:
            last_low, last_high, last = rising[-1]
            touches = close(last_high, low) and (last.high_closed or piece.low_closed)
            if touches or last_high > low and not close(last_high, low):
                longer = high > last_high and not close(high, last_high)
                same = close(high, last_high)
                closed = piece.high_closed if longer else last.high_closed or (same and piece.high_closed)
                end = piece.high if longer else last.high
                joined = Piece(last.low, end, last.low_closed, closed)
                rising[-1] = (last_low, high if longer else last_high, joined)
                continue
        rising.append((low, high, piece))
    return [piece for _, _, piece in rising]


def complement(pieces: list[Piece]) -> list[Piece]:
    """The real numbers outside the pieces. NotReal where an end has no real value."""
    rest: list[Piece] = []
    low, low_closed = MINUS_INFINITY, False
    for piece in merged(pieces):
        if piece.low != MINUS_INFINITY:
            rest.append(Piece(low, piece.low, low_closed, not piece.low_closed))
        low, low_closed = piece.high, not piece.high_closed
    if low != INFINITY:
        rest.append(Piece(low, INFINITY, low_closed, False))
    return rest


def intersection(one: list[Piece], two: list[Piece]) -> list[Piece]:
    """The numbers in both. NotReal where an end has no real value."""
    if len(one) * len(two) > LIMITS.items:
        raise NotReal("too many pieces")
    common: list[Piece] = []
    for left in one:
        for right in two:
            low, low_closed = _inner(left.low, left.low_closed, right.low, right.low_closed, upper=False)
            high, high_closed = _inner(left.high, left.high_closed, right.high, right.high_closed, upper=True)
            bottom, top = _value(low), _value(high)
            if (close(bottom, top) and low_closed and high_closed) or (bottom < top and not close(bottom, top)):
                common.append(Piece(low, high, low_closed, high_closed))
    return common


def _inner(one: Node, one_closed: bool, two: Node, two_closed: bool, upper: bool) -> tuple[Node, bool]:
    """The end that is further inside, and whether it belongs to both."""
    first, second = _value(one), _value(two)
    if close(first, second):
        return one, one_closed and two_closed
    return (one, one_closed) if (first < second) == upper else (two, two_closed)


def _value(node: Node) -> Any:
    if node == INFINITY:
        return float("inf")
    if node == MINUS_INFINITY:
        return float("-inf")
    value = real_number(node)
    if value is None:
        raise NotReal("an end without a real value")
    return value


def close(one: Any, two: Any) -> bool:
    """Whether two values of ends are the same but for rounding."""
    return bool(one == two) or (abs(one) != float("inf") and abs(one - two) <= 1e-30 * max(1, abs(one)))
