"""Rewards of trajectories: named terms, each a function of the outcome with one weight. NumPy on the host.

The cost of a thought is charged at the thought; all other terms are given at the end token of the answer. No term
depends on the number of operations of the question.

Shapes: B questions, N trajectories per question, T thoughts at most.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from longshot_jax.config.ppo import RewardWeights


@dataclass(frozen=True)
class Outcome:
    """How the trajectories of a batch ended.

    Attributes:
      correct: whether the parsed answer is correct.
      ended: whether the answer has its end token, and is not cut off at the length limit.
      num_thoughts: number of thoughts.
      natural_stop: whether the stop head ended the thoughts, not a limit or a forced number.
      num_trajectories: number of trajectories of the question.
      vote_correct: whether the question's majority answer is correct; None if no reward needs it.
      diversity: distance of the thoughts to the question's other trajectories, 0 to 1; None if no reward needs it.
      grade: what the user's grader gives, 0 to 1, of which 1 is correct; None without one.
    """

    correct: Bool[np.ndarray, "B N"]
    ended: Bool[np.ndarray, "B N"]
    num_thoughts: Int[np.ndarray, "B N"]
    natural_stop: Bool[np.ndarray, "B N"]
    num_trajectories: Int[np.ndarray, "B #N"]
    vote_correct: Bool[np.ndarray, "B #N"] | None = None
    diversity: Float[np.ndarray, "B N"] | None = None
    grade: Float[np.ndarray, "B N"] | None = None


# Each term has the name of its weight. To add a term, add a weight to `config.ppo.RewardWeights` and a line here.
TERMS: Mapping[str, Callable[[Outcome, RewardWeights], Any]] = {
    "correct": lambda outcome, _: outcome.correct if outcome.grade is None else outcome.grade,
    "wrong": lambda outcome, _: ~outcome.correct,
    "no_thought": lambda outcome, _: outcome.num_thoughts == 0,
    "on_target": lambda outcome, weights: outcome.num_thoughts == weights.target_thoughts,
    "near_target": lambda outcome, weights: np.abs(outcome.num_thoughts - weights.target_thoughts) == 1,
    "excess_thought": lambda outcome, weights: np.maximum(outcome.num_thoughts - weights.excess_above, 0),
    "natural_stop": lambda outcome, weights: outcome.natural_stop & _within(outcome, weights.natural_stop_range),
    "missing_end": lambda outcome, _: ~outcome.ended,
    "success_per_thought": lambda outcome, _: np.where(outcome.correct, outcome.num_thoughts, 0),
    "success_per_trajectory": lambda outcome, _: np.where(outcome.correct, outcome.num_trajectories, 0),
    "trajectory_cost": lambda outcome, _: -outcome.num_trajectories,
    "vote_correct": lambda outcome, _: outcome.vote_correct,
    "diversity": lambda outcome, _: outcome.diversity,
}


def _within(outcome: Outcome, thoughts: tuple[int, int]) -> Bool[np.ndarray, "B N"]:
    fewest, most = thoughts
    return (outcome.num_thoughts >= fewest) & (outcome.num_thoughts <= most)


def answer_rewards(outcome: Outcome, weights: RewardWeights) -> dict[str, Float[np.ndarray, "B N"]]:
    """Weighted terms at the end of each answer, by name; terms with weight zero are left out."""
    shape, rewards = outcome.correct.shape, {}
    for name, term in TERMS.items():
        weight = getattr(weights, name)
        if weight:
            value = np.broadcast_to(term(outcome, weights), shape)
            rewards[name] = np.float32(weight) * value.astype(np.float32)
    return rewards


def shared_rewards(
    answer_reward: Float[np.ndarray, "B N"],
    thought_reward: Float[np.ndarray, "B N positions"],
    active: Bool[np.ndarray, "B N"],
) -> tuple[Float[np.ndarray, "B N"], Float[np.ndarray, "B N positions"]]:
    """Gives every active trajectory the mean total reward of its question, at its end, and 0 before it."""
    total = np.where(active, answer_reward + thought_reward.sum(-1), 0.0)
    mean = total.sum(axis=1, keepdims=True) / active.sum(axis=1, keepdims=True)
    return np.where(active, mean, 0.0).astype(np.float32), np.zeros_like(thought_reward)


def thought_cost_rewards(
    thoughts: Int[np.ndarray, "B N"], max_thoughts: int, thought_cost: float
) -> Float[np.ndarray, "B N positions"]:
    """Reward `-thought_cost` at each thought, float32 [B, N, T + 1] with T = `max_thoughts`.

    A trajectory of n thoughts pays at its first n thought positions; the next one, where it stops, is free.
    """
    thought_mask = np.arange(max_thoughts + 1) < thoughts[..., None]
    return np.where(thought_mask, np.float32(-thought_cost), np.float32(0.0))
