r"""Sets of real numbers: intervals, unions, set-builders and solved inequalities in one form."""

import operator as comparison
from collections.abc import Callable
from functools import reduce

from nemo_simplerl.reward.comparing.equations import Same, same_name
from nemo_simplerl.reward.comparing.exact import Undefined
from nemo_simplerl.reward.comparing.plus_minus import TooManySigns, expansions
from nemo_simplerl.reward.comparing.reals.intervals import (
    LINE,
    MINUS_INFINITY,
    NotReal,
    Piece,
    bound_of,
    chained,
    complement,
    half_line,
    intersection,
    is_infinite,
    merged,
    point,
)
from nemo_simplerl.reward.comparing.reals.roots import OutOfReach, signs_between, turning_points
from nemo_simplerl.reward.parsing.lexicon import FUNCTIONS
from nemo_simplerl.reward.parsing.tree import (
    INFINITY,
    Call,
    Interval,
    Listing,
    Node,
    Relation,
    SetBuilder,
    SetCombination,
    SetOf,
    Sum,
    Symbol,
    Tuple,
    contains,
    negative,
    symbols_of,
)

_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "<": comparison.lt,
    ">": comparison.gt,
    "<=": comparison.le,
    ">=": comparison.ge,
    "!=": comparison.ne,
    "=": comparison.eq,
}
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


def is_set_like(node: Node) -> bool:
    """Whether the node can only be read as a set of reals."""
    if isinstance(node, (Interval, SetCombination, SetBuilder)):
        return True
    if isinstance(node, Relation):
        return any(operator in ("in", "notin", "<", ">", "<=", ">=", "!=") for operator in node.operators)
    if isinstance(node, Symbol):
        return node.name == r"\mathbb{R}"
    return isinstance(node, Listing) and any(is_set_like(item) for item in node.items)


def same_set(gold: Node, answer: Node, same: Same) -> bool:
    """Whether both are the same set of reals, for the same variable where both name one."""
    try:
        one, two = _SetReader(), _SetReader(literal=True)
        left, right = one.pieces(gold), two.pieces(answer)
        left, right = merged(left), merged(right)
    except (NotReal, Undefined, TooManySigns):
        return False
    if not same_name(one.variable, two.variable) and not same_name(two.variable, one.variable):
        return False
    if any(reader.is_trivial and pieces in ([], [LINE]) for reader, pieces in ((one, left), (two, right))):
        return False  # x^2 >= 0 names no set
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
        left == right or (not is_infinite(left) and not is_infinite(right) and same(left, right))
        for left, right in ((one.low, two.low), (one.high, two.high))
    )


class _SetReader:
    """Reads a node as pieces of the real line, and notes the variable that they are about."""

    def __init__(self, literal: bool = False) -> None:
        self.literal = literal  # `x < 1 and x > 2` holds nowhere; a gold answer means `or`
        self.variable: Node | None = None
        self.is_trivial = False  # an inequality was among them that always holds, or never

    def use_variable(self, variable: Node) -> None:
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
            return [point(item) for item in node.items]
        if isinstance(node, Symbol) and node.name == r"\mathbb{R}":
            return [LINE]
        if isinstance(node, SetCombination):
            return self.combination(node)
        if isinstance(node, SetBuilder):
            return self.builder(node)
        if isinstance(node, Relation):
            return self.relation(node)
        if isinstance(node, Listing):
            return self.listing(node)
        raise NotReal(type(node).__name__)

    def interval(self, low: Node, high: Node, low_closed: bool, high_closed: bool) -> Piece:
        low, high = bound_of(low), bound_of(high)
        return Piece(low, high, low_closed and not is_infinite(low), high_closed and not is_infinite(high))

    def combination(self, node: SetCombination) -> list[Piece]:
        pieces = self.pieces(node.parts[0])
        for part in node.parts[1:]:
            other = self.pieces(part)
            if node.operator == "cup":
                pieces = pieces + other
            else:
                pieces = intersection(pieces, other if node.operator == "cap" else complement(other))
        return pieces

    def builder(self, node: SetBuilder) -> list[Piece]:
        element = node.element
        inside: list[Piece] = [LINE]
        if isinstance(element, Relation) and element.operators == ("in",):
            inside, element = self.pieces(element.sides[1]), element.sides[0]
        pieces = self.pieces(node.condition)
        if self.variable is None or self.variable != element:
            raise NotReal("the condition is about something else")
        self.variable = None  # the letter of a set-builder is bound
        return pieces if inside == [LINE] else intersection(pieces, inside)

    def relation(self, node: Relation) -> list[Piece]:
        if node.operators in (("in",), ("notin",)):
            self.use_variable(node.sides[0])
            inside = self.pieces(node.sides[1])
            return inside if node.operators == ("in",) else complement(inside)
        pieces: list[Piece] | None = None
        for left, operator, right in zip(node.sides, node.operators, node.sides[1:], strict=False):
            found = self.solved(left, operator, right)
            pieces = found if pieces is None else chained(pieces, found)
        assert pieces is not None
        return pieces

    def solved(self, left: Node, operator: str, right: Node) -> list[Piece]:
        """The pieces of `x < c`, of `c < x`, and of inequalities in one symbol whose sign can be followed."""
        if operator not in _MIRRORED:
            raise NotReal(operator)
        ways = [(left, operator, right), (right, _MIRRORED[operator], left)]
        ways = [way for way in ways if not symbols_of(left) & symbols_of(right) and _is_variable(way[0])]
        if ways and not _is_known_function(ways[0][0]):
            return self.bounded(*ways[0])
        try:
            return self.followed(Sum((left, negative(right))), operator)
        except NotReal:
            if not ways:
                raise
            return self.bounded(*ways[0])

    def bounded(self, variable: Node, operator: str, bound: Node) -> list[Piece]:
        """The values of the variable on one side of a bound. Of x = +-c and x != +-c each value counts."""
        self.use_variable(variable)
        values = expansions(bound) if operator in ("=", "!=") else None
        found = [half_line(operator, bound_of(value)) for value in values or [bound]]
        return [piece for pieces in found for piece in pieces] if operator == "=" else reduce(intersection, found)

    def followed(self, difference: Node, operator: str) -> list[Piece]:
        """The numbers at which `difference operator 0` holds."""
        names = symbols_of(difference)
        if len(names) != 1:
            raise NotReal("no inequality in one variable")
        (name,) = names
        found = _solutions(difference, operator, name)
        self.use_variable(Symbol(name))
        self.is_trivial = self.is_trivial or found in ([], [LINE])
        return found

    def listing(self, node: Listing) -> list[Piece]:
        """The union of items joined by `or`, of sets listed side by side, and of conditions that exclude each other.

        Other conditions are read as their intersection. Listed sets that overlap are items, as points are.
        """
        if all(_is_value(item) for item in node.items):
            return [point(item) for item in node.items]
        items = [item for item in _excluding(node.items) if not _is_domain(item)]
        found = [self.pieces(item) for item in items]
        if not found:
            raise NotReal("no condition")
        union = [piece for pieces in found for piece in pieces]
        if node.joiner == "or":
            return union
        if all(isinstance(item, (Relation, Listing)) for item in items):
            try:
                common = found[0]
                for pieces in found[1:]:
                    common = intersection(common, pieces)
                if common:
                    return common
                if self.literal and node.joiner == "and":
                    raise NotReal("conditions that exclude each other")
            except NotReal:
                if len(found) > 1 and node.joiner != ",":
                    raise
        elif len(merged(union)) < len(union):
            raise NotReal("listed sets that overlap")
        return union


def _excluding(items: tuple[Node, ...]) -> list[Node]:
    """The items of `x != 0, 1` with the variable repeated: x != 0, x != 1."""
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
    """Whether the node is a symbol, or a function of one as in 0 < f(x) < 1."""
    if isinstance(node, Symbol):
        return not node.name.startswith("\\")
    return isinstance(node, Call) and bool(symbols_of(node))


def _is_known_function(node: Node) -> bool:
    return isinstance(node, Call) and node.name in FUNCTIONS


def _is_value(node: Node) -> bool:
    return not contains(node, (Relation, Listing, SetOf, Tuple, Interval, SetCombination, SetBuilder))


def _solutions(difference: Node, operator: str, name: str) -> list[Piece]:
    """The pieces on which `difference operator 0`: between two turning points the sign does not change. NotReal."""
    try:
        ends = turning_points(difference, name)
        signs = list(signs_between(difference, name, ends))
    except OutOfReach as error:
        raise NotReal(str(error)) from error
    holds = [sign is not None and _COMPARISONS[operator](sign, 0) for sign in signs]
    bounds = [MINUS_INFINITY, *ends, INFINITY]
    found = [
        Piece(low, high, False, False)
        for low, high, inside in zip(bounds, bounds[1:], holds[::2], strict=False)
        if inside
    ]
    return merged(found + [point(end) for end, inside in zip(ends, holds[1::2], strict=True) if inside])
