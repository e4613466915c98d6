"""Each reward term on outcomes small enough to read, and the ancestor's published sums."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from longshot_jax.cli import load_config
from longshot_jax.config import default_config, parse_config
from longshot_jax.config.ppo import RewardWeights
from longshot_jax.errors import UserError
from longshot_jax.ppo.rewards import Outcome, answer_rewards, shared_rewards, thought_cost_rewards


def outcome(correct, thoughts, ended=True, natural=True, trajectories=1) -> Outcome:
    shape = np.asarray(thoughts).shape
    return Outcome(
        correct=np.broadcast_to(np.asarray(correct, bool), shape),
        ended=np.broadcast_to(np.asarray(ended, bool), shape),
        num_thoughts=np.asarray(thoughts),
        natural_stop=np.broadcast_to(np.asarray(natural, bool), shape),
        num_trajectories=np.broadcast_to(np.asarray(trajectories), shape),
    )


NOTHING = RewardWeights(correct=0.0)


def total(result: Outcome, weights: RewardWeights) -> np.ndarray:
    return sum(answer_rewards(result, weights).values(), np.zeros(result.correct.shape, np.float32))


@pytest.mark.parametrize(
    ("term", "weights", "expected"),
    [
        ("correct", {"correct": 2.0}, [2, 2, 0, 0, 0]),
        ("wrong", {"wrong": -0.3}, [0, 0, -0.3, -0.3, -0.3]),
        ("no_thought", {"no_thought": -1.5}, [-1.5, 0, 0, 0, 0]),
        ("on_target", {"on_target": 0.5, "target_thoughts": 4}, [0, 0, 0.5, 0, 0]),
        ("near_target", {"near_target": 0.2, "target_thoughts": 4}, [0, 0.2, 0, 0, 0]),
        ("excess_thought", {"excess_thought": -0.3, "excess_above": 4}, [0, 0, 0, -0.6, -0.9]),
        ("natural_stop", {"natural_stop": 0.3, "natural_stop_range": (3, 6)}, [0, 0.3, 0, 0.3, 0]),
        ("missing_end", {"missing_end": -0.1}, [0, -0.1, 0, 0, -0.1]),
        ("success_per_thought", {"success_per_thought": 0.01}, [0, 0.03, 0, 0, 0]),
        ("success_per_trajectory", {"success_per_trajectory": 0.01}, [0.05, 0.05, 0, 0, 0]),
        ("trajectory_cost", {"trajectory_cost": 0.02}, [-0.1] * 5),
        ("vote_correct", {"vote_correct": 0.5}, [0.5] * 5),
        ("diversity", {"diversity": 2.0}, [0, 0.5, 1, 1.5, 2]),
    ],
)
def test_each_term_alone(term, weights, expected):
    result = outcome(
        correct=[[1, 1, 0, 0, 0]],
        thoughts=[[0, 3, 4, 6, 7]],
        ended=[[1, 0, 1, 1, 0]],
        natural=[[1, 1, 0, 1, 1]],
        trajectories=5,
    )
    result = dataclasses.replace(result, vote_correct=np.array([[True]]), diversity=np.array([[0, 0.25, 0.5, 0.75, 1]]))
    terms = answer_rewards(result, dataclasses.replace(NOTHING, **weights))
    assert list(terms) == [term]
    assert terms[term].dtype == np.float32
    np.testing.assert_allclose(terms[term], [expected], rtol=1e-6)


def test_every_weight_has_its_term():
    """A weight that no term reads would be silently ignored: each one must change the reward or the cost."""
    settings = {"target_thoughts", "excess_above", "natural_stop_range"}
    weights = {f.name for f in dataclasses.fields(RewardWeights)} - settings - {"thought_cost"}
    everything = RewardWeights(**dict.fromkeys(weights, 1.0), natural_stop_range=(0, 9))
    ended = dataclasses.replace(
        outcome([[1, 0]], [[2, 3]]), vote_correct=np.ones((1, 1), bool), diversity=np.ones((1, 2))
    )
    assert set(answer_rewards(ended, everything)) == weights


def test_default_is_correctness_alone():
    result = outcome([[1, 0]], [[0, 9]], ended=False)
    assert list(answer_rewards(result, RewardWeights())) == ["correct"]
    np.testing.assert_array_equal(total(result, RewardWeights()), [[1.0, 0.0]])


def test_no_weights_give_no_terms_and_a_total_of_zero():
    assert answer_rewards(outcome([[1]], [[2]]), NOTHING) == {}
    np.testing.assert_array_equal(total(outcome([[1]], [[2]]), NOTHING), [[0.0]])


def published(name: str) -> RewardWeights:
    """LongShot's published weights, as the config of that name states them."""
    return parse_config(load_config(Path(__file__).parents[1] / "configs" / f"{name}.py")).ppo.rewards


def test_published_values_for_one_trajectory():
    thoughts = [[0, 1, 3, 4, 5, 6, 8]]
    right = total(outcome(True, thoughts), published("published_single"))
    np.testing.assert_allclose(right, [[1 - 1.5, 1, 1 + 0.2 + 0.3, 1.8, 1.5, 1, 1 - 0.6]], rtol=1e-5)
    forced_and_wrong = total(outcome(False, thoughts, natural=False), published("published_single"))
    np.testing.assert_allclose(forced_and_wrong, [[-1.8, -0.3, -0.1, 0.2, -0.1, -0.3, -0.9]], rtol=1e-5)


def test_published_values_for_several_trajectories():
    reward = total(outcome([[1, 0]], [[4, 4]], trajectories=[[5, 5]]), published("published_multi"))
    np.testing.assert_allclose(reward, [[1 + 0.04 + 0.05, -1.0]], rtol=1e-6)


def test_number_of_trajectories_may_be_given_once_per_question():
    result = Outcome(
        correct=np.ones((2, 3), bool),
        ended=np.ones((2, 3), bool),
        num_thoughts=np.zeros((2, 3), int),
        natural_stop=np.ones((2, 3), bool),
        num_trajectories=np.array([[2], [3]]),
    )
    weights = dataclasses.replace(NOTHING, success_per_trajectory=1.0)
    np.testing.assert_array_equal(total(result, weights), [[2, 2, 2], [3, 3, 3]])


def test_thought_cost_is_charged_where_each_thought_is_taken():
    got = thought_cost_rewards(np.array([[0, 2], [3, 1]]), 3, 0.5)
    expected = [[[0, 0, 0, 0], [-0.5, -0.5, 0, 0]], [[-0.5, -0.5, -0.5, 0], [-0.5, 0, 0, 0]]]
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == np.float32


def test_thought_cost_is_no_part_of_the_answers_reward():
    weights = RewardWeights(thought_cost=0.5)
    np.testing.assert_array_equal(total(outcome([[1]], [[4]]), weights), [[1.0]])


def test_reward_reads_nothing_of_the_problem_but_its_outcome():
    fields = {f.name for f in dataclasses.fields(Outcome)}
    own = {"correct", "ended", "num_thoughts", "natural_stop", "num_trajectories"}
    assert fields == own | {"vote_correct", "diversity", "grade"}


@pytest.mark.parametrize(
    ("weight", "value", "message"),
    [
        ("thought_cost", -0.1, r"config\.ppo\.rewards\.thought_cost is -0\.1: it must be from 0 to 1000000"),
        ("natural_stop_range", (5, 2), r"config\.ppo\.rewards\.natural_stop_range is \(5, 2\): give the smaller"),
    ],
)
def test_bad_weights_are_refused_by_name(weight, value, message):
    config = default_config()
    config.ppo.rewards[weight] = value
    with pytest.raises(UserError, match=message):
        parse_config(config)


def test_shared_rewards_are_the_mean_total_of_those_that_exist():
    answers, thoughts = np.array([[1.0, 0.0, 9.0], [1.0, 2.0, 3.0]]), np.full((2, 3, 2), -0.5)
    active = np.array([[True, True, False], [True, True, True]])
    earned, spent = shared_rewards(answers, thoughts, active)
    np.testing.assert_allclose(earned, [[-0.5, -0.5, 0.0], [1.0, 1.0, 1.0]])
    assert not spent.any() and earned.dtype == np.float32
