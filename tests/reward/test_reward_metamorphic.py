"""Relations between verdicts that hold for any answer: typesetting changes nothing, one digit changes the verdict."""

import random
from fractions import Fraction

import pytest

from nemo_simplerl.reward.comparing.equivalence import equivalent


def _expression(draw, depth):
    """A random expression in LaTeX, without a division by zero that is easy to write by chance."""
    if depth == 0:
        return draw.choice((str(draw.randint(1, 99)), "x", "y", r"\pi", str(draw.randint(2, 9)) + "n"))
    form = draw.randrange(6)
    one, two = _expression(draw, depth - 1), _expression(draw, depth - 1)
    if form == 0:
        return rf"\frac{{{one}}}{{{two}+{draw.randint(200, 300)}}}"
    if form == 1:
        return rf"\sqrt{{{one}}}"
    if form == 2:
        return rf"\left({one}+{two}\right)^{{{draw.randint(2, 3)}}}"
    if form == 3:
        return rf"\left({one}\right)\left({two}\right)"
    if form == 4:
        return rf"\sin\left({one}\right)"
    return f"{one}+{two}"


def _answers(count, seed):
    draw = random.Random(seed)
    for _ in range(count):
        expression = _expression(draw, draw.randint(0, 3))
        other = str(draw.randint(1, 50))
        yield draw.choice(
            (
                expression,
                f"({expression},{other})",
                f"{expression}, {other}, {int(other) + 60}",
                f"x={other}",
                rf"\left[{other},{int(other) + 9}\right)",
                rf"\{{{expression},{other}\}}",
                rf"x \le {other}",
                rf"\begin{{pmatrix}} {other} \\ {expression} \end{{pmatrix}}",
                rf"{other} \text{{ cm}}",
                rf"{other}\%",
            )
        )


_REWRITES = {
    "spaces": lambda text: text.replace("+", " + ").replace(",", " ,  "),
    "dollars": lambda text: f"${text}$",
    "full stop": lambda text: text + ".",
    "display": lambda text: r"\displaystyle " + text,
    "dfrac": lambda text: text.replace(r"\frac", r"\dfrac"),
    "no left and right": lambda text: text.replace(r"\left", "").replace(r"\right", ""),
    "thin spaces": lambda text: text.replace("(", r"(\,").replace(",", r",\; "),
    "parentheses of one size": lambda text: text.replace(r"\left(", r"\bigl(").replace(r"\right)", r"\bigr)"),
}


@pytest.mark.parametrize("name", _REWRITES)
def test_typesetting_changes_no_verdict(name):
    for text in _answers(150, seed=5):
        rewritten = _REWRITES[name](text)
        assert equivalent(text, rewritten), (text, rewritten)
        assert equivalent(rewritten, text), (rewritten, text)


def test_an_answer_with_one_digit_changed_is_never_right():
    draw = random.Random(9)
    for text in _answers(400, seed=6):
        places = [at for at, letter in enumerate(text) if letter.isdigit()]
        if not places:
            continue
        at = draw.choice(places)
        changed = text[:at] + str((int(text[at]) + draw.randint(1, 7)) % 8 + 1) + text[at + 1 :]
        if changed != text:
            assert not equivalent(text, changed), (text, changed)


def test_answers_without_a_rounded_decimal_are_compared_symmetrically():
    texts = list(_answers(60, seed=7))
    for one in texts:
        for two in texts:
            assert equivalent(one, two) == equivalent(two, one), (one, two)


def test_an_expanded_product_is_right_for_the_product():
    draw = random.Random(3)
    for _ in range(200):
        a, b, c, d = (draw.choice((-1, 1)) * draw.randint(1, 30) for _ in range(4))
        product = f"({a}x{b:+d})({c}x{d:+d})"
        assert equivalent(product, f"{a * c}x^2{a * d + b * c:+d}x{b * d:+d}")
        assert not equivalent(product, f"{a * c}x^2{a * d + b * c + 1:+d}x{b * d:+d}")


def test_a_fraction_is_right_in_every_spelling_and_wrong_for_its_neighbour():
    draw = random.Random(4)
    for _ in range(200):
        value = Fraction(draw.randint(-400, 400), draw.randint(1, 40))
        top, bottom, times = value.numerator, value.denominator, draw.randint(2, 9)
        gold = rf"\frac{{{top}}}{{{bottom}}}"
        for text in (
            f"{top}/{bottom}",
            rf"\dfrac{{{top * times}}}{{{bottom * times}}}",
            rf"-\frac{{{-top}}}{{{bottom}}}",
        ):
            assert equivalent(gold, text)
        assert not equivalent(gold, rf"\frac{{{top + 1}}}{{{bottom}}}")
