"""The patterns that the audit looks for in a response."""

import math
import time

import pytest

from nemo_simplerl.audit.patterns import boxes, hedges, is_almost, is_in_prompt, is_only_a_box, value_of


@pytest.mark.parametrize(
    ("gold", "answer", "why"),
    [
        (r"\frac{1}{2}", r"\dfrac 12", "the way it is written"),
        (r"\text{Monday}", "monday.", "the way it is written"),
        (r"x=5", "5", "the way it is written"),
        ("f(x)=2x", "2x", "the way it is written"),
        (r"90^\circ", "90", "the way it is written"),
        ("1,000", "1000", "the way it is written"),
        ("12", r"12\text{ apples}", "a unit"),
        ("12 cm^2", "12", "a unit"),
        (r"\{1,2,3\}", r"\{3, 2, 1\}", "in another order"),
        ("0.5", r"\frac{1}{2}", "the same value"),
        (r"\sqrt{12}", r"2\sqrt{3}", "the same value"),
        ("25", r"0.25", None),
        (r"25\%", "0.25", "as a percentage"),
        ("6.67", r"\frac{20}{3}", "agree to 0.1 %"),
        ("3.142", r"\pi", "agree to 0.1 %"),
        ("parallelogram", "parallelograms", "a few letters"),
        ("10000", "10001", None),
        ("12", "1,2", None),
        ("(1,2)", "(2,1)", None),
        ("[2,5)", "[2,5]", None),
        (r"1 \pm \sqrt{19}", r"-1 \pm \sqrt{19}", None),
        ("n=3k", "3", None),
        ("7", "8", None),
        ("", "", None),
        ("1" * 300, "1" * 300, None),
    ],
)
def test_a_wrong_answer_is_almost_right_when_little_but_dress_tells_them_apart(gold, answer, why):
    for one, other in ((gold, answer), (answer, gold)):
        reason = is_almost(one, other)
        assert (reason is None) if why is None else why in (reason or ""), reason


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-1.5", -1.5),
        (".5", 0.5),
        ("3/4", 0.75),
        (r"-\frac{3}{4}", -0.75),
        (r"\frac{\pi}{2}", math.pi / 2),
        (r"\dfrac{\sqrt{3}}{2}", math.sqrt(3) / 2),
        (r"2\sqrt{3}", 2 * math.sqrt(3)),
        (r"3\pi", 3 * math.pi),
        ("1,234.5", 1234.5),
        (r"\$12\%", 12.0),
        ("1/0", None),
        (r"\sqrt{-1}", None),
        ("--1", None),
        ("x", None),
        ("", None),
        ("9" * 1000, None),
    ],
)
def test_the_value_of_a_plain_number(text, value):
    assert value_of(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("gold", "answer", "is_hedge"),
    [
        ("2", "2 or 3", True),
        ("2", r"2 \text{ or } 3", True),
        ("2", "1, 2, 3", True),
        ("2", "1; 2", True),
        ("(1,2)", "(1,2), (2,1)", True),
        ("1000", "1,000", False),
        ("15000", r"\$15,\!000", False),
        ("41.8", r"41.8\,", False),
        ("(1,2)", "(2,1)", False),
        (r"\{1,2\}", r"\{1,3\}", False),
        ("1,2", "1,2,3", False),
        ("1 and 2", "1, 2", False),
        ("Oregon", "Andorra", False),
    ],
)
def test_a_hedge_offers_several_answers_where_one_is_due(gold, answer, is_hedge):
    assert hedges(gold, answer) == is_hedge


@pytest.mark.parametrize(
    ("gold", "prompt", "is_there"),
    [
        ("128", "Find x. The answer is 128.", True),
        ("128", "There are 1280 cats and 3128 dogs, 0.128 of them red.", False),
        ("12", "There are 12 cats.", False),
        (r"\frac{1}{2}", r"Is it \frac{1}{2}?", True),
        ("128", "", False),
    ],
)
def test_a_gold_answer_in_the_prompt_stands_on_its_own(gold, prompt, is_there):
    assert is_in_prompt(gold, prompt) == is_there


@pytest.mark.parametrize(
    ("response", "is_bare"),
    [
        (r"\boxed{5}", True),
        (r" $\boxed{\frac{12345}{2}}$. ", True),
        (r"So: \boxed{5}", True),
        (r"The answer is \boxed{5}", False),
        (r"\boxed{5} because 2 + 3 = 5", False),
        (r"\boxed{5", False),
        ("5", False),
    ],
)
def test_a_response_that_is_only_a_box(response, is_bare):
    assert is_only_a_box(response) == is_bare


def test_boxes_come_in_the_order_in_which_they_open():
    assert boxes(r"\boxed{1} and \fbox{\frac{1}{2}}, \boxed{a \boxed{b}} \boxed{ } \boxed{c") == [
        "1",
        r"\frac{1}{2}",
        r"a \boxed{b}",
        "b",
    ]


@pytest.mark.parametrize(
    "text", [r"\boxed{" * 30_000, r"\boxed{" * 20_000 + "}" * 20_000, "{" * 200_000, "1," * 100_000]
)
def test_hostile_text_takes_no_time(text):
    start = time.monotonic()
    boxes(text)
    is_only_a_box(text)
    hedges("1", text)
    is_almost("1", text)
    value_of(text)
    is_in_prompt("111", text)
    assert time.monotonic() - start < 2
