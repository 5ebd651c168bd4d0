r"""Matrices: their environments, rows in brackets, transposes, and scalars before them.

A scalar times a matrix and a sum of matrices are carried out, entry by entry. A product of matrices is not.
"""

from collections.abc import Callable

from nemo_simplerl.reward.parsing.brackets import Separators, Tokens, is_enclosed, split_top_level
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
from nemo_simplerl.reward.parsing.tree import (
    Call,
    Interval,
    Matrix,
    Node,
    PlusMinus,
    Power,
    Product,
    SetOf,
    Sum,
    Symbol,
    Tuple,
    children,
    rebuilt,
)

_MATRICES = frozenset({"pmatrix", "bmatrix", "matrix", "array", "vmatrix", "Bmatrix", "smallmatrix", "Vmatrix"})
_MATRICES |= {f"{kind}smallmatrix" for kind in "pb"}
TEX_MATRICES = frozenset({"pmatrix", "bmatrix", "matrix"})  # also commands of plain TeX
_SCALAR_SIGNS = frozenset({"frac", "sqrt", "pi", "{", "}", "-", "/", "cdot", "times"})
_TRANSPOSED = Symbol("T")
_LINE_ENDS = Separators(("command", "\\"))
_CELL_ENDS = Separators(("sign", "&"))
_COMMAS = Separators(("sign", ","))


def read_environment(environment: str, content: Tokens, parse: Callable[[Tokens], Node]) -> Node:
    """The node of an environment: a matrix, a determinant, the one entry of a matrix of one, the cases of a function.

    The cases become a set of pairs, a value and its condition, because their order says nothing.
    """
    lines, _ = split_top_level(content, _LINE_ENDS)
    rows = [_cells(line) for line in lines if line]
    if environment == "cases":
        return _cases(rows, parse)
    if environment not in _MATRICES:
        raise NotParsed(f"environment {environment!r}")
    matrix = _matrix(rows, parse)
    if environment == "vmatrix":
        return Call("det", (matrix,))
    return matrix.rows[0][0] if len(rows) == len(rows[0]) == 1 else matrix


def _cells(line: Tokens) -> list[Tokens]:
    return split_top_level(line, _CELL_ENDS)[0]


def _matrix(rows: list[list[Tokens]], parse: Callable[[Tokens], Node]) -> Matrix:
    if not rows or len({len(row) for row in rows}) > 1:
        raise NotParsed("rows of different lengths")
    return Matrix(tuple(tuple(parse(entry) for entry in row) for row in rows))


def _cases(rows: list[list[Tokens]], parse: Callable[[Tokens], Node]) -> Node:
    pairs: list[Node] = []
    for row in rows:
        value, condition = row[0], tuple(token for cell in row[1:] for token in cell)
        while value and value[-1].text in (",", ";"):
            value = value[:-1]
        while condition and (condition[0].text.lower() in ("if", "for", "when", ",") or condition[-1].text in ",;."):
            condition = condition[1:] if condition[0].text.lower() in ("if", "for", "when", ",") else condition[:-1]
        if not value or not condition:
            raise NotParsed("a case without its value or its condition")
        pairs.append(Tuple((parse(value), parse(condition))))
    return SetOf(tuple(pairs))


def read_rows(parts: list[Tokens], separators: list[Token], parse: Callable[[Tokens], Node]) -> Matrix | None:
    """The matrix [[1, 2], [3, 4]] or [1, 2; 3, 4] between whose outer brackets these items stand; None without rows."""
    if all(part[0].text == "[" and part[-1].text == "]" and is_enclosed(part) for part in parts):
        return _matrix([_row(part[1:-1]) for part in parts], parse)
    ends = [separator.text for separator in separators]
    if ";" not in ends or "," not in ends:
        return None
    rows: list[list[Tokens]] = [[]]
    for part, end in zip(parts, [*ends, ""], strict=True):
        rows[-1].append(part)
        if end == ";":
            rows.append([])
    return _matrix(rows, parse)


def _row(inside: Tokens) -> list[Tokens]:
    cells = split_top_level(inside, _COMMAS)[0]
    if not all(cells):
        raise NotParsed("an empty place in a row")
    return cells


def split_transpose(tokens: Tokens) -> Tokens | None:
    r"""The bracket before the exponent of (1, 2)^T; None without one."""
    if len(tokens) < 4 or tokens[-1].text not in ("T", "}"):
        return None
    bare = tuple(token for token in tokens[-4:] if token.text not in ("{", "}") or token.kind == "command")
    end = next((at for at in range(len(tokens) - 1, 0, -1) if tokens[at].text == "^"), 0)
    if not end or len(bare) < 2 or bare[-1].text != "T" or bare[-2].text != "^" or not is_enclosed(tokens[:end]):
        return None
    return tokens[:end]


def split_scalar(tokens: Tokens) -> tuple[Tokens, Tokens] | None:
    r"""The number and the coordinates of 2(1, 3) and \frac12\langle 1, 3\rangle; None for any other form."""
    if len(tokens) < 6 or tokens[-1].text not in (")", "rangle"):
        return None
    opening = next((at for at in range(1, len(tokens)) if is_enclosed(tokens[at:])), 0)
    scalar, bracket = tokens[:opening], tokens[opening:]
    if not scalar or not all(token.kind == "number" or token.text in _SCALAR_SIGNS for token in scalar):
        return None
    return (scalar, bracket) if any(token.text == "," for token in bracket) else None


def transposed(node: Node) -> Node | None:
    """The transpose of a matrix; a tuple stands for a column as it is. None for other nodes."""
    if isinstance(node, Matrix):
        return Matrix(tuple(zip(*node.rows, strict=True)))
    if isinstance(node, Interval):
        return Tuple((node.low, node.high))
    return node if isinstance(node, Tuple) else None


def carried_out(node: Node) -> Node:
    """The node with scalars multiplied into matrices, and sums of matrices added up.

    NotParsed for a product of matrices, whose order counts, and for a sum of a matrix and anything else.
    """
    parts = children(node)
    if not parts:
        return node
    node = rebuilt(node, tuple(carried_out(part) for part in parts))
    if isinstance(node, Product):
        return _product(node)
    if isinstance(node, Power) and isinstance(node.base, Matrix) and node.exponent == _TRANSPOSED:
        return transposed(node.base) or node
    if isinstance(node, Sum) and any(_is_matrix(term) for term in node.terms):
        return _sum(node.terms)
    return node


def _product(node: Product) -> Node:
    matrices = [factor for factor in node.factors if _is_matrix(factor)]
    if len(matrices) > 1:
        raise NotParsed("a product of matrices")
    if not matrices or not isinstance(matrices[0], Matrix):
        return node
    scalars = tuple(factor for factor in node.factors if factor is not matrices[0])
    return Matrix(tuple(tuple(Product((*scalars, entry)) for entry in row) for row in matrices[0].rows))


def _sum(terms: tuple[Node, ...]) -> Node:
    shapes = {(len(term.rows), len(term.rows[0])) if isinstance(term, Matrix) else None for term in terms}
    if len(shapes) > 1 or None in shapes:
        raise NotParsed("a sum of a matrix and something else")
    matrices = [term for term in terms if isinstance(term, Matrix)]
    return Matrix(
        tuple(
            tuple(Sum(entries) for entries in zip(*rows, strict=True))
            for rows in zip(*(matrix.rows for matrix in matrices), strict=True)
        )
    )


def _is_matrix(node: Node) -> bool:
    if isinstance(node, Power):
        return _is_matrix(node.base)
    if isinstance(node, PlusMinus):
        return _is_matrix(node.body)
    return isinstance(node, Matrix) or (isinstance(node, Product) and any(map(_is_matrix, node.factors)))
