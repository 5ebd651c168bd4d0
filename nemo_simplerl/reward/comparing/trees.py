r"""Whether two trees say the same, type by type."""

from fractions import Fraction

from nemo_simplerl.reward.comparing.collections_ import is_collection, same_collection
from nemo_simplerl.reward.comparing.equations import (
    UNKNOWNS,
    NamedValue,
    chained_equations,
    is_label,
    is_name,
    named_value,
    same_name,
    same_relation,
    with_argument_of,
)
from nemo_simplerl.reward.comparing.exact import exact
from nemo_simplerl.reward.comparing.reals.realset import is_set_like, same_set
from nemo_simplerl.reward.comparing.residues import congruent, is_least_residue
from nemo_simplerl.reward.comparing.values import same_expression
from nemo_simplerl.reward.parsing.lexicon import SHARES
from nemo_simplerl.reward.parsing.notations.bases import written_digits
from nemo_simplerl.reward.parsing.notations.compound_units import counted, unit_size
from nemo_simplerl.reward.parsing.notations.qualifiers import is_membership, split_conditions
from nemo_simplerl.reward.parsing.notations.vectors import components, is_marked
from nemo_simplerl.reward.parsing.tree import (
    PI,
    BasedNumber,
    Call,
    ClockTime,
    Constant,
    Degrees,
    Interval,
    Listing,
    Matrix,
    Modular,
    Node,
    Number,
    Percent,
    PlusMinus,
    Power,
    Product,
    Quantity,
    Ratio,
    Relation,
    SetOf,
    Sum,
    Symbol,
    Tuple,
    Words,
    contains,
    contains_node,
    quotient,
    symbols_of,
)


def same(gold: Node, answer: Node) -> bool:
    """Whether two trees are the same answer."""
    if type(gold) is type(answer) is Number:
        return same_expression(gold, answer)
    plain = type(gold) in _EXPRESSIONS and type(answer) in _EXPRESSIONS
    for compared in _OF_EXPRESSIONS if plain else _COMPARISONS:
        verdict = compared(gold, answer)
        if verdict is not None:
            return verdict
    return False


def _compare_words_and_units(gold: Node, answer: Node) -> bool | None:
    """Compare words, quantities with units, values with a modulus, and sets of one item."""
    if isinstance(gold, Words) or isinstance(answer, Words):
        return gold == answer or (isinstance(gold, Words) and isinstance(answer, Words) and _same_words(gold, answer))
    if isinstance(gold, Quantity) or isinstance(answer, Quantity):
        # The value of an equation may have a unit of its own.
        return None if isinstance(gold, Relation) or isinstance(answer, Relation) else _same_quantity(gold, answer)
    if isinstance(gold, Modular) and isinstance(answer, Modular):
        return same(gold.modulus, answer.modulus) and (same(gold.body, answer.body) or congruent(gold, answer))
    if isinstance(gold, Modular) or isinstance(answer, Modular):
        for one, two in ((gold, answer), (answer, gold)):
            if isinstance(one, Relation) and isinstance(two, Modular):
                named = one.operators == ("==",) and is_name(one.sides[0])
                return named and same(*((one.sides[1], two) if one is gold else (two, one.sides[1])))
    if isinstance(answer, Modular) and not isinstance(gold, Relation):
        return is_least_residue(answer) and same(gold, answer.body)
    for one, two in ((gold, answer), (answer, gold)):
        if isinstance(one, SetOf) and len(one.items) == 1 and not is_collection(two) and not is_set_like(two):
            return same(one.items[0], answer) if one is gold else same(gold, one.items[0])
    return None


def _same_words(gold: Words, answer: Words) -> bool:
    strip = ("a ", "an ", "the ")
    left, right = (
        next((text[len(a) :] for a in strip if text.startswith(a)), text) for text in (gold.text, answer.text)
    )
    return left == right


_TEMPERATURES = frozenset({"C", "F", "K", "Celsius", "Fahrenheit", "celsius", "fahrenheit", "kelvin"})


def _same_quantity(gold: Node, answer: Node) -> bool:
    """Whether the values agree without their units; where both units have one dimension, the values are converted."""
    if isinstance(gold, (Percent, Degrees)) or isinstance(answer, (Percent, Degrees)):
        return False
    one = gold if isinstance(gold, Quantity) else Quantity(gold, "")
    two = answer if isinstance(answer, Quantity) else Quantity(answer, "")
    if one.unit[-1:] != two.unit[-1:] and {one.unit, two.unit} <= _TEMPERATURES:
        return False
    if not one.unit and (share := SHARES.get(two.unit)) is not None:  # 5 ppm is 5 only where the gold answer has a unit
        return same(one.body, Product((Number(share), two.body)))
    left, right = unit_size(one.unit), unit_size(two.unit)
    if left is None or right is None or not one.unit or not two.unit:
        return same(one.body, two.body)
    if counted(left[1]) != counted(right[1]):
        return False  # 12 cm^2 and 12 cm^3
    if left[1] != right[1] or left[0] == right[0]:
        return same(one.body, two.body)
    scale = Number(right[0] / left[0])
    return same(one.body, Product((scale, two.body)))


def _compare_qualified(gold: Node, answer: Node) -> bool | None:
    """Compare answers with conditions on their symbols: `2x, x > 0`.

    Conditions on both sides have to agree. On one side alone they may only say what kind of number a symbol is; an
    expression in the answer may also say where it holds, because it is compared wherever it is defined.
    """
    if not isinstance(gold, Listing) and not isinstance(answer, Listing):
        return None
    (value, conditions), (other, others) = split_conditions(gold), split_conditions(answer)
    if not conditions and not others:
        return None
    if conditions and others:
        agree = len(conditions) == len(others) and all(any(same(one, two) for two in others) for one in conditions)
        return agree and same(value, other)
    if conditions:
        return same(value, answer) if all(is_membership(condition, value) for condition in conditions) else None
    if isinstance(gold, Relation) or is_collection(gold):
        free = all(is_membership(condition, other) for condition in others)
    else:
        # k > 0 leaves out half of the solutions k pi, and x > 5 all of those of |x| = 4.
        solved = not contains_node(other, PI) and (not isinstance(other, Relation) or is_name(other.sides[0]))
        free = all(
            is_membership(condition, other) or (condition.operators != ("in",) and solved) for condition in others
        )
    return same(gold, other) if free else None


def _compare_whole_types(gold: Node, answer: Node) -> bool | None:
    """Compare the types without arithmetic across types: times of day, numbers in a base, matrices, ratios."""
    if isinstance(gold, ClockTime) or isinstance(answer, ClockTime):
        return gold == answer
    if isinstance(gold, BasedNumber) or isinstance(answer, BasedNumber):
        return None if isinstance(gold, Relation) or isinstance(answer, Relation) else _same_digits(gold, answer)
    if is_marked(gold) or is_marked(answer) or isinstance(gold, (Matrix, Tuple)) != isinstance(answer, (Matrix, Tuple)):
        size = max((_num_components(node) for node in (gold, answer)), default=0)
        one, two = components(gold, size), components(answer, size)
        if one is not None and two is not None:
            return len(one.items) == len(two.items) and all(map(same, one.items, two.items))
    if isinstance(gold, Ratio) or isinstance(answer, Ratio):
        return _same_ratio(gold, answer)
    if isinstance(gold, Matrix) and isinstance(answer, Interval) and answer.low_closed and answer.high_closed:
        answer = Tuple((answer.low, answer.high))  # the column [1, 3]
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        if not isinstance(answer, (Matrix, Tuple)) or not isinstance(gold, (Matrix, Tuple)):
            return None if isinstance(gold, Relation) or isinstance(answer, Relation) else False
        left, right = _rows(gold), _rows(answer)
        if len(left) != len(right):
            return False
        return all(len(one) == len(two) and all(map(same, one, two)) for one, two in zip(left, right, strict=True))
    return None


def _num_components(node: Node) -> int:
    """The size of a vector; 3 where it is a sum of unit vectors, which may leave one out."""
    if isinstance(node, Tuple):
        return len(node.items)
    return len(node.rows) if isinstance(node, Matrix) else 0


def _same_digits(gold: Node, answer: Node) -> bool:
    """Whether two numbers agree of which one has a written base.

    A question that asks for a base names it, so bare digits are right where the gold answer has the base. The other
    way round bare digits are in base ten.
    """
    if isinstance(gold, BasedNumber) and isinstance(answer, BasedNumber):
        return gold == answer
    if isinstance(gold, BasedNumber):
        return written_digits(answer) == gold.digits
    return isinstance(answer, BasedNumber) and answer.base == 10 and written_digits(gold) == answer.digits


def _rows(node: Matrix | Tuple) -> tuple[tuple[Node, ...], ...]:
    """The rows of a matrix; a tuple stands for a column vector, not for a row."""
    if isinstance(node, Matrix):
        return node.rows
    return tuple((item,) for item in node.items)


def _same_ratio(gold: Node, answer: Node) -> bool | None:
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return None
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        if len(gold.parts) != len(answer.parts):
            return False
        if all(map(same, gold.parts, answer.parts)):
            return True
        cross = zip(gold.parts[1:], answer.parts[1:], strict=True)
        first, second = gold.parts[0], answer.parts[0]
        return all(
            exact(one) != 0 and exact(two) != 0 and same_expression(Product((first, two)), Product((second, one)))
            for one, two in cross
        )
    for ratio, other in ((gold, answer), (answer, gold)):
        if isinstance(ratio, Ratio) and len(ratio.parts) == 2 and not is_collection(other):
            value = quotient(ratio.parts[0], ratio.parts[1])
            return same(value, other) if ratio is gold else same(other, value)
    return False


def _compare_sets(gold: Node, answer: Node) -> bool | None:
    """Compare both as sets of reals where one side can only be one."""
    if not is_set_like(gold) and not is_set_like(answer):
        return None
    if same_set(gold, answer, same):
        return True
    stated, other = named_value(gold, same), named_value(answer, same)
    if isinstance(gold, Relation) and isinstance(answer, Relation) and (stated is None) == (other is None):
        if gold.operators == answer.operators == ("in",):
            return same(gold.sides[0], answer.sides[0]) and same(gold.sides[1], answer.sides[1])
        return same_relation(gold, answer, same)
    for one, two in ((gold, answer), (answer, gold)):
        if isinstance(one, Relation) and one.operators == ("in",) and not isinstance(two, Relation):
            return same(one.sides[1], answer) if one is gold else same(gold, one.sides[1])
    if (stated is None) != (other is None):  # M = (0, 4)
        return same(stated.value if stated else gold, other.value if other else answer)
    if isinstance(gold, Listing) and isinstance(answer, Listing):
        return same_collection(gold, answer, same)
    return False


def _compare_equations(gold: Node, answer: Node) -> bool | None:
    """Compare an equation with a value or with another equation."""
    if not isinstance(gold, Relation) and not isinstance(answer, Relation):
        return None
    if is_collection(gold) and not isinstance(gold, Tuple) or is_collection(answer) and not isinstance(answer, Tuple):
        return None
    golds, answers = chained_equations(gold), chained_equations(answer)
    if (golds or answers) and (is_collection(gold) or is_collection(answer)):
        return None
    if answers and not golds:
        return any(same(gold, part) for part in answers)
    if golds and not isinstance(answer, Relation):
        return same(golds[0].sides[1], answer)
    left, right = named_value(gold, same), named_value(answer, same)
    if left is not None and right is not None:
        right = with_argument_of(left.name, right)
        if same_name(left.name, right.name) and _same_value(left, right):
            return True
        if isinstance(left.value, Quantity) and isinstance(right.value, Quantity):
            return False
    elif left is not None and not isinstance(answer, Relation):
        return _names_alone(left) and _same_value(left, NamedValue(None, answer))
    elif right is not None and not isinstance(gold, Relation):
        in_both_bases = isinstance(gold, BasedNumber) and isinstance(answer, Relation) and gold in answer.sides
        return _states_value(right) and (in_both_bases or _same_value(NamedValue(None, gold), right))
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return same_relation(gold, answer, same)
    return False


def _states_value(statement: NamedValue) -> bool:
    """Whether the statement gives a value. A sum of symbols equal to zero is an equation in standard form instead."""
    name = statement.name
    if name is None or is_name(name):
        return True
    return is_label(name) and not (isinstance(name, Sum) and statement.value == Number(Fraction(0)))


def _names_alone(statement: NamedValue) -> bool:
    """Whether a gold answer is a value under a name. a + b = 5 and |x| = 5 are not: they are curves and conditions."""
    name = statement.name
    if name is None or is_name(name):
        return True
    return isinstance(name, Call) and not symbols_of(statement.value) and not symbols_of(name) & UNKNOWNS


def _same_value(gold: NamedValue, answer: NamedValue) -> bool:
    return same(gold.value, answer.value) or (gold.rounded is not None and same(gold.rounded, answer.value))


def _compare_collections(gold: Node, answer: Node) -> bool | None:
    """Compare lists, sets, tuples, and expressions with a plus-minus sign."""
    if is_collection(gold) or is_collection(answer) or contains(gold, PlusMinus) or contains(answer, PlusMinus):
        return same_collection(gold, answer, lambda one, two: one == two or _same_item(one, two))
    return None


def _same_item(gold: Node, answer: Node) -> bool:
    if gold == answer:
        return True
    if isinstance(gold, PlusMinus) or isinstance(answer, PlusMinus):
        return False
    return same(gold, answer)


# In this order; each returns None where the two nodes are not its to compare.
_COMPARISONS = (
    _compare_words_and_units,
    _compare_qualified,
    _compare_whole_types,
    _compare_sets,
    _compare_equations,
    _compare_collections,
    same_expression,
)
_EXPRESSIONS = frozenset({Number, Symbol, Constant, Sum, Product, Power, Call})
_OF_EXPRESSIONS = tuple(
    compared
    for compared in _COMPARISONS
    if compared not in (_compare_words_and_units, _compare_qualified, _compare_equations)
)
