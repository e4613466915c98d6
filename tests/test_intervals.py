"""Intervals against published worked examples, their symmetries, and their coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot_jax.evaluation.intervals import mean_interval, paired_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_reproduces_published_examples(successes, count, low, high):
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_is_symmetric_and_holds_the_estimate(successes, failures):
    count = successes + failures
    low, high = wilson_interval(successes, count)
    assert 0.0 <= low <= high <= 1.0
    if count:
        assert low <= successes / count <= high
        assert low < high
    mirrored_low, mirrored_high = wilson_interval(failures, count)
    assert (1 - mirrored_high, 1 - mirrored_low) == pytest.approx((low, high), abs=1e-12)


def test_wilson_without_trials_knows_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_widens_with_confidence_and_narrows_with_trials():
    def width(*arguments):
        low, high = wilson_interval(*arguments)
        return high - low

    assert width(30, 100, 0.99) > width(30, 100) > width(300, 1000)


def test_impossible_counts_and_confidences_are_refused():
    with pytest.raises(ValueError, match="must not be greater"):
        wilson_interval(5, 4)
    with pytest.raises(ValueError, match=r"confidence_level \(95\.0\) must be"):
        wilson_interval(1, 4, 95.0)


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    cells = [both, only_a, only_b, neither]
    return np.repeat([True, True, False, False], cells), np.repeat([True, False, True, False], cells)


def test_paired_interval_reproduces_a_published_example():
    # Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10 on the cells 36, 12, 2, 0.
    assert paired_interval(*answers(36, 12, 2, 0)) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


cells = st.integers(0, 60)


@given(cells, cells, cells, st.integers(1, 60))
def test_paired_interval_is_antisymmetric_bounded_and_holds_the_difference(both, only_a, only_b, neither):
    a, b = answers(both, only_a, only_b, neither)
    difference, low, high = paired_interval(a, b)
    assert difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert -1.0 <= low <= difference <= high <= 1.0
    swapped = paired_interval(b, a)
    assert (-swapped.difference, -swapped.high, -swapped.low) == pytest.approx((difference, low, high), abs=1e-12)


def test_models_that_never_differ_leave_a_difference_of_zero_with_a_width():
    difference, low, high = paired_interval(*answers(70, 0, 0, 30))
    assert difference == 0.0 and low < 0.0 < high
    # Pairing is what is gained: two independent samples of these accuracies would leave ten points either way.
    assert high - low < 0.1


def test_pairing_narrows_the_interval_where_models_agree():
    agreeing = paired_interval(*answers(60, 10, 5, 25))
    independent = paired_interval(*answers(45, 25, 20, 10))
    assert agreeing.difference == independent.difference
    assert agreeing.high - agreeing.low < independent.high - independent.low


def test_paired_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    probabilities = [0.6, 0.18, 0.07, 0.15]
    covered = 0
    for draw in rng.multinomial(150, probabilities, size=600):
        _, low, high = paired_interval(*answers(*(int(cell) for cell in draw)))
        covered += low <= 0.11 <= high
    assert 0.92 <= covered / 600 <= 0.98


def test_no_questions_are_refused():
    with pytest.raises(ValueError, match="no questions"):
        paired_interval(np.zeros(0, bool), np.zeros(0, bool))


def test_correlation_is_corrected_for_continuity():
    # Agreement of 5 · 4 − 4 · 4 = 4, below half of the 17 questions, counts as none: the reaches add as squares.
    low_a, high_b = wilson_interval(9, 17)[0], wilson_interval(9, 17)[1]
    reach = np.hypot(9 / 17 - low_a, high_b - 9 / 17)
    assert paired_interval(*answers(5, 4, 4, 4)).low == pytest.approx(-reach)
    # Full agreement on 100 questions, half of them right: the correlation is (2500 − 50) / 2500 = 0.98.
    reach = 0.5 - wilson_interval(50, 100)[0]
    assert paired_interval(*answers(50, 0, 0, 50)).high == pytest.approx(reach * np.sqrt(2 - 2 * 0.98))


def test_mean_over_seeds_reproduces_a_worked_example():
    # 4.5 ± t(0.975, 2) · 2.2/√3, with the tabulated 4.303.
    mean, interval = mean_interval([2.3, 4.5, 6.7])
    assert mean == pytest.approx(4.5) and interval == pytest.approx(
        (4.5 - 4.303 * 1.2702, 4.5 + 4.303 * 1.2702), abs=1e-3
    )


def test_one_seed_has_no_interval_and_equal_seeds_a_point():
    assert mean_interval([0.7]) == (0.7, None)
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, (0.5, 0.5))
