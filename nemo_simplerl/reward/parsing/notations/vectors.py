r"""Vectors by their unit vectors, `2\hat{i} - \hat{j} + 3\hat{k}`, as tuples of components."""

from nemo_simplerl.reward.parsing.tree import (
    IMAGINARY,
    MINUS_ONE,
    ONE,
    ZERO,
    Call,
    Matrix,
    Node,
    Power,
    Product,
    Sum,
    Symbol,
    Tuple,
)

_AXES: dict[Node, int] = {IMAGINARY: 0, Symbol("i"): 0, Symbol("j"): 1, Symbol("k"): 2}
_MARKS = frozenset({"hat", "vec", "widehat", "overrightarrow", "bar"})


def is_marked(node: Node) -> bool:
    """Whether the expression is a sum of multiples of unit vectors of which one has its mark."""
    if isinstance(node, Sum):
        return any(map(is_marked, node.terms))
    if isinstance(node, Product):
        return any(map(is_marked, node.factors))
    return isinstance(node, Call) and node.name in _MARKS and node.args[0] in _AXES


def components(node: Node, size: int) -> Tuple | None:
    """The vector of this size as a tuple; None for what is none, or has a component beyond the size."""
    if isinstance(node, Tuple):
        return node
    if isinstance(node, Matrix):
        return Tuple(tuple(row[0] for row in node.rows)) if len(node.rows[0]) == 1 else None
    found = _along_axes(node)
    if found is None or not 2 <= size <= 3 or any(axis >= size for axis in found):
        return None
    return Tuple(tuple(found.get(axis, ZERO) for axis in range(size)))


def _along_axes(node: Node) -> dict[int, Node] | None:
    """The factors of the unit vectors in a sum of their multiples; None where the node is no such sum."""
    unit = node.args[0] if isinstance(node, Call) and node.name in _MARKS else node
    if unit in _AXES:
        return {_AXES[unit]: ONE}
    if isinstance(node, Sum):
        total: dict[int, Node] = {}
        for term in node.terms:
            found = _along_axes(term)
            if found is None:
                return None
            for axis, factor in found.items():
                total[axis] = Sum((total[axis], factor)) if axis in total else factor
        return total
    if isinstance(node, Product):
        vectors = [(at, found) for at, part in enumerate(node.factors) if (found := _along_axes(part)) is not None]
        if len(vectors) != 1:
            return None
        at, vector = vectors[0]
        scalars = (*node.factors[:at], *node.factors[at + 1 :])
        if any(_divides_by_vector(factor) for factor in scalars):
            return None
        return {axis: Product((*scalars, factor)) for axis, factor in vector.items()}
    return None


def _divides_by_vector(node: Node) -> bool:
    return isinstance(node, Power) and node.exponent == MINUS_ONE and _along_axes(node.base) is not None
