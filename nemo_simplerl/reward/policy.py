r"""The choices that mathematics leaves open, and the bounds that keep a hostile answer cheap. All in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    r"""What counts as the same answer where two careful readers may differ.

    A gold answer that was rounded is right for the exact value that rounds to it (6.67 for 20/3), never the
    other way round: 0.333 is not 1/3. `rounded_gold_digits` asks for that many significant digits of the
    gold decimal, and `rounded_gold_digits_transcendental` for as many where the exact value is built from
    pi, e or a function, because 3.14 may as well stand for a problem that says "use 3.14".
    """

    gold_decimal_accepts_exact: bool = True
    rounded_gold_digits: int = 3
    rounded_gold_digits_transcendental: int = 4
    percent_either_reading: bool = True  # 50% is right for 50 and for 0.5; 50 is not right for 0.5
    degrees_as_radians: bool = True  # 60 degrees is right for pi/3
    decimal_comma: bool = True  # a prediction "1,5" is right for a gold "1.5"
    adjacent_boxes_are_a_list: bool = True  # \boxed{1}, \boxed{2} and "\boxed{1} and \boxed{2}"
    column_vector_is_tuple: bool = True  # a column, not a row


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on the work that one answer can cause. Beyond them an answer is compared as text only."""

    chars: int = 3000
    tokens: int = 1500
    nesting: int = 40
    digits: int = 1000  # in one number
    bits: int = 4096  # of an integer that is built
    terms: int = 400  # of an expanded polynomial
    items: int = 400  # of a list
    signs: int = 6  # independent plus-minus signs: 2^6 values


POLICY = Policy()
LIMITS = Limits()
