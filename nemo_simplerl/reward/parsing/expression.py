r"""The parser of expressions: sums, products, powers, functions. It reads one run of tokens to its end."""

from fractions import Fraction

from nemo_simplerl.reward.parsing import functions, numerals
from nemo_simplerl.reward.parsing.brackets import Tokens, closing_index, split
from nemo_simplerl.reward.parsing.cursor import Cursor
from nemo_simplerl.reward.parsing.lexicon import FUNCTION_LETTERS, FUNCTIONS, words_of
from nemo_simplerl.reward.parsing.literals import read_number
from nemo_simplerl.reward.parsing.tokens import NotParsed, Token
from nemo_simplerl.reward.parsing.tree import (
    ELLIPSIS,
    EULER,
    IMAGINARY,
    INFINITY,
    ONE,
    PI,
    Call,
    Degrees,
    Matrix,
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

_LETTER_CONSTANTS = {"e": EULER, "i": IMAGINARY}
_COMMAND_CONSTANTS = {"pi": PI, "infty": INFINITY, "ldots": ELLIPSIS}
_GREEK = words_of(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
    "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar emptyset aleph "
    "partial nabla"
)
_ACCENTS = frozenset(["overline", "bar", "hat", "vec", "overrightarrow", "tilde", "widehat", "dot", "ddot", "overarc"])
_GEOMETRY = frozenset(["angle", "triangle", "measuredangle", "odot"])
_BIG = frozenset(["sum", "prod", "int", "iint", "oint", "lim", "bigcup", "bigcap"])
_SECOND = Number(Fraction(2))


def parse_expression(tokens: Tokens, tight_division: bool = False) -> Node:
    r"""The tree of an expression. NotParsed unless every token is used.

    `tight_division` reads 1/2x as 1/(2x) and \sin x/2 as sin(x/2); otherwise a division ends with its first
    divisor, and a function's argument before it.
    """
    reader = Reader(tokens, tight_division)
    node = reader.sum()
    if reader.at < len(tokens):
        raise NotParsed(f"unexpected {tokens[reader.at].text!r}")
    return node


class Reader(Cursor):
    """A place in a run of tokens. Each method reads one construct that begins there and moves behind it."""

    def __init__(self, tokens: Tokens, tight_division: bool = False) -> None:
        super().__init__(tokens)
        self.tight_division = tight_division
        self.open_bars = 0

    def inner(self, tokens: Tokens) -> Node:
        if not tokens:
            raise NotParsed("empty brackets")
        return parse_expression(tokens, self.tight_division)

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
                node = negative(node)
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
                    factors[-1] = fraction
            else:
                return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def divisor(self) -> Node:
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
        return functions.starts_factor(token.text)

    def mixed_part(self, whole: Node) -> Number | None:
        r"""2\frac{1}{2} and 2 1/2 as one number; None where the fraction is no proper one of integers."""
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
                top, bottom = read_number(token.text), read_number(below.text)
                self.at += 3
        if isinstance(top, Number) and isinstance(bottom, Number):
            proper = 0 < top.value < bottom.value and top.value.denominator == bottom.value.denominator == 1
            if proper:
                return Number(whole.value + top.value / bottom.value)
        self.at = start
        if token.kind == "number":
            raise NotParsed("two numbers side by side")
        return None

    # -- powers and what binds as tightly

    def power(self) -> Node:
        return self.postfix(self.primary())

    def postfix(self, node: Node) -> Node:
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

    def raised(self, base: Node) -> Node:
        if self.next_is("command", "circ"):
            self.take()
            return numerals.degrees(self, base)
        if self.next_is("command", "prime"):
            self.take()
            return Call("prime", (base,))
        if self.next_is("sign", "{"):
            end = closing_index(self.tokens, self.at)
            content = self.tokens[self.at + 1 : end]
            if len(content) == 1 and content[0].text in ("circ", "prime", "ast", "*", "th", "nd", "rd", "st"):
                self.at = end + 1
                if content[0].text == "circ":
                    return numerals.degrees(self, base)
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
        r"""A braced argument or one token. TeX takes one digit: \frac12 is 1/2, but x^10 is meant as x^{10}."""
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

    def primary(self) -> Node:
        token = self.take()
        if token.kind == "number":
            return numerals.number(self, token)
        if token.kind == "letter":
            return self.letter(token)
        if token.kind == "word" and len(token.text) == 1:
            return self.letter(token)
        if token.kind == "sign":
            return self.bracketed(token)
        if token.kind == "command":
            return self.command(token)
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
        parts, _ = split(self.tokens[self.at + 1 : end], lambda token: token.kind == "sign" and token.text in ",;")
        self.at = end + 1
        return tuple(self.inner(part) for part in parts)

    def bracketed(self, token: Token) -> Node:
        if token.text in ("(", "[", "{"):
            end = closing_index(self.tokens, self.at - 1)
            expected = {"(": ")", "[": "]", "{": "}"}[token.text]
            if self.tokens[end].text != expected or self.tokens[end].kind != "sign":
                raise NotParsed("brackets of two kinds")
            content = self.tokens[self.at : end]
            self.at = end + 1
            return functions.binomial_or_inner(content, self.inner)
        if token.text == "|":
            self.open_bars += 1
            body = self.sum()
            self.open_bars -= 1
            if not self.next_is("sign", "|"):
                raise NotParsed("an absolute value does not close")
            self.take()
            return Call("abs", (body,))
        raise NotParsed(f"no value begins with {token.text!r}")

    def command(self, token: Token) -> Node:
        name = token.text
        if name in _COMMAND_CONSTANTS:
            return _COMMAND_CONSTANTS[name]
        if name == "frac":
            return quotient(self.argument(single_digit=True), self.argument(single_digit=True))
        if name == "sqrt":
            return self.root()
        if name == "binom":
            return Call("binomial", (self.argument(single_digit=True), self.argument(single_digit=True)))
        if name in FUNCTIONS:
            return self.function(name)
        if name in _GREEK:
            return Symbol(self.subscripted(name))
        if name in ("lfloor", "lceil"):
            end = closing_index(self.tokens, self.at - 1)
            content = self.tokens[self.at : end]
            self.at = end + 1
            return Call("floor" if name == "lfloor" else "ceil", (self.inner(content),))
        if name == "vert":
            return self.bracketed(Token("sign", "|"))
        if name in _ACCENTS:
            return Call(name, (self.argument(single_digit=True),))
        if name in _GEOMETRY:
            return numerals.figure(self, name)
        if name in _BIG:
            return self.big_operator(name)
        if name.startswith("begin "):
            return self.matrix(name.partition(" ")[2])
        raise NotParsed(f"unknown command {name!r}")

    def root(self) -> Node:
        index: Node = _SECOND
        if self.next_is("sign", "["):
            end = closing_index(self.tokens, self.at)
            index = self.inner(self.tokens[self.at + 1 : end])
            self.at = end + 1
        body = self.argument(single_digit=False)
        exponent = Number(1 / index.value) if isinstance(index, Number) and index.value else quotient(ONE, index)
        return Power(body, exponent)

    def function(self, name: str) -> Node:
        base: Node | None = None
        if self.next_is("sign", "_"):
            self.take()
            base = self.argument(single_digit=False)
        exponent: Node | None = None
        if self.next_is("sign", "^"):
            self.take()
            sign = self.take().text if self.next_is("sign", "-") else ""
            exponent = self.argument(single_digit=False)
            exponent = negative(exponent) if sign else exponent
        name, exponent = functions.inverse(name, exponent)
        node = functions.call(name, base, self.function_arguments())
        return node if exponent is None else Power(node, exponent)

    def function_arguments(self) -> tuple[Node, ...]:
        r"""A bracket, or the factors up to a sign, a function or a dot: \cos 30 t is cos(30t)."""
        if self.next_is("sign", ".") and (after := self.peek(1)) is not None and after.text == "(":
            self.take()  # "max.(a, b)"
        if self.next_is("sign", "("):
            return self.arguments()
        sign = self.take().text if self.next_is("sign", "-") else ""
        factors = [self.power()]
        while self.starts_factor() and not self.function_begins():
            if self.next_is("sign", "(", "["):
                break
            factors.append(self.power())
        node = factors[0] if len(factors) == 1 else Product(tuple(factors))
        if self.tight_division and self.next_is("sign", "/"):
            self.take()
            node = quotient(node, self.divisor())
        return (negative(node) if sign else node,)

    def function_begins(self) -> bool:
        token = self.peek()
        return token is not None and token.kind == "command" and token.text in FUNCTIONS and token.text != "sqrt"

    def big_operator(self, name: str) -> Node:
        r"""\sum_{k=1}^{n} body, never evaluated: the bounds are kept as text, the body to the end of the term."""
        bounds: list[Node] = []
        while self.next_is("sign", "_", "^"):
            mark = self.take().text
            start = self.at
            end = closing_index(self.tokens, start) if self.next_is("sign", "{") else start
            content = self.tokens[start : end + 1]
            self.at = end + 1
            bounds.append(Symbol(mark + " ".join(part.text for part in content if part.text not in "{}")))
        bounds.sort(key=lambda bound: bound.name if isinstance(bound, Symbol) else "")
        return Call(name, (*bounds, self.product()))

    def matrix(self, environment: str) -> Node:
        end = closing_index(self.tokens, self.at - 1)
        content = self.tokens[self.at : end]
        self.at = end + 1
        if environment not in functions.MATRICES:
            raise NotParsed(f"environment {environment!r}")
        lines, _ = split(content, lambda token: token.kind == "command" and token.text == "\\")
        rows = [split(line, lambda token: token.kind == "sign" and token.text == "&")[0] for line in lines if line]
        if not rows or len({len(row) for row in rows}) > 1:
            raise NotParsed("rows of different lengths")
        matrix = Matrix(tuple(tuple(self.inner(entry) for entry in row) for row in rows))
        return Call("det", (matrix,)) if environment == "vmatrix" else matrix
