r"""Notations of golds and of responses, kind by kind: the same both ways, right for the gold answer, and different."""

import pytest

from nemo_simplerl.reward.comparing.equivalence import equivalent
from nemo_simplerl.reward.grade import grade_text

SAME_BOTH_WAYS = {
    "numbers in a base": [
        ("1302_5", "(1302)_5"),
        ("1302_5", r"1302\text{ base }5"),
        ("1302_5", r"1302_{\text{base }5}"),
        ("1302_5", "1302 base 5"),
        ("1302_5", r"1302 \text{ (base five)}"),
        ("1302_5", r"1302_{\text{five}}"),
        ("1101_2", r"1101\text{ in binary}"),
        ("2B7_{12}", "(2B7)_{12}"),
        ("2B7_{12}", r"2\mathrm{B}7_{12}"),
        ("0.011_2", "0.0110_{2}"),
        ("24_{10}", "24"),
        ("x=1302_5", "1302_5"),
        ("-31_4", "-31_{4}"),
        ("-31_4", "(-31)_4"),
        ("1302_5", r"\overline{1302}_5"),
        ("1302_5", "202_{10} = 1302_5"),
    ],
    "matrices": [
        (r"\begin{pmatrix} 3/2 & 1 \\ -2 & 5/2 \end{pmatrix}", r"\frac12\begin{pmatrix}3&2\\-4&5\end{pmatrix}"),
        (
            r"\begin{pmatrix} 3/2 & 1 \\ -2 & 5/2 \end{pmatrix}",
            r"\begin{bmatrix}3&2\\-4&5\end{bmatrix}\cdot\frac{1}{2}",
        ),
        (r"\begin{pmatrix} -4 \\ 6 \end{pmatrix}", r"-2\begin{bmatrix}2\\-3\end{bmatrix}"),
        (r"\begin{pmatrix} -4 \\ 6 \end{pmatrix}", r"\begin{pmatrix}-4\\[6pt]6\end{pmatrix}"),
        (r"\begin{pmatrix} -4 \\ 6 \end{pmatrix}", r"\begin{pmatrix}-4\cr 6\end{pmatrix}"),
        (r"\begin{pmatrix} -4 \\ 6 \end{pmatrix}", r"\begin{pmatrix}-4&6\end{pmatrix}^T"),
        (r"\begin{pmatrix} -4 \\ 6 \end{pmatrix}", r"(-4,6)^{\top}"),
        (r"\begin{pmatrix} -4 \\ 6 \end{pmatrix}", r"-4\hat{i}+6\hat{j}"),
        (r"\begin{pmatrix} -4 \\ 6 \end{pmatrix}", r"-4\mathbf{i}+6\mathbf{j}"),
        ("(2, -1, 7)", r"2\hat{\imath}-\hat{\jmath}+7\hat{k}"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "[[1,2],[3,4]]"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\[4pt] \hline 3 & 4 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "[1, 2; 3, 4]"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\pmatrix{1 & 2 \cr 3 & 4}"),
        (
            r"\begin{pmatrix} 1 \\ 2+3t \end{pmatrix}",
            r"\begin{pmatrix}1\\2\end{pmatrix}+t\begin{pmatrix}0\\3\end{pmatrix}",
        ),
        (r"\begin{pmatrix} 2 \\ 6 \end{pmatrix}", r"2\langle 1, 3\rangle"),
        (r"A^{-1}=\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    ],
    "compound units": [
        ("15", r"15\ \mathrm{m/s}"),
        ("15", r"15\,\mathrm{m}/\mathrm{s}^2"),
        ("15", r"15\ \mathrm{kg}\cdot\mathrm{m}^2/\mathrm{s}^2"),
        ("15", r"15 kg·m^2/s^2"),
        ("15", r"15\,\mathrm{mol}^{-1}"),
        ("15", r"15\,\mathrm{m}\,\mathrm{s}^{-1}"),
        ("15", r"15\ \mathrm{J/(mol\cdot K)}"),
        ("15", r"15\ \Omega"),
        ("15", r"15\ \mu\mathrm{m}"),
        (r"15 \pi \mathrm{N}-\mathrm{m}", r"15\pi"),
        ("15", r"15\ \frac{\mathrm{m}}{\mathrm{s}}"),
        ("15", r"15\,\mathrm{N}\cdot\mathrm{m}"),
        ("15", r"15 \mathrm{~N}-\mathrm{m}"),
        (r"13 / 20 \mathrm{ft} / \mathrm{s}", r"\frac{13}{20}"),
        (r"1 /(16 \pi) \mathrm{cm} / \mathrm{s}", r"\frac{1}{16\pi}"),
        (r"36\ \mathrm{km/h}", r"10\ \mathrm{m/s}"),
        (r"2\ \mathrm{kN}", r"2000\ \mathrm{kg\,m/s^2}"),
        (r"60\text{ miles per hour}", r"88\ \mathrm{ft/s}"),
    ],
    "left sides": [
        ("5", "f^{-1}(3)=5"),
        ("5", "f'(1)=5"),
        ("5", r"f^{\prime\prime}(1)=5"),
        ("5", r"(f\circ g)(1)=5"),
        ("5", "(f+g)(2) = 5"),
        ("5", r"f\left(g(-2)\right)=5"),
        ("5", "=5"),
        ("5", r"\Rightarrow x = 5"),
        ("5", r"\therefore 5"),
        ("5", "Answer = 5"),
        ("2x", "y'=2x"),
        ("2x", r"\frac{dy}{dx}=2x"),
        (r"\frac{dy}{dx}=2x", "y'=2x"),
        ("6x", r"\frac{d^2y}{dx^2}=6x"),
        ("5", r"\left.\frac{dy}{dx}\right|_{x=1}=5"),
        ("0.2", r"n(A\cap B)=0.2"),
        ("5", r"\text{So } x=5"),
        (r"\frac{3}{5}", r"\cos\theta=\frac35"),
        ("17", r"\text{the maximum value is }17"),
        ("0.3", r"P(X>2)=0.3"),
    ],
    "named sets and points": [
        ("8, 12", r"S=\{8,12\}"),
        (r"\{1,4,9\}", r"A=\{1,9,4\}"),
        (r"\{1\}", r"A\cap B=\{1\}"),
        ("(18,-24)", "P(18,-24)"),
        ("P(18,-24)", "P=(18,-24)"),
        ("(1,2),(3,4)", "A(1,2), B(3,4)"),
        ("(1,2)", r"\text{Point } P(1,2)"),
        (r"\{1,4\}", r"\text{The set } \{1,4\}"),
        ("(2,9)", r"\begin{cases}x=2\\y=9\end{cases}"),
        ("(2,9)", r"\left\{\begin{array}{l}x=2,\\ y=9.\end{array}\right."),
        ("(2,9)", r"\begin{aligned}x&=2\\y&=9\end{aligned}"),
        ("(2,2,2)", "x=y=z=2"),
        ("x=2,y=2,z=2", "x=y=z=2"),
        ("40", r"\angle A=\angle B=40^\circ"),
        (
            r"\begin{cases}x & x>0\\-x & x\le0\end{cases}",
            r"\left\{\begin{array}{ll}-x, & \text{if } x\leq 0\\ x, & \text{if } x>0\end{array}\right.",
        ),
    ],
    "qualifiers": [
        ("2x+1", r"2x+1 \text{ for all real } x"),
        ("2x+1", r"2x+1 \text{ for all } x"),
        ("f(x)=2x+1", r"f(x)=2x+1 \quad (x\in\mathbb{R})"),
        (r"\frac{1}{n}", r"a_n=\frac1n, n\in\mathbb{N}^*"),
        (r"\frac{1}{n}", r"\frac1n \text{ for all positive integers } n"),
        (r"k\pi", r"k\pi \ (k \in \mathbb{Z})"),
        (r"k\pi", r"n\pi \text{ where } n \text{ is an integer}"),
        (r"2n\pi", r"$2 n \pi$, any integer $n$"),
        ("10", r"10\text{ only}"),
        ("26", r"\text{exactly }26"),
        ("3.14", r"\text{approximately }3.14"),
        ("24", r"24\text{ ordered pairs }(a,b)"),
        ("9", r"9\text{ integers }n"),
    ],
    "characters": [
        ("12", "１２"),
        ("12", "١٢"),
        ("37", "३७"),
        ("7", "⑦"),
        ("1, 3", "①③"),
        ("8", "𝟖"),
        (r"2\pi", "2𝜋"),
        ("12", "十二"),
        ("305", "三百零五"),
        (r"\frac{2}{3}", "三分之二"),
        ("-3.5", "负三点五"),
        ("50%", "百分之五十"),
        ("8", "8个"),
        ("x=6", "x=6（米）"),
        (r"\frac{3}{4}", "3⁄4"),
        (r"\frac{2}{5}", "⅖"),
        ("x≤5", "x ≦ 5"),
        ("14", "“14”"),
    ],
    "typesetting": [
        (r"\frac{5}{8}", r"{5 \over 8}"),
        (r"\frac{x+1}{2}", r"x+1 \over 2"),
        (r"\sqrt[3]{5}", r"\root 3 \of 5"),
        (r"\sqrt[3]{x+1}", r"\root{3}\of{x+1}"),
        (r"1+i\sqrt3", r"2\operatorname{cis}\frac{\pi}{3}"),
        (r"1+i\sqrt3", r"2\text{ cis }60^\circ"),
        (r"\frac12", r"\frac12\text{.}"),
        (r"\frac{5}{8}", r"\nicefrac{5}{8}"),
        (r"\frac{5}{8}", r"\begin{aligned}\frac58\end{aligned}"),
        ("19", r"\begin{array}{c}19\end{array}"),
        (r"\tan x", r"\text{tan}(x)"),
        (r"2\sqrt7", r"2\sqrt{\mathstrut 7}"),
        ("35", r"{}_7C_3"),
        ("35", r"7 \choose 3"),
        ("28", "C(8,2)"),
        ("120", "P(6,3)"),
        ("35", "C_7^3"),
        ("62^\\circ", "62^o"),
        (r"\frac{5}{11}", r"0.\dot{4}\dot{5}"),
        (r"\frac{16}{37}", r"0.\dot43\dot2"),
        (r"180-2\alpha", r"180^\circ-2\alpha"),
        (r"33\frac{1}{3}\%", r"\frac{100}{3}\%"),
        (r"33\frac{1}{3}\%", r"\frac13"),
        (r"-20\%", "-20"),
        ("10000", "10'000"),
        (r"\pm 3", "+/-3"),
        (r"3.5\times10^8", "3.5x10^8"),
    ],
}

RIGHT_FOR_THE_GOLD = [
    ("1302_5", "1302"),
    ("-31_4", "-31"),
    ("0.011_2", "0.011"),
    ("2B7_{12}", "2B7"),
    ("2x^3", "2x^3, x>0"),
    ("1302_5", "N = 1302_5 = 202_{10}"),
]

DIFFERENT = {
    "numbers in a base": [
        ("1302_5", "1302_6"),
        ("1302_5", "1303_5"),
        ("1302_5", "202"),
        ("1302_5", "202_{10}"),
        ("1302", "1302_5"),
        ("5", "101_2"),
        ("1302_5", "1302, 5"),
        ("1302_5", "1302_5 = 203_{10}"),
        ("1302_5", "1.302"),
        ("2B7_{12}", "2A7"),
        ("11_2", "1_{2}1"),
    ],
    "matrices": [
        (r"\begin{pmatrix} 6 \\ -9 \end{pmatrix}", r"3\begin{pmatrix}2\\3\end{pmatrix}"),
        (r"\begin{pmatrix} 6 \\ -9 \end{pmatrix}", r"3\begin{pmatrix}2&-3\end{pmatrix}"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "[[1,3],[2,4]]"),
        (r"\begin{pmatrix} 3 \\ -4 \end{pmatrix}", r"4\mathbf{i}-3\mathbf{j}"),
        (
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}\begin{pmatrix}0&1\\1&0\end{pmatrix}",
            r"\begin{pmatrix}0&1\\1&0\end{pmatrix}\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        ),
        (r"\begin{pmatrix} 11 \\ -13 \end{pmatrix}", r"\begin{pmatrix} -13 \\[4pt] 11 \end{pmatrix}"),
    ],
    "compound units": [
        ("36", r"63\ \mathrm{km/h}"),
        (r"36\ \mathrm{km/h}", r"36\ \mathrm{m/s}"),
        (r"13 / 20 \mathrm{ft} / \mathrm{s}", r"\frac{20}{13}"),
        ("5", "5x/y"),
        ("5", r"5\mathrm{x}/\mathrm{y}"),
        ("9", "9m^2"),
        ("5m/s", "5"),
        (r"5\text{ cm}", r"5\text{ cm}m"),
    ],
    "left sides": [
        ("5", "f^{-1}(5)=3"),
        ("-2", "f'(-2)=1"),
        ("11", "=12"),
        ("5", "x(x+4)=5"),
        ("6", r"\text{twice the area is }6"),
        ("x^2+y^2=13", "13"),
        ("x+y=5", "5"),
        ("f'(1)=5", "f(1)=5"),
    ],
    "named sets and points": [
        (r"\{1,4,9\}", r"A=\{1,4\}"),
        ("(18,-24)", "P(-24,18)"),
        ("(2,9)", r"\begin{cases}x=9\\y=2\end{cases}"),
        ("(2,2,3)", "x=y=z=2"),
        ("x=y=z=2", "x=2"),
        ("P(1,2)", "Q(1,2)"),
        ("2", "x=y=3"),
    ],
    "qualifiers": [
        ("10", r"\text{less than }10"),
        ("9", r"9\text{ is not possible}"),
        ("x^2-3", r"x^2-3\text{ or }0\text{ for all }x"),
        ("f(x)=2x+1", r"f(x)=2x+1 \text{ for } x>0, f(x)=-x \text{ for } x\le0"),
        (r"k\pi", r"k\pi, k\in\mathbb{N}"),
        (r"k\pi", r"k\pi, k>0"),
        ("10", r"\text{about to be }10"),
        ("x^2, x>0", "x^2"),
        ("x^2, x>0", "x^2, x<0"),
        ("1-P(X>2)", "1-P"),
        ("3", "3, x>0"),
        ("4", "|x|=4, x>5"),
    ],
    "characters": [("12", "١٣"), ("7", "𝟖"), ("13", "①③"), ("12", "二十"), ("5", "5万")],
    "typesetting": [
        (r"\frac{5}{8}", r"{8 \over 5}"),
        (r"\sqrt[3]{5}", r"\root 5 \of 3"),
        ("35", r"{}_7C_2"),
        ("210", r"{}_7C_3"),
        (r"1+i\sqrt3", r"2\operatorname{cis}\frac{\pi}{6}"),
    ],
}


def _pairs(table):
    return [pytest.param(*pair, id=f"{kind}: {pair}") for kind, pairs in table.items() for pair in pairs]


@pytest.mark.parametrize(("one", "two"), _pairs(SAME_BOTH_WAYS))
def test_two_notations_of_one_answer_are_equivalent_both_ways(one, two):
    assert equivalent(one, two)
    assert equivalent(two, one)


@pytest.mark.parametrize(("gold", "answer"), RIGHT_FOR_THE_GOLD)
def test_an_answer_may_leave_out_what_the_question_says_or_add_where_it_holds(gold, answer):
    assert equivalent(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), _pairs(DIFFERENT))
def test_another_value_in_the_same_notation_is_not_equivalent(gold, answer):
    assert not equivalent(gold, answer)


@pytest.mark.parametrize(
    "text",
    ["P_{abcd}", "x^{{{a}}}T", "'(1)=5", "-_2", "亿" * 3000, "^T", r"\hat", "=", r"\Rightarrow", "(base 2)", "for x"],
)
def test_a_notation_that_is_cut_short_is_no_error(text):
    assert not equivalent("7", text)


@pytest.mark.parametrize(
    ("gold", "response", "verdict"),
    [
        ("3,5,7", r"\[ \boxed{3} \quad \boxed{5} \quad \boxed{7} \]", "correct"),
        ("2,11", "The solutions are\n- $\\boxed{2}$\n- $\\boxed{11}$", "correct"),
        ("11", r"\boxed{2} \boxed{11}", "correct"),
        ("11", "- $\\boxed{2}$\n- $\\boxed{11}$", "incorrect"),
        ("11", "First $\\boxed{2}$.\n\n$\\boxed{11}$", "correct"),
        ("42", r"\boxed{9} \boxed{9} \boxed{42}", "correct"),
        (r"\frac12", r"$\boxed{\frac{1}{2}}$ or $\boxed{0.5}$", "correct"),
        ("5", r"$\boxed{5}$ or $\boxed{-5}$", "incorrect"),
    ],
)
def test_boxes_side_by_side_are_one_list_and_the_right_answer_may_be_repeated(gold, response, verdict):
    assert grade_text(gold, response) == verdict
