r"""The typed tree of an answer. Nodes are immutable values: equal trees are equal, and hash alike."""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from operator import attrgetter
from typing import Any


@dataclass(frozen=True, slots=True)
class Number:
    """An exact rational. `places` counts the decimals of a number that was written with a decimal point."""

    value: Fraction
    places: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Symbol:
    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """One of `pi`, `e`, `i`, `infinity` and `...`."""

    name: str


@dataclass(frozen=True, slots=True)
class Sum:
    terms: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Product:
    factors: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Power:
    base: "Node"
    exponent: "Node"


@dataclass(frozen=True, slots=True)
class Call:
    """A function, or an operator such as a sum with its bounds, applied to arguments."""

    name: str
    args: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class PlusMinus:
    r"""`\pm body`, or `\mp body`, whose sign is opposite to that of the `\pm` beside it."""

    body: "Node"
    opposite: bool = False


@dataclass(frozen=True, slots=True)
class Degrees:
    body: "Node"


@dataclass(frozen=True, slots=True)
class Percent:
    body: "Node"


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with a unit, such as `cm^2`."""

    body: "Node"
    unit: str


@dataclass(frozen=True, slots=True)
class Modular:
    r"""A value with a modulus: `body \pmod{modulus}`."""

    body: "Node"
    modulus: "Node"


@dataclass(frozen=True, slots=True)
class BasedNumber:
    """Digits in a written base, such as 1101_2."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class ClockTime:
    """A time of day: hours, minutes and seconds, as far as they are written; `half` is `am` or `pm`."""

    parts: tuple[int, ...]
    half: str


@dataclass(frozen=True, slots=True)
class Words:
    """Text that is no mathematics, in lower case."""

    text: str


@dataclass(frozen=True, slots=True)
class Tuple:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Items without brackets. `joiner` is the weakest separator: `,`, `;`, `and` or `or`."""

    items: tuple["Node", ...]
    joiner: str = ","


@dataclass(frozen=True, slots=True)
class SetOf:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Interval:
    low: "Node"
    high: "Node"
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True, slots=True)
class SetCombination:
    r"""Sets combined from left to right by `\cup`, `\cap` or `\setminus`."""

    operator: str
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class SetBuilder:
    r"""The set-builder notation `\{ element \mid condition \}`."""

    element: "Node"
    condition: "Node"


@dataclass(frozen=True, slots=True)
class Ratio:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple["Node", ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    r"""A chain such as `a < b \le c`: one operator fewer than sides."""

    sides: tuple["Node", ...]
    operators: tuple[str, ...]


Expression = Number | Symbol | Constant | Sum | Product | Power | Call | PlusMinus | Degrees
Node = (
    Expression
    | Percent
    | Quantity
    | Modular
    | BasedNumber
    | ClockTime
    | Words
    | Tuple
    | Listing
    | SetOf
    | Interval
    | SetCombination
    | SetBuilder
    | Ratio
    | Matrix
    | Relation
)

ZERO, ONE, MINUS_ONE = Number(Fraction(0)), Number(Fraction(1)), Number(Fraction(-1))
PI, EULER, IMAGINARY, INFINITY = Constant("pi"), Constant("e"), Constant("i"), Constant("infinity")
ELLIPSIS = Constant("...")
EMPTY_SET, REALS = SetOf(()), Symbol(r"\mathbb{R}")


def negative(node: Node) -> Node:
    if isinstance(node, Number):
        return Number(-node.value, node.places)
    return Product((MINUS_ONE, node))


def quotient(top: Node, bottom: Node) -> Node:
    return Product((top, Power(bottom, MINUS_ONE)))


# What stands below a node, by its type: one look-up, because every walk over a tree asks it of every node.
_CHILDREN: dict[type, Callable[[Any], tuple["Node", ...]]] = {
    Sum: attrgetter("terms"),
    Product: attrgetter("factors"),
    Power: attrgetter("base", "exponent"),
    Call: attrgetter("args"),
    **dict.fromkeys((PlusMinus, Degrees, Percent, Quantity), lambda node: (node.body,)),
    **dict.fromkeys((Tuple, Listing, SetOf), attrgetter("items")),
    **dict.fromkeys((SetCombination, Ratio), attrgetter("parts")),
    Relation: attrgetter("sides"),
    Interval: attrgetter("low", "high"),
    SetBuilder: attrgetter("element", "condition"),
    Modular: attrgetter("body", "modulus"),
    Matrix: lambda node: tuple(entry for row in node.rows for entry in row),
}


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly below an expression; none for a leaf."""
    below = _CHILDREN.get(type(node))
    return () if below is None else below(node)


def rebuilt(node: Node, parts: tuple[Node, ...]) -> Node:
    """The node with other children, given in the order of `children`."""
    if isinstance(node, Sum):
        return Sum(parts)
    if isinstance(node, Product):
        return Product(parts)
    if isinstance(node, Power):
        return Power(parts[0], parts[1])
    if isinstance(node, Call):
        return Call(node.name, parts)
    if isinstance(node, PlusMinus):
        return PlusMinus(parts[0], node.opposite)
    if isinstance(node, Degrees):
        return Degrees(parts[0])
    if isinstance(node, Percent):
        return Percent(parts[0])
    if isinstance(node, Quantity):
        return Quantity(parts[0], node.unit)
    if isinstance(node, Tuple):
        return Tuple(parts)
    if isinstance(node, Listing):
        return Listing(parts, node.joiner)
    if isinstance(node, SetOf):
        return SetOf(parts)
    if isinstance(node, SetCombination):
        return SetCombination(node.operator, parts)
    if isinstance(node, Ratio):
        return Ratio(parts)
    if isinstance(node, Relation):
        return Relation(parts, node.operators)
    if isinstance(node, Interval):
        return Interval(parts[0], parts[1], node.low_closed, node.high_closed)
    if isinstance(node, SetBuilder):
        return SetBuilder(parts[0], parts[1])
    if isinstance(node, Modular):
        return Modular(parts[0], parts[1])
    if isinstance(node, Matrix):
        width = len(node.rows[0])
        return Matrix(tuple(parts[at : at + width] for at in range(0, len(parts), width)))
    return node


def is_deeper(node: Node, depth: int) -> bool:
    """Whether a tree has more than `depth` levels. Without recursion, because it may have any number of them."""
    level = [node]
    for _ in range(depth):
        level = [child for parent in level for child in children(parent)]
        if not level:
            return False
    return True


def symbols_of(node: Node) -> frozenset[str]:
    """The names of the free symbols below a node."""
    if isinstance(node, Number):
        return _NO_SYMBOLS
    found: set[str] = set()
    _collect_symbols(node, found)
    return frozenset(found)


_NO_SYMBOLS: frozenset[str] = frozenset()


def _collect_symbols(node: Node, found: set[str]) -> None:
    if isinstance(node, Symbol):
        found.add(node.name)
    elif (below := _CHILDREN.get(type(node))) is not None:
        for child in below(node):
            _collect_symbols(child, found)


def contains(node: Node, kind: type | tuple[type, ...]) -> bool:
    """Whether the node or one below it is of a kind."""
    if isinstance(node, kind):
        return True
    below = _CHILDREN.get(type(node))
    if below is not None:
        for child in below(node):  # noqa: SIM110, a generator at every level costs more than the walk
            if contains(child, kind):
                return True
    return False


def contains_node(node: Node, part: Node) -> bool:
    """Whether `part` is the node or stands below it."""
    return node == part or any(contains_node(child, part) for child in children(node))


def substituted(node: Node, name: str, value: Node) -> Node:
    """The node with every free symbol of that name replaced."""
    if isinstance(node, Symbol):
        return value if node.name == name else node
    parts = children(node)
    return rebuilt(node, tuple(substituted(part, name, value) for part in parts)) if parts else node
