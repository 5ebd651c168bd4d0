r"""Numbers as they are written: decimals, repeating decimals, scientific notation, mixed numbers."""

from fractions import Fraction

from nemo_simplerl.reward.parsing.tokens import NotParsed
from nemo_simplerl.reward.parsing.tree import Node, Number, Power, Product
from nemo_simplerl.reward.policy import LIMITS


def read_number(text: str) -> Node:
    """The node of `12`, `.5`, `1.50` or `1e-7`. NotParsed beyond the digit bound."""
    if len(text) > LIMITS.digits:
        raise NotParsed("too many digits")
    mantissa, mark, exponent = text.replace("E", "e").partition("e")
    whole, point, decimals = mantissa.partition(".")
    number = Number(
        _scaled(int((whole + decimals) or "0"), len(decimals)), len(decimals) if point and decimals else None
    )
    if not mark:
        return number
    power = int(exponent)
    if abs(power) > LIMITS.digits:
        return Product((number, Power(Number(Fraction(10)), Number(Fraction(power)))))
    scale = Fraction(10) ** power
    return Number(number.value * scale, number.places if number.places is None else max(0, number.places - power))


def repeating(text: str, period: str) -> Number:
    r"""The exact value of 0.2\overline{7}: `text` is 0.2 and `period` is 7."""
    if len(text) + len(period) > LIMITS.digits or not period.isdigit():
        raise NotParsed("not a repeating decimal")
    whole, _, decimals = text.partition(".")
    value = _scaled(int((whole + decimals) or "0"), len(decimals))
    return Number(value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(decimals)))


def continued(text: str) -> Number | None:
    r"""The exact value of 0.777\ldots and 0.2777...; None where the digits show no period three times over.

    A period of one digit may be written three times, a longer one twice.
    """
    whole, point, decimals = text.partition(".")
    if not point or len(decimals) > 60:
        return None
    for length in range(1, len(decimals) // 2 + 1):
        period = decimals[-length:]
        times = 3 if length == 1 else 2
        if decimals.endswith(period * times):
            while decimals.endswith(period * 2):
                decimals = decimals[:-length]
            return repeating(f"{whole}.{decimals[:-length]}", period)
    return None


def _scaled(digits: int, places: int) -> Fraction:
    return Fraction(digits, 10**places)
