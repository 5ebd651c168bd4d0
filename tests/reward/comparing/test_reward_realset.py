"""Inequalities in absolute values and polynomials, held against the intervals that solve them."""

import random

import pytest

from nemo_simplerl.reward.comparing.equivalence import equivalent
from nemo_simplerl.reward.comparing.reals.roots import OutOfReach, signs_between, turning_points
from nemo_simplerl.reward.parsing.normalize import normalize_answer
from nemo_simplerl.reward.parsing.readings import readings

SAME_SET = [
    (r"(-\infty,-7)\cup(7,\infty)", "|x|>7"),
    ("(-6,6)", "|t|<6"),
    ("[-3,9]", r"|x-3|\le6"),
    ("[-3,9]", r"|3-x|\leq 6"),
    (r"(-\infty,-2]\cup[5,\infty)", r"|2x-3|\ge7"),
    ("(-4,3)", "|x-1|+|x+2|<7"),
    (r"(-1,\infty)", "|x|<|x+2|"),
    (r"[-6,-2)\cup(2,6]", r"2<|x|\le 6"),
    ("[-1,5]", r"0\le|x-2|\le3"),
    (r"(-\infty,3)\cup(3,\infty)", r"|x-3|>0"),
    (r"(-\sqrt2,\sqrt2)", r"|x|<\sqrt{2}"),
    (r"[0,\infty)", r"|x|\le x"),
    ("(2,3)", "x^2-5x+6<0"),
    (r"(-\infty,-4)\cup(4,\infty)", "x^2>16"),
    (r"[-\sqrt{7},\sqrt{7}]", r"x^2\le7"),
    (r"(-\infty,1-\sqrt2)\cup(1+\sqrt2,\infty)", "x^2-2x-1>0"),
    ("(0,5)", "x(5-x)>0"),
    (r"(-\infty,4)\cup(4,\infty)", "(x-4)^2>0"),
    (r"(-2,0)\cup(2,\infty)", "x^3>4x"),
    (r"(-\infty,-3)\cup(-1,1)\cup(3,\infty)", "x^4-10x^2+9>0"),
    (r"(-\infty,-2)\cup[1,\infty)", r"\frac{x-1}{x+2}\ge0"),
    (r"(0,\frac13)", r"\frac1x>3"),
    (r"\{x \mid x^2<9\}", "(-3,3)"),
    (r"x\ne\pm3", r"(-\infty,-3)\cup(-3,3)\cup(3,\infty)"),
    (r"x\ne\pm3", r"x^2\ne9"),
    (r"x\notin\{1,2\}", r"(-\infty,1)\cup(1,2)\cup(2,\infty)"),
    (r"x<-5 \text{ or } x>5", "|x|>5"),
    (r"x\ne1,4", r"(-\infty,1)\cup(1,4)\cup(4,\infty)"),
    (r"(-\infty,0),\ (3,\infty)", r"(-\infty,0)\cup(3,\infty)"),
]

OTHER_SET = [
    (r"(-\infty,-7)\cup(7,\infty)", r"|x|\ge7"),
    ("(-6,6)", "|x|>6"),
    ("(-6,6)", "|x-6|<6"),
    ("[-3,9]", r"|x+3|\le6"),
    (r"(-\infty,4)\cup(4,\infty)", r"(x-4)^2\ge0"),
    ("(2,3)", r"x^2-5x+6\le0"),
    ("(2,3)", "x^2-5x+6>0"),
    (r"[-\sqrt{7},\sqrt{7}]", r"x^2\le49"),
    (r"(-\infty,-2]\cup[1,\infty)", r"\frac{x-1}{x+2}\ge0"),
    ("x>3", "y^2<9"),
    ("x=3", r"x^2\le9"),
    ("x<7", "|x|<7"),
    (r"\emptyset", "x^2<-1"),
    (r"\mathbb{R}", r"x^2\ge0"),
    ("x^2>0", r"x^2\ge0"),
    ("|x|<1", "|x|<-1"),
    ("[0,5], [2,3]", "[2,3]"),
    ("(-4,27); (2,15)", "[-4,27); (2,15)"),
    ("(-4,27); (2,15)", "(-4,27); [2,15)"),
]


@pytest.mark.parametrize(("gold", "answer"), SAME_SET)
def test_an_inequality_is_right_for_the_set_that_solves_it(gold, answer):
    assert equivalent(gold, answer)
    assert equivalent(answer, gold)


@pytest.mark.parametrize(("gold", "answer"), OTHER_SET)
def test_an_inequality_is_wrong_for_another_set_and_for_none(gold, answer):
    assert not equivalent(gold, answer)
    assert not equivalent(answer, gold)


def tree(text):
    return readings(normalize_answer(text))[0]


def test_signs_between_turning_points_are_those_of_the_factors():
    draw = random.Random(8)
    for _ in range(60):
        zeros = sorted({draw.randint(-9, 9) for _ in range(draw.randint(1, 4))})
        factors = [rf"(x{-zero:+d})" if draw.random() < 0.7 else rf"|x{-zero:+d}|" for zero in zeros]
        node = tree("".join(factors))
        ends = turning_points(node, "x")
        assert [end.value for end in ends] == zeros
        between = [zeros[0] - 1, *(place for zero in zeros for place in (zero, zero + 0.5))]
        expected = []
        for place in between:
            value = 1.0
            for zero, factor in zip(zeros, factors, strict=True):
                value *= abs(place - zero) if "|" in factor else place - zero
            expected.append((value > 0) - (value < 0))
        assert list(signs_between(node, "x", ends)) == expected


@pytest.mark.parametrize("text", [r"\sin x", "x^5-x-1", "x+a", "x^{20}-1", "x^9+3x^8-7"])
def test_what_has_no_formula_for_its_zeros_is_out_of_reach(text):
    with pytest.raises(OutOfReach):
        turning_points(tree(text), "x")


@pytest.mark.parametrize(
    ("gold", "first", "second"),
    [
        (r"-9 \leqslant x \leqslant 0:[-9,0]", r"-9 \le x \le 0", "[-9,0]"),
        (r"x<-7:(-\infty,-7)", "x<-7", r"(-\infty,-7)"),
        (
            r"k \geqslant 2$ or $k<-20:(-\infty,-20) \cup[2, \infty)",
            r"k<-20 or k \ge 2",
            r"(-\infty,-20)\cup[2,\infty)",
        ),
    ],
)
def test_either_statement_is_right_where_the_gold_answer_states_a_set_twice(gold, first, second):
    assert equivalent(gold, first)
    assert equivalent(gold, second)
    assert not equivalent(gold, "[-9,0)")
    assert not equivalent(gold, "x<-8")


def test_neither_statement_is_right_where_the_two_of_a_gold_answer_disagree():
    assert not equivalent(r"x<-7:(-\infty,7)", "x<-7")
    assert not equivalent(r"x<-7:(-\infty,7)", r"(-\infty,7)")
