"""Random LaTeX from a grammar, with depth and repetition: what a model may write, and what none would."""

import random

_ATOMS_TEXT = (
    r"0 1 2 3 7 10 0.5 1,234 2.50 1e9 x y n k e i a b \pi \infty \emptyset \alpha \mathbb{R} 12\text{cm} \$5 "
    r"45^\circ 30\% 101_2 4:30\text{p.m.} \ldots x_{1} f(x) \text{odd} 5\text{thousand} 0.\overline{3} \angle{ABC} "
    r"ten ab at"
)
_ATOMS = _ATOMS_TEXT.split()
_AROUND_TEXT = (
    r"(%s) [%s] \{%s\} |%s| \sqrt{%s} \sqrt[3]{%s} {%s} \left(%s\right) \lfloor{%s}\rfloor \sin(%s) \ln{%s} e^{%s} "
    r"(%s)! \overline{%s} \text{%s} \mathrm{%s} \mathbf{%s} f(%s) \log_2(%s) -(%s) (%s)^2 (%s)^{3/2} x=%s "
    r"\boxed{%s} $%s$ \begin{pmatrix}%s\end{pmatrix} \sum_{k=1}^{%s}k \langle%s\rangle (0,%s] \frac{1}{1+%s} "
    r"((%s)^{3/2}+1)"
)
_AROUND = _AROUND_TEXT.split()
_BETWEEN_TEXT = (
    r"+ - * / \cdot \times \pm \mp ^ _ , ; : = < > \le \ge \ne \approx \in \cup \cap \setminus \mid \pmod \bmod ! ' "
    r"% \text{and} \text{or} \text{plus} \text{times} \text{to} \text{thousand} \text{squared} \text{of} & \\ \circ "
    r"\quad"
)
_BETWEEN = [
    *_BETWEEN_TEXT.split(),
    *("", " ", " or ", " and ", " plus ", " to the ", "^{}", "...", "\u200b", "é", "\\"),
]
_REPEATED_TEXT = (
    r"\pm1 \mp1 +\pm\pm1 \frac \sqrt \overline \sin \log_ \sum_1^ \int x^ 2^- /2 ! ' % - + ( [ { \{ | \lfloor "
    r"\left( \text{ \mathbf \mathbf{ ,1 ;1 :1 =1 <1 \cup(1,2) \cap(1,2) \setminus\{1\} \pmod2 \text{plus}1 "
    r"\text{times}1 a: \text{or}1 1/ \frac{1}{1+ \sqrt{1+ ((x+1)^{3/2}+ \sin( e^{ (1, \{1, |x- \binom{1}{ f( "
    r"\text{thousand} \text{squared} \text{ofa} x_ x_{ x' \cdot2 ^2 ^\circ \\ & \begin{pmatrix} \boxed{ $ \log \lim "
    r"\dot \langle -x 9^ 10^{ ½ ² ∪ − °"
)
_REPEATED = _REPEATED_TEXT.split()


def expression(draw: random.Random, depth: int) -> str:
    """A text of the grammar: mostly well-formed, nested at most `depth` deep."""
    kind = draw.random()
    if depth <= 0 or kind < 0.2:
        return draw.choice(_ATOMS)
    if kind < 0.5:
        return expression(draw, depth - 1) + draw.choice(_BETWEEN) + expression(draw, depth - 1)
    if kind < 0.8:
        return draw.choice(_AROUND).replace("%s", expression(draw, depth - 1))
    if kind < 0.85:
        around, inside = draw.choice(_AROUND), expression(draw, 1)
        for _ in range(draw.choice((2, 5, 20, 60))):
            inside = around.replace("%s", inside)
        return inside
    if kind < 0.92:
        return repeated(draw) + expression(draw, depth - 1)
    return rf"\frac{{{expression(draw, depth - 1)}}}{{{expression(draw, depth - 1)}}}"


def repeated(draw: random.Random) -> str:
    """A piece many times over, and sometimes what closes the brackets that it opens."""
    piece, times = draw.choice(_REPEATED), draw.choice((2, 3, 8, 30, 100, 400))
    closing = "".join({"{": "}", "(": ")", "[": "]"}.get(letter, "") for letter in reversed(piece))
    return piece * times + (draw.choice(_ATOMS) + closing * times if draw.random() < 0.5 else "")


def changed(draw: random.Random, text: str) -> str:
    """The text with one character replaced, doubled or dropped."""
    if not text:
        return "x"
    at = draw.randrange(len(text))
    return text[:at] + draw.choice(("", text[at] * 2, draw.choice("0x+-{}()\\^ ,"))) + text[at + 1 :]


def pair(draw: random.Random) -> tuple[str, str]:
    """A gold answer and an answer: the same, nearly the same, or another text."""
    gold = expression(draw, draw.randint(1, 6))
    kind = draw.random()
    if kind < 0.4:
        return gold, changed(draw, gold)
    return gold, f"({gold})" if kind < 0.6 else expression(draw, draw.randint(1, 6))
