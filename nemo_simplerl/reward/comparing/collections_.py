r"""Lists, sets and tuples: what counts as the same collection."""

from collections import Counter
from dataclasses import replace

from nemo_simplerl.reward.comparing.equations import (
    NamedValue,
    Same,
    chained_equations,
    named_value,
    same_name,
    with_argument_of,
)
from nemo_simplerl.reward.comparing.evaluate import real_number
from nemo_simplerl.reward.comparing.exact import Undefined, exact
from nemo_simplerl.reward.comparing.plus_minus import TooManySigns, expansions
from nemo_simplerl.reward.parsing.tree import (
    ELLIPSIS,
    Listing,
    Node,
    Number,
    Quantity,
    Relation,
    SetOf,
    Symbol,
    Tuple,
    Words,
    contains,
)

_MAX_COMPARED = 60  # items left to compare pair by pair after equal ones are paired


def is_collection(node: Node) -> bool:
    """Whether the node is a list, a set or a tuple."""
    return isinstance(node, (Listing, SetOf, Tuple))


def same_collection(gold: Node, answer: Node, same: Same) -> bool:
    """Whether two collections agree; a single value is the collection of itself. Order counts in tuples only."""
    gold, answer = _named_collection(gold, same), _named_collection(answer, same)
    if isinstance(gold, Tuple) and isinstance(answer, Tuple):
        return same_in_order(gold.items, answer.items, same)
    if isinstance(gold, Tuple) or isinstance(answer, Tuple):
        return _tuple_and_list(gold, answer, same)
    try:
        left, right = statements(gold, same), statements(answer, same)
    except TooManySigns:
        return gold == answer
    if left is None or right is None:
        return False
    if any(part.value == ELLIPSIS for part in (*left, *right)):
        return same_in_order([part.value for part in left], [part.value for part in right], same)
    solutions = all(isinstance(part.value, Tuple) for part in (*left, *right))  # a set of points, whatever is repeated
    if solutions or isinstance(gold, SetOf) or isinstance(answer, SetOf):
        left, right = _distinct(left, same), _distinct(right, same)
    if len(left) != len(right):
        return False
    if _alternatives(gold) != _alternatives(answer) and (
        (_in_order(left) and _in_order(right)) or all(isinstance(part.value, (Words, Relation)) for part in left)
    ):
        return False  # x = 3 or y = 4; Alice or Bob
    if _in_order(left) and not any(part.name for part in right):
        return same_in_order([part.value for part in left], [part.value for part in right], same)
    return _match(left, right, same)


def _alternatives(node: Node) -> bool:
    """Whether only one item need hold: x = 3 or y = 4."""
    return isinstance(node, Listing) and node.joiner == "or"


def _named_collection(node: Node, same: Same) -> Node:
    """The value of (x, y) = (1, 2) and S = {1, 2}, and x = y = 2 as a list of equations; any other node as it is."""
    if not isinstance(node, Relation):
        return node
    if (equations := chained_equations(node)) is not None:
        return Listing(equations)
    statement = named_value(node, same)
    return statement.value if statement is not None and isinstance(statement.value, (Tuple, SetOf)) else node


def same_in_order(left: "tuple[Node, ...] | list[Node]", right: "tuple[Node, ...] | list[Node]", same: Same) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def _tuple_and_list(gold: Node, answer: Node, same: Same) -> bool:
    """Whether a tuple and a list agree in order: (1, 2) and x = 1, y = 2. False where the tuple may be an interval."""
    pair, other = (gold, answer) if isinstance(gold, Tuple) else (answer, gold)
    if not isinstance(pair, Tuple) or not isinstance(other, Listing):
        return False
    try:
        parts = statements(other, same)
    except TooManySigns:
        return False
    if parts is None or len(parts) != len(pair.items):
        return False
    names = [part.name for part in parts if part.name]
    if len(set(names)) < len(names) or (len(names) > 1 and _alternatives(other)):  # x = 1, x = 2 are two solutions
        return False
    if len(names) < len(parts) == 2 and _rises(pair):
        return False
    values = [part.value for part in parts]
    if pair is gold:
        return same_in_order(pair.items, values, same)
    return same_in_order(values, pair.items, same)


def _rises(pair: Tuple) -> bool:
    low, high = (real_number(item) for item in pair.items)
    return low is None or high is None or bool(low < high)


def statements(node: Node, same: Same) -> list[NamedValue] | None:
    r"""The items as named values, `\pm` written out. None where an equation among them states no value."""
    items = node.items if isinstance(node, (Listing, SetOf)) else (node,)
    found: list[NamedValue] = []
    for item in items:
        if isinstance(item, Listing):  # p = 5, q = 2; p = 7, q = 2
            parts = statements(item, same)
            if parts is None:
                return None
            found.append(NamedValue(None, Tuple(tuple(part.value for part in parts))))
            continue
        if isinstance(item, Relation):
            statement = named_value(item, same)
            if statement is None:
                found.append(NamedValue(None, item))
                continue
        else:
            statement = NamedValue(None, item)
        values = expansions(statement.value)
        if values is None and isinstance(statement.value, Listing):
            values = list(statement.value.items)
        found += [replace(statement, value=value) for value in values or [statement.value]]
    if len(found) > 1 and found[0].name is not None and not any(part.name for part in found[1:]):
        found = [replace(part, name=None) for part in found]  # a = 4, -8, -10
    return found


def _in_order(parts: list[NamedValue]) -> bool:
    """Whether names fix the order of the values: a = 1, b = 2; not x = 1, x = 2 and not x_1 = 1, x_2 = 2."""
    names = [part.name for part in parts]
    if len(parts) < 2 or not all(names):
        return False
    stems = {name.name.partition("_")[0] if isinstance(name, Symbol) else str(name) for name in names}
    return len(stems) == len(names)


def _distinct(parts: list[NamedValue], same: Same) -> list[NamedValue]:
    """The items without repetitions."""
    found: list[NamedValue] = []
    keys: set[Node] = set()
    for part in parts:
        key = _key(part.value)
        if key not in keys and (len(parts) > _MAX_COMPARED or not any(same(old.value, part.value) for old in found)):
            keys.add(key)
            found.append(part)
    return found


def _key(node: Node) -> Node:
    """A node that is equal for equal rational values, so that these pair without a comparison."""
    if isinstance(node, Quantity):  # units may differ
        return node
    try:
        value = exact(node)
    except Undefined:
        return node
    return node if value is None else Number(value)


def _match(left: list[NamedValue], right: list[NamedValue], same: Same) -> bool:
    """Whether the items pair off. Names count where both items have one."""
    if not any(part.name for part in left) or not any(part.name for part in right):
        left, right = _unpaired(left, right)
    if len(left) > _MAX_COMPARED:
        return False
    rest = list(right)
    for part in left:
        at = next((at for at, other in enumerate(rest) if _same_statement(part, other, same)), None)
        if at is None:
            return False
        rest.pop(at)
    return not rest


def _unpaired(left: list[NamedValue], right: list[NamedValue]) -> tuple[list[NamedValue], list[NamedValue]]:
    """The items that remain on both sides once items with equal keys are paired."""
    if any(contains(part.value, (Relation, Listing)) for part in (*left, *right)):
        return left, right
    common = Counter(_key(part.value) for part in left) & Counter(_key(part.value) for part in right)
    return _without(left, common), _without(right, common)


def _without(parts: list[NamedValue], common: "Counter[Node]") -> list[NamedValue]:
    remaining = Counter(common)
    rest: list[NamedValue] = []
    for part in parts:
        key = _key(part.value)
        if remaining[key]:
            remaining[key] -= 1
        else:
            rest.append(part)
    return rest


def _same_statement(gold: NamedValue, answer: NamedValue, same: Same) -> bool:
    answer = with_argument_of(gold.name, answer)
    return same_name(gold.name, answer.name) and same(gold.value, answer.value)
