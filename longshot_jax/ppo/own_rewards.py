"""Reward functions of the user, `config.ppo.reward`: called on the host, and checked before training."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from longshot_jax.config import RunConfig
from longshot_jax.data.own import OwnCode, OwnCodeError, load_code
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError, shown
from longshot_jax.ppo.rewards import Outcome


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
