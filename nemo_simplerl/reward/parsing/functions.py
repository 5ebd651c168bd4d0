r"""What the expression parser knows of functions: notation, inverses, roots and factors."""

from collections.abc import Callable
from fractions import Fraction

from nemo_simplerl.reward.parsing.brackets import Tokens, split
from nemo_simplerl.reward.parsing.lexicon import INVERSES, words_of
from nemo_simplerl.reward.parsing.tokens import NotParsed
from nemo_simplerl.reward.parsing.tree import EULER, Call, Node, Number, Power

MATRICES = frozenset({"pmatrix", "bmatrix", "matrix", "array", "vmatrix", "Bmatrix", "smallmatrix"})

_NOT_FACTORS = words_of(
    "cdot times div pm mp le ge ne approx equiv in notin cup cap setminus mid to pmod bmod mod currency { "
    r"} \ rfloor rceil rangle subset subseteq Rightarrow Leftrightarrow wedge vee forall exists circ prime "
    "sim vert choose over iff implies propto perp parallel cong centsign"
)


def starts_factor(command: str) -> bool:
    """Whether a command can begin a factor of a product without a multiplication sign."""
    return command not in _NOT_FACTORS and not command.startswith("end ")


def inverse(name: str, exponent: Node | None) -> tuple[str, Node | None]:
    r"""\tan^{-1} is the inverse function; every other exponent is a power of the value."""
    if isinstance(exponent, Number) and exponent.value == -1 and name in INVERSES:
        return INVERSES[name], None
    return name, exponent


def call(name: str, base: Node | None, args: tuple[Node, ...]) -> Node:
    """The node of a function; exp and sqrt become powers."""
    if name == "lg" and base is None:
        name, base = "log", Number(Fraction(10))
    if base is not None:
        if name != "log":
            raise NotParsed(f"{name} with a subscript")
        return Call("log", (*args, base))
    if len(args) == 1:
        if name == "exp":
            return Power(EULER, args[0])
        if name == "sqrt":
            return Power(args[0], Number(Fraction(1, 2)))
    return Call(name, args)


def binomial_or_inner(content: Tokens, parse: Callable[[Tokens], Node]) -> Node:
    r"""The content of a bracket, which may be {n \choose k}."""
    parts, signs = split(content, lambda token: token.kind == "command" and token.text == "choose")
    if len(signs) == 1:
        return Call("binomial", (parse(parts[0]), parse(parts[1])))
    return parse(content)
