r"""Numbers with marks of their own: repeating decimals, degrees with minutes, figures with letters."""

from fractions import Fraction

from nemo_simplerl.reward.parsing.brackets import closing_index
from nemo_simplerl.reward.parsing.cursor import Cursor
from nemo_simplerl.reward.parsing.literals import continued, read_number, repeating
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
from nemo_simplerl.reward.parsing.tree import Degrees, Node, Number, Product, Sum, Symbol


def number(cursor: Cursor, token: Token) -> Node:
    following = cursor.peek()
    if following is not None and not following.spaced and "." in token.text:
        if following.text in ("overline", "bar", "dot"):
            cursor.take()
            return repeating(token.text, _digits(cursor))
        if following.text == "ldots" or _dots_follow(cursor):
            found = continued(token.text)
            if found is None:
                raise NotParsed("the digits show no period")
            cursor.at += 1 if following.text == "ldots" else 3
            return found
        if following.text == "(" and (end := closing_index(cursor.tokens, cursor.at)) == cursor.at + 2:
            period = cursor.tokens[cursor.at + 1].text
            if period.isdigit():
                cursor.at = end + 1
                return repeating(token.text, period)
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


def degrees(cursor: Cursor, base: Node) -> Node:
    """A value in degrees; minutes and seconds may follow."""
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
    """The tokens of the prime or double prime behind the next token; 0 without one."""
    rest = "".join(token.text for token in cursor.tokens[cursor.at + 1 : cursor.at + 6])
    for mark in marks:
        for spelling in (mark, "^{" + "prime" * len(mark) + "}"):
            if rest.startswith(spelling) and not rest.startswith(spelling + "'"):
                return len(mark) if spelling == mark else 3 + len(mark)
    return 0


def figure(cursor: Cursor, name: str) -> Node:
    r"""\angle ABC as one symbol."""
    letters = ""
    while (token := cursor.peek()) is not None and token.kind in ("letter", "number"):
        letters += cursor.take().text
    if not letters:
        raise NotParsed("a figure without points")
    return Symbol(f"{name} {letters}")
