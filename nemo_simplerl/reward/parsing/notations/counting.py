r"""Numbers of combinations and permutations in the notation of schools: C(8,2), {}_7C_3, C_7^3, P(6,3), 7P2."""

import re
from functools import partial

_N = r"\{?\s*([0-9]{1,4})\s*\}?"
_LETTER = r"(?:\\(?:mathrm|mathbf|text|rm)\s*\{?\s*)?([CPA])\s*\}?"
_POSSIBLE = re.compile("[CPA]")
_FORMS = (
    (re.compile(rf"(?<![A-Za-z\\]){_LETTER}\s*\(\s*([0-9]{{1,4}})\s*,\s*([0-9]{{1,4}})\s*\)"), False),
    (re.compile(rf"(?:\{{\s*\}})?\s*[_^]\s*{_N}\s*{_LETTER}\s*_\s*{_N}"), True),
    (re.compile(rf"(?<![A-Za-z\\0-9]){_LETTER}\s*_\s*{_N}\s*\^\s*{_N}"), False),
    (re.compile(rf"(?<![A-Za-z\\0-9]){_LETTER}\s*\^\s*{_N}\s*_\s*{_N}"), None),
    (re.compile(r"(?<![A-Za-z\\0-9.])([0-9]{1,3})([CPA])([0-9]{1,3})(?![0-9A-Za-z])"), True),
)


def with_counts_written_out(text: str) -> str:
    r"""The normalized text with each such number as a binomial or as a quotient of factorials.

    Another reading of it: C(8, 2) may be a point, too.
    """
    if not _POSSIBLE.search(text):
        return text
    for form, number_first in _FORMS:
        text = form.sub(partial(_written_out, number_first), text)
    return text


def _written_out(number_first: bool | None, found: "re.Match[str]") -> str:
    first, second, third = found.groups()
    letter, upper, lower = (second, first, third) if number_first else (first, second, third)
    if number_first is None:  # C^3_7
        upper, lower = lower, upper
    if int(lower) > int(upper):
        return found[0]
    if letter == "C":
        return rf"\binom{{{upper}}}{{{lower}}}"
    return rf"\frac{{{upper}!}}{{{int(upper) - int(lower)}!}}"
