r"""Sets of real numbers: intervals, unions, set-builders and solved inequalities in one form."""

from fractions import Fraction

from nemo_simplerl.reward.comparing.equations import Same
from nemo_simplerl.reward.comparing.exact import Undefined
from nemo_simplerl.reward.comparing.intervals import (
    LINE,
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
from nemo_simplerl.reward.comparing.polynomial import rational_function
from nemo_simplerl.reward.parsing.tree import (
    Call,
    Interval,
    Listing,
    Node,
    Number,
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

_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


def is_set_like(node: Node) -> bool:
    """Whether the node can only be read as a set of reals."""
    if isinstance(node, (Interval, SetCombination, SetBuilder)):
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
        one, two = _SetReader(), _SetReader()
        left, right = one.pieces(gold), two.pieces(answer)
        left, right = merged(left), merged(right)
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
        left == right or (not is_infinite(left) and not is_infinite(right) and same(left, right))
        for left, right in ((one.low, two.low), (one.high, two.high))
    )


class _SetReader:
    """Reads a node as pieces of the real line, and notes the variable that they are about."""

    def __init__(self) -> None:
        self.variable: Node | None = None

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
        if node.operators == ("in",):
            self.use_variable(node.sides[0])
            return self.pieces(node.sides[1])
        pieces: list[Piece] | None = None
        for left, operator, right in zip(node.sides, node.operators, node.sides[1:], strict=False):
            found = self.solved(left, operator, right)
            pieces = found if pieces is None else chained(pieces, found)
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
        self.use_variable(variable)
        return half_line(operator, bound_of(bound))

    def listing(self, node: Listing) -> list[Piece]:
        """The union of items joined by `or`; else their intersection, unless it is empty, as of x < 1, x > 2."""
        if all(_is_value(item) for item in node.items):
            return [point(item) for item in node.items]
        found = [self.pieces(item) for item in _excluding(node.items) if not _is_domain(item)]
        if not found:
            raise NotReal("no condition")
        if node.joiner != "or":
            try:
                common = found[0]
                for pieces in found[1:]:
                    common = intersection(common, pieces)
                if common:
                    return common
            except NotReal:
                if len(found) > 1 and node.joiner != ",":
                    raise
        return [piece for pieces in found for piece in pieces]


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


def _is_value(node: Node) -> bool:
    return not contains(node, (Relation, Listing, SetOf, Tuple, Interval, SetCombination, SetBuilder))


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
