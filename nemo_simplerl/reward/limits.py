"""Bounds on the work that one answer can cause, so that a hostile answer stays cheap."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GraderLimits:
    """The largest answer that is read as mathematics. Beyond any of these it is compared as text only."""

    chars: int = 3000
    tokens: int = 1500
    nesting: int = 40  # of brackets
    depth: int = 80  # of a tree, and of the calls that read it: fractions, functions and signs nest without brackets
    digits: int = 1000  # in one number
    bits: int = 4096  # of an integer that is built
    terms: int = 400  # of an expanded polynomial
    items: int = 400  # of a list
    signs: int = 6  # independent plus-minus signs: 2^6 values


LIMITS = GraderLimits()
