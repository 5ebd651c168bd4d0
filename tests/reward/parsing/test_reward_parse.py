r"""Parsing normalized text into trees: what is read, and that text which is read in part is not read at all."""

from fractions import Fraction

import pytest

from nemo_simplerl.reward.comparing.exact import Undefined, exact
from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.normalize import normalize_answer
from nemo_simplerl.reward.parsing.numerals import continued_decimal, read_number, repeating_decimal
from nemo_simplerl.reward.parsing.readings import readings
from nemo_simplerl.reward.parsing.tokens import NotParsed
from nemo_simplerl.reward.parsing.tree import (
    EULER,
    IMAGINARY,
    PI,
    BasedNumber,
    ClockTime,
    Interval,
    Listing,
    Matrix,
    Number,
    Percent,
    Quantity,
    Ratio,
    Relation,
    SetOf,
    Symbol,
    Tuple,
    Words,
)


def read(text):
    return readings(normalize_answer(text))


def value(text):
    (node, *_) = read(text)
    return exact(node)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-12", -12),
        ("2.50", Fraction(5, 2)),
        (".5", Fraction(1, 2)),
        ("1e-3", Fraction(1, 1000)),
        (r"\frac{2}{6}", Fraction(1, 3)),
        (r"\frac12", Fraction(1, 2)),
        (r"\frac1{72}", Fraction(1, 72)),
        ("1/2", Fraction(1, 2)),
        (r"2\frac{1}{3}", Fraction(7, 3)),
        ("2 1/3", Fraction(7, 3)),
        (r"-1\frac{1}{2}", Fraction(-3, 2)),
        (r"0.\overline{12}", Fraction(4, 33)),
        (r"1.2\overline{3}", Fraction(37, 30)),
        (r"0.666\ldots", Fraction(2, 3)),
        ("0.(3)", Fraction(1, 3)),
        ("1,234,567", 1234567),
        ("1 234 567", 1234567),
        (r"2 \times 10^3", 2000),
        ("2^10", 1024),
        ("2^{-2}", Fraction(1, 4)),
        (r"\sqrt{49}", 7),
        ("√49", 7),
        (r"\sqrt[3]{27}", 3),
        ("27^{2/3}", 9),
        ("4!", 24),
        (r"\binom{6}{2}", 15),
        (r"{6 \choose 2}", 15),
        (r"\lfloor 7/2 \rfloor", 3),
        ("|-4|", 4),
        (r"\max(2, 7)", 7),
        (r"\text{13}", 13),
        ("-(-5)", 5),
        ("--5", 5),
        ("5 - -2", 7),
        ("seven", 7),
        ("0^5", 0),
    ],
)
def test_numbers_are_read_exactly(text, expected):
    assert value(text) == expected


@pytest.mark.parametrize("text", ["1/0", r"\frac{5}{0}", r"\frac{0}{0}", "0^0", "0^{-1}", "1/(2-2)"])
def test_a_division_by_zero_is_undefined(text):
    with pytest.raises(Undefined):
        value(text)


@pytest.mark.parametrize(
    "text", ["9^{9^{9}}", "10^{10^{10}}", "2^{5000}", "100000!", r"\binom{10^9}{10^8}", r"\sqrt{2}", "x"]
)
def test_a_number_that_is_huge_or_irrational_is_never_built(text):
    assert value(text) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("(1, 2)", Tuple),
        ("(1, 2]", Interval),
        ("[1, 2]", Interval),
        ("]1, 2]", Interval),
        ("1, 2", Listing),
        ("1; 2", Listing),
        (r"1 \text{ and } 2", Listing),
        (r"\{1, 2\}", SetOf),
        ("{1, 2}", SetOf),
        (r"\emptyset", SetOf),
        (r"\text{no solution}", SetOf),
        ("x = 5", Relation),
        ("1 < x < 5", Relation),
        ("2:3", Ratio),
        (r"3 \text{ to } 4", Ratio),
        ("101_2", BasedNumber),
        (r"17_{\text{eight}}", BasedNumber),
        (r"4:30 \text{ p.m.}", ClockTime),
        ("12 cm", Quantity),
        (r"12 \text{ square feet}", Quantity),
        (r"12\mathrm{~m}^2", Quantity),
        (r"\$12", Quantity),
        (r"12\%", Percent),
        ("12 percent", Percent),
        (r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}", Matrix),
        (r"\left[\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right]", Matrix),
        ("Evelyn", Words),
        (r"\text{an even number}", Words),
        (r"\pi", type(PI)),
        (r"\mathrm{e}", type(EULER)),
        ("i", type(IMAGINARY)),
        ("I", Symbol),
        ("E", Symbol),
        (r"x_{10}", Symbol),
    ],
)
def test_each_form_has_its_type(text, kind):
    assert isinstance(read(text)[0], kind)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 +",
        "(1, 2",
        "1)",
        "[1, 2, 3)",
        r"\frac{1}",
        r"\frac{}{}",
        "5 __import__",
        r"2 \text{ (or maybe 3)}",
        r"\text{not } 5",
        "1..2",
        "2 3",
        "x ==",
        "*",
        r"\begin{pmatrix}\end{pmatrix}",
        r"\begin{pmatrix} 1 & 2 \\ 3 \end{pmatrix}",
        "192_3",
        r"\unknown{5}",
        "1" * (LIMITS.digits + 1),
        "(" * (LIMITS.nesting + 1) + "1" + ")" * (LIMITS.nesting + 1),
    ],
)
def test_text_that_is_not_read_to_its_end_is_not_read_at_all(text):
    assert read(text) == []


def test_commas_leave_two_readings_where_they_may_group_thousands():
    assert [type(node) for node in read("1,234")] == [Number, Listing]
    assert [type(node) for node in read("(1,234)")] == [Tuple]
    assert [type(node) for node in read("1,23")] == [Listing]


def test_a_division_by_a_product_without_a_sign_has_two_readings():
    assert len(read("1/2x")) == 2
    assert len(read("1/(2x)")) == 1


def test_a_period_is_found_only_where_the_digits_repeat():
    assert continued_decimal("0.333") == Number(Fraction(1, 3))
    assert continued_decimal("0.1212") == Number(Fraction(4, 33))
    assert continued_decimal("3.14159") is None
    assert repeating_decimal("0.1", "6") == Number(Fraction(1, 6))


def test_a_number_beyond_the_digit_bound_is_refused():
    with pytest.raises(NotParsed):
        read_number("7" * (LIMITS.digits + 1))
