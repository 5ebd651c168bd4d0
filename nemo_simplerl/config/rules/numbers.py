"""Intervals in the notation of a mathematics book, and numbers that an error message proposes instead."""

from collections.abc import Iterable

AT_LEAST_1 = "[1, inf)"
AT_LEAST_0 = "[0, inf)"
POSITIVE = "(0, inf)"
SHARE = "[0, 1]"
BELOW_1 = "[0, 1)"


def inside(value: float, interval: str) -> bool:
    """Whether a value lies in an interval such as '(0, 1]'. NaN and infinity lie in none."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return above and below


def interval_in_words(interval: str) -> str:
    """'[1, inf)' as 'at least 1'; an interval with two ends as itself."""
    low, high = (bound.strip() for bound in interval[1:-1].split(","))
    if low == "-inf":
        return "a finite number"
    if high != "inf":
        return f"a number in {interval}"
    return f"at least {low}" if interval[0] == "[" else f"a number above {low}"


def near_divisors(total: int, near: int) -> str:
    """The four divisors of `total` that are closest to `near`, listed."""
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    return listed(sorted(sorted(divisors, key=lambda n: abs(n - near))[:4]))


def near_multiples(unit: int, near: int) -> str:
    """The positive multiples of `unit` on both sides of `near`, listed."""
    below = near // unit * unit
    return listed([n for n in (below, below + unit) if n > 0])


def listed(numbers: Iterable[int]) -> str:
    """1, 2 and 4 as '1, 2 or 4'."""
    *most, last = [str(number) for number in numbers]
    return f"{', '.join(most)} or {last}" if most else last
