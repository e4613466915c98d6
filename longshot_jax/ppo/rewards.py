"""Rewards of trajectories: named terms, each a function of the outcome with one weight. NumPy on the host.

The cost of a thought is charged at the thought; all other terms are given at the end token of the answer. No term
depends on the number of operations of the question. Functions of the user (`config.ppo.reward`) are checked before training.

Shapes: B questions, N trajectories per question, T thoughts at most.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from longshot_jax.config import RunConfig
from longshot_jax.config.ppo import RewardWeights
from longshot_jax.data.own import OwnCode, OwnCodeError, load_code
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError, shown


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


@dataclass(frozen=True)
class OwnReward:
    """A function of problems (B of them), answers (texts, B rows of N) and `Outcome` that gives rewards [B, N]."""

    code: OwnCode
    weight: float

    def __call__(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[str]], outcome: Outcome, when: str = ""
    ) -> Float[np.ndarray, "B N"]:
        """Weighted rewards; an OwnCodeError with `when` in it if the function raises or gives anything but finite numbers."""
        shape, named = outcome.correct.shape, self.code.named
        given = self.code(problems, answers, outcome, when=when)
        try:
            values = np.asarray(given)
        except ValueError:  # rows of different lengths
            raise OwnCodeError(
                f"{named} gives rows of different lengths{when}: give numbers of shape {list(shape)}"
            ) from None
        if values.dtype.kind not in "biuf":
            raise OwnCodeError(f"{named} gives {shown(given, 40)}{when}: give numbers of shape {list(shape)}")
        if values.shape != shape:
            raise OwnCodeError(
                f"{named} gives shape {list(values.shape)}{when}: give a number for each answer, {list(shape)}"
            )
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise OwnCodeError(
                f"{named} gives {values[row, column]} for the answer {shown(answers[row][column], 40)} to "
                f"{shown(problems[row].question, 60)}{when}: give finite numbers"
            )
        return np.float32(self.weight) * values


def own_rewards(run: RunConfig) -> dict[str, OwnReward]:
    """The functions of `config.ppo.reward` by their names; a UserError if one is not there."""
    weights = run.ppo.reward_weights or (1.0,) * len(run.ppo.reward)
    codes = [load_code(named, "config.ppo.reward") for named in run.ppo.reward]
    for code in codes:
        if not callable(code.value):
            raise UserError(f"config.ppo.reward {code.named!r} is no function of problems, answers and outcome")
    return {code.name: OwnReward(code, weight) for code, weight in zip(codes, weights, strict=True)}


def check_rewards(run: RunConfig, problems: Sequence[Problem], note: Callable[[str], object]) -> None:
    """Calls every function on a made-up rollout of the run's shape; a UserError if it cannot be used.

    Answers are right, wrong, empty, and cut off. `note` gets the time that each function takes.
    """
    questions, number = run.ppo.questions, run.ppo.num_trajectories
    batch = [problems[place % len(problems)] for place in range(questions)]
    others = [lambda own: own.answer, lambda own: "", lambda own: batch[0].answer, lambda own: own.question]
    kinds = np.arange(questions * number).reshape(questions, number) % len(others)
    answers = [[others[kind](own) for kind in row] for own, row in zip(batch, kinds, strict=True)]
    correct, ones = kinds == 0, np.ones((questions, number), bool)
    thoughts = np.clip(kinds, run.ppo.min_thoughts, run.ppo.max_thoughts).astype(np.int32)
    outcome = Outcome(
        correct, kinds != 3, thoughts, ones, np.full((questions, 1), number, np.int32), correct, 0.5 * ones
    )
    for reward in own_rewards(run).values():
        when, start = " for a first batch, before training", time.perf_counter()
        first = reward(batch, answers, outcome, when)
        seconds = time.perf_counter() - start
        if not np.array_equal(first, reward(batch, answers, outcome, when)):
            raise UserError(
                f"{reward.code.named} gives other rewards for the same answers{when}: make it a pure function"
            )
        note(f"{reward.code.named}: {1000 * seconds:.1f} ms for {questions} x {number} answers, once an iteration")
