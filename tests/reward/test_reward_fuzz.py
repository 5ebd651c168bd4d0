"""Random mixtures of LaTeX: no exception, no answer that takes long, every answer right for itself or unread."""

import random
import time

import pytest

from nemo_simplerl.reward.equivalence import compare
from nemo_simplerl.reward.grade import SIMPLERL_REWARDS, grade_text

_TEXT = (
    r"0 1 2 3 10 1,234 0.5 1e9 99999 x y n e i a b f( g(x) + - * / = < > \le \ge \ne \approx \in ^ _ ^{ _{ ! !! % ' "
    r"( ) [ ] { } \{ \} | , ; : . ... \frac \frac{1}{2} \dfrac12 \sqrt \sqrt{ \sqrt[3]{ \binom{5}{2} \pi \infty \pm "
    r"\cdot \times \div \left( \right) \left[ \right] \sin \cos^2 \tan^{-1} \log_ \ln \exp \max( \gcd( \lfloor \rfloor "
    r"\cup \cap \setminus \emptyset \mathbb{R} \mid \text{ \text{cm} \text{and} \mathrm{e} \mathbf{ and or cm percent "
    r"\begin{pmatrix} \end{pmatrix} & \\ \sum_{k=1}^{ \int_0^1 \lim_{x\to0} ^\circ ^{\circ} \circ \overline{3} \ldots "
    r"\angle ABC 4:30 p.m. \$ € ½ ² − √ ° π é 答 \boxed{ \boxed \quad \, \! \; \pmod 10^{10^{10}} 9^{9^9} 1000! 7!!"
)
_PIECES = [*_TEXT.split(), " ", "  ", "\u200b", "\x00", "\ud800", "\\"]


def _check(draw, longest):
    gold = "".join(draw.choices(_PIECES, k=draw.randint(1, longest)))
    answer = gold if draw.random() < 0.2 else "".join(draw.choices(_PIECES, k=draw.randint(1, longest)))
    start = time.perf_counter()
    compare(gold, answer)
    verdict = grade_text(gold, "so $\\boxed{" + answer + "}$.")
    assert time.perf_counter() - start < 1.0, (gold, answer)
    assert verdict in SIMPLERL_REWARDS


@pytest.mark.parametrize(("seed", "longest"), [(1, 4), (2, 8), (3, 16), (4, 40)])
def test_no_mixture_of_latex_raises_or_takes_long(seed, longest):
    draw = random.Random(seed)
    for _ in range(400):
        _check(draw, longest)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "longest"), [(11, 4), (12, 8), (13, 12), (14, 24), (15, 60)])
def test_none_of_twenty_thousand_mixtures_raises_or_takes_long(seed, longest):
    draw = random.Random(seed)
    for _ in range(4000):
        _check(draw, longest)
