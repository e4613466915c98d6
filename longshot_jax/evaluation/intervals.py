"""Confidence intervals: of an accuracy, of the difference of two models on the same questions, of a mean over seeds.

The first two are score intervals: they stay inside the possible range and have a positive width even if every answer is
right, every answer is wrong or the two models agree everywhere, where a Wald interval has width 0.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class PairedDifference(NamedTuple):
    """Accuracy of the first model minus that of the second, with its interval; all in [-1, 1]."""

    difference: float
    low: float
    high: float


class SeedInterval(NamedTuple):
    """A mean over seeds; the interval is None for a single seed."""

    mean: float
    interval: tuple[float, float] | None


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion; (0, 1) for count 0. Requires 0 <= successes <= count."""
    if count == 0 and successes == 0:
        return 0.0, 1.0
    import scipy.stats  # a third of a command's imports, and many commands compute no interval

    found = scipy.stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> SeedInterval:
    """Mean of one value per seed, with Student's t interval."""
    import scipy.stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return SeedInterval(mean, None)
    spread = float(scipy.stats.sem(values))
    if not spread:
        return SeedInterval(mean, (mean, mean))
    low, high = scipy.stats.t.interval(confidence, len(values) - 1, mean, spread)
    return SeedInterval(mean, (float(low), float(high)))


def paired_interval(
    correct_a: Bool[np.ndarray, "questions"], correct_b: Bool[np.ndarray, "questions"], confidence: float = 0.95
) -> PairedDifference:
    """Difference of two models' accuracies on the same questions, a − b, with Newcombe's interval.

    Newcombe (1998, Statistics in Medicine 17, 2635-2650), method 10: combines the Wilson intervals of the two
    accuracies by the correlation of the answers, corrected for continuity. Raises a ValueError without questions.
    """
    count = len(correct_a)
    if count == 0:
        raise ValueError("no questions: a difference of accuracies needs at least one")
    both = int(np.sum(correct_a & correct_b))
    only_a = int(np.sum(correct_a & ~correct_b))
    only_b = int(np.sum(~correct_a & correct_b))
    neither = count - both - only_a - only_b

    rate_a, rate_b = (both + only_a) / count, (both + only_b) / count
    low_a, high_a = wilson_interval(both + only_a, count, confidence)
    low_b, high_b = wilson_interval(both + only_b, count, confidence)

    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    covariance = float(both * neither - only_a * only_b)
    if covariance > 0:
        covariance = max(covariance - count / 2, 0.0)
    correlation = covariance / math.sqrt(margins) if margins else 0.0

    def joint_reach(reach_a: float, reach_b: float) -> float:
        square = reach_a**2 - 2 * correlation * reach_a * reach_b + reach_b**2
        return math.sqrt(max(square, 0.0))  # rounding can make it negative

    # From the counts and not the rates, so that equal accuracies give exactly zero.
    difference = (only_a - only_b) / count
    low = difference - joint_reach(rate_a - low_a, high_b - rate_b)
    high = difference + joint_reach(high_a - rate_a, rate_b - low_b)
    return PairedDifference(difference, low, high)
