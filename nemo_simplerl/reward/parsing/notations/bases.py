r"""Numbers in a written base: 1101_2, (1101)_2, 52_{eight}, `1101 base 2`."""

import re

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.brackets import Tokens, is_enclosed
from nemo_simplerl.reward.parsing.lexicon import NUMBER_WORDS
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
from nemo_simplerl.reward.parsing.tree import MINUS_ONE, BasedNumber, Node, Number, Product, Symbol

_NAMED_BASES = {"binary": 2, "ternary": 3, "octal": 8, "decimal": 10, "hexadecimal": 16}
_BASE_WORDS = re.compile(r"(?:(?:written |expressed )?(?:in|to) )?(?:base(?: ([a-z]+))?|([a-z]+))")
_DIGITS = re.compile(r"([0-9a-z]+)(\.[0-9a-z]+)?")


def read_based_number(tokens: Tokens) -> Node | None:
    """The number in a written base; None for other tokens. NotParsed where a digit is beyond the base."""
    if len(tokens) < 2:
        return None
    mark = next((at for at, token in enumerate(tokens) if token.text == "_" or token.kind == "word"), 0)
    base = _base(tokens[mark:]) if mark else None
    if base is None or not 2 <= base <= 36:
        return None
    negative = tokens[0].text == "-"
    written = _unwrapped(tokens[negative : _without_bracket(tokens, mark)])
    if not written:
        return None
    bracketed = len(written) < mark - negative
    if bracketed and len(written) > 1 and written[0].text == "-":
        negative, written = not negative, written[1:]
    if not bracketed and written[0].kind != "number" and (base <= 10 or not _has_number(written)):
        return None  # x_1, but A5_{11}
    text = "".join(token.text for token in written)
    found = _DIGITS.fullmatch(text.lower())
    if found is None or len(text) > LIMITS.digits or not (_has_number(written) or (text.isupper() and base > 10)):
        return None
    whole, fraction = found[1].lstrip("0") or "0", (found[2] or "").rstrip("0").rstrip(".")
    if any(int(digit, 36) >= base for digit in whole + fraction[1:]):
        raise NotParsed(f"{text!r} has digits beyond base {base}")
    return BasedNumber("-" * negative + whole + fraction, base)


def _without_bracket(tokens: Tokens, mark: int) -> int:
    """The end of the digits: before the mark and a bracket that opens there, as in `11 (base 2)`."""
    return mark - 1 if mark > 1 and tokens[mark - 1].text in ("(", "{") else mark


def _base(tail: Tokens) -> int | None:
    """The base that the tokens behind the digits name: `_2`, `_{\text{base }8}`, `base 8`, `in binary)`."""
    marks = "_{}()-"
    rest = [token for token in tail if not (token.kind == "sign" and token.text in marks)]
    if len(rest) == 2 and rest[0].kind == "word" and rest[0].text.lower().split()[-1] == "base":
        if _BASE_WORDS.fullmatch(rest[0].text.lower()):
            return _read_base(rest[1])
        return None
    if len(rest) != 1:
        return None
    (name,) = rest
    if tail[0].text == "_" and (name.kind == "number" or name.text.lower() in NUMBER_WORDS):
        return _read_base(name)
    found = _BASE_WORDS.fullmatch(name.text.lower()) if name.kind == "word" else None
    if found is None:
        return None
    return NUMBER_WORDS.get(found[1]) if found[1] else _NAMED_BASES.get(found[2] or "")


def _read_base(token: Token) -> int | None:
    return int(token.text) if re.fullmatch("[0-9]{1,2}", token.text) else NUMBER_WORDS.get(token.text.lower())


def _unwrapped(tokens: Tokens) -> Tokens:
    """The tokens without a bracket or a line around all of them."""
    if len(tokens) > 1 and tokens[0].text in ("overline", "underline") and is_enclosed(tokens[1:]):
        return tokens[2:-1]
    return tokens[1:-1] if is_enclosed(tokens) else tokens


def _has_number(tokens: Tokens) -> bool:
    return any(token.kind == "number" for token in tokens)


def written_digits(node: Node) -> str | None:
    """The digits of a bare number in the spelling of a based one: 1101, -221, 0.0011, 15a; None for another node."""
    if isinstance(node, Number):
        places = node.places or 0
        if node.value.denominator != 1 and not places:
            return None
        scaled = node.value * 10**places
        digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
        whole, fraction = digits[: len(digits) - places], digits[len(digits) - places :].rstrip("0")
        return "-" * (scaled < 0) + whole + ("." + fraction if fraction else "")
    if not isinstance(node, Product):
        return None
    negative = node.factors[0] == MINUS_ONE
    parts = [_digits_of(factor) for factor in node.factors[negative:]]
    known = [part for part in parts if part is not None]
    return "-" * negative + "".join(known).lower() if len(known) == len(parts) else None


def _digits_of(factor: Node) -> str | None:
    if isinstance(factor, Number) and factor.value.denominator == 1 and factor.value >= 0:
        return str(factor.value)
    return factor.name if isinstance(factor, Symbol) and len(factor.name) == 1 and factor.name.isupper() else None
