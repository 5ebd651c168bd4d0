r"""The commands of an expression: constants, fractions, roots, functions, sums with bounds, matrices."""

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from nemo_simplerl.reward.parsing import numerals
from nemo_simplerl.reward.parsing.brackets import Separators, Tokens, closing_index, split_top_level
from nemo_simplerl.reward.parsing.lexicon import FUNCTIONS, INVERSES, words_of
from nemo_simplerl.reward.parsing.notations.matrices import TEX_MATRICES, read_environment
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
from nemo_simplerl.reward.parsing.tree import (
    ELLIPSIS,
    EULER,
    IMAGINARY,
    INFINITY,
    ONE,
    PI,
    Call,
    Node,
    Number,
    Power,
    Product,
    Symbol,
    negative,
    quotient,
)

if TYPE_CHECKING:  # the two parse each other's arguments
    from nemo_simplerl.reward.parsing.expression import ExpressionParser

_COMMAND_CONSTANTS = {"pi": PI, "infty": INFINITY, "ldots": ELLIPSIS}
_GREEK = words_of(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
    "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar emptyset aleph "
    "partial nabla"
)
_ACCENTS = frozenset(["overline", "bar", "hat", "vec", "overrightarrow", "tilde", "widehat", "dot", "ddot", "overarc"])
_GEOMETRY = frozenset(["angle", "triangle", "measuredangle", "odot"])
_INFIX = Separators(("command", "choose"), ("command", "over"))
_BIG = frozenset(["sum", "prod", "int", "iint", "oint", "lim", "bigcup", "bigcap"])

_NOT_FACTORS = words_of(
    "cdot times div pm mp le ge ne approx equiv in notin cup cap setminus mid to pmod bmod mod currency { "
    r"} \ rfloor rceil rangle subset subseteq Rightarrow Leftrightarrow wedge vee forall exists circ prime "
    "sim vert choose over iff implies propto perp parallel cong centsign"
)


def starts_factor(command: str) -> bool:
    """Whether the command can begin a factor of a product without a multiplication sign."""
    return command not in _NOT_FACTORS and not command.startswith("end ")


def read_command(parser: "ExpressionParser", token: Token) -> Node:
    r"""The node of the command `token`, which the parser has just passed: a constant, \frac, \sin, a matrix, ..."""
    name = token.text
    if name in _COMMAND_CONSTANTS:
        return _COMMAND_CONSTANTS[name]
    if name == "frac":
        top = parser.argument(single_digit=True)
        below = parser.peek()
        if below is not None and below.kind == "number" and len(below.text) > 1:
            raise NotParsed("a denominator of which TeX takes the first digit alone")
        return quotient(top, parser.argument(single_digit=True))
    if name == "sqrt":
        return _root(parser)
    if name == "binom":
        return Call("binomial", (parser.argument(single_digit=True), parser.argument(single_digit=True)))
    if name in FUNCTIONS:
        return _function(parser, name)
    if name in _GREEK:
        return Symbol(parser.subscripted(name))
    if name in ("lfloor", "lceil"):
        end = closing_index(parser.tokens, parser.at - 1)
        content = parser.tokens[parser.at : end]
        if parser.tokens[end].text != "r" + name[1:]:
            raise NotParsed("brackets of two kinds")
        parser.at = end + 1
        return Call("floor" if name == "lfloor" else "ceil", (parser.inner(content),))
    if name == "vert":
        return parser.bracketed(Token("sign", "|"))
    if name in _ACCENTS:
        return Call(name, (parser.argument(single_digit=True),))
    if name in _GEOMETRY:
        return numerals.read_figure(parser, name)
    if name in _BIG:
        return _big_operator(parser, name)
    if name.startswith("begin ") or (name in TEX_MATRICES and parser.next_is("sign", "{")):
        return _matrix(parser, name.partition(" ")[2])
    raise NotParsed(f"unknown command {name!r}")


def infix(content: Tokens, parse: Callable[[Tokens], Node]) -> Node | None:
    r"""The binomial n \choose k or the fraction a \over b that all of the tokens are; None without such a command."""
    parts, signs = split_top_level(content, _INFIX)
    if len(signs) != 1 or not all(parts):
        return None
    top, bottom = parse(parts[0]), parse(parts[1])
    return quotient(top, bottom) if signs[0].text == "over" else Call("binomial", (top, bottom))


def _root(parser: "ExpressionParser") -> Node:
    r"""`\sqrt[n]{x}` as the power x^{1/n}."""
    index: Node = Number(Fraction(2))
    if parser.next_is("sign", "["):
        end = closing_index(parser.tokens, parser.at)
        index = parser.inner(parser.tokens[parser.at + 1 : end])
        parser.at = end + 1
    body = parser.argument(single_digit=False)
    exponent = Number(1 / index.value) if isinstance(index, Number) and index.value else quotient(ONE, index)
    return Power(body, exponent)


def _function(parser: "ExpressionParser", name: str) -> Node:
    r"""A function with its subscript, exponent and argument: `\log_2 x`, `\sin^2 x`."""
    base: Node | None = None
    if parser.next_is("sign", "_"):
        parser.take()
        base = parser.argument(single_digit=False)
    exponent: Node | None = None
    if parser.next_is("sign", "^"):
        parser.take()
        sign = parser.take().text if parser.next_is("sign", "-") else ""
        exponent = parser.argument(single_digit=False)
        exponent = negative(exponent) if sign else exponent
    name, exponent = _inverse(name, exponent)
    node = _call(name, base, _function_arguments(parser))
    return node if exponent is None else Power(node, exponent)


def _inverse(name: str, exponent: Node | None) -> tuple[str, Node | None]:
    r"""The name and exponent: \tan^{-1} is the inverse function, every other exponent a power of the value."""
    if isinstance(exponent, Number) and exponent.value == -1 and name in INVERSES:
        return INVERSES[name], None
    return name, exponent


def _call(name: str, base: Node | None, args: tuple[Node, ...]) -> Node:
    """The node of a function; exp, cis and sqrt become powers."""
    if name == "lg" and base is None:
        name, base = "log", Number(Fraction(10))
    if base is not None:
        if name != "log":
            raise NotParsed(f"{name} with a subscript")
        return Call("log", (*args, base))
    if len(args) == 1:
        if name == "exp":
            return Power(EULER, args[0])
        if name == "cis":
            return Power(EULER, Product((IMAGINARY, args[0])))
        if name == "sqrt":
            return Power(args[0], Number(Fraction(1, 2)))
    return Call(name, args)


def _function_arguments(parser: "ExpressionParser") -> tuple[Node, ...]:
    r"""The arguments: a bracket, or the factors up to a sign, a function or a dot: \cos 30 t is cos(30t)."""
    if parser.next_is("sign", ".") and (after := parser.peek(1)) is not None and after.text == "(":
        parser.take()  # "max.(a, b)"
    if parser.next_is("sign", "("):
        return parser.arguments()
    sign = parser.take().text if parser.next_is("sign", "-") else ""
    factors = [parser.power()]
    while parser.starts_factor() and not _function_begins(parser):
        if parser.next_is("sign", "(", "["):
            break
        factors.append(parser.power())
    node = factors[0] if len(factors) == 1 else Product(tuple(factors))
    if parser.tight_division and parser.next_is("sign", "/"):
        parser.take()
        node = quotient(node, parser.divisor())
    return (negative(node) if sign else node,)


def _function_begins(parser: "ExpressionParser") -> bool:
    """Whether the next token begins another function: it ends the argument of the one before it."""
    token = parser.peek()
    return token is not None and token.kind == "command" and token.text in FUNCTIONS and token.text != "sqrt"


def _big_operator(parser: "ExpressionParser", name: str) -> Node:
    r"""The call \sum_{k=1}^{n} body, never carried out: bounds are kept as text, the body ends with the term."""
    bounds: list[Node] = []
    while parser.next_is("sign", "_", "^"):
        mark = parser.take().text
        start = parser.at
        end = closing_index(parser.tokens, start) if parser.next_is("sign", "{") else start
        content = parser.tokens[start : end + 1]
        parser.at = end + 1
        bounds.append(Symbol(mark + " ".join(part.text for part in content if part.text not in "{}")))
    bounds.sort(key=lambda bound: bound.name if isinstance(bound, Symbol) else "")
    return Call(name, (*bounds, parser.product()))


def _matrix(parser: "ExpressionParser", environment: str) -> Node:
    """The node between `begin` and `end` of an environment, or in the brace behind a command of plain TeX."""
    opening = parser.at - 1 if environment else parser.at
    end = closing_index(parser.tokens, opening)
    content = parser.tokens[opening + 1 : end]
    parser.at = end + 1
    return read_environment(environment or "matrix", content, parser.inner)
