r"""Rational functions in canonical form: the exact and quick way to compare most expressions with symbols.

A polynomial maps monomials to coefficients. A monomial is a sorted tuple of (atom, exponent): atoms are the
symbols and, kept whole, everything that is neither a sum nor a product nor an integer power of these.
"""

from dataclasses import dataclass
from fractions import Fraction

from nemo_simplerl.reward.comparing.exact import Undefined, bits, exact
from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.tree import (
    ELLIPSIS,
    INFINITY,
    Call,
    Constant,
    Degrees,
    Matrix,
    Node,
    Number,
    Percent,
    Power,
    Product,
    Sum,
    Symbol,
)

Monomial = tuple[tuple[str, int], ...]
Polynomial = dict[Monomial, Fraction]
_MAX_EXPONENT = 60
_UNIT: Monomial = ()
_ONE: Polynomial = {_UNIT: Fraction(1)}  # polynomials are never changed once they are made


class TooLarge(Exception):
    """The expansion has more terms or larger exponents than the bounds allow."""


@dataclass(frozen=True, slots=True)
class RationalFunction:
    """The quotient `top` / `bottom`. `pure`: the atoms are symbols only, so that the comparison is decisive."""

    top: Polynomial
    bottom: Polynomial
    pure: bool

    def numerator(self) -> "RationalFunction":
        return RationalFunction(self.top, _ONE, self.pure)

    def symbols(self) -> frozenset[str]:
        return frozenset(atom for part in (self.top, self.bottom) for monomial in part for atom, _ in monomial)


def rational_function(node: Node) -> RationalFunction | None:
    """The canonical form of an expression; None beyond the bounds. Undefined where the denominator is zero."""
    atoms: dict[str, bool] = {}
    try:
        top, bottom = _Expansion(atoms).fraction(node)
    except TooLarge:
        return None
    return RationalFunction(top, bottom, all(atoms.values()))


def equal(left: RationalFunction, right: RationalFunction) -> bool:
    """Whether the two quotients are equal; False where that is beyond the bounds."""
    try:
        return _times(left.top, right.bottom) == _times(right.top, left.bottom)
    except TooLarge:
        return False


def proportional(left: RationalFunction, right: RationalFunction) -> Fraction | None:
    """The constant c with left = c * right, where there is one other than zero."""
    try:
        one, two = _times(left.top, right.bottom), _times(right.top, left.bottom)
    except TooLarge:
        return None
    if not one or one.keys() != two.keys():
        return None
    factors = {one[monomial] / two[monomial] for monomial in one}
    return factors.pop() if len(factors) == 1 else None


class _Expansion:
    """Expands an expression into numerator and denominator, and notes in `atoms` what it could not expand."""

    def __init__(self, atoms: dict[str, bool], texts: dict[Node, str] | None = None) -> None:
        self.atoms = atoms  # name -> whether it is a symbol
        # Of nodes within atoms: x^{3/2} is expanded for x and for x^{1/2}, which each level of a nest would double.
        self.texts: dict[Node, str] = {} if texts is None else texts

    def fraction(self, node: Node) -> tuple[Polynomial, Polynomial]:
        value = exact(node)
        if value is not None:
            return ({_UNIT: value} if value else {}), _ONE
        if isinstance(node, Sum):
            return self.sum(node)
        if isinstance(node, Product):
            top, bottom = _ONE, _ONE
            for factor in node.factors:
                above, below = self.fraction(factor)
                top, bottom = _times(top, above), _times(bottom, below)
            return top, bottom
        if isinstance(node, Power):
            return self.power(node)
        if isinstance(node, Symbol):
            return self.atom(node.name, True)
        return self.atom(self.key(node), False)

    def sum(self, node: Sum) -> tuple[Polynomial, Polynomial]:
        top: Polynomial = {}
        bottom = _ONE
        for term in node.terms:
            above, below = self.fraction(term)
            if below == bottom:
                top = _plus(top, above)
            else:
                top = _plus(_times(top, below), _times(above, bottom))
                bottom = _times(bottom, below)
        return top, bottom

    def power(self, node: Power) -> tuple[Polynomial, Polynomial]:
        exponent = exact(node.exponent)
        if exponent is None or exponent.denominator != 1:
            return self.split_power(node, exponent)
        if abs(exponent) > _MAX_EXPONENT:
            return self.atom(self.key(node), False)
        top, bottom = self.fraction(node.base)
        if exponent < 0:
            if not top:
                raise Undefined("a division by zero")
            top, bottom = bottom, top
        count = abs(exponent.numerator)
        return _raised(top, count), _raised(bottom, count)

    def split_power(self, node: Power, exponent: Fraction | None) -> tuple[Polynomial, Polynomial]:
        """Split b^{n + 2} into b^n b^2 for a number b, and x^{5/2} into x^2 x^{1/2}, so that sums of exponents meet."""
        if exponent is not None:
            whole = exponent.numerator // exponent.denominator
            if whole and abs(whole) <= _MAX_EXPONENT:
                rest = Power(node.base, Number(exponent - whole))
                return self.fraction(Product((Power(node.base, Number(Fraction(whole))), rest)))
        elif isinstance(node.exponent, Sum) and isinstance(node.base, (Number, Constant)):
            return self.fraction(Product(tuple(Power(node.base, term) for term in node.exponent.terms)))
        return self.atom(self.key(node), False)

    def atom(self, name: str, is_symbol: bool) -> tuple[Polynomial, Polynomial]:
        if len(name) > LIMITS.chars:  # atoms in atoms repeat one another's names
            raise TooLarge
        self.atoms[name] = is_symbol
        return {((name, 1),): _ONE[_UNIT]}, _ONE

    def key(self, node: Node) -> str:
        """A name of a node that is kept whole. Equal arguments in canonical form give equal names."""
        if node in (INFINITY, ELLIPSIS):
            raise Undefined("no arithmetic with infinity or with what is left out")
        if isinstance(node, Constant):
            return f"#{node.name}"
        if isinstance(node, Power):
            return f"({self.text(node.base)})^({self.text(node.exponent)})"
        if isinstance(node, Call):
            return f"{node.name}({','.join(self.text(arg) for arg in node.args)})"
        if isinstance(node, (Degrees, Percent)):
            return f"{type(node).__name__}({self.text(node.body)})"
        if isinstance(node, Matrix):
            return str([[self.text(entry) for entry in row] for row in node.rows])
        return repr(node)

    def text(self, node: Node) -> str:
        if node not in self.texts:
            top, bottom = _Expansion({}, self.texts).fraction(node)
            self.texts[node] = f"{sorted(top.items())}/{sorted(bottom.items())}"
        return self.texts[node]


def _plus(left: Polynomial, right: Polynomial) -> Polynomial:
    if not left or not right:
        return left or right
    total = dict(left)
    for monomial, coefficient in right.items():
        value = total[monomial] + coefficient if monomial in total else coefficient
        if value:
            total[monomial] = value
        else:
            total.pop(monomial, None)
    return _checked(total)


def _times(left: Polynomial, right: Polynomial) -> Polynomial:
    if len(left) * len(right) > 20 * LIMITS.terms:
        raise TooLarge
    if left == _ONE or right == _ONE:  # as nearly every denominator
        return right if left == _ONE else left
    total: Polynomial = {}
    for one, first in left.items():
        for two, second in right.items():
            monomial, value = _merged(one, two), first * second
            if monomial in total:
                value += total[monomial]
            if value:
                total[monomial] = value
            else:
                total.pop(monomial, None)
    return _checked(total)


def _merged(one: Monomial, two: Monomial) -> Monomial:
    if not one or not two:
        return one or two
    exponents = dict(one)
    for atom, exponent in two:
        exponents[atom] = exponents.get(atom, 0) + exponent
    return tuple(sorted(exponents.items()))


def _raised(base: Polynomial, exponent: int) -> Polynomial:
    if len(base) > 1 and len(base) ** min(exponent, 12) > 10**7:
        raise TooLarge
    total = _ONE
    for _ in range(exponent):
        total = _times(total, base)
    return total


def _checked(polynomial: Polynomial) -> Polynomial:
    if len(polynomial) > LIMITS.terms or any(bits(value) > LIMITS.bits for value in polynomial.values()):
        raise TooLarge
    return polynomial
