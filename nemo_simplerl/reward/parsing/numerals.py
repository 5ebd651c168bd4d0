r"""Numbers as they are written: decimals, repeating decimals, scientific notation, degrees with minutes."""

from fractions import Fraction

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.brackets import closing_index
from nemo_simplerl.reward.parsing.cursor import Cursor
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
from nemo_simplerl.reward.parsing.tree import Degrees, Node, Number, Power, Product, Sum, Symbol


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


def repeating_decimal(text: str, period: str) -> Number:
    r"""The exact value of 0.2\overline{7}: `text` is 0.2 and `period` is 7."""
    if len(text) + len(period) > LIMITS.digits or not period.isdigit():
        raise NotParsed("not a repeating decimal")
    whole, _, decimals = text.partition(".")
    value = _scaled(int((whole + decimals) or "0"), len(decimals))
    return Number(value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(decimals)))


def continued_decimal(text: str) -> Number | None:
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
            return repeating_decimal(f"{whole}.{decimals[:-length]}", period)
    return None


def _scaled(digits: int, places: int) -> Fraction:
    return Fraction(digits, 10**places) if places else Fraction(digits)


def read_number_token(cursor: Cursor, token: Token) -> Node:
    r"""The number that `token` begins, with the \overline, dots or (3) that make it a repeating decimal."""
    following = cursor.peek()
    if following is not None and not following.spaced and "." in token.text:
        if following.text in ("overline", "bar", "dot"):
            cursor.take()
            return repeating_decimal(token.text, _digits(cursor))
        if following.text == "ldots" or _dots_follow(cursor):
            found = continued_decimal(token.text)
            if found is None:
                raise NotParsed("the digits show no period")
            cursor.at += 1 if following.text == "ldots" else 3
            return found
        if following.text == "(" and (end := closing_index(cursor.tokens, cursor.at)) == cursor.at + 2:
            period = cursor.tokens[cursor.at + 1].text
            if period.isdigit():
                cursor.at = end + 1
                return repeating_decimal(token.text, period)
    return read_number(token.text)


def _dots_follow(cursor: Cursor) -> bool:
    return all((token := cursor.peek(ahead)) is not None and token.text == "." for ahead in range(3))


def _digits(cursor: Cursor) -> str:
    token = cursor.take()
    if token.text == "{":
        token = cursor.take()
        if not cursor.next_is("sign", "}"):
            raise NotParsed("an overline over more than digits")
        cursor.take()
    return token.text


def read_degrees(cursor: Cursor, base: Node) -> Node:
    """The value `base` in degrees, with the minutes and seconds that may follow."""
    parts = [base]
    for size, marks in ((60, ("'",)), (3600, ('"', "''"))):
        number, prime = cursor.peek(), cursor.peek(1)
        if number is None or prime is None or number.kind != "number":
            break
        length = _prime_length(cursor, marks)
        if not length:
            break
        cursor.at += 1 + length
        parts.append(Product((read_number(number.text), Number(Fraction(1, size)))))
    return Degrees(parts[0] if len(parts) == 1 else Sum(tuple(parts)))


def _prime_length(cursor: Cursor, marks: tuple[str, ...]) -> int:
    """The number of tokens of the prime or double prime behind the next token; 0 without one."""
    rest = "".join(token.text for token in cursor.tokens[cursor.at + 1 : cursor.at + 6])
    for mark in marks:
        for spelling in (mark, "^{" + "prime" * len(mark) + "}"):
            if rest.startswith(spelling) and not rest.startswith(spelling + "'"):
                return len(mark) if spelling == mark else 3 + len(mark)
    return 0


def read_figure(cursor: Cursor, name: str) -> Node:
    r"""The geometric figure `\angle ABC` as one symbol."""
    letters = ""
    while (token := cursor.peek()) is not None and token.kind in ("letter", "number"):
        letters += cursor.take().text
    if not letters:
        raise NotParsed("a figure without points")
    return Symbol(f"{name} {letters}")
