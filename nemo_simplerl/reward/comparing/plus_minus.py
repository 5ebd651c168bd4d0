r"""The values that `\pm` stands for."""

from itertools import product

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.tree import Node, PlusMinus, children, contains, negative, rebuilt


class TooManySigns(Exception):
    r"""An expression has more independent `\pm` than the bound, and is no list of values."""


def expansions(node: Node) -> list[Node] | None:
    r"""The values of an expression with `\pm`; None without one. TooManySigns beyond the bound.

    Each `\pm` is free, as in (\pm 1, \pm 2), but a `\mp` takes the sign opposite to the first `\pm`.
    """
    if not contains(node, PlusMinus):
        return None
    free = max(1, _count(node))
    if free > LIMITS.signs:
        raise TooManySigns
    return [_signed(node, list(choice)) for choice in product((1, -1), repeat=free)]


def _count(node: Node) -> int:
    own = isinstance(node, PlusMinus) and not node.opposite
    return own + sum(_count(child) for child in children(node))


def _signed(node: Node, signs: list[int]) -> Node:
    """The node with its signs chosen, in the order in which they are written."""
    first, place = signs[0], iter(signs)

    def chosen(part: Node) -> Node:
        if isinstance(part, PlusMinus):
            sign = -first if part.opposite else next(place)
            body = chosen(part.body)
            return body if sign > 0 else negative(body)
        parts = children(part)
        return rebuilt(part, tuple(chosen(child) for child in parts)) if parts else part

    return chosen(node)
