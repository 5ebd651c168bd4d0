"""Random mixtures of LaTeX: no exception, and no answer takes long."""

import inspect
import random
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_simplerl.reward.comparing.equivalence import compare
from nemo_simplerl.reward.grade import SIMPLERL_REWARDS, grade_text
from support import latex

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


def _check_pairs(count: int, seed: int) -> None:
    """Drawn without hypothesis, whose own work would be most of it; the test above shrinks what it finds."""
    draw = random.Random(seed)
    for at in range(count):
        gold, answer = latex.pair(draw) if at % 4 else _mixtures(draw)
        try:
            start = time.process_time()
            compare(gold, answer)
            assert time.process_time() - start < 1.0
        except Exception as error:
            raise AssertionError(f"gold {gold!r}, answer {answer!r}") from error


def _mixtures(draw: random.Random) -> tuple[str, str]:
    gold, answer = ("".join(draw.choices(_PIECES, k=min(60, 1 + int(draw.expovariate(1 / 6))))) for _ in range(2))
    return gold, gold if draw.random() < 0.5 else answer


def test_no_text_of_a_grammar_with_depth_and_repetition_raises_or_takes_long():
    _check_pairs(2_000, seed=1)


@pytest.mark.long
def test_none_of_two_hundred_thousand_texts_raises_or_takes_long():
    _check_pairs(200_000, seed=2)


_CHAINS_TEXT = (
    r"\frac|\sqrt|\overline|\sin |\log_2 |x^|2^-|x!|/2|!|'|%|\pm 1|\mp x|+\pm 1|\mathbf|\sum_1^2|a: |\pmod 5|"
    r"\text{ plus }1|\text{ thousand}|\text{ squared}|-|(|((x+1)^{3/2}+|\frac{1}{1+|\sqrt{1+|\sin(|\{1,|(1,|"
    r"\cup(1,2)|,1|\text{ or }1|x_|:1|=1"
)
_CHAINS = _CHAINS_TEXT.split("|")


@pytest.mark.parametrize("piece", _CHAINS)
def test_a_chain_of_any_length_is_read_or_refused_with_much_of_the_stack_to_spare(piece):
    closing = "".join({"{": "}", "(": ")"}.get(letter, "") for letter in reversed(piece) if piece[-1:] not in "}2")
    limit = sys.getrecursionlimit()
    used = len(inspect.stack(0))
    try:
        sys.setrecursionlimit(used + 800)  # of the 1,000 that Python gives
        for times in (7, 20, 38, 79, 81, 300, 1400):
            chain = piece * times
            for text in (chain, chain + "x" + closing * times, "x" + chain, "5" + chain + "1"):
                start = time.process_time()
                compare(text, f"({text})")
                compare("x", text)
                compare(text + "+1", text + "+2")
                assert time.process_time() - start < 1.0, (piece, times)
    finally:
        sys.setrecursionlimit(limit)


def test_seven_signs_are_compared_as_they_stand_and_make_no_list_of_values():
    many = "".join(rf" \pm {at}" for at in range(1, 8))
    assert compare("1" + many, "{1" + many + "}").equal
    assert not compare("28", many).equal
    assert not compare(rf"x = {many}", rf"x = 1 {many}").equal
    assert not compare(f"(1{many}, 2)", f"(2{many}, 1)").equal
    assert compare(
        r"\pm 1, \pm 2, \pm 3, \pm 4, \pm 5, \pm 6, \pm 7", ", ".join(f"{n}, -{n}" for n in range(1, 8))
    ).equal
