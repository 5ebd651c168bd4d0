"""Functions that agree near zero and differ elsewhere, and functions that are the same written otherwise."""

import pytest

from nemo_simplerl.reward.comparing.equivalence import equivalent

DIFFERENT_SOMEWHERE = [
    ("|x-15|", "15-x"),
    ("|x+9|", "x+9"),
    ("|x|+|x-30|", "|x|+30-x"),
    ("|a+b+50|", "a+b+50"),
    ("|x+40|-40", "|x+41|-41"),
    ("|x+12345|-12345", "|x+12346|-12346"),
    ("||x|-25|", "25-|x|"),
    (r"|\lfloor x \rfloor - 20|", r"20-\lfloor x \rfloor"),
    (r"\max(x, -11)", "x"),
    (r"\min(x, 14)", "x"),
    (r"\max(a, b+100)", "b+100"),
    (r"\lfloor x \rfloor + 1", r"\lceil x \rceil"),
    (r"\lfloor \frac{n}{1000} \rfloor", r"\lceil \frac{n}{1000} \rceil - 1"),
    (r"\sqrt{(x+13)^2}", "x+13"),
    (r"\sqrt{x^2-40x+400}", "20-x"),
    (r"\sqrt[4]{(x-9)^4}", "9-x"),
    (r"\arctan(\tan\frac{x}{9})", r"\frac{x}{9}"),
    (r"|\ln x - 10|", r"10-\ln x"),
    (r"|x^2-200|", "200-x^2"),
    (r"|x^3-5000|", "5000-x^3"),
    ("(-1)^n", r"\cos(2n\pi)"),
    ("(-1)^n", "(-1)^{n+1}"),
    ("0", r"\lfloor x \rfloor + \lfloor -x \rfloor"),
    ("1", r"\sin^2 x - \cos^2 x"),
    ("1", r"\frac{|x+20|}{x+20}"),
    (r"y = \sin^2 x + \cos^2 x", r"\sec^2 x - \tan^2 x = 1"),
]

SAME_EVERYWHERE = [
    ("|x-15|", "|15-x|"),
    (r"\sqrt{(x-17)^2}", "|x-17|"),
    ("|x-8|+|8-x|", "2|x-8|"),
    (r"\max(a,b)", r"\frac{a+b+|a-b|}{2}"),
    (r"\lceil x \rceil", r"-\lfloor -x \rfloor"),
    (r"\lfloor x+1 \rfloor", r"\lfloor x \rfloor + 1"),
    (r"\sqrt{x+11}\sqrt{x-11}", r"\sqrt{x^2-121}"),
    (r"\sqrt[3]{(x-30)^3}", "x-30"),
    ("1", r"\sin^2 x+\cos^2 x"),
    ("7", r"6+\sec^2 t-\tan^2 t"),
    ("y", r"y(\cosh^2 u - \sinh^2 u)"),
    ("(-1)^n", r"\cos(n\pi)"),
    (r"\frac{2(1-(-1)^n)}{n\pi}", r"\frac{2-2\cos n\pi}{n\pi}"),
]


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT_SOMEWHERE)
def test_functions_that_differ_far_away_at_integers_or_beyond_a_corner_are_told_apart(gold, answer):
    assert not equivalent(gold, answer)
    assert not equivalent(answer, gold)


@pytest.mark.parametrize(("gold", "answer"), SAME_EVERYWHERE)
def test_the_same_function_is_right_in_another_form(gold, answer):
    assert equivalent(gold, answer)
    assert equivalent(answer, gold)
