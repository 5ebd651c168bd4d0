r"""Equations: which of them only name a value (x = 5, f(x) = x^2), and which are curves or conditions."""

from collections.abc import Callable
from dataclasses import dataclass

from nemo_simplerl.reward.comparing.evaluate import real_number
from nemo_simplerl.reward.comparing.exact import Undefined, exact_in_base
from nemo_simplerl.reward.comparing.points import same_values
from nemo_simplerl.reward.comparing.polynomial import proportional, rational_function
from nemo_simplerl.reward.parsing.lexicon import FUNCTIONS
from nemo_simplerl.reward.parsing.tree import (
    MINUS_ONE,
    ZERO,
    BasedNumber,
    Call,
    Matrix,
    Node,
    Number,
    Percent,
    Power,
    Product,
    Quantity,
    Ratio,
    Relation,
    SetCombination,
    Sum,
    Symbol,
    Tuple,
    Words,
    children,
    contains,
    negative,
    substituted,
    symbols_of,
)

# `trees.same`, which compares whole answers: it is passed down because it also calls up to here.
Same = Callable[[Node, Node], bool]


@dataclass(frozen=True, slots=True)
class NamedValue:
    """A value and its name; the name is None where the equation had none, as in 2 + 3 = 5.

    `rounded` is the decimal that it was said to be about.
    """

    name: Node | None
    value: Node
    rounded: Node | None = None


def named_value(node: Node, same: Same) -> NamedValue | None:
    """The name and the value of an equation chain that states one value; None for any other node.

    Every further side has to repeat the value: x = 2 + 3 = 5 is 5, and x = 5 = 6 is nothing.
    """
    if not isinstance(node, Relation) or not set(node.operators) <= {"=", "~", "in"}:
        return None
    sides, operators = list(node.sides), list(node.operators)
    if "in" in operators:
        return None
    if len(sides) == 2 and not is_name(sides[0]) and is_name(sides[1]):
        sides.reverse()
    name = sides[0] if is_name(sides[0]) else None
    if name is None and not _is_constant(sides[0]) and is_label(sides[0]):
        name = sides[0]
    values, signs = (sides[1:], operators[1:]) if name is not None else (sides, operators)
    if name is None and not all(_is_constant(value) for value in values):
        return None
    for before, sign, after in zip(values, signs, values[1:], strict=False):
        agrees = _approximates(before, after) if sign == "~" else _repeats(before, after, same)
        if not agrees:
            return None
    exact = [value for value, sign in zip(values[1:], signs, strict=True) if sign == "="]
    first = values[0] if name is not None or not _opaque(values[0]) else values[-1]
    return NamedValue(name, exact[-1] if exact else first, values[-1] if signs[-1:] == ["~"] else None)


def chained_equations(node: Node) -> tuple[Relation, ...] | None:
    """The equations x = 2, y = 2 that a chain x = y = 2 stands for; None for a chain with fewer names or no value."""
    if not isinstance(node, Relation) or len(node.sides) < 3 or set(node.operators) != {"="}:
        return None
    *names, value = node.sides
    if not all(is_name(name) for name in names) or len(set(names)) < len(names) or is_name(value):
        return None
    return tuple(Relation((name, value), ("=",)) for name in names)


def _repeats(before: Node, after: Node, same: Same) -> bool:
    """Whether a further side of a chain has the value of the one before it, which may be in another base."""
    if isinstance(before, BasedNumber) or isinstance(after, BasedNumber):
        values = [exact_in_base(side) for side in (before, after)]
        return values[0] is not None and values[0] == values[1]
    return _opaque(before) or same(before, after)


def is_name(node: Node) -> bool:
    """Whether a side of an equation is a name on its own: x, f(x), (x, y), V:W, AB, a/b."""
    if isinstance(node, (Symbol, Words)):
        return True
    if isinstance(node, Call):
        return node.name not in FUNCTIONS and node.name not in ("factorial", "binomial", "abs", "floor", "ceil", "det")
    if isinstance(node, Tuple):
        return len(node.items) > 1 and all(is_name(item) for item in node.items)
    if isinstance(node, (Ratio, SetCombination)):
        return all(is_name(part) for part in node.parts)
    if isinstance(node, Product) and all(isinstance(factor, Symbol) for factor in node.factors):
        return all(isinstance(factor, Symbol) and factor.name[0].isupper() for factor in node.factors)
    return _is_quotient_of_names(node)


def _is_quotient_of_names(node: Node) -> bool:
    if not isinstance(node, Product) or len(node.factors) != 2:
        return False
    top, bottom = node.factors
    return isinstance(bottom, Power) and bottom.exponent == MINUS_ONE and is_name(top) and is_name(bottom.base)


UNKNOWNS = frozenset("xyz")


def is_label(node: Node) -> bool:
    """Whether a left side is a quantity that a question may ask for: a + b, xy, x^2 + y^2, |z|, sin A.

    Not a multiple, for 5u + v = 2 states no value, and not a lone power, for x^2 = 4 is unsolved.
    """
    if contains(node, (Relation, Tuple)) or not symbols_of(node):
        return False
    if isinstance(node, Call):
        return node.name not in ("ln", "log") or not symbols_of(node) & UNKNOWNS  # ln x = 5 is unsolved
    return isinstance(node, (Sum, Product)) and len(symbols_of(node)) > 1 and not _has_coefficient(node)


def _has_coefficient(node: Node) -> bool:
    if isinstance(node, Number):
        return abs(node.value) != 1
    if isinstance(node, Power):
        return _has_coefficient(node.base)
    return any(_has_coefficient(child) for child in children(node))


def _is_constant(node: Node) -> bool:
    return not symbols_of(node) or _opaque(node)


def _opaque(node: Node) -> bool:
    """Whether the node is an operation that is never carried out: a sum, a limit, a determinant."""
    return isinstance(node, Call) and (node.name in ("sum", "prod", "int", "lim", "det") or contains(node, Matrix))


def _approximates(exact_side: Node, decimal: Node) -> bool:
    """Whether the decimal is a rounding of the side before it, to its own precision."""
    value, rounded = real_number(exact_side), real_number(decimal)
    if value is None or rounded is None:
        return False
    return bool(abs(value - rounded) <= 0.501 * 10.0 ** -_places(decimal))


def _places(node: Node) -> int:
    """The decimals to which a number is written, also one with a sign, a unit or a percent sign."""
    if isinstance(node, Number):
        return node.places or 0
    if isinstance(node, Percent):
        return _places(node.body) + 2
    if isinstance(node, (Quantity, Product)):
        return max(map(_places, children(node)))
    return 0


_Y = Symbol("y")
_DERIVED_Y = Call("prime", (_Y,))


def same_name(one: Node | None, two: Node | None) -> bool:
    """Whether two names may denote the same value: one is missing, both are equal, or one is y and one f(x)."""
    if one is None or two is None or one == two:
        return True
    return any(
        isinstance(right, Call)
        and right.args == (Symbol("x"),)
        and (left == _Y or (right.name[1:] == "'" and left == _DERIVED_Y))
        for left, right in ((one, two), (two, one))
    )


def with_argument_of(target: Node | None, statement: NamedValue) -> NamedValue:
    """The statement f(z) = z as f(x) = x, where the target is f(x): the argument of a definition is a bound name."""
    name = statement.name
    if not (isinstance(target, Call) and isinstance(name, Call) and len(target.args) == len(name.args) == 1):
        return statement
    old, new = name.args[0], target.args[0]
    if target.name != name.name or not isinstance(old, Symbol) or not isinstance(new, Symbol) or old == new:
        return statement
    if new.name in symbols_of(statement.value):
        return statement
    return NamedValue(target, substituted(statement.value, old.name, new))


def same_relation(gold: Relation, answer: Relation, same: Same) -> bool:
    """Whether two relations say the same: side by side, mirrored, or as equations up to a factor."""
    if len(gold.sides) == len(answer.sides):
        for other in (answer, _mirrored(answer)):
            if other.operators == gold.operators and all(map(same, gold.sides, other.sides)):
                return True
    if gold.operators == ("=",) == answer.operators:
        return _same_curve(gold, answer)
    if len(gold.operators) == len(answer.operators) == 1:
        return any(_same_inequality(gold, other) for other in (answer, _mirrored(answer)))
    return False


_MIRROR = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def _mirrored(relation: Relation) -> Relation:
    operators = tuple(_MIRROR.get(operator, operator) for operator in reversed(relation.operators))
    return Relation(tuple(reversed(relation.sides)), operators)


def _difference(relation: Relation) -> Node:
    return Sum((relation.sides[0], negative(relation.sides[1])))


def _same_curve(gold: Relation, answer: Relation) -> bool:
    """Whether the differences of the sides are proportional, and not both zero everywhere."""
    one, two = _difference(gold), _difference(answer)
    if not symbols_of(one) or not symbols_of(two):
        return False
    try:
        left, right = rational_function(one), rational_function(two)
        if left is None or right is None or not left.top or not right.top:
            return False
        if proportional(left, right) is not None:
            return True
        # Curves are also the same with the denominators cleared.
        if proportional(left.numerator(), right.numerator()) is not None:
            return True
        if left.pure and right.pure or not (same_values(one, two) or same_values(one, negative(two))):
            return False
        return not same_values(one, ZERO)  # an identity, true of every point, is no curve
    except Undefined:
        return False


def _same_inequality(gold: Relation, answer: Relation) -> bool:
    if gold.operators != answer.operators or not set(gold.operators) <= {"<", ">", "<=", ">=", "!="}:
        return False
    if not symbols_of(gold) or symbols_of(gold) != symbols_of(answer):
        return False
    try:
        left, right = rational_function(_difference(gold)), rational_function(_difference(answer))
        factor = proportional(left, right) if left is not None and right is not None else None
    except Undefined:
        return False
    return factor is not None and (factor > 0 or gold.operators == ("!=",))
