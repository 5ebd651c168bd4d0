r"""Normalization gives typesetting one spelling. The parser's tests pin what words and separators mean."""

import random
import time

import pytest

from nemo_simplerl.reward.parsing.normalize import MAX_ANSWER_CHARS, normalize_answer


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        (" 5 ", "5"),
        ("$5$", "5"),
        (r"\(5\)", "5"),
        (r"\left(1,\,2\right)", "(1, 2)"),
        (r"\bigl[1,2\bigr)", "[1,2)"),
        (r"\left. x \right|", "x |"),
        (r"\dfrac12", r"\frac12"),
        (r"x\leqslant 3", r"x\le 3"),
        ("x ≤ 3", r"x \le 3"),
        ("−3", "-3"),
        ("x²+y₁", "x^{2}+y_{1}"),
        ("3<sup>x</sup>", "3^{x}"),
        (r"15,\!000", "15000"),
        (r"1\,234\,567", "1234567"),
        ("14{,}916", "14916"),
        (r"\displaystyle 5\quad", "5"),
        ("5.", "5"),
        (r"5\\", "5"),
        ("0.333...", "0.333..."),
        ("**5**", "5"),
        ("`5`", "5"),
        ("\u200b5\ufeff", "5"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"1\\\frac{1}{2}", r"1\\\frac{1}{2}"),
        ("a != b", r"a \ne b"),
        ("2**3", "2^3"),
    ],
)
def test_typesetting_has_one_spelling(text, spelling):
    assert normalize_answer(text) == spelling


@pytest.mark.parametrize("text", ["1,234", "1, 2", "12 and 13", r"12\text{ cm}", "Evelyn", "p", "P", "m^2"])
def test_words_units_and_separators_are_left_to_the_parser(text):
    assert normalize_answer(text) == text


_TEXT = (
    r"1 2 , . - = ( ) [ ] { } \{ \} {,} \frac \dfrac{1} \text{ \mathrm{a} \pi \boxed{ \left \right $ \$ % \% ^\circ ° "
    r"\! \, \; ~ \ \\ \quad \( \) x and π − · ² ** ` <sup>"
)
_PIECES = [*_TEXT.split(), "\u200b", " "]


@pytest.mark.parametrize("piece", [*_PIECES, "\\left\\", "$%", "5.,", "\\\\\\"])
def test_a_hostile_answer_of_full_length_is_normalized_quickly(piece):
    start = time.perf_counter()
    normalize_answer(piece * (MAX_ANSWER_CHARS // len(piece)))
    assert time.perf_counter() - start < 0.5


def test_normalizing_a_random_mixture_never_fails_and_never_grows_without_bound():
    draw = random.Random(7)
    for _ in range(2000):
        text = "".join(draw.choices(_PIECES, k=draw.randint(1, 12)))
        assert len(normalize_answer(text)) <= 8 * len(text) + 8


def test_an_answer_beyond_the_length_limit_is_only_stripped():
    text = "  " + "1," * MAX_ANSWER_CHARS + "$ "
    assert normalize_answer(text) == text.strip()
