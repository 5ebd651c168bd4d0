r"""How precisely two expressions have to be evaluated, so that those that only come close are told apart.

The digits of a decimal or of a fraction bring it as close to any number as their count allows, and so does
cos(10^{-20}) to 1. So the precision grows with what is written.
"""

from nemo_simplerl.reward.comparing.exact import Undefined, bits, exact
from nemo_simplerl.reward.parsing.tree import Node, Power, children

BASE_BITS = 240
_MARGIN_BITS = 60
_MOST_BITS = 4 * BASE_BITS  # the first gamma function of a process takes a second at twice as many


def precision_for(left: Node, right: Node) -> int | None:
    """The bits of precision at which the two are told apart, in steps; None beyond the bound."""
    needed = _MARGIN_BITS + 2 * max(_written_bits(left), _written_bits(right))
    precision = BASE_BITS
    while tolerance_bits(precision) < needed:
        precision *= 2
    return precision if precision <= _MOST_BITS else None


def tolerance_bits(precision: int) -> int:
    """The bits that have to agree at a precision: a few more than the size at which a sum's term counts as lost."""
    return precision // 2 + 10


def _written_bits(node: Node) -> int:
    """The bits of the rational numbers in an expression, and of the powers that are not built."""
    try:
        value = exact(node)
    except Undefined:
        return 0
    if value is not None:
        return bits(value) + min(value.numerator.bit_length(), value.denominator.bit_length()) - 1
    own = 0
    if isinstance(node, Power):
        exponent = exact(node.exponent)
        own = 0 if exponent is None or abs(exponent) < 8 else 4 * abs(int(exponent))
    return own + sum(map(_written_bits, children(node)))
