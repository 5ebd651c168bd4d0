r"""Pairs of answers by rule: the same both ways, the same one way only, and different."""

import time

import pytest

from nemo_simplerl.reward.comparing import polynomial
from nemo_simplerl.reward.comparing.equivalence import compare, equivalent

SAME_BOTH_WAYS = {
    "numbers": [
        ("7", "7.0"),
        ("7", "007"),
        ("0.25", r"\frac14"),
        ("2/3", r"\dfrac{4}{6}"),
        (r"-\frac{2}{3}", r"\frac{2}{-3}"),
        ("1,500,000", r"1.5 \times 10^6"),
        (r"0.\overline{7}", r"\frac79"),
        ("2^{12}", "4096"),
        ("1e6", "1000000"),
        ("9" * 900, "9" * 900 + ".0"),
        ("201!", "201!"),
        (r"3^{40000}+1", r"1+3^{40000}"),
    ],
    "symbols with subscripts": [
        ("(x_1+2)y", "y(2+x_1)"),
        ("(x_1+2)(x_2-1)", "(x_2-1)(2+x_1)"),
    ],
    "radicals and constants": [
        (r"\sqrt{50}", r"5\sqrt2"),
        (r"\frac{2}{\sqrt{6}}", r"\frac{\sqrt6}{3}"),
        (r"\sqrt{7+4\sqrt3}", r"2+\sqrt3"),
        (r"\frac{\pi}{6}", r"\frac16\pi"),
        (r"\ln 9", r"2\ln 3"),
        (r"\log_2 10", r"1+\log_2 5"),
        (r"\cos\frac{\pi}{5}", r"\frac{1+\sqrt5}{4}"),
        ("e^{-2}", r"\frac{1}{e^2}"),
        (r"\arctan 3", r"\tan^{-1} 3"),
        (r"\sin 20^\circ", r"\cos 70^\circ"),
    ],
    "complex numbers": [("(1+2i)^2", "-3+4i"), (r"\frac{1}{i}", "-i"), (r"5-2\mathrm{i}", "-2i+5")],
    "algebra": [
        ("(x+2)(x-3)", "x^2-x-6"),
        (r"\frac{1}{x-1}-\frac{1}{x+1}", r"\frac{2}{x^2-1}"),
        ("2^{n+1}", r"2 \cdot 2^n"),
        (r"\sqrt{\frac{1}{x}}", r"\frac{1}{\sqrt{x}}"),
        (r"\cos 2x", r"1-2\sin^2 x"),
        (r"\frac{n!}{(n-2)!}", "n(n-1)"),
        ("|a-b|", "|b-a|"),
        ("3*x**2", "3x^2"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
    ],
    "typesetting and units": [
        ("15", r"15 \text{ cm}^2"),
        ("15", "15 meters per second"),
        (r"\$3.50", "3.5"),
        ("35", r"35^\circ"),
        (r"2 \text{ hours}", r"120 \text{ minutes}"),
        ("14", r"14^{\mathrm{th}}"),
        ("14", "14th"),
        ("7", r"\text{The answer is } 7"),
    ],
    "words": [
        ("5000", r"5 \text{ thousand}"),
        ("2500000", "2.5 million"),
        (r"7000000", r"\$7\text{ million}"),
        ("60", r"5\text{ dozen eggs}"),
        ("12000", r"12\text{ thousand people}"),
        ("25", "5 squared"),
        ("720", r"6\text{ factorial}"),
        ("1.5", r"3\text{ halves}"),
        ("6", r"8\text{ minus two}"),
        ("50", r"5 \text{ times } 10 \text{ cm}"),
        (r"\frac56", r"5\text{ over six}"),
        ("64", r"2\text{ to the sixth power}"),
        ("8", "2 to the power of 3"),
        ("250000", r"\frac{1}{4}\text{ of a million}"),
        ("21", "twenty-one"),
        ("2500", r"\text{two thousand five hundred}"),
        (r"\frac23", r"\text{two thirds}"),
        ("12", r"12\text{ toy helicopters}"),
        ("25", r"25\text{ feet squared}"),
        ("1", "1 apple"),
        ("20", r"20^\circ\mathrm{C}"),
        ("18", "18 (cm)"),
        ("4", r"13 \bmod 9"),
        ("23.40", "USD 23.40"),
    ],
    "letters": [
        ("u+at", "at + u"),
        ("ax+by=c", "by+ax=c"),
        (r"\frac{by}{a}", r"\frac{yb}{a}"),
        ("e^{at}", "e^{ta}"),
        ("5am", "5ma"),
        ("4abxy", "4yxba"),
        ("2mg", "2gm"),
        (r"3\text{x}", "3x"),
        ("4:30 pm", "4:30pm"),
    ],
    "percent": [(r"30\%", "30"), (r"30\%", "0.3"), (r"30\%", r"\frac{3}{10}"), ("0.125", r"12.5 \text{ percent}")],
    "angles": [(r"\frac{\pi}{4}", r"45^\circ"), (r"30^\circ 30'", r"30.5^\circ")],
    "lists": [
        ("1, 2, 3", "3, 1, 2"),
        ("1, 2", "2 and 1"),
        (r"2 \pm \sqrt5", r"2-\sqrt5, 2+\sqrt5"),
        ("x=1, x=2", "2, 1"),
        ("x=3 or x=4", "4, 3"),
        (r"\{4, 5\}", "5, 4"),
        (r"\{7\}", "7"),
        (r"\{1,2\} \cup \{3\}", r"\{3,2,1\}"),
        (r"\emptyset", r"\text{No solutions}"),
        ("(1,2), (3,4)", "(3,4), (1,2)"),
        ("a=1, b=2", "b=2, a=1"),
    ],
    "tuples and matrices": [
        ("(0.5, 3)", r"\left(\frac12, 3\right)"),
        ("(x, y) = (3, 4)", "(3, 4)"),
        ("(5, 6)", "x=5, y=6"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1.0 \\ 2 \end{bmatrix}"),
        (r"\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix}", "(1, 2, 3)"),
    ],
    "sets of reals": [
        ("(2, 5]", r"2 < x \le 5"),
        (r"(-\infty, 4)", "x < 4"),
        (r"x \ge 3", r"3 \le x"),
        (r"(-\infty,1) \cup (2,\infty)", "x<1 or x>2"),
        (r"(-\infty,1) \cup (1,\infty)", r"x \ne 1"),
        (r"\mathbb{R} \setminus \{1\}", r"(-\infty,1) \cup (1,\infty)"),
        (r"\{x \mid 0 \le x < 1\}", "[0, 1)"),
        ("-2x < 6", "x > -3"),
        (r"(0,1] \cup (1,2)", "(0,2)"),
        (r"a \in [1, 2]", r"1 \le a \le 2"),
        ("]0, 1[", "(0, 1)"),
        (r"\mathbb{R}", r"\text{all real numbers}"),
        (r"(-\infty,\infty)", "All reals"),
        (r"\emptyset", r"\text{there are no real solutions}"),
    ],
    "equations": [
        ("x=8", "8"),
        ("f(x)=x+1", "x+1"),
        ("f(t)=t^2", "f(x)=x^2"),
        ("y=3x-1", "3x-y-1=0"),
        (r"\frac{x^2}{9}+\frac{y^2}{4}=1", "4x^2+9y^2=36"),
        ("x = 2+3 = 5", "5"),
        ("AB = 10", "10"),
        (r"\angle ABC = 40^\circ", "40"),
    ],
    "other types": [
        ("2:3", "4:6"),
        ("2:3", r"\frac23"),
        ("110_2", "110_{2}"),
        (r"4:30\text{ p.m.}", r"4:30 \text{ PM}"),
        (r"\text{Monday}", "monday"),
        (r"\text{(C)}", "C"),
        ("eight", "8"),
        (r"x \equiv 2 \pmod 5", r"x\equiv 2 \pmod{5}"),
    ],
}

DIFFERENT_BOTH_WAYS = {
    "numbers": [
        ("70000", "70001"),
        ("3051", "3051.2"),
        ("987654321", "987654322"),
        ("34", "3,4"),
        ("2,000", "2,0"),
        ("12,007", "12, 7"),
        ("5678", "5,687"),
        ("5", "-5"),
        ("31/2", "3 1/2"),
        ("2^{100}", "2^{100}+1"),
        (r"\frac{1}{2^{300}}", r"\frac{1}{2^{301}}"),
        (r"\frac{1}{900!}", r"\frac{1}{901!}"),
        ("10^{10^{10}}", "10^{10^{10}}+1"),
        ("3^{40000}", "3^{40001}"),
        ("1e-30", "2e-30"),
        (r"1+e^{-2000}", "1"),
        ("10", "1O"),
    ],
    "undefined": [
        ("5", r"\frac{5}{0}"),
        ("0", r"\frac{0}{0}"),
        ("0", r"\infty-\infty"),
        ("0", r"\frac{x-x}{x-x}"),
        ("nan+1", "nan"),
    ],
    "percent and angles": [
        ("60", "0.6"),
        ("3", "300.0"),
        (r"40\%", r"4\%"),
        (r"50\%", r"0.5\%"),
        (r"50\%", "5000"),
        (r"50\%", r"50^\circ"),
        (r"50\%", r"50 \text{ miles}"),
        ("80^\\circ", "800"),
    ],
    "expressions": [
        ("|t|", "t"),
        ("u^3", "v^3"),
        ("2t^3", "(2t)^3"),
        ("a-b", "A-B"),
        (r"\sqrt{t^2+4}", "t+2"),
        (r"\lfloor t \rfloor", r"\lceil t \rceil"),
        (r"\sin x", r"\cos x"),
        ("2^k", "2^{k+1}"),
        (r"\log_2 8", r"\log_8 2"),
        ("g(s)", "g(t)"),
        (r"\sum_{k=1}^{5} k", "15"),
        (r"\sum_{k=1}^{5} k", r"\sum_{k=1}^{6} k"),
    ],
    "collections": [
        ("(6,7)", "(7,6)"),
        ("(1,2)", "x=1, x=2"),
        ("(1,2)", "1, 2, 3"),
        ("8", "8 or 9"),
        ("2", r"\{1,2,3\}"),
        ("1, 2", "1"),
        ("1, 1, 2", "1, 2"),
        ("a=1, b=2", "a=2, b=1"),
        (r"\pm 4", "4"),
        (r"1, 2, \ldots, n", r"1, 3, \ldots, n"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
        (r"\begin{pmatrix} 0 & 0 \end{pmatrix}", "0"),
    ],
    "sets of reals": [
        ("[3,4)", "[3,4]"),
        ("[3,4)", "(3,4]"),
        ("t > 4", "t < 4"),
        ("t > 4", "4"),
        ("x > 5", "y > 5"),
        (r"x \ge 5", "x > 5"),
        ("(1,2) \\cup (2,3)", "(1,3)"),
        (r"x \ne 1", "1"),
    ],
    "equations": [
        ("x=8", "x=9"),
        ("x=5", "y=5"),
        ("5", "x=5=6"),
        ("4", "7 = 4"),
        ("2", "1 = 1"),
        ("u+5v=0", "0"),
        ("x+y=0", "0"),
        ("4", "x^2=4"),
        ("5", "m=5k"),
        ("x^2+y^2=9", "x^2+y^2=3"),
        ("x = 1.5", r"x \approx 3"),
        (r"\frac23 \approx \$0.67", r"\frac23 \approx \$0.07"),
        (r"\frac23 \approx 66.7\%", r"\frac23 \approx 67.7\%"),
    ],
    "words": [
        ("5am", r"5\text{ a.m.}"),
        ("5", "5 times 3 plus 2"),
        ("25", "5 times 3 plus 2"),
        ("17", "5 times 3 plus 2"),
        ("5", r"5\text{K}"),
        ("5", r"\text{five plus one}"),
        ("3", "3 or"),
        ("5 m, 7 m", "5 cm, 7 cm"),
    ],
    "other types": [
        ("101_2", "101_3"),
        ("101_2", "5"),
        ("12:00", "1:00"),
        (r"4:30 \text{ a.m.}", r"4:30\text{ p.m.}"),
        ("4:7", "7:4"),
        (r"\text{May 12}", r"\text{May 13}"),
        ("D", r"\text{D and E}"),
        ("D", "D or E"),
        (r"5 \text{ m}", r"5 \text{ cm}"),
        ("5", "__import__('os').getpid()"),
        ("6", r"\text{not } 6"),
        ("6", "?"),
        ("", ""),
        ("$", "$"),
    ],
}


def _rows(table):
    return [
        pytest.param(*pair, id=f"{rule}: {pair[0][:30]} | {pair[1][:30]}")
        for rule, pairs in table.items()
        for pair in pairs
    ]


@pytest.mark.parametrize(("gold", "answer"), _rows(SAME_BOTH_WAYS))
def test_equal_answers_are_equivalent_both_ways(gold, answer):
    assert equivalent(gold, answer)
    assert equivalent(answer, gold)


@pytest.mark.parametrize(("gold", "answer"), _rows(DIFFERENT_BOTH_WAYS))
def test_different_answers_are_not_equivalent_either_way(gold, answer):
    assert not equivalent(gold, answer)
    assert not equivalent(answer, gold)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("4.29", r"\frac{30}{7}"),
        ("1.73", r"\sqrt3"),
        ("14.29\\%", r"\frac{1}{7}"),
        ("2.7183", "e"),
        ("3.5", "3,5"),
        ("2+7i", "2+7j"),
        ("4", r"4 \pmod{9}"),
        ("7", "a+b=7"),
        ("C", r"\textbf{(C) } 40"),
        ("0.6666667", r"\frac23"),
        ("0.364", r"0.\overline{36}"),
        ("B", r"B \text{ (12)}"),
        ("C", r"\text{The answer is C}"),
        ("A", r"A \quad \frac12"),
        ("17 any text", "17"),
    ],
)
def test_some_answers_are_right_for_a_gold_but_would_not_do_as_its_gold(gold, answer):
    assert equivalent(gold, answer)
    assert not equivalent(answer, gold)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("6.28", r"2\pi"),
        ("7.4", "7.42"),
        ("3.5", "3.50001"),
        ("0.3", r"\frac13"),
        ("0.33", r"\frac13"),
        ("1.2", r"\frac54"),
        ("7", r"\frac{20}{3}"),
    ],
)
def test_a_rounded_gold_answer_is_no_licence_to_round(gold, answer):
    assert not equivalent(gold, answer)


def test_text_without_a_tree_is_compared_as_text_and_said_to_be_unparsed():
    phrase = "All of them, because $n$ is even?!"
    assert compare(phrase, phrase) == (compare("5", "5"))
    assert not compare("5", "5 or so, I think: (").parsed
    assert compare("5", "6").parsed


@pytest.mark.parametrize(
    "answer", ["1" * 1_000_000, " " * 1_000_000 + "6", "1," * 500_000, "%" * 1_000_000, r"\frac" * 200_000]
)
def test_a_megabyte_of_answer_is_refused_at_once(answer):
    start = time.perf_counter()
    assert not equivalent("5", answer)
    assert time.perf_counter() - start < 0.5


def test_an_equation_with_more_signs_than_the_bound_is_no_set_and_no_error():
    signs = r"\pm1" * 8
    for gold in (r"x>5", r"\mathbb{R}>5", "(0,1)", "x=3"):
        assert not equivalent(gold, f"x={signs}")
        assert not equivalent(f"x={signs}", gold)


@pytest.mark.parametrize("core", ["0k", "k-k", "k", "2k+1"])
def test_powers_within_powers_take_no_more_steps_at_each_level_than_there_are_levels(core, monkeypatch):
    steps, fraction = [], polynomial._Expansion.fraction
    monkeypatch.setattr(polynomial._Expansion, "fraction", lambda self, node: steps.append(1) or fraction(self, node))
    assert not equivalent("[1]", "(" * 20 + core + ")^{3/2}" * 20)
    assert len(steps) < 20 * 20 * 20  # 2^20, where a level expands the one within it twice
