r"""The parser of expressions: sums, products, powers, functions. It reads its tokens to the end."""

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing import commands, numerals
from nemo_simplerl.reward.parsing.brackets import Separators, Tokens, closing_index, split_top_level
from nemo_simplerl.reward.parsing.cursor import Cursor, bounded
from nemo_simplerl.reward.parsing.lexicon import FUNCTION_LETTERS
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
from nemo_simplerl.reward.parsing.tree import (
    EULER,
    IMAGINARY,
    Call,
    Degrees,
    Node,
    Number,
    Percent,
    PlusMinus,
    Power,
    Product,
    Sum,
    Symbol,
    negative,
    quotient,
)

_ARGUMENT_ENDS = Separators(("sign", ","), ("sign", ";"))
_LETTER_CONSTANTS = {"e": EULER, "i": IMAGINARY}


def parse_expression(tokens: Tokens, tight_division: bool = False, depth: int = 0) -> Node:
    r"""The tree of an expression. NotParsed unless every token is used.

    `tight_division` reads 1/2x as 1/(2x) and \sin x/2 as sin(x/2); otherwise a division ends with its first
    divisor, and a function's argument before it. `depth` is the level of nesting at which the expression stands.
    """
    if len(tokens) == 1 and tokens[0].kind == "number" and depth < LIMITS.depth:
        return numerals.read_number(tokens[0].text)  # half of all expressions
    node = commands.infix(tokens, lambda part: parse_expression(part, tight_division, depth))
    if node is not None:
        return node
    parser = ExpressionParser(tokens, tight_division, depth)
    node = parser.sum()
    if parser.at < len(tokens):
        raise NotParsed(f"unexpected {tokens[parser.at].text!r}")
    return node


class ExpressionParser(Cursor):
    """Recursive descent over tokens. Each method reads the construct that begins at the cursor and moves behind it."""

    def __init__(self, tokens: Tokens, tight_division: bool = False, depth: int = 0) -> None:
        super().__init__(tokens, depth)
        self.tight_division = tight_division
        self.open_bars = 0

    def inner(self, tokens: Tokens) -> Node:
        """The tree of the tokens between two brackets."""
        if not tokens:
            raise NotParsed("empty brackets")
        return parse_expression(tokens, self.tight_division, self.depth)

    # -- sums and products

    def sum(self) -> Node:
        terms = [self.signed_term(first=True)]
        while self.next_is("sign", "+", "-") or self.next_is("command", "pm", "mp"):
            terms.append(self.signed_term(first=False))
        return terms[0] if len(terms) == 1 else Sum(tuple(terms))

    def signed_term(self, first: bool) -> Node:
        signs: list[str] = []
        while self.next_is("sign", "+", "-") or self.next_is("command", "pm", "mp"):
            signs.append(self.take().text)
            if len(signs) > 3:
                raise NotParsed("a run of signs")
        node = self.product()
        for sign in reversed(signs):
            if sign == "-":
                node = type(node)(negative(node.body)) if isinstance(node, (Percent, Degrees)) else negative(node)
            elif sign in ("pm", "mp"):
                node = PlusMinus(node, opposite=sign == "mp")
        return node

    def product(self) -> Node:
        factors = [self.power()]
        while True:
            if self.next_is("sign", "*") or self.next_is("command", "cdot", "times"):
                self.take()
                factors.append(self.signed_factor())
            elif self.next_is("sign", "/") or self.next_is("command", "div"):
                self.take()
                divisor = self.divisor()
                factors = [quotient(factors[0] if len(factors) == 1 else Product(tuple(factors)), divisor)]
            elif self.starts_factor():
                fraction = self.mixed_part(factors[-1])
                if fraction is None:
                    factors.append(self.power())
                else:
                    factors[-1] = self.percent(fraction)
            else:
                return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def divisor(self) -> Node:
        """The factor after a division sign; with `tight_division` also those that follow it without a sign."""
        first = self.signed_factor()
        if not self.tight_division:
            return first
        factors = [first]
        while self.starts_factor():
            factors.append(self.power())
        return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def signed_factor(self) -> Node:
        if self.next_is("sign", "+", "-"):
            sign = self.take().text
            node = self.power()
            return negative(node) if sign == "-" else node
        return self.power()

    def starts_factor(self) -> bool:
        token = self.peek()
        if token is None or token.kind in ("connector", "word"):
            return False
        if token.kind in ("number", "letter"):
            return True
        if token.kind == "sign":
            return token.text in ("(", "[", "{") or (token.text == "|" and not self.open_bars)
        return commands.starts_factor(token.text)

    def mixed_part(self, whole: Node) -> Number | None:
        r"""The mixed number 2\frac{1}{2} or 2 1/2; None where no proper fraction of integers follows."""
        last = self.tokens[self.at - 1]
        if last.kind != "number" or not last.text.isdigit() or not isinstance(whole, Number):
            return None
        start, token = self.at, self.peek()
        if token is None or (self.at >= 2 and self.tokens[self.at - 2].text in ("^", "_", "/")):
            return None
        top = bottom = None
        if token.kind == "command" and token.text == "frac":
            self.take()
            top, bottom = self.argument(single_digit=True), self.argument(single_digit=True)
        elif token.kind == "number" and token.text.isdigit() and token.spaced:
            slash, below = self.peek(1), self.peek(2)
            if slash and below and slash.text == "/" and below.kind == "number" and below.text.isdigit():
                top, bottom = numerals.read_number(token.text), numerals.read_number(below.text)
                self.at += 3
        if isinstance(top, Number) and isinstance(bottom, Number):
            proper = 0 < top.value < bottom.value and top.value.denominator == bottom.value.denominator == 1
            if proper:
                return Number(whole.value + top.value / bottom.value)
        self.at = start
        if token.kind == "number":
            raise NotParsed("two numbers side by side")
        return None

    def percent(self, node: Number) -> Node:
        """The mixed number with the percent sign that may follow it."""
        if not self.next_is("sign", "%"):
            return node
        self.take()
        return Percent(node)

    # -- powers and what binds as tightly

    def power(self) -> Node:
        return self.postfix(self.primary())

    def postfix(self, node: Node) -> Node:
        """The node with the exponents, factorials, percent signs and primes that follow it."""
        while (token := self.peek()) is not None:
            if token.kind == "sign" and token.text == "^":
                self.take()
                node = self.raised(node)
            elif token.kind == "sign" and token.text == "!":
                self.take()
                double = self.next_is("sign", "!")
                if double:
                    self.take()
                node = Call("doublefactorial" if double else "factorial", (node,))
            elif token.kind == "sign" and token.text == "%":
                self.take()
                node = Percent(node)
            elif token.kind == "sign" and token.text == "'" and not isinstance(node, (Number, Degrees)):
                self.take()
                node = Call("prime", (node,))
            else:
                return node
        return node

    @bounded
    def raised(self, base: Node) -> Node:
        """The base with what follows `^`: an exponent, degrees or a prime. An ordinal ending such as th is dropped."""
        if self.next_is("command", "circ"):
            self.take()
            return numerals.read_degrees(self, base)
        if self.next_is("command", "prime"):
            self.take()
            return Call("prime", (base,))
        if self.next_is("sign", "{"):
            end = closing_index(self.tokens, self.at)
            content = self.tokens[self.at + 1 : end]
            if len(content) == 1 and content[0].text in ("circ", "prime", "ast", "*", "th", "nd", "rd", "st"):
                self.at = end + 1
                if content[0].text == "circ":
                    return numerals.read_degrees(self, base)
                return base if content[0].kind == "word" else Call(content[0].text, (base,))
        if self.next_is("sign", "-", "+"):
            sign = self.take().text
            exponent = self.argument(single_digit=False)
            return Power(base, negative(exponent) if sign == "-" else exponent)
        exponent = self.argument(single_digit=False)
        if self.next_is("sign", "^"):
            self.take()
            exponent = self.raised(exponent)
        return Power(base, exponent)

    def argument(self, single_digit: bool) -> Node:
        r"""A braced argument, or one token. TeX takes one digit: \frac12 is 1/2, but x^10 is meant as x^{10}."""
        token = self.peek()
        if token is None:
            raise NotParsed("an argument is missing")
        if token.kind == "sign" and token.text == "{":
            end = closing_index(self.tokens, self.at)
            content = self.tokens[self.at + 1 : end]
            self.at = end + 1
            return self.inner(content)
        if single_digit and token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            rest = Token("number", token.text[1:])
            self.tokens = (*self.tokens[: self.at], Token("number", token.text[0]), rest, *self.tokens[self.at + 1 :])
        return self.primary()

    # -- primaries

    @bounded
    def primary(self) -> Node:
        token = self.take()
        if token.kind == "number":
            return numerals.read_number_token(self, token)
        if token.kind == "letter":
            return self.letter(token)
        if token.kind == "word" and len(token.text) == 1:
            return self.letter(token)
        if token.kind == "sign":
            return self.bracketed(token)
        if token.kind == "command":
            return commands.read_command(self, token)
        raise NotParsed(f"no value begins with {token.text!r}")

    def letter(self, token: Token) -> Node:
        name = self.subscripted(token.text)
        if name in _LETTER_CONSTANTS:
            return _LETTER_CONSTANTS[name]
        following = self.peek()
        base = name.partition("_")[0]
        if base in FUNCTION_LETTERS and following is not None and following.text == "(":
            return Call(name, self.arguments())
        return Symbol(name)

    def subscripted(self, name: str) -> str:
        """The name with its subscript in plain characters: x_{1} and x_1 are the same symbol."""
        if not self.next_is("sign", "_"):
            return name
        self.take()
        start = self.at
        token = self.take()
        if token.text == "{":
            end = closing_index(self.tokens, start)
            content = self.tokens[start + 1 : end]
            self.at = end + 1
            return f"{name}_{' '.join(part.text for part in content)}"
        return f"{name}_{token.text}"

    def arguments(self) -> tuple[Node, ...]:
        """The comma-separated arguments in the bracket that begins here."""
        end = closing_index(self.tokens, self.at)
        if self.tokens[end].text != ")":
            raise NotParsed("brackets of two kinds")
        parts, _ = split_top_level(self.tokens[self.at + 1 : end], _ARGUMENT_ENDS)
        self.at = end + 1
        return tuple(self.inner(part) for part in parts)

    def bracketed(self, token: Token) -> Node:
        """The content of the bracket or absolute value that `token` has opened."""
        if token.text in ("(", "[", "{"):
            end = closing_index(self.tokens, self.at - 1)
            expected = {"(": ")", "[": "]", "{": "}"}[token.text]
            if self.tokens[end].text != expected or self.tokens[end].kind != "sign":
                raise NotParsed("brackets of two kinds")
            content = self.tokens[self.at : end]
            self.at = end + 1
            return self.inner(content)
        if token.text == "|":
            self.open_bars += 1
            body = self.sum()
            self.open_bars -= 1
            if not self.next_is("sign", "|"):
                raise NotParsed("an absolute value does not close")
            self.take()
            return Call("abs", (body,))
        raise NotParsed(f"no value begins with {token.text!r}")
