r"""Compound units: `\mathrm{km/h}`, `\mathrm{kg}\cdot\mathrm{m}^2/\mathrm{s}^2`, `m s^{-1}`, `miles per hour`.

A run of unit names, operators and exponents behind a value is a unit only if every name in it is one.
"""

import re
from collections import Counter
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from nemo_simplerl.reward.parsing.brackets import Tokens
from nemo_simplerl.reward.parsing.lexicon import UNITS, words_of

_PREFIXES = {
    "k": 3, "M": 6, "G": 9, "T": 12, "h": 2, "d": -1, "c": -2, "m": -3, "u": -6, "n": -9, "p": -12,
}  # fmt: skip
_PREFIXED = words_of("m g s A K mol Hz N Pa J W V C F T H L l eV cal bar ohm Wb")
_BASE = words_of("A K mol cd rad deg degree degrees eV cal bar atm people persons revolutions rev person C")
_DIMENSIONLESS = words_of("rad deg degree degrees people persons revolutions rev person")
# Each in terms of others; sizes are exact.
_DERIVED: dict[str, tuple[Fraction, str]] = {
    "N": (Fraction(1), "kg*m/s^2"), "J": (Fraction(1), "N*m"), "W": (Fraction(1), "J/s"), "Pa": (Fraction(1), "N/m^2"),
    "Hz": (Fraction(1), "s^-1"), "V": (Fraction(1), "J/C"), "ohm": (Fraction(1), "V/A"), "F": (Fraction(1), "C/V"),
    "T": (Fraction(1), "N/A/m"), "Wb": (Fraction(1), "V*s"), "H": (Fraction(1), "V*s/A"), 
    "mph": (Fraction(1), "mile/hour"), "kmh": (Fraction(1), "km/hour"), "kph": (Fraction(1), "km/hour"),
    "lb": (Fraction(45359237, 10**5), "g"), "lbs": (Fraction(45359237, 10**5), "g"),
    "pound": (Fraction(45359237, 10**5), "g"), "pounds": (Fraction(45359237, 10**5), "g"),
    "oz": (Fraction(45359237, 16 * 10**5), "g"), "in": (Fraction(254, 10**4), "m"), "l": (Fraction(1), "L"),
}  # fmt: skip
_WORDS = {"per": "/", "squared": "^2", "cubed": "^3"}
_FONT = r"\\(?:mathrm|text|textrm|textnormal|operatorname|mbox|mathbf|mathit|mathsf|rm)(?![A-Za-z])"
_GROUP = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_ATOM = (
    rf"(?:{_FONT}\s*{_GROUP}|\\frac\s*{_GROUP}\s*{_GROUP}|\\(?:Omega|mu)(?![A-Za-z])|[A-Za-z]{{1,12}}"
    r"|\([^()]{1,60}\))(?:\s*\^\s*(?:\{\s*[-+]?[0-9]\s*\}|-?[0-9]))?"
)
_PIECE = re.compile(rf"\s*(?:/|\\cdot(?![A-Za-z])|\\times(?![A-Za-z])|\*|-)?\s*{_ATOM}")
_RUN = re.compile(rf"(?<=[0-9)}}\]a-z])(?!(?<=[a-z])[A-Za-z])(\s*)({_ATOM}(?:{_PIECE.pattern}){{0,7}})")
_POSSIBLE = re.compile(
    rf"[0-9)}}\]a-z]\s*(?:{_FONT}|\\Omega|\\mu|\\frac\s*\{{\s*{_FONT})|[0-9)}}]\s+[A-Za-z]+\s*(?:[/^*]|\\cdot)|[0-9]k"
)
_UPRIGHT = re.compile(rf"{_FONT}|\\(?:Omega|mu)(?![A-Za-z])")
_MICRO = re.compile(rf"\\mu\s*(?:{_FONT}\s*)?\{{?\s*")
_UPRIGHT_PART = re.compile(rf"{_FONT}\s*{_GROUP}|\\frac\s*{_GROUP}\s*{_GROUP}|\\[A-Za-z]+")
_LETTER = re.compile("[A-Za-z]")
_FRACTION = re.compile(rf"\\frac\s*({_GROUP})\s*({_GROUP})")
_PART = re.compile(r"([A-Za-z]+)\.?(?:\^([-+]?[0-9]))?|(/)|([*-])|([()])|\s+")


def with_text_units(text: str) -> str:
    r"""The normalized text with each name of a compound unit as `\text{...}`, so that it is no product of letters."""
    return _RUN.sub(_as_words, text) if _POSSIBLE.search(text) else text


def _as_words(run: "re.Match[str]") -> str:
    """The run with the longest unit at its beginning in words; as it is where it begins with none."""
    spaced, written = bool(run[1]), run[2]
    for end in reversed([piece.end() for piece in _PIECE.finditer(written)]):
        names = None if written[end : end + 1].isalpha() else _names(_plain(written[:end]))
        if names is not None and _is_unit(written[:end], names, spaced):
            words = "".join(rf"\text{{ {name}}}^{{{exponent}}}" for name, exponent in names)
            return f" {words}{written[end:]}"
    return run[0]


def _is_unit(written: str, names: tuple[tuple[str, int], ...], spaced: bool) -> bool:
    r"""Whether names of units are meant as such: upright, or several behind a space. 5\mathrm{m} may be a product."""
    (first, exponent), long = names[0], len(names) > 1
    if _UPRIGHT.search(written):
        if _LETTER.search(_UPRIGHT_PART.sub("", written)):
            return False  # \text{cm}x
        return long or spaced or exponent != 1 or len(first) > 1
    return long and (spaced or len(first) > 1)


def _plain(written: str) -> str:
    r"""The unit without fonts and braces: `m*s^-1`."""
    text = _FRACTION.sub(r"(\1)/(\2)", written).replace(r"\cdot", "*").replace(r"\times", "*")
    text = _MICRO.sub("u", text).replace(r"\Omega", "ohm")
    return re.sub(_FONT, " ", text).replace("{", " ").replace("}", " ").replace("^ ", "^").replace(" ^", "^")


@lru_cache(maxsize=4096)
def _names(plain: str) -> tuple[tuple[str, int], ...] | None:
    """The unit names with their exponents; None where a name is no unit or the form is none of a unit."""
    found: list[tuple[str, int]] = []
    at, below, inside, raised = 0, False, False, 1
    words = " ".join(_WORDS.get(word, word) for word in plain.split()).replace(" ^", "^")
    while at < len(words):
        part = _PART.match(words, at)
        if part is None:
            return None
        at = part.end()
        name, exponent, slash, _, bracket = part.groups()
        if slash:
            below = True
        elif bracket:
            inside = bracket == "("
            below = below and inside
        elif name in ("square", "cubic", "sq", "cu"):
            raised = 2 if name in ("square", "sq") else 3
        elif name:
            if _size(name) is None:
                return None
            found.append((name, (-1 if below else 1) * raised * int(exponent or 1)))
            below, raised = below and inside, 1
    return tuple(found) if not words.rstrip().endswith("/") and found else None


@lru_cache(maxsize=1024)
def _size(name: str) -> tuple[Fraction, tuple[tuple[str, int], ...]] | None:
    """The size of a unit and its dimension, as exponents of base units; None for a name that is no unit."""
    if name in _DERIVED:
        factor, definition = _DERIVED[name]
        size, dimension = _total(_names(definition) or ())
        return factor * size, dimension
    if name in UNITS or name in _BASE:
        kind, size = UNITS.get(name, (name, Fraction(1)))
        return (size / 1000, (("length", 3),)) if kind == "volume" else (size, ((kind, 1),))
    if name[:1] in _PREFIXES and name[1:] in _PREFIXED and (rest := _size(name[1:])) is not None:
        return rest[0] * Fraction(10) ** _PREFIXES[name[0]], rest[1]
    return None


def _total(names: tuple[tuple[str, int], ...]) -> tuple[Fraction, tuple[tuple[str, int], ...]]:
    total: Counter[str] = Counter()
    size = Fraction(1)
    for name, exponent in names:
        found = _size(name)
        assert found is not None
        size *= found[0] ** exponent
        for kind, power in found[1]:
            total[kind] += power * exponent
    return size, tuple(sorted((kind, power) for kind, power in total.items() if power))


def unit_size(unit: str) -> tuple[Fraction, tuple[tuple[str, int], ...]] | None:
    """The size and dimension of a unit as `Quantity` holds it; None where a name in it is no unit known here."""
    names = _names(unit)
    return None if names is None else _total(names)


def counted(dimension: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """The dimension without angles and what is counted: 5 rad/s is 5 s^{-1}."""
    return tuple(part for part in dimension if part[0] not in _DIMENSIONLESS)


def compound_unit(suffix: Tokens) -> str | None:
    """The unit `km*h^-1` that these tokens spell; None where they are no compound of known units."""
    spelled = "".join(_spelled(token.kind, token.text) for token in suffix)
    glued = any(one.kind == two.kind == "word" and not two.spaced for one, two in pairwise(suffix))  # \text{cm}mi
    names = None if glued or any(token.kind == "letter" for token in suffix) else _names(spelled)
    if names is None:
        return None
    return "*".join(name if exponent == 1 else f"{name}^{exponent}" for name, exponent in names)


def _spelled(kind: str, text: str) -> str:
    if kind == "word":
        return f" {text}"
    return {"{": "", "}": "", "cdot": "*", "times": "*"}.get(text, text)
