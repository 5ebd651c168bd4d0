r"""Numerical values of expressions in high precision.

Every step is bounded: a huge power, an argument too large for a function or an addition that drowns one
term raises `Unevaluable`.
"""

import threading
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from nemo_simplerl.reward.comparing.exact import Undefined
from nemo_simplerl.reward.parsing.tree import (
    Call,
    Constant,
    Degrees,
    Node,
    Number,
    Percent,
    Power,
    Product,
    Quantity,
    Sum,
    Symbol,
)

PRECISION_BITS = 240
_MAX_EXPONENT_BITS = 64
_MAX_ARGUMENT_BITS = 300


class Unevaluable(Exception):
    """The value cannot be computed within the bounds: too large, an unknown function, a sum that is not carried out."""


_contexts = threading.local()  # a context changes its precision for a while: one for each thread


def _context(precision: int) -> Any:
    found = getattr(_contexts, f"bits_{precision}", None)
    if found is None:
        import mpmath  # late: most answers are compared without it

        found = mpmath.mp.clone()
        found.prec = precision
        setattr(_contexts, f"bits_{precision}", found)
    return found


class Evaluator:
    """Computes values of trees at one point. `log_base`, "10" or "e", is the base of a `log` without one."""

    def __init__(self, point: Mapping[str, Fraction], precision: int = PRECISION_BITS, log_base: str = "e") -> None:
        self.mp = _context(precision)
        self.point = {name: self.mp.mpf(value.numerator) / value.denominator for name, value in point.items()}
        self.log_base = log_base
        self.stays_real = True  # so far: every value, also those on the way to another, has been real

    def value(self, node: Node) -> Any:
        """The value as an mpmath number. Undefined or Unevaluable where it has none."""
        try:
            return self._bounded(self._value(node))
        except (ZeroDivisionError, ValueError) as error:
            raise Undefined(str(error)) from error
        except (OverflowError, MemoryError, NotImplementedError, TypeError) as error:
            raise Unevaluable(str(error)) from error
        except self.mp.NoConvergence as error:
            raise Unevaluable(str(error)) from error

    def _bounded(self, value: Any) -> Any:
        if value.__class__ is self.mp.mpf and value._mpf_[1]:  # its mantissa: finite, and not zero
            return value
        if self.mp.isnan(value) or self.mp.isinf(value):
            raise Undefined("not a number")
        if value.__class__ is self.mp.mpc and value.imag:
            self.stays_real = False
        return value

    def _value(self, node: Node) -> Any:
        mp = self.mp
        if isinstance(node, Number):
            return mp.mpf(node.value.numerator) / node.value.denominator
        if isinstance(node, Symbol):
            if node.name not in self.point:
                raise Unevaluable(f"no value for {node.name}")
            return self.point[node.name]
        if isinstance(node, Constant):
            return self._constant(node.name)
        if isinstance(node, Sum):
            return self._sum([self.value(term) for term in node.terms])
        if isinstance(node, Product):
            total = mp.mpf(1)
            for factor in node.factors:
                total = total * self.value(factor)
            return total
        if isinstance(node, Power):
            base = self.value(node.base)
            if self.mp.im(base) == 0 and self.mp.re(base) < 0 and (sign := _sign_of_odd_root(node.exponent)):
                return sign * self._power(-base, self.value(node.exponent))
            return self._power(base, self.value(node.exponent))
        if isinstance(node, Degrees):
            return self.value(node.body) * mp.pi / 180
        if isinstance(node, Percent):
            return self.value(node.body) / 100
        if isinstance(node, Quantity):
            return self.value(node.body)
        if isinstance(node, Call):
            return self._call(node)
        raise Unevaluable(type(node).__name__)

    def _constant(self, name: str) -> Any:
        if name == "pi":
            return +self.mp.pi
        if name == "e":
            return +self.mp.e
        if name == "i":
            return self.mp.mpc(0, 1)
        raise Unevaluable(name)

    def _bits(self, value: Any) -> int:
        """The binary exponent of the magnitude; very low for zero."""
        return -(10**9) if value == 0 else int(self.mp.mag(value))

    def _sum(self, values: list[Any]) -> Any:
        sizes = [self._bits(value) for value in values if value != 0]
        if sizes and max(sizes) - min(sizes) > self.mp.prec // 2:
            raise Unevaluable("a term drowns in the others")
        return self.mp.fsum(values)

    def _power(self, base: Any, exponent: Any) -> Any:
        if base == 0:
            if self.mp.re(exponent) <= 0:
                raise Undefined("zero to a power that is not positive")
            return base
        if self._bits(exponent) > _MAX_EXPONENT_BITS or abs(self._bits(base)) > 10**9:
            raise Unevaluable("a power too large")
        return self.mp.power(base, exponent)

    def _call(self, node: Call) -> Any:
        args = [self.value(arg) for arg in node.args]
        function = _FUNCTIONS.get(node.name)
        if function is None:
            raise Unevaluable(node.name)
        limit = _MAX_ARGUMENT_BITS if node.name not in ("ln", "log", "abs") else 10**9
        if any(self._bits(arg) > limit for arg in args):
            raise Unevaluable("an argument too large")
        if node.name == "log" and len(args) == 1:
            return self.mp.log(args[0]) / (self.mp.log(10) if self.log_base == "10" else 1)
        return function(self.mp, args)


def _sign_of_odd_root(exponent: Node) -> int:
    """The sign of a negative number to this power: odd roots are real, as in school. 0 for other powers."""
    if not isinstance(exponent, Number) or exponent.value.denominator == 1 or exponent.value.denominator % 2 == 0:
        return 0
    return -1 if exponent.value.numerator % 2 else 1


def _real(mp: Any, args: list[Any]) -> list[Any]:
    if any(mp.im(arg) != 0 for arg in args):
        raise Unevaluable("a complex argument")
    return [mp.re(arg) for arg in args]


def _gamma(mp: Any, argument: Any) -> Any:
    if mp.mag(argument) > 40 if argument != 0 else False:
        raise Unevaluable("a factorial too large")
    return mp.gamma(argument + 1)


def _binomial(mp: Any, args: list[Any]) -> Any:
    upper, lower = args
    return _gamma(mp, upper) / (_gamma(mp, lower) * _gamma(mp, upper - lower))


def _stepped(step: Callable[[Any, Any], Any]) -> Callable[[Any, list[Any]], Any]:
    def apply(mp: Any, args: list[Any]) -> Any:
        (value,) = _real(mp, args)
        if mp.mag(value) > 150 if value != 0 else False:
            raise Unevaluable("too large to round")
        if abs(value - mp.nint(value)) < mp.mpf(2) ** -100 and value != mp.nint(value):
            value = mp.nint(value)  # an integer but for rounding
        return step(mp, value)

    return apply


def _one(name: str) -> Callable[[Any, list[Any]], Any]:
    def apply(mp: Any, args: list[Any]) -> Any:
        (value,) = args
        return getattr(mp, name)(value)

    return apply


_FUNCTIONS: dict[str, Callable[[Any, list[Any]], Any]] = {
    **{name: _one(name) for name in ["sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth"]},
    "arcsin": _one("asin"), "arccos": _one("acos"), "arctan": _one("atan"), "arccot": _one("acot"),
    "arcsec": _one("asec"), "arccsc": _one("acsc"), "ln": _one("log"), "abs": _one("fabs"), "arg": _one("arg"),
    "Re": _one("re"), "Im": _one("im"), "overline": _one("conj"), "sgn": _one("sign"),
    "log": lambda mp, args: mp.log(args[0]) / mp.log(args[1]),
    "factorial": lambda mp, args: _gamma(mp, args[0]),
    "binomial": _binomial,
    "floor": _stepped(lambda mp, value: mp.floor(value)),
    "ceil": _stepped(lambda mp, value: mp.ceil(value)),
    "max": lambda mp, args: max(_real(mp, args)),
    "min": lambda mp, args: min(_real(mp, args)),
}  # fmt: skip


def real_number(node: Node) -> Any | None:
    """The real value of a constant expression, or None."""
    try:
        value = Evaluator({}).value(node)
    except (Undefined, Unevaluable):
        return None
    if value.__class__.__name__ == "mpc":
        return value.real if value.imag == 0 else None
    return value
