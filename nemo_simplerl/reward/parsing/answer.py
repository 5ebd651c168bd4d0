r"""The parser of whole answers: lists, sets, intervals, relations, ratios, times, quantities.

All of the text is used, or nothing: a prefix that parses is not an answer.
"""

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.brackets import (
    Separators,
    Tokens,
    check_nesting,
    closing_index,
    is_enclosed,
    split_top_level,
)
from nemo_simplerl.reward.parsing.cursor import bounded
from nemo_simplerl.reward.parsing.expression import parse_expression
from nemo_simplerl.reward.parsing.lexicon import ANSWER_PREFIXES
from nemo_simplerl.reward.parsing.notations.bases import read_based_number
from nemo_simplerl.reward.parsing.notations.labels import names_a_value, read_label, without_saying
from nemo_simplerl.reward.parsing.notations.matrices import (
    TEX_MATRICES,
    carried_out,
    read_environment,
    read_rows,
    split_scalar,
    split_transpose,
    transposed,
)
from nemo_simplerl.reward.parsing.notations.phrases import read_clock_time, read_phrase
from nemo_simplerl.reward.parsing.notations.qualifiers import without_qualifiers
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
from nemo_simplerl.reward.parsing.tree import (
    EMPTY_SET,
    Interval,
    Listing,
    Node,
    Product,
    Ratio,
    Relation,
    SetBuilder,
    SetCombination,
    SetOf,
    Symbol,
    Tuple,
)
from nemo_simplerl.reward.parsing.units import split_suffix, with_suffix

_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "approx": "~", "in": "in", "equiv": "==",
    "notin": "notin", "subseteq": "subset", "subset": "subset", "Rightarrow": "=>", "Leftrightarrow": "<=>",
    "sim": "sim", "cong": "cong", "parallel": "parallel", "perp": "perp",
}  # fmt: skip
_LEADING = frozenset({"=", "Rightarrow", "Leftrightarrow"})  # before an answer these say nothing
_NAMING = frozenset({"=", "in", "approx", ":="})
_CLOSING = {"(": ")]", "[": "])", "{": "}", "langle": "rangle"}
_SET_OPERATORS = {"cup": "cup", "cap": "cap", "setminus": "minus"}
_INTEGERS = Symbol(r"\mathbb{Z}")

_SEMICOLONS = Separators(("sign", ";"))
_ORS = Separators(("connector", "or"), ("command", "vee"))
_ANDS_ORS_COMMAS = Separators(
    ("connector", "and"), ("connector", "or"), ("sign", ","), ("command", "wedge"), ("command", "\\")
)
_ITEM_ENDS = Separators(("sign", ","), ("sign", ";"))
_RELATION_SIGNS = Separators(*[(kind, sign) for kind in ("sign", "command") for sign in _RELATIONS])
_BARS = Separators(
    *[("sign", bar) for bar in ("|", "mid", "vert")], *[("command", bar) for bar in ("|", "mid", "vert")]
)
_COLONS = Separators(("sign", ":"))
_TO = Separators(("word", "to"))
_MINUS = Separators(("sign", "-"))
_SET_SIGNS = Separators(*[("command", sign) for sign in _SET_OPERATORS])


class AnswerParser:
    """Parses a whole answer. `tight_division` is handed to the expression parser, `trusted` to `with_suffix`."""

    def __init__(self, tight_division: bool = False, trusted: bool = False) -> None:
        self.tight_division = tight_division
        self.trusted = trusted
        self.depth = 0

    def answer(self, tokens: Tokens) -> Node:
        """The tree of a whole answer. NotParsed where it has none."""
        if len(tokens) > 1 and tokens[0].kind == "word" and tokens[0].text.lower() in ANSWER_PREFIXES:
            tokens = tokens[2:] if tokens[1].text == ":" else tokens[1:]
        if not tokens:
            raise NotParsed("nothing is left")
        if len(tokens) == 1 and tokens[0].kind == "number":
            return self.value(tokens)
        tokens = _inward(tokens)
        check_nesting(tokens)
        tokens = without_qualifiers(without_saying(tokens))
        node = self.listing(tokens)
        return carried_out(node) if any(_opens_matrix(token) for token in tokens if token.kind == "command") else node

    def listing(self, tokens: Tokens) -> Node:
        """The list of items separated by `;` or, within these, by connectors and commas; a single item as it is."""
        for kind in (_SEMICOLONS, _ORS, _ANDS_ORS_COMMAS):
            parts, separators = split_top_level(tokens, kind)
            if separators:
                if not parts[0] or not parts[-1]:
                    raise NotParsed("a list that begins or ends without an item")
                parts = [part for part in parts if part]  # ", and"
                if len(parts) > LIMITS.items:
                    raise NotParsed("a list of too many items")
                joiners = {separator.text for separator in separators}
                joiner = ";" if ";" in joiners else "or" if "or" in joiners else "and" if "and" in joiners else ","
                items = _flattened([self.listing(part) for part in parts], joiner)
                return Listing(items, joiner) if len(items) > 1 else items[0]
        return self.item(tokens)

    @bounded
    def item(self, tokens: Tokens) -> Node:
        """One statement: a relation chain, or a value."""
        named = self.labelled(tokens)
        if named is not None:
            return named
        parts, signs = split_top_level(tokens, _RELATION_SIGNS)
        if signs and not parts[0] and signs[0].text in _LEADING:
            return self.item(tokens[1:])  # "= 5"
        if not signs:
            point = self.point(tokens)
            return self.operand(tokens) if point is None else point
        if not parts[0]:
            parts[0] = (Token("letter", "x"),)  # ">= 5"
        if not all(parts):
            raise NotParsed("a relation without one of its sides")
        of_matrix = any(_opens_matrix(token) for token in parts[-1])
        names = [
            read_label(part, of_matrix) if sign.text in _NAMING else None
            for part, sign in zip(parts, signs, strict=False)
        ]
        sides = [
            name if name is not None else self.operand(part) for part, name in zip(parts, [*names, None], strict=True)
        ]
        return Relation(tuple(sides), tuple(_RELATIONS[sign.text] for sign in signs))

    def labelled(self, tokens: Tokens) -> Node | None:
        """`Minimum: 3` and `Minimum = 3` as equations of a name; None for any other form."""
        if len(tokens) >= 3 and tokens[0].kind == "word" and tokens[1].text in (":", "="):
            if not names_a_value(tokens[0].text):
                raise NotParsed("the words say something else than the value")
            name = Symbol(tokens[0].text.lower())
            value = self.item(tokens[2:])
            return None if isinstance(value, Relation) else Relation((name, value), ("=",))
        return None

    def point(self, tokens: Tokens) -> Node | None:
        """The named point P(3, 4) as the equation P = (3, 4); None for any other form."""
        if len(tokens) < 6 or tokens[0].kind != "letter" or not tokens[0].text.isupper():
            return None
        opening = 1
        if tokens[1].text == "_":
            opening = closing_index(tokens, 2) + 1 if tokens[2].text == "{" else 3
        if not is_enclosed(tokens[opening:]) or tokens[opening].text != "(":
            return None
        place = self.collection(tokens[opening:])
        name = "".join(token.text for token in tokens[:opening] if token.text not in "{}")
        return Relation((Symbol(name), place), ("=",)) if isinstance(place, Tuple) else None

    def operand(self, tokens: Tokens) -> Node:
        """A value, or sets combined by union, intersection and difference."""
        parts, signs = split_top_level(tokens, _SET_SIGNS)
        if not signs:
            difference = self.set_difference(tokens)
            return self.value(tokens) if difference is None else difference
        if not all(parts):
            raise NotParsed("a union without one of its parts")
        node = self.value(parts[0])
        for sign, part in zip(signs, parts[1:], strict=True):
            operator, right = _SET_OPERATORS[sign.text], self.value(part)
            same = isinstance(node, SetCombination) and node.operator == operator == "cup"
            left = node.parts if same and isinstance(node, SetCombination) else (node,)
            node = SetCombination(operator, (*left, right))
        return node

    def set_difference(self, tokens: Tokens) -> Node | None:
        r"""The set difference `R - \{0\}`, written with a minus sign before a set; None for any other form."""
        if len(tokens) < 4 or tokens[-1] != Token("command", "}", tokens[-1].spaced):
            return None
        parts, signs = split_top_level(tokens, _MINUS)
        if len(signs) == 1 and parts[0] and _opens_set(parts[1]) and parts[0][-1].text != "^":
            return SetCombination("minus", (self.value(parts[0]), self.value(parts[1])))
        return None

    @bounded
    def value(self, tokens: Tokens) -> Node:
        """One value: bracketed collection, ratio, time, number in a base, quantity or words."""
        if not tokens:
            raise NotParsed("a value is missing")
        if len(tokens) == 1 and tokens[0].kind == "number":
            return self.expression(tokens)
        words = read_phrase(tokens)
        if words is not None:
            return words
        if len(tokens) == 1 and tokens[0].text == "emptyset":
            return EMPTY_SET
        if tokens[0].kind == "word" and _is_negative_in_words(tokens):
            return self.value((Token("sign", "-"), *tokens[1:]))
        if is_enclosed(tokens):
            if tokens[0].text == "begin cases":
                return read_environment("cases", tokens[1:-1], self.listing)
            collection = self.collection(tokens)
            if collection is not None:
                return collection
        row = split_transpose(tokens)
        if row is not None and (column := transposed(self.value(row))) is not None:
            return column
        scaled = split_scalar(tokens)
        if scaled is not None and isinstance(vector := self.value(scaled[1]), Tuple):
            scalar = parse_expression(scaled[0], self.tight_division)
            return Tuple(tuple(Product((scalar, item)) for item in vector.items))
        special = read_clock_time(tokens) or read_based_number(tokens) or self.ratio(tokens)
        if special is not None:
            return special
        body, suffix = split_suffix(tokens)
        if not body:
            raise NotParsed("a unit without a value")
        if suffix and is_enclosed(body):
            return with_suffix(self.value(body), suffix, self.operand, self.trusted)
        return with_suffix(self.expression(body), suffix, self.operand, self.trusted)

    def expression(self, tokens: Tokens) -> Node:
        return parse_expression(tokens, self.tight_division, self.depth)

    def collection(self, tokens: Tokens) -> Node | None:
        """The tuple, set or interval between one pair of brackets; None where they only group."""
        opening, closing, inside = tokens[0], tokens[-1], tokens[1:-1]
        if closing.kind != opening.kind or closing.text not in _CLOSING.get(opening.text, closing.text):
            raise NotParsed("brackets of two kinds")
        if opening.kind == "command" and opening.text == "{":
            return self.set_of(inside)
        if opening.text == "langle":
            return Tuple(tuple(self.listing(part) for part in split_top_level(inside, _ITEM_ENDS)[0]))
        if opening.kind != "sign":
            return None
        parts, separators = split_top_level(inside, _ITEM_ENDS)
        mixed = opening.text + closing.text in ("[)", "(]")
        if separators:
            if len(parts) > LIMITS.items or not all(parts):
                raise NotParsed("an empty place in a list, or too many items")
            if opening.text == "[" and (matrix := read_rows(parts, separators, self.item)) is not None:
                return matrix
            if opening.text == "{":
                return SetOf(tuple(self.item(part) for part in parts))
            items = tuple(self.item(part) for part in parts)
            if len(items) == 2 and (mixed or opening.text == "["):
                return Interval(items[0], items[1], opening.text == "[", closing.text == "]")
            if mixed:
                raise NotParsed("an interval of more than two ends")
            return Tuple(items)
        if mixed:
            raise NotParsed("brackets of two kinds")
        if opening.text == "(" and any(_is_structural(token) for token in inside):
            return self.listing(inside)
        return None

    def set_of(self, inside: Tokens) -> Node:
        """The set or set-builder whose braces enclose these tokens."""
        if not inside:
            return EMPTY_SET
        for kind in (_BARS, _COLONS):
            parts, bars = split_top_level(inside, kind)
            if len(bars) == 1 and all(parts):
                return SetBuilder(self.item(parts[0]), self.listing(parts[1]))
        parts, _ = split_top_level(inside, _ITEM_ENDS)
        if len(parts) > LIMITS.items or not all(parts):
            raise NotParsed("an empty place in a set, or too many items")
        return SetOf(tuple(self.item(part) for part in parts))

    def ratio(self, tokens: Tokens) -> Node | None:
        """The ratio `2:3` or `2 to 3`; None without such a separator."""
        parts, colons = split_top_level(tokens, _COLONS)
        if not colons:
            parts, colons = split_top_level(tokens, _TO)
        if not colons:
            return None
        if not all(parts) or len(parts) > 20:
            raise NotParsed("a ratio with an empty place")
        return Ratio(tuple(self.expression(part) for part in parts))


def _inward(tokens: Tokens) -> Tokens:
    """The tokens with the French open interval ]a, b[ written as (a, b)."""
    if tokens[0].text != "]" and tokens[-1].text != "[":
        return tokens
    turned: list[Token] = []
    inside = False
    for token in tokens:
        if token.kind == "sign" and token.text in "[]":
            inside = not inside
            turned.append(
                Token("sign", {"]": "(", "[": "["}[token.text] if inside else {"[": ")", "]": "]"}[token.text])
            )
        else:
            turned.append(token)
    return tuple(turned)


def _flattened(items: list[Node], joiner: str) -> tuple[Node, ...]:
    """The items of "1, 2 or 3" as one list; conditions keep their grouping, and so do groups between `;`.

    A condition that a parameter is an integer is dropped: "k pi, k in Z" is "k pi".
    """
    said = [item for item in items if not (isinstance(item, Relation) and item.sides[1:] == (_INTEGERS,))]
    items = said or items
    flat: list[Node] = []
    for item in items:
        grouped = (
            joiner == ";" or not isinstance(item, Listing) or any(isinstance(part, Relation) for part in item.items)
        )
        flat.extend([item] if grouped or not isinstance(item, Listing) else item.items)
    return tuple(flat)


def _is_negative_in_words(tokens: Tokens) -> bool:
    if len(tokens) < 2 or tokens[0].text.lower() not in ("minus", "negative"):
        return False
    return tokens[1].kind == "number" or tokens[1].text in ("frac", "sqrt", "pi")


def _opens_matrix(token: Token) -> bool:
    return token.kind == "command" and (token.text[:6] == "begin " or token.text in TEX_MATRICES)


def _is_structural(token: Token) -> bool:
    return token in _RELATION_SIGNS or token.text in ("cup", "cap", "setminus") or token.kind == "connector"


def _opens_set(tokens: Tokens) -> bool:
    return len(tokens) >= 2 and tokens[0] == Token("command", "{", tokens[0].spaced) and is_enclosed(tokens)
