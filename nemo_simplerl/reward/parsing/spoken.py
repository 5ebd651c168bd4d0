r"""Arithmetic in words: number words, and the words behind a value that change it, as in 5 thousand and 5 squared."""

from collections.abc import Callable
from fractions import Fraction

from nemo_simplerl.reward.parsing.brackets import Tokens
from nemo_simplerl.reward.parsing.lexicon import (
    ARTICLES,
    FRACTION_WORDS,
    NUMBER_WORDS,
    ORDINAL_ENDINGS,
    ORDINALS,
    SCALE_WORDS,
    UNITS,
)
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
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
    negative,
    quotient,
)

_POWERS = {"squared": 2, "cubed": 3}
_POWER_FILLERS = frozenset({"raised", "to", "the", "power", "of"})
_OPERATIONS: dict[tuple[str, ...], Callable[[Node, Node], Node]] = {
    ("plus",): lambda left, right: Sum((left, right)),
    ("minus",): lambda left, right: Sum((left, negative(right))),
    ("times",): lambda left, right: Product((left, right)),
    ("multiplied", "by"): lambda left, right: Product((left, right)),
    ("of",): lambda left, right: Product((left, right)),
    ("divided", "by"): quotient,
    ("over",): quotient,
    ("out", "of"): quotient,
    ("choose",): lambda left, right: Call("binomial", (left, right)),
}
_STARTS = frozenset(phrase[0] for phrase in _OPERATIONS)
_VALUES = (Number, Symbol, Constant, Sum, Product, Power, Call, Degrees, Percent, Quantity)


def number_in_words(words: list[str]) -> Fraction | None:
    """The value of twenty one, a dozen, two thousand five, three quarters or minus five; None for other words."""
    if words and words[0] in ("minus", "negative"):
        value = number_in_words(words[1:])
        return None if value is None else -value
    if len(words) == 2 and words[1] in _POWERS and words[0] in NUMBER_WORDS:
        return Fraction(NUMBER_WORDS[words[0]]) ** _POWERS[words[1]]
    if len(words) > 1 and words[-1] in FRACTION_WORDS:
        value = Fraction(1) if words[0] in ARTICLES and len(words) == 2 else number_in_words(words[:-1])
        return None if value is None else value * FRACTION_WORDS[words[-1]]
    number, count = _leading_number(words)
    return Fraction(number) if count and count == len(words) else None


def _leading_number(words: list[str]) -> tuple[int, int]:
    """The value of the number words that a text begins with, and how many they are."""
    total = group = at = 0
    if len(words) > 1 and words[0] in ARTICLES and words[1] in SCALE_WORDS:
        group, at = 1, 1
    while at < len(words):
        word = words[at]
        if word == "hundred" and 0 < group < 100:
            group *= 100
        elif word in NUMBER_WORDS and word != "hundred" and _follows(group, NUMBER_WORDS[word]):
            group += NUMBER_WORDS[word]
        elif word in SCALE_WORDS and group and (not total or SCALE_WORDS[word] < total):
            total, group = total + group * SCALE_WORDS[word], 0
        else:
            break
        at += 1
    return total + group, at


def _follows(group: int, value: int) -> bool:
    """Whether a number word may follow those that made `group`: one after twenty, five after two hundred."""
    if group == 0:
        return True
    return value > 0 and (group % 100 == 0 or (value < 10 and group % 100 >= 20 and group % 10 == 0))


def operated(node: Node, suffix: Tokens, parse: Callable[[Tokens], Node]) -> tuple[Node, Tokens]:
    """The value that the words behind it make of `node`, and the words that are left: its unit.

    `parse` reads what an operation such as `plus` is applied to. NotParsed where words operate on no value.
    """
    rest = _single_words(suffix)
    while rest and rest[0].kind == "word":
        step = _scaled_or_raised(node, rest) or _combined(node, rest, parse)
        if step is None:
            break
        node, rest = step
    return node, rest


def _single_words(tokens: Tokens) -> Tokens:
    """The tokens with one word in each."""
    found: list[Token] = []
    for token in tokens:
        if token.kind == "word" and " " in token.text:
            found += [Token("word", word, at > 0 or token.spaced) for at, word in enumerate(token.text.split())]
        else:
            found.append(token)
    return tuple(found)


def _scaled_or_raised(node: Node, rest: Tokens) -> tuple[Node, Tokens] | None:
    """The value after a scale word, a fraction, a power or a factorial, and the tokens behind; None for other words."""
    word = rest[0].text if len(rest[0].text) < 3 else rest[0].text.lower()
    if word == "K" and not rest[0].spaced:  # with a space it is kelvin
        word = "k"
    size = SCALE_WORDS.get(word) or FRACTION_WORDS.get(word)
    if size is not None:
        return Product((_factor(node), Number(Fraction(size)))), rest[1:]
    if word in _POWERS:
        areal = len(rest) > 1 and _is_length(rest[1].text.lower())  # 5 squared units
        return None if areal else (Power(_base(node), Number(Fraction(_POWERS[word]))), rest[1:])
    if word == "factorial":
        return Call("factorial", (_base(node),)), rest[1:]
    return _to_a_power(node, rest)


def _is_length(word: str) -> bool:
    return word in ("unit", "units") or UNITS.get(word, ("", 0))[0] == "length"


def _factor(node: Node) -> Node:
    """The node, which words multiply. NotParsed for a collection, and a sum: 2 + 3 thousand may be 5,000 and 3,002."""
    if isinstance(node, Sum) or not isinstance(node, _VALUES):
        raise NotParsed("words that multiply a sum or its last term")
    return node


def _base(node: Node) -> Node:
    """The node, which words raise. NotParsed where they may raise only a part of it, as in 2x squared."""
    if not isinstance(node, (Number, Symbol, Constant, Call)) or (isinstance(node, Number) and node.value < 0):
        raise NotParsed("words that raise a value or a part of it")
    return node


def _to_a_power(node: Node, rest: Tokens) -> tuple[Node, Tokens] | None:
    """The value after `to the sixth power`, `to the power of 3` and the like; None for other words."""
    at = 0
    while at < len(rest) and rest[at].kind == "word" and rest[at].text.lower() in _POWER_FILLERS:
        at += 1
    fillers = [token.text.lower() for token in rest[:at]]
    if "to" not in fillers or fillers[0] not in ("raised", "to") or at == len(rest):
        return None
    sign = 1
    if rest[at].text in ("-", "minus", "negative"):
        sign, at = -1, at + 1
    text = rest[at].text.lower() if at < len(rest) else ""
    exponent = int(text) if text.isdecimal() and len(text) < 5 else ORDINALS.get(text, NUMBER_WORDS.get(text))
    if exponent is None:
        raise NotParsed("a power in words without an exponent")
    at += 1
    while at < len(rest) and rest[at].text.lower() in ORDINAL_ENDINGS | {"power"}:
        at += 1
    return Power(_base(node), Number(Fraction(sign * exponent))), rest[at:]


def _combined(node: Node, rest: Tokens, parse: Callable[[Tokens], Node]) -> tuple[Node, Tokens] | None:
    """The value of an operation in words such as `plus two`, which takes all that follows; None for other words."""
    for phrase, operation in _OPERATIONS.items():
        if tuple(token.text.lower() for token in rest[: len(phrase)]) == phrase:
            operand = _with_digits(rest[len(phrase) :])
            if not operand or operand[0].kind in ("word", "connector"):
                return None
            if any(token.kind == "word" and not _STARTS.isdisjoint(token.text.lower().split()) for token in operand):
                raise NotParsed("several operations in words, whose order is not said")
            right = parse(operand)
            if not isinstance(right, _VALUES):
                raise NotParsed("an operation in words on no number")
            if phrase == ("plus",):
                return operation(node, right), ()
            return operation(node if phrase == ("minus",) else _factor(node), _factor(right)), ()
    return None


def _with_digits(tokens: Tokens) -> Tokens:
    """The tokens with the number words that they begin with as a number."""
    words = [token.text.lower() for token in tokens if token.kind == "word"]
    value, count = _leading_number(words)
    if not count or any(token.kind != "word" for token in tokens[:count]):
        return tokens
    return (Token("number", str(value)), *tokens[count:])
