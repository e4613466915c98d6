"""Confidence intervals of accuracies: of one model, and of the difference of two on the same questions.

Both are score intervals. They stay inside the possible range and keep a width where every answer is right, every
answer is wrong or the two models never differ, where the textbook interval shrinks to a point.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class PairedDifference(NamedTuple):
    """Accuracy of the first model less that of the second, with its interval; all in [-1, 1]."""

    difference: float
    low: float
    high: float


def _two_sided_z(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion, both ends in [0, 1].

    With no trials at all nothing is known, and the interval is (0, 1). Raises ValueError unless
    0 <= successes <= count.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} successes of {count} trials: impossible")
    z = _two_sided_z(confidence)
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    centre = share + z**2 / (2 * count)
    half_width = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    # At the ends the exact limits are 0 and 1; rounding must not move them inside or outside.
    low = 0.0 if successes == 0 else (centre - half_width) / scale
    high = 1.0 if successes == count else (centre + half_width) / scale
    return low, high


def paired_interval(
    correct_a: Bool[np.ndarray, "questions"],
    correct_b: Bool[np.ndarray, "questions"],
    confidence: float = 0.95,
) -> PairedDifference:
    """Difference of two models' accuracies on the same questions, a − b, with Newcombe's interval.

    Newcombe (1998, Statistics in Medicine 17, 2635-2650), method 10: the Wilson intervals of the two accuracies are
    joined with the correlation of the answers, corrected for continuity. What decides is the discordant questions,
    which one model answers and the other does not. Raises ValueError when there are no questions.
    """
    count = len(correct_a)
    if count == 0:
        raise ValueError("no questions: a difference of accuracies needs at least one")
    both = int(np.sum(correct_a & correct_b))
    only_a = int(np.sum(correct_a & ~correct_b))
    only_b = int(np.sum(~correct_a & correct_b))
    neither = count - both - only_a - only_b

    share_a, share_b = (both + only_a) / count, (both + only_b) / count
    low_a, high_a = wilson_interval(both + only_a, count, confidence)
    low_b, high_b = wilson_interval(both + only_b, count, confidence)

    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    covariance = float(both * neither - only_a * only_b)
    if covariance > 0:
        covariance = max(covariance - count / 2, 0.0)
    correlation = covariance / math.sqrt(margins) if margins else 0.0

    def joined(reach_a: float, reach_b: float) -> float:
        square = reach_a**2 - 2 * correlation * reach_a * reach_b + reach_b**2
        return math.sqrt(max(square, 0.0))  # rounding can take an exact zero below it

    # From the counts, not from the shares, so that equal accuracies give exactly zero.
    difference = (only_a - only_b) / count
    low = difference - joined(share_a - low_a, high_b - share_b)
    high = difference + joined(high_a - share_a, share_b - low_b)
    return PairedDifference(difference, low, high)
