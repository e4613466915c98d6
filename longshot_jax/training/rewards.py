"""What a trajectory earns: named terms over its outcome, each one small function with one weight. Host NumPy.

Everything but the cost of thoughts is earned by the finished answer and belongs on its end token; the cost of a
thought is charged where the thought is taken. No term reads how many operations the question has.

Shapes: B questions, N trajectories per question, T thoughts at most.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from longshot_jax.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """How the trajectories of a batch ended.

    Attributes:
      correct: the parsed answer is right.
      ended: the answer has its end token, instead of running into the length limit.
      thoughts: number of thoughts taken.
      natural_stop: thinking ended by the trajectory's own decision rather than at a limit or forced length.
      trajectories: how many trajectories the question had, [B, N] or [B, 1].
      vote_correct: the majority of the question's answers is right; None where nobody asks.
      diversity: how far the thoughts are from those of the question's other trajectories, 0 to 1; None likewise.
    """

    correct: Bool[np.ndarray, "B N"]
    ended: Bool[np.ndarray, "B N"]
    thoughts: Int[np.ndarray, "B N"]
    natural_stop: Bool[np.ndarray, "B N"]
    trajectories: Int[np.ndarray, "B #N"]
    vote_correct: Bool[np.ndarray, "B #N"] | None = None
    diversity: Float[np.ndarray, "B N"] | None = None


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the terms, in units of reward (a correct answer is worth ``correct``); zero switches a term off.

    Weights are added with their sign: a penalty is a negative number. Only the two costs are prices, positive.

    Attributes:
      correct: for a correct answer.
      wrong: for a wrong answer.
      no_thought: for answering without a single thought.
      on_target, near_target: for exactly ``target_thoughts`` thoughts, and for one more or one fewer.
      target_thoughts: in thoughts.
      excess_thought: for each thought above ``excess_above`` (in thoughts).
      natural_stop: for an own stop after ``natural_stop_range`` = (fewest, most) thoughts, both ends included.
      thought_cost: price of each thought, subtracted where it is taken; not part of the answer's reward.
      missing_end: for an answer without its end token.
      success_per_thought: for each thought of a correct trajectory.
      success_per_trajectory: for each trajectory of the question, if this one is correct.
      trajectory_cost: price of each trajectory of the question, paid by every one of them.
      vote_correct: for every trajectory of a question whose majority is right.
      diversity: for thoughts that differ from the other trajectories' (`thoughts.coupling.diversity`).
    """

    correct: float = 1.0
    wrong: float = 0.0
    no_thought: float = 0.0
    on_target: float = 0.0
    near_target: float = 0.0
    target_thoughts: int = 0
    excess_thought: float = 0.0
    excess_above: int = 0
    natural_stop: float = 0.0
    natural_stop_range: tuple[int, int] = (0, 0)
    thought_cost: float = 0.0
    missing_end: float = 0.0
    success_per_thought: float = 0.0
    success_per_trajectory: float = 0.0
    trajectory_cost: float = 0.0
    vote_correct: float = 0.0
    diversity: float = 0.0

    def __post_init__(self) -> None:
        for name in ("thought_cost", "trajectory_cost"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{name} is {getattr(self, name)}: it is a price that is subtracted, give it without a sign."
                )
        fewest, most = self.natural_stop_range
        if fewest > most:
            raise UserError(f"natural_stop_range is ({fewest}, {most}): give the smaller number first.")

    @classmethod
    def single(cls) -> "RewardWeights":
        """LongShot's published values for one trajectory per question."""
        return cls(
            correct=1.0,
            wrong=-0.3,
            no_thought=-1.5,
            on_target=0.5,
            near_target=0.2,
            target_thoughts=4,
            excess_thought=-0.3,
            excess_above=6,
            natural_stop=0.3,
            natural_stop_range=(2, 5),
        )

    @classmethod
    def multi(cls) -> "RewardWeights":
        """LongShot's published values for several trajectories per question."""
        return cls(correct=1.0, wrong=-1.0, success_per_thought=0.01, success_per_trajectory=0.01)


def correct(outcome: Outcome) -> Bool[np.ndarray, "B N"]:
    return outcome.correct


def wrong(outcome: Outcome) -> Bool[np.ndarray, "B N"]:
    return ~outcome.correct


def no_thought(outcome: Outcome) -> Bool[np.ndarray, "B N"]:
    return outcome.thoughts == 0


def on_target(outcome: Outcome, target_thoughts: int) -> Bool[np.ndarray, "B N"]:
    return outcome.thoughts == target_thoughts


def near_target(outcome: Outcome, target_thoughts: int) -> Bool[np.ndarray, "B N"]:
    return np.abs(outcome.thoughts - target_thoughts) == 1


def excess_thoughts(outcome: Outcome, excess_above: int) -> Int[np.ndarray, "B N"]:
    return np.maximum(outcome.thoughts - excess_above, 0)


def natural_stop(outcome: Outcome, natural_stop_range: tuple[int, int]) -> Bool[np.ndarray, "B N"]:
    fewest, most = natural_stop_range
    return outcome.natural_stop & (outcome.thoughts >= fewest) & (outcome.thoughts <= most)


def missing_end(outcome: Outcome) -> Bool[np.ndarray, "B N"]:
    return ~outcome.ended


def thoughts_of_success(outcome: Outcome) -> Int[np.ndarray, "B N"]:
    return np.where(outcome.correct, outcome.thoughts, 0)


def trajectories_of_success(outcome: Outcome) -> Int[np.ndarray, "B N"]:
    return np.where(outcome.correct, outcome.trajectories, 0)


def minus_trajectories(outcome: Outcome) -> Int[np.ndarray, "B N"]:
    return -np.broadcast_to(outcome.trajectories, outcome.correct.shape)


def vote_correct(outcome: Outcome) -> Bool[np.ndarray, "B N"]:
    assert outcome.vote_correct is not None
    return np.broadcast_to(outcome.vote_correct, outcome.correct.shape)


def diversity(outcome: Outcome) -> Float[np.ndarray, "B N"]:
    assert outcome.diversity is not None
    return outcome.diversity


def answer_rewards(outcome: Outcome, weights: RewardWeights) -> dict[str, Float[np.ndarray, "B N"]]:
    """The weighted terms of every answer by name, float32; a term with weight zero is absent."""
    terms = {
        "correct": correct(outcome),
        "wrong": wrong(outcome),
        "no_thought": no_thought(outcome),
        "on_target": on_target(outcome, weights.target_thoughts),
        "near_target": near_target(outcome, weights.target_thoughts),
        "excess_thought": excess_thoughts(outcome, weights.excess_above),
        "natural_stop": natural_stop(outcome, weights.natural_stop_range),
        "missing_end": missing_end(outcome),
        "success_per_thought": thoughts_of_success(outcome),
        "success_per_trajectory": trajectories_of_success(outcome),
        "trajectory_cost": minus_trajectories(outcome),
    }
    # Of the question as a whole, and measured only where they count.
    terms |= {"vote_correct": vote_correct(outcome)} if weights.vote_correct else {}
    terms |= {"diversity": diversity(outcome)} if weights.diversity else {}
    weight_of = vars(weights)  # each term has the name of its weight
    return {
        name: np.float32(weight_of[name]) * term.astype(np.float32)
        for name, term in terms.items()
        if weight_of[name] != 0
    }


def shared_rewards(
    answer_reward: Float[np.ndarray, "B N"],
    thought_reward: Float[np.ndarray, "B N positions"],
    exists: Bool[np.ndarray, "B N"],
) -> tuple[Float[np.ndarray, "B N"], Float[np.ndarray, "B N positions"]]:
    """Every existing trajectory earns the mean total of its question at its end, and nothing before."""
    total = np.where(exists, answer_reward + thought_reward.sum(-1), 0.0)
    mean = total.sum(axis=1, keepdims=True) / exists.sum(axis=1, keepdims=True)
    return np.where(exists, mean, 0.0).astype(np.float32), np.zeros_like(thought_reward)


def thought_cost_rewards(
    thoughts: Int[np.ndarray, "B N"], max_thoughts: int, thought_cost: float
) -> Float[np.ndarray, "B N positions"]:
    """Reward ``-thought_cost`` at each thought position where a thought is taken, float32 [B, N, T + 1].

    Of the T + 1 thought positions (T = ``max_thoughts``), a trajectory of n thoughts takes one at each of the first
    n and stops at the next, which costs nothing.
    """
    taken = np.arange(max_thoughts + 1) < thoughts[..., None]
    return np.where(taken, np.float32(-thought_cost), np.float32(0.0))
