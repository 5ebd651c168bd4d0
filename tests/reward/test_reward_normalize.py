import random
import time

import pytest

from nemo_simplerl.reward.normalize import MAX_ANSWER_CHARS, normalize_answer


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("$5$", "5"),
        (r"\(5\)", "5"),
        (r"\[ 5 \]", "5"),
        (r"\$5", "5"),
        ("5.", "5"),
        ("5,", "5"),
        (r"5\\", "5"),
        (" 5\u00a0", "5"),
        ("\ufeff5\u200b", "5"),
        (r"\displaystyle 5", "5"),
        (r"\quad 5 \quad", "5"),
        (r"\mathbf{5}", "5"),
        (r"\text{Monday}", "Monday"),
        (r"\left( 3, \frac{1}{2} \right)", r"(3, \frac{1}{2})"),
        (r"\leftarrow x", r"\leftarrowx"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\tfrac12", r"\frac{1}{2}"),
        (r"\frac1{2}", r"\frac{1}{2}"),
        (r"\frac{1}2", r"\frac{1}{2}"),
        (r"50\%", "50"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        ("90°", "90"),
        (r"12\text{ cm}", "12"),
        (r"12\,\mathrm{cm}^2", "12"),
        (r"12 \text{ cm}^{3}", "12"),
        (r"8\pi\text{ cm}", r"8\pi"),
        ("1,234,567", "1234567"),
        ("1{,}234", "1234"),
        (r"1\,234\,567", "1234567"),
        (r"1,\!234", "1234"),
        ("-8,192.50", "-8192.50"),
        (r"\frac{1,000}{3}", r"\frac{1000}{3}"),
        ("−3", "-3"),
        ("x + 1", "x+1"),
    ],
)
def test_an_answer_gets_its_canonical_spelling(text, canonical):
    assert normalize_answer(text) == canonical


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("1,2", "12"),
        ("1, 234", "1234"),
        ("(1,234)", "(1234)"),
        ("[1,234)", "[1234)"),
        (r"\{1,234\}", r"\{1234\}"),
        ("1,2345", "12345"),
        ("12,34", "1234"),
        ("3 1/2", "31/2"),
        ("0.333...", "0.333"),
        (r"12\text{ p.m.}", r"12\text{ a.m.}"),
        (r"\text{A}\text{ and B}", r"\text{A}"),
        (r"x = \text{none}", r"x = "),
        ("p", "P"),
        (r"m^2", "m"),
    ],
)
def test_answers_that_differ_keep_different_spellings(text, other):
    assert normalize_answer(text) != normalize_answer(other)


_PIECES = [
    *(
        "1",
        "2",
        "12",
        "234",
        ",",
        ".",
        "-",
        "+",
        "/",
        "=",
        " ",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        r"\{",
        r"\}",
        "{,}",
    ),
    *(
        r"\frac",
        r"\dfrac",
        r"\frac{1}",
        r"\text{",
        r"\text{cm}",
        r"\mathrm{a}",
        r"\pi",
        r"\boxed{",
        r"\left",
        r"\right",
    ),
    *(
        "$",
        r"\$",
        "%",
        r"\%",
        r"^\circ",
        r"\circ",
        "^{",
        "°",
        r"\!",
        r"\,",
        r"\;",
        "~",
        "\\",
        r"\\",
        "\\ ",
        r"\quad",
    ),
    *(r"\(", r"\)", r"\[", r"\]", "x", "and", "p.m.", "π", "−", "·", "\u200b", "\u00a0"),
]


def test_normalizing_twice_is_normalizing_once_on_random_mixtures():
    draw = random.Random(7)
    for _ in range(4000):
        text = "".join(draw.choices(_PIECES, k=draw.randint(1, 12)))
        once = normalize_answer(text)
        assert normalize_answer(once) == once, text


@pytest.mark.parametrize(
    "piece", [*_PIECES, "\\left\\", "\\frac1", "1,234", "\\(\\(", "\\text{a}1", "$%", "5.,", "\\\\\\"]
)
def test_a_hostile_answer_of_full_length_is_normalized_quickly(piece):
    text = piece * (MAX_ANSWER_CHARS // len(piece))
    start = time.perf_counter()
    for attack in (text, r"\text{" * 600 + "}" * 399, r"\(" * 1999 + r"\)" * 1, r"\(" * 1000 + r"\)" * 1000):
        normalize_answer(attack)
    assert time.perf_counter() - start < 2.0


def test_an_answer_beyond_the_length_limit_is_only_stripped():
    text = "  " + "1," * MAX_ANSWER_CHARS + "$ "
    assert normalize_answer(text) == text.strip()
