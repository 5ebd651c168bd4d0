"""Random mixtures of LaTeX: no exception, and no answer takes long."""

import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_simplerl.reward.comparing.equivalence import compare
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


_TEXTS = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=60).map("".join)
_PAIRS = st.tuples(_TEXTS, _TEXTS) | _TEXTS.map(lambda text: (text, text))
_QUIETLY = {
    "deadline": None,  # the limit is the assertion's
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.large_base_example],
}


def _check(gold: str, answer: str) -> None:
    start = time.process_time()  # a busy machine must not fail it
    compare(gold, answer)
    verdict = grade_text(gold, "so $\\boxed{" + answer + "}$.")
    assert time.process_time() - start < 1.0
    assert verdict in SIMPLERL_REWARDS


@settings(max_examples=1_500, **_QUIETLY)
@given(_PAIRS)
def test_no_mixture_of_latex_raises_or_takes_long(pair):
    _check(*pair)


@pytest.mark.slow
def test_none_of_twenty_thousand_mixtures_raises_or_takes_long():
    """Drawn without hypothesis, whose own work would be most of it; the test above shrinks what it finds."""
    draw = random.Random(0)

    def text() -> str:
        return "".join(draw.choices(_PIECES, k=min(60, 1 + int(draw.expovariate(1 / 6)))))

    for _ in range(20_000):
        gold = text()
        answer = gold if draw.random() < 0.5 else text()
        try:
            _check(gold, answer)
        except Exception as error:
            raise AssertionError(f"gold {gold!r}, answer {answer!r}") from error
