"""Fusion of trajectories: votes with their ties, and means over the live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot_jax.thoughts.fusion import best, vote, weighted
from longshot_jax.thoughts.think import majority, mean_of_trajectories


def number(answer: str) -> float | None:
    try:
        return float(answer)
    except ValueError:
        return None


def test_vote_takes_the_majority_and_its_best_trajectory():
    assert vote(["4", "7", "7", "4.0", "4"], [0.1, 0.9, 0.9, 0.3, 0.2], number) == 3


def test_vote_breaks_ties_by_summed_value_then_by_order():
    assert vote(["1", "2", "2", "1"], [0.5, 0.4, 0.4, 0.1], number) == 1
    assert vote(["1", "2"], [0.5, 0.5], number) == 0
    assert vote(["1", "2", "1", "2"], [0.0, 0.0, 0.0, 0.0], number) == 0


def test_answers_that_cannot_be_parsed_win_only_alone():
    assert vote(["x", "y", "z", "5"], [9.0, 9.0, 9.0, 0.0], number) == 3
    assert weighted(["x", "y", "z", "5"], [9.0, 9.0, 9.0, 0.0], number) == 3
    assert vote(["x", "y"], [0.1, 0.2], number) == 1


def test_weighted_can_overrule_the_majority_but_no_vote_counts_against():
    answers = ["1", "2", "2"]
    assert weighted(answers, [3.0, 0.0, 0.0], number) == 0
    assert weighted(answers, [0.1, 0.0, 0.0], number) == 1
    assert weighted(answers, [-0.9, -1.0, -1.0], number) == 1
    assert weighted(answers, [1000.0, -1000.0, -1000.0], number) == 0


@given(st.lists(st.tuples(st.sampled_from("123?"), st.floats(-2, 2)), min_size=1, max_size=7), st.floats(-3, 3))
def test_weighted_ignores_a_common_shift_up_to_ties(pairs, shift):
    answers, values = [a for a, _ in pairs], [v for _, v in pairs]
    weight: dict = {}
    for answer, value in pairs:
        weight[answer] = weight.get(answer, 0.0) + np.exp(value)
    ranked = sorted((w for a, w in weight.items() if a != "?"), reverse=True)
    if len(ranked) > 1 and ranked[0] - ranked[1] < 1e-6:
        return
    plain = weighted(answers, values, number)
    assert answers[weighted(answers, [v + shift for v in values], number)] == answers[plain]
    if ranked:
        assert weight[answers[plain]] == pytest.approx(ranked[0])


def test_best_takes_the_highest_value():
    answers = ["1", "2", "3"]
    assert best(answers, [0.1, 0.7, 0.7], number) == 1
    assert best(answers, np.array([0.1, np.nan, 0.3]), number) == 2
    assert best(answers[:1], [float("nan")], number) == 0


def test_best_takes_an_answer_that_can_be_read_where_there_is_one():
    assert best(["1", "?"], [0.1, 0.7], number) == 0
    assert best(["?", "?"], [0.1, 0.7], number) == 1


def test_values_that_are_not_finite_do_not_break_a_vote():
    nan = float("nan")
    assert vote(["1", "2"], [nan, -5.0], number) == 1
    assert weighted(["1", "2", "2"], [nan, nan, nan], number) == 1
    assert weighted(["1", "2"], [float("inf"), 0.0], number) == 1


def test_missing_answers_or_values_are_refused():
    with pytest.raises(ValueError, match="one value per answer"):
        vote([], [], number)
    with pytest.raises(ValueError, match="2 answers with 1 values"):
        weighted(["1", "2"], [0.0], number)
    with pytest.raises(ValueError, match="at least one"):
        best([], [], number)


def test_mean_is_over_live_trajectories_whatever_the_dead_hold():
    thoughts = np.random.default_rng(0).normal(size=(3, 4, 5))
    mask = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    poisoned = jnp.float32(np.where(mask[..., None], thoughts, np.nan))
    got = jax.jit(mean_of_trajectories)(poisoned, jnp.asarray(mask))
    np.testing.assert_allclose(got[0], thoughts[0, [0, 1, 3]].mean(0), rtol=1e-5)
    np.testing.assert_allclose(got[1], thoughts[1, 2], rtol=1e-6)
    np.testing.assert_array_equal(got[2], 0.0)
    assert mean_of_trajectories(poisoned.astype(jnp.bfloat16), jnp.asarray(mask)).dtype == jnp.bfloat16


def test_majority_is_strict_and_counts_the_live():
    votes = jnp.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    mask = jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 1]], bool)
    np.testing.assert_array_equal(jax.jit(majority)(votes, mask), [True, True, False, False, True])
