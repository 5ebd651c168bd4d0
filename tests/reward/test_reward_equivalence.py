import time
from fractions import Fraction

import pytest

from nemo_simplerl.reward.equivalence import MAX_DIGITS, equivalent, parse_number


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "5"),
        ("5", "5.0"),
        ("16", "016"),
        ("0.5", ".5"),
        ("0.5", r"\frac12"),
        ("1/2", r"\dfrac{2}{4}"),
        (r"-\frac{1}{2}", r"\frac{-1}{2}"),
        (r"-\frac{1}{2}", r"\frac{1}{-2}"),
        ("-0.5", "-1/2"),
        ("+5", "5"),
        ("0", "-0"),
        ("1,234,567", "1234567"),
        ("14{,}916", "14916"),
        ("1234567", r"1\,234\,567"),
        ("1234567", "1 234 567"),
        ("1,000/3", r"\frac{1000}{3}"),
        ("2.5", r"$\$2.50$"),
        ("12", r"12 \text{ apples}"),
        (r"50\%", "50"),
        (r"50\%", "0.5"),
        (r"50\%", r"\frac{1}{2}"),
        ("0.25", r"25\%"),
        (r"12.5\%", r"12.5 \text{ percent}"),
        (r"\text{13}", "13"),
        ("x+1", "x + 1"),
        (r"\left(1,2\right)", "(1, 2)"),
        ("9" * 900, "9" * 900 + ".0"),
    ],
)
def test_equal_answers_are_equivalent_both_ways(gold, answer):
    assert equivalent(gold, answer)
    assert equivalent(answer, gold)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "6"),
        ("10000", "10001"),
        ("2024", "2024.1"),
        ("123456789", "123456788"),
        ("12", "1,2"),
        ("1234", "1,243"),
        ("50", "0.5"),
        ("0.5", "50"),
        ("2", "200"),
        (r"50\%", r"5\%"),
        (r"50\%", r"0.5\%"),
        (r"50\%", "5000"),
        ("1/3", "0.3333333333"),
        ("5", "-5"),
        ("31/2", "3 1/2"),
        ("5", r"\frac{5}{0}"),
        ("0", r"\frac{0}{0}"),
        ("1000000", "1e6"),
        ("5", "__import__('os').getpid()"),
        ("4", "2+2"),
        ("5", "٥"),
        ("nan+1", "nan"),
        ("5", "$"),
        ("$", "$"),
        ("", ""),
        ("a", "b"),
        ("x", "X"),
    ],
)
def test_different_answers_are_not_equivalent_either_way(gold, answer):
    assert not equivalent(gold, answer)
    assert not equivalent(answer, gold)


def test_a_number_is_read_exactly():
    assert parse_number(r"-\frac{6}{4}") == Fraction(-3, 2)
    assert parse_number("0.1") == Fraction(1, 10)
    assert parse_number("1.5/0.5") == 3
    assert [parse_number(text) for text in ("", "x", "1/0", r"\frac{1}{0.0}", "1/2/3", "1 2", ".", "inf")] == [None] * 8


def test_a_number_beyond_the_digit_limit_is_compared_as_text_only():
    digits = "7" * (MAX_DIGITS + 1)
    assert parse_number(digits) is None
    assert equivalent(digits, digits)
    assert not equivalent(digits, digits + ".0")


@pytest.mark.parametrize(
    "answer", ["1" * 1_000_000, " " * 1_000_000 + "6", "1," * 500_000, "%" * 1_000_000, r"\frac" * 200_000]
)
def test_a_megabyte_of_answer_is_refused_at_once(answer):
    start = time.perf_counter()
    assert not equivalent("5", answer)
    assert time.perf_counter() - start < 0.5
