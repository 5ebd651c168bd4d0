"""Tricks: answers that look like a gold answer and say something else, made for any gold answer.

A trick is a function from a gold answer to an answer, or None where it would say the same after all. To add one, put it
into `TRICKS` under the kind of fault that it tries to use.
"""

import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

_GOLDS_TEXT = (
    r"3 5 7 12 36 144 1000 -4 2024 17 \frac{1}{2} \frac{3}{7} -\frac{5}{8} 2\frac{1}{3} 7/9 0.5 3.14 12.75 0.001 "
    r"\sqrt{2} 2\sqrt{3} \frac{\sqrt{3}}{2} 3+\sqrt{5} \sqrt[3]{7} \pi \frac{\pi}{4} e^{2} 2+3i "
    r"\frac{1+\sqrt{5}}{2} x x^2 2x+1 \frac{a}{b} n(n+1) x^2-4 3t 12\text{cm} \$7 45^\circ (3,4) 3,5 \{4,5\} [0,5) "
    r"x=5 y=2x+3 2:3 101_2 10^{100} \binom{6}{2} \lfloor{7.5}\rfloor"
)
GOLDS = tuple(_GOLDS_TEXT.split())
IRRATIONAL = {r"\sqrt{2}": 2, r"2\sqrt{3}": 12, r"\sqrt{1000}": 1000, r"\frac{\sqrt{3}}{2}": Fraction(3, 4)}

Trick = Callable[[str], str | None]

# They change the value before them, bound it, deny it, or are no unit.
_WORDS_TEXT = (
    "thousand|million|Million|millions|billion|trillion|hundred|dozen|dozens|gross|score|lakh|crore|k|M|mln|bn|"
    "zillion|squared|cubed|factorial|doubled|tripled|halved|plus one|plus two|minus two|minus twelve|times ten|"
    "multiplied by three|divided by two|halves|thirds|quarters|tenths|hundredths|over six|out of six|"
    "to the sixth power|to the fourth|raised to the third power|to the power of two|of a million|of six|choose three|"
    "mod two|thousand dollars|million people|dozen eggs|hundred cm|squared plus one|plus|minus|times ten cm|less|"
    "less than ten|more than two|or more|or so|and|or|at most|at least|not|no|is wrong|is not possible|never|maybe|"
    "if positive|except zero|negated|inverted|point five|sixes|tens|umpteen|foo|percent less|blah blah|"
    "approximately zero|K plus one|root two|base nine"
)
_WORDS = _WORDS_TEXT.split("|")
_WORDS_BEFORE_TEXT = (
    "not|less than|more than|at least|at most|fewer than|half of|twice|double|one over|the square root of|never|"
    "nearly|between|minus one plus|two times|a multiple of|neither|anything but"
)
_WORDS_BEFORE = _WORDS_BEFORE_TEXT.split("|")
_LETTERS_TEXT = (
    "at by ten be is on of to as an it so we no if or and the are all any not two six one via per let but can has "
    "was late bane ab mg in mi"
)
_LETTERS = _LETTERS_TEXT.split()
_BEHIND_A_CHOICE_TEXT = (
    r"+1|^2|x|5|(C)|*2|!|=3|<4|_1| + 1| \cdot 2| or (C)| or C| and (D)|, (C)| is wrong| is not right|"
    r"\text{ is wrong}|\text{ or maybe C}|\text{ or } C|\text{ and } D| but not C| not| 40 (C)| or 5|/2| \ne 3|"
    r" \pm 1|\text{ never}"
)
_BEHIND_A_CHOICE = _BEHIND_A_CHOICE_TEXT.split("|")


def _behind(ending: str) -> Trick:
    return lambda gold: gold + ending


def _behind_a_number(ending: str) -> Trick:
    """The words behind the gold answer; None behind a unit, of which they make another: 12 cm squared is 12 cm^2."""
    return lambda gold: None if "text" in gold and re.search("squared|cubed", ending) else gold + ending


def _before(beginning: str) -> Trick:
    return lambda gold: beginning + gold


def _decimal(digits: int) -> Trick:
    """The gold answer's value to that many digits; None for golds that have no irrational value here."""

    def trick(gold: str) -> str | None:
        if gold not in IRRATIONAL:
            return None
        scaled = math.isqrt(int(IRRATIONAL[gold] * 100**digits))
        return f"{scaled // 10**digits}.{scaled % 10**digits:0{digits}d}"

    return trick


def _convergent(terms: int) -> Trick:
    """A fraction as close to the square root of 2 as its digits allow; None for other golds."""

    def trick(gold: str) -> str | None:
        top, bottom = 1, 1
        for _ in range(terms):
            top, bottom = top + 2 * bottom, top + bottom
        return rf"\frac{{{top}}}{{{bottom}}}" if gold == r"\sqrt{2}" else None

    return trick


def _close(form: str) -> Trick:
    """The gold answer's value changed by less than can be seen; None for golds that are no number."""
    return lambda gold: form % gold if gold in GOLDS[:29] and "/" not in gold and "$" not in gold else None


def _modulus(form: str) -> Trick:
    return lambda gold: gold + form


TRICKS: dict[str, dict[str, Trick]] = {
    "words that change a value": {
        **{f"text {word}": _behind_a_number(rf"\text{{ {word}}}") for word in _WORDS},
        **{f"plain {word}": _behind_a_number(f" {word}") for word in _WORDS},
        **{f"before: {word}": _before(rf"\text{{{word} }}") for word in _WORDS_BEFORE},
    },
    "letters that spell words": {letters: _behind(letters) for letters in _LETTERS},
    "many signs": {
        f"{sign} {count}": _behind("".join(rf" {sign} {at}" for at in range(1, count)))
        for sign in (r"\pm", r"+\pm", r"\pm x\mp")
        for count in (2, 6, 7, 9, 200)
    },
    "values that come close": {
        **{f"{digits} digits": _decimal(digits) for digits in (31, 32, 40, 60, 100, 300)},
        **{f"convergent {terms}": _convergent(terms) for terms in (30, 45, 60, 120)},
        **{
            form: _close(form)
            for form in (
                r"(%s)(1+10^{-31})",
                r"(%s)(1+2^{-110})",
                r"(%s)(1+10^{-50})",
                r"(%s)\cos(10^{-20})",
                r"(%s)\cos(10^{-16})",
                r"(%s)+10^{-33}",
                r"(%s)(1+10^{-31})^{1/1000000}",
                r"(%s)+e^{-100}",
                r"(%s)(1+3^{-1000})",
                r"(%s)\cos(10^{-1000})",
            )
        },  # fmt: skip
    },
    "a modulus": {
        form: _modulus(form)
        for form in (r" \pmod 2", r" \pmod{2}", r" (\mod 2)", r" \mod 2", r" \bmod 2", r"\text{ mod }2", " mod 2")
    },
}


def trick_pairs(kind: str, golds: tuple[str, ...] = GOLDS) -> Iterator[tuple[str, str, str]]:
    """The name of a trick, a gold answer and the answer that must not be right for it: every trick on every gold."""
    for name, trick in TRICKS[kind].items():
        for gold in (*golds, *IRRATIONAL) if kind == "values that come close" else golds:
            answer = trick(gold)
            if answer is not None:
                yield name, gold, answer


def choice_pairs() -> Iterator[tuple[str, str]]:
    """A letter as the gold answer, and an answer that says more than the letter with its text."""
    for letter in "ABDEFGH":
        for form in ("(%s)", r"\text{(%s)}", r"\textbf{(%s)}", r"\mathrm{%s}", "%s", "Option %s"):
            yield from ((letter, form % letter + behind) for behind in _BEHIND_A_CHOICE)
