r"""Sets of real numbers: intervals, unions, set-builders and solved inequalities in one form."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from nemo_simplerl.reward.comparing.evaluate import real_number
from nemo_simplerl.reward.comparing.exact import Undefined
from nemo_simplerl.reward.comparing.polynomial import rational_function
from nemo_simplerl.reward.parsing.tree import (
    INFINITY,
    Builder,
    Call,
    Combination,
    Interval,
    Listing,
    Node,
    Number,
    Product,
    Relation,
    SetOf,
    Sum,
    Symbol,
    Tuple,
    contains,
    negative,
    symbols_of,
)

Same = Callable[[Node, Node], bool]
_MINUS_INFINITY = negative(INFINITY)
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


class NotReal(Exception):
    """The node is no set of real numbers in a form that is read here."""


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval or, with equal closed ends, a point."""

    low: Node
    high: Node
    low_closed: bool
    high_closed: bool


_LINE = Piece(_MINUS_INFINITY, INFINITY, False, False)


def is_set_like(node: Node) -> bool:
    """Whether the node can only be read as a set of reals."""
    if isinstance(node, (Interval, Combination, Builder)):
        return True
    if isinstance(node, Relation):
        if "in" in node.operators:
            return True
        return any(operator in ("<", ">", "<=", ">=", "!=") for operator in node.operators)
    if isinstance(node, Symbol):
        return node.name == r"\mathbb{R}"
    return isinstance(node, Listing) and any(is_set_like(item) for item in node.items)


def same_set(gold: Node, answer: Node, same: Same) -> bool:
    """Whether both are the same set of reals, for the same variable where both name one."""
    try:
        one, two = _Reader(), _Reader()
        left, right = one.pieces(gold), two.pieces(answer)
        left, right = _merged(left), _merged(right)
    except (NotReal, Undefined):
        return False
    if one.variable is not None and two.variable is not None and one.variable != two.variable:
        return False
    if len(left) != len(right):
        return False
    rest = list(right)
    for piece in left:
        match = next((other for other in rest if _same_piece(piece, other, same)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _same_piece(one: Piece, two: Piece, same: Same) -> bool:
    if (one.low_closed, one.high_closed) != (two.low_closed, two.high_closed):
        return False
    return all(
        left == right or (not _is_infinite(left) and not _is_infinite(right) and same(left, right))
        for left, right in ((one.low, two.low), (one.high, two.high))
    )


class _Reader:
    def __init__(self) -> None:
        self.variable: Node | None = None

    def named(self, variable: Node) -> None:
        if self.variable is not None and self.variable != variable:
            raise NotReal("two variables")
        self.variable = variable

    def pieces(self, node: Node) -> list[Piece]:
        if isinstance(node, Interval):
            return [self.interval(node.low, node.high, node.low_closed, node.high_closed)]
        if isinstance(node, Tuple) and len(node.items) == 2:
            return [self.interval(node.items[0], node.items[1], False, False)]
        if isinstance(node, SetOf):
            if not all(_is_value(item) for item in node.items):
                raise NotReal("a set of more than numbers")
            return [_point(item) for item in node.items]
        if isinstance(node, Symbol) and node.name == r"\mathbb{R}":
            return [_LINE]
        if isinstance(node, Combination):
            return self.combination(node)
        if isinstance(node, Builder):
            return self.builder(node)
        if isinstance(node, Relation):
            return self.relation(node)
        if isinstance(node, Listing):
            return self.listing(node)
        raise NotReal(type(node).__name__)

    def interval(self, low: Node, high: Node, low_closed: bool, high_closed: bool) -> Piece:
        low, high = _end(low), _end(high)
        return Piece(low, high, low_closed and not _is_infinite(low), high_closed and not _is_infinite(high))

    def combination(self, node: Combination) -> list[Piece]:
        pieces = self.pieces(node.parts[0])
        for part in node.parts[1:]:
            other = self.pieces(part)
            if node.operator == "cup":
                pieces = pieces + other
            else:
                pieces = _intersection(pieces, other if node.operator == "cap" else _complement(other))
        return pieces

    def builder(self, node: Builder) -> list[Piece]:
        element = node.element
        inside: list[Piece] = [_LINE]
        if isinstance(element, Relation) and element.operators == ("in",):
            inside, element = self.pieces(element.sides[1]), element.sides[0]
        pieces = self.pieces(node.condition)
        if self.variable is None or self.variable != element:
            raise NotReal("the condition is about something else")
        self.variable = None  # the letter of a set-builder is bound
        return pieces if inside == [_LINE] else _intersection(pieces, inside)

    def relation(self, node: Relation) -> list[Piece]:
        if node.operators == ("in",):
            self.named(node.sides[0])
            return self.pieces(node.sides[1])
        pieces: list[Piece] | None = None
        for left, operator, right in zip(node.sides, node.operators, node.sides[1:], strict=False):
            found = self.solved(left, operator, right)
            pieces = found if pieces is None else _chained(pieces, found)
        assert pieces is not None
        return pieces

    def solved(self, left: Node, operator: str, right: Node) -> list[Piece]:
        """The pieces of `x < c`, `c < x` and of linear forms of these."""
        if operator not in _MIRRORED:
            raise NotReal(operator)
        if _is_variable(left) and not symbols_of(left) & symbols_of(right):
            variable, bound = left, right
        elif _is_variable(right) and not symbols_of(left) & symbols_of(right):
            variable, bound, operator = right, left, _MIRRORED[operator]
        else:
            variable, bound, operator = _linear(left, operator, right)
        self.named(variable)
        return _half_line(operator, _end(bound))

    def listing(self, node: Listing) -> list[Piece]:
        """`or` unites. `and` and a comma intersect, unless nothing would remain: x < 1, x > 2."""
        if all(_is_value(item) for item in node.items):
            return [_point(item) for item in node.items]
        found = [self.pieces(item) for item in _excluding(node.items) if not _is_domain(item)]
        if not found:
            raise NotReal("no condition")
        if node.joiner != "or":
            try:
                common = found[0]
                for pieces in found[1:]:
                    common = _intersection(common, pieces)
                if common:
                    return common
            except NotReal:
                if len(found) > 1 and node.joiner != ",":
                    raise
        return [piece for pieces in found for piece in pieces]


def _excluding(items: tuple[Node, ...]) -> list[Node]:
    """x != 0, 1 with the variable repeated: x != 0, x != 1."""
    found: list[Node] = []
    for item in items:
        last = found[-1] if found else None
        if isinstance(last, Relation) and last.operators == ("!=",) and _is_value(item):
            item = Relation((last.sides[0], item), ("!=",))
        found.append(item)
    return found


def _is_domain(node: Node) -> bool:
    return isinstance(node, Relation) and node.operators == ("in",) and node.sides[1] == Symbol(r"\mathbb{R}")


def _is_variable(node: Node) -> bool:
    """A symbol, or a function of one, as in 0 < f(x) < 1."""
    if isinstance(node, Symbol):
        return not node.name.startswith("\\")
    return isinstance(node, Call) and bool(symbols_of(node))


def _is_value(node: Node) -> bool:
    return not contains(node, (Relation, Listing, SetOf, Tuple, Interval, Combination, Builder))


def _linear(left: Node, operator: str, right: Node) -> tuple[Node, Node, str]:
    """The variable, the bound and the operator of a linear inequality such as -y > -3."""
    form = rational_function(Sum((left, negative(right))))
    names = form.symbols() if form is not None else frozenset()
    if form is None or not form.pure or len(names) != 1 or list(form.bottom) != [()]:
        raise NotReal("no linear inequality in one variable")
    (name,) = names
    slope = form.top.get(((name, 1),), Fraction(0)) / form.bottom[()]
    constant = form.top.get((), Fraction(0)) / form.bottom[()]
    if not slope or len(form.top) > (2 if constant else 1):
        raise NotReal("not linear")
    return Symbol(name), Number(-constant / slope), operator if slope > 0 else _MIRRORED[operator]


def _end(node: Node) -> Node:
    """The bound; a multiple of infinity as infinity."""
    if isinstance(node, Product) and len(node.factors) == 2 and node.factors[1] == INFINITY:
        first = node.factors[0]
        if isinstance(first, Number) and first.value:
            return INFINITY if first.value > 0 else _MINUS_INFINITY
    return node


def _is_infinite(node: Node) -> bool:
    return node in (INFINITY, _MINUS_INFINITY)


def _point(node: Node) -> Piece:
    return Piece(node, node, True, True)


def _half_line(operator: str, bound: Node) -> list[Piece]:
    if operator == "=":
        return [_point(bound)]
    below = Piece(_MINUS_INFINITY, bound, False, operator == "<=")
    above = Piece(bound, INFINITY, operator == ">=", False)
    if operator == "!=":
        return [below, above]
    return [below] if operator in ("<", "<=") else [above]


def _chained(one: list[Piece], two: list[Piece]) -> list[Piece]:
    """a < x and x < b as one piece, also where a and b cannot be ordered."""
    if len(one) == len(two) == 1:
        for left, right in ((one[0], two[0]), (two[0], one[0])):
            if left.high == INFINITY and right.low == _MINUS_INFINITY:
                return [Piece(left.low, right.high, left.low_closed, right.high_closed)]
    return _intersection(one, two)


def _value(node: Node) -> Any:
    if node == INFINITY:
        return float("inf")
    if node == _MINUS_INFINITY:
        return float("-inf")
    value = real_number(node)
    if value is None:
        raise NotReal("an end without a real value")
    return value


def _close(one: Any, two: Any) -> bool:
    return bool(one == two) or (abs(one) != float("inf") and abs(one - two) <= 1e-30 * max(1, abs(one)))


def _merged(pieces: list[Piece]) -> list[Piece]:
    """The pieces in order, empty ones dropped and touching ones joined; as they are where ends have symbols."""
    try:
        valued = [(_value(piece.low), _value(piece.high), piece) for piece in pieces]
    except NotReal:
        return pieces
    for low, high, piece in valued:
        if high < low and not _close(low, high):
            raise NotReal("an interval from high to low")
        if _close(low, high) and not (piece.low_closed and piece.high_closed):
            raise NotReal("an empty interval")
    valued.sort(key=lambda entry: (entry[0], not entry[2].low_closed))
    merged: list[tuple[Any, Any, Piece]] = []
    for low, high, piece in valued:
        if merged:
            last_low, last_high, last = merged[-1]
            touches = _close(last_high, low) and (last.high_closed or piece.low_closed)
            if touches or last_high > low and not _close(last_high, low):
                longer = high > last_high and not _close(high, last_high)
                same = _close(high, last_high)
                closed = piece.high_closed if longer else last.high_closed or (same and piece.high_closed)
                end = piece.high if longer else last.high
                joined = Piece(last.low, end, last.low_closed, closed)
                merged[-1] = (last_low, high if longer else last_high, joined)
                continue
        merged.append((low, high, piece))
    return [piece for _, _, piece in merged]


def _complement(pieces: list[Piece]) -> list[Piece]:
    rest: list[Piece] = []
    low, low_closed = _MINUS_INFINITY, False
    for piece in _merged(pieces):
        if piece.low != _MINUS_INFINITY:
            rest.append(Piece(low, piece.low, low_closed, not piece.low_closed))
        low, low_closed = piece.high, not piece.high_closed
    if low != INFINITY:
        rest.append(Piece(low, INFINITY, low_closed, False))
    return rest


def _intersection(one: list[Piece], two: list[Piece]) -> list[Piece]:
    common: list[Piece] = []
    for left in one:
        for right in two:
            low, low_closed = _inner(left.low, left.low_closed, right.low, right.low_closed, upper=False)
            high, high_closed = _inner(left.high, left.high_closed, right.high, right.high_closed, upper=True)
            bottom, top = _value(low), _value(high)
            if (_close(bottom, top) and low_closed and high_closed) or (bottom < top and not _close(bottom, top)):
                common.append(Piece(low, high, low_closed, high_closed))
    return common


def _inner(one: Node, one_closed: bool, two: Node, two_closed: bool, upper: bool) -> tuple[Node, bool]:
    """The end that is further inside, and whether it belongs to both."""
    first, second = _value(one), _value(two)
    if _close(first, second):
        return one, one_closed and two_closed
    return (one, one_closed) if (first < second) == upper else (two, two_closed)
