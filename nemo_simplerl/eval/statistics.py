"""Figures of repeated samples and their uncertainty: pass@k, maj@k, intervals. Pure functions."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # of the normal distribution, two-sided 95 %


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is right.

    1 - C(n-c, k) / C(n, k) (Chen et al. 2021, eq. 1). Raises ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs between 1 and {num_samples} samples.")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority(answers: Sequence[str | None]) -> int | None:
    """Index of the first sample with the most frequent answer; None where no sample has an answer.

    Of equally frequent ones, the one that came first.
    """
    firsts: dict[str, int] = {}
    counts: dict[str, int] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            firsts.setdefault(answer, index)
            counts[answer] = counts.get(answer, 0) + 1
    return firsts[max(counts, key=lambda answer: (counts[answer], -firsts[answer]))] if counts else None


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over problems, each score in [0, 1] being the share of a problem's samples.

    One sample a problem (scores 0 or 1): Wilson's (1927). More: mean +- 1.96 standard errors over problems, cut to
    [0, 1], and never narrower than Wilson's where all scores are equal.
    """
    n = len(scores)
    mean = sum(scores) / n
    if n > 1 and any(score not in (0, 1) for score in scores):
        error = standard_error(scores)
        if error > 0:
            return max(mean - Z95 * error, 0.0), min(mean + Z95 * error, 1.0)
    z2 = Z95**2
    center = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(mean * (1 - mean) / n + z2 / (4 * n * n))
    return max(center - half, 0.0), min(center + half, 1.0)


def standard_error(scores: Sequence[float]) -> float:
    """Standard error of the mean over problems; 0 for a single problem."""
    n = len(scores)
    mean = sum(scores) / n
    return math.sqrt(sum((score - mean) ** 2 for score in scores) / (n - 1) / n) if n > 1 else 0.0


def binomial_error(share: float, n: int) -> float:
    """Standard error of a share of n problems, one sample each."""
    return math.sqrt(share * (1 - share) / n)


def differ(one: float, one_error: float, other: float, other_error: float) -> bool:
    """Whether two independent figures are further apart than chance puts them 19 times of 20."""
    return abs(one - other) > Z95 * math.hypot(one_error, other_error)
