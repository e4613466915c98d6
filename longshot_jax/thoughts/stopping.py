"""Numbers of thoughts and of trajectories: rules of phases and stages, bounds of each question, and both decisions.

Whether to stop is decided inside `think`. The number of trajectories is an action taken once, at h_0: a count head maps the
last hidden state of the prompt to a categorical over 2 ... N, or 1 ... N with a joined answer. Arrays always have room for N
trajectories; the masks of trajectories beyond the drawn number are False everywhere.

Shapes: B questions, N trajectories, T thoughts at most, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from longshot_jax.config import RunConfig
from longshot_jax.config.curriculum import CurriculumConfig, has_thoughts
from longshot_jax.data.equation_graph import parallel_steps
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.thoughts.densities import categorical_entropy, categorical_log_prob
from longshot_jax.thoughts.navigator import Navigator


@dataclass(frozen=True)
class ThoughtRule:
    """Rule for the number of thoughts of a question.

    Attributes:
      kind: `own`: the stop head decides between `min_thoughts` and `max_thoughts`. `steps`: the problem's number of
        steps times `per_step`, at most `max_thoughts`, as in COCONUT's evaluation. `fixed`: always `max_thoughts`. A problem
        without written steps has `max_thoughts` under `steps` too, unless the head was trained, which then decides.
      per_step: thoughts of a step; 0 is as many as the step has tokens, for the first `stage` steps as far as they fit.
      stops: whether the stop head was trained.
    """

    kind: Literal["own", "steps", "fixed"]
    max_thoughts: int
    min_thoughts: int = 0
    per_step: int = 1
    stage: int = 0
    stops: bool = False

    def bounds(
        self, problems: Sequence[Problem], layout: Layout, joined: int = 0
    ) -> tuple[Int[np.ndarray, "B ..."], Int[np.ndarray, "B ..."]]:
        """Fewest and most thoughts of each problem [B], or of each thread of a `joined` answer of N trajectories [B, N]."""
        if self.kind != "steps":
            fewest = self.min_thoughts if self.kind == "own" else self.max_thoughts
            count = len(problems)
            return np.full(count, fewest, np.int32), np.full(count, self.max_thoughts, np.int32)
        threads = [_threads(problem, joined) for problem in problems]
        fewest, most = np.zeros((2, len(problems), max(joined, 1)), np.int32)
        for row, each in enumerate(threads):
            most[row, : len(each)] = [self._of(steps, layout) if steps else self.max_thoughts for steps in each]
            decides = [self.stops and not steps for steps in each]
            fewest[row, : len(each)] = np.where(decides, self.min_thoughts, most[row, : len(each)])
        return (fewest, most) if joined else (fewest[:, 0], most[:, 0])

    def _of(self, steps: Sequence[str], layout: Layout) -> int:
        if self.per_step:
            return min(len(steps) * self.per_step, self.max_thoughts)
        return layout.token_thoughts(steps[: self.stage], self.max_thoughts)[1]

    def counts(self, problems: Sequence[Problem], joined: int) -> Int[np.ndarray, " B"] | None:
        """Number of trajectories of each `joined` answer: the problem's threads, all where it has no steps.

        None is all, or the model's choice.
        """
        if not joined or self.kind == "own" or not any(problem.steps or problem.threads for problem in problems):
            return None
        numbers = [len(_threads(problem, joined)) for problem in problems]
        return np.asarray(numbers, np.int32)


def _threads(problem: Problem, joined: int) -> Sequence[Sequence[str]]:
    """Steps of each trajectory of a `joined` answer, or of the one; without steps all N have their thoughts."""
    if not problem.steps and not (joined and problem.threads):
        return ((),) * max(joined, 1)
    return parallel_steps(problem, joined).threads if joined else (problem.steps,)


def rule_after(run: RunConfig, phase: str) -> ThoughtRule:
    """Rule for a model that was trained by a phase to its end."""
    if phase == "ppo":
        bounds, taught = (run.ppo.max_thoughts, run.ppo.min_thoughts), run.curriculum
        return ThoughtRule("own", *bounds, per_step=taught.c_thought, stage=taught.max_latent_stage, stops=True)
    config = run.supervised(phase)
    return rule_of_stage(config, config.max_latent_stage)


def rule_of_stage(config: CurriculumConfig, stage: int) -> ThoughtRule:
    """Rule at a stage of a supervised phase; the remaining steps are written."""
    if not has_thoughts(config.mode):
        return ThoughtRule("fixed", 0)
    wanted, stops = min(stage, config.max_latent_stage), config.guidance.stop > 0
    if not config.c_thought:
        return ThoughtRule("steps", config.thought_slots if wanted else 0, per_step=0, stage=wanted, stops=stops)
    most = wanted * config.c_thought
    return ThoughtRule("fixed" if config.pad_latent_to_max else "steps", most, per_step=config.c_thought, stops=stops)


@struct.dataclass
class Lengths:
    """Bounds of a rollout.

    Attributes:
      min_thoughts, max_thoughts: Int [B, N] or broadcastable, of each trajectory. Equal bounds force the number.
      num_trajectories: Int [B], forced numbers of trajectories; 0 lets the count head choose, None lets it choose for
        all questions. Without a count head 0 is not allowed, and None is N.
    """

    min_thoughts: Array
    max_thoughts: Array
    num_trajectories: Array | None = None


@struct.dataclass
class StopRule:
    """When trajectories stop; fields are [B, N] or broadcastable unless stated otherwise.

    Attributes:
      min_thoughts, max_thoughts: Int; the decision is an action from the former on and before the latter, else forced.
      temperature: Float [], divides the stop logit.
      uniforms: Float [B, N, T + 1] in [0, 1); a trajectory stops where they are below the stop probability. None is
        greedy: it stops where the probability exceeds 1/2.
      active: Bool, trajectories that exist.
    """

    min_thoughts: Array
    max_thoughts: Array
    temperature: Array | float = 1.0
    uniforms: Array | None = None
    active: Array | bool = True

    def decide(
        self,
        navigator: Navigator,
        hidden: Float[Array, "B N D"],
        step: Int[Array, ""] | int,
        running: Bool[Array, "B N"],
        uniforms: Float[Array, "B N"] | None,
    ) -> tuple[Float[Array, "B N"], Bool[Array, "B N"], Bool[Array, "B N"]]:
        """The decision at h_t: its logit over the temperature, whether to stop, and whether this is an action."""
        logit = navigator.stop_logit(hidden) / self.temperature
        wants = logit > 0 if uniforms is None else uniforms < jax.nn.sigmoid(logit)
        is_action = running & (step >= self.min_thoughts) & (step < self.max_thoughts)
        stops = jnp.where(step < self.min_thoughts, False, (step >= self.max_thoughts) | wants)
        return logit, stops, is_action


def position_mask(num_thoughts: Int[Array, "B N"], slots: int) -> Bool[Array, "B N Tplus1"]:
    """Mask of the decision points h_0 ... h_T up to each trajectory's stop."""
    return jnp.arange(slots + 1) <= num_thoughts[..., None]


@struct.dataclass
class CountScores:
    """Scores of the numbers of trajectories, Float [B], in nats; zero where the numbers were forced."""

    log_prob: Array
    entropy: Array


def draw_count(
    navigator: Navigator, hidden: Float[Array, "B D"], forced: Int[Array, " B"] | None, keys: Key[Array, " B"] | None
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """The number of trajectories of each question, by the count head, and whether it was an action.

    Args:
      hidden: h_0.
      forced: given numbers; 0 lets the head choose, None lets it choose for all questions.
      keys: one per question; None takes the likeliest number.
    """
    logits = navigator.count_logits(hidden)
    if keys is None:
        index = jnp.argmax(logits, axis=-1)
    else:
        index = jax.vmap(jax.random.categorical)(keys, logits)
    number = navigator.config.fewest_trajectories + index.astype(jnp.int32)
    if forced is None:
        return number, jnp.ones(number.shape, bool)
    return jnp.where(forced > 0, forced, number), forced == 0


def score_count(
    navigator: Navigator, hidden: Float[Array, "B D"], number: Int[Array, " B"], is_action: Bool[Array, " B"]
) -> CountScores:
    """Log-prob and entropy of drawn numbers."""
    logits = navigator.count_logits(hidden)
    index = jnp.clip(number - navigator.config.fewest_trajectories, 0, logits.shape[-1] - 1)
    log_prob = categorical_log_prob(logits, index)
    return CountScores(
        log_prob=jnp.where(is_action, log_prob, 0.0), entropy=jnp.where(is_action, categorical_entropy(logits), 0.0)
    )


def active_trajectories(number: Int[Array, " B"], trajectories: int) -> Bool[Array, "B N"]:
    """Mask of the trajectories that exist: the first `number` of N."""
    return jnp.arange(trajectories) < number[:, None]
