"""Rollout: sample N trajectories of thoughts and an answer per question, with the scores of every action.

Shapes: B questions, N trajectories, T thoughts, A answer tokens, X size of an action, D hidden size.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from longshot_jax.config import RunConfig
from longshot_jax.config.thoughts import Coupling
from longshot_jax.thoughts.answer import TokenScores, decode_answers
from longshot_jax.thoughts.densities import bernoulli_entropy, bernoulli_log_prob, gaussian_log_prob
from longshot_jax.thoughts.joint import decode_jointly
from longshot_jax.thoughts.noise import coupled
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.sampled_tokens import TokenDraws, score_sampled
from longshot_jax.thoughts.stopping import (
    CountScores,
    Lengths,
    StopRule,
    active_trajectories,
    draw_count,
    position_mask,
    score_count,
)
from longshot_jax.thoughts.think import encode, think


@dataclass(frozen=True)
class RolloutShape:
    """Static arguments of a compiled rollout.

    Attributes:
      num_trajectories, max_thoughts, answer_length: N, T and A (the end token included).
      opening: forced tokens between thoughts and answer.
      end_tokens: each ends an answer.
      scaling: reduction of a thought's log-prob, see `densities.gaussian_log_prob`.
      ensemble: feed all trajectories their mean thought.
      coupling: joint distribution of the noise of a question's trajectories, see `thoughts.noise`.
      adaptive: the count head chooses how many of the N trajectories exist.
      text_end: with a joined answer, each trajectory first writes a text that ends in this token; None: no text.
    """

    num_trajectories: int
    max_thoughts: int
    answer_length: int
    opening: tuple[int, ...]
    end_tokens: tuple[int, ...]
    scaling: Literal["summed", "averaged", "scaled"] = "summed"
    ensemble: bool = False
    coupling: Coupling = "independent"
    adaptive: bool = False
    text_end: int | None = None

    @classmethod
    def of_ppo(cls, run: RunConfig, opening: tuple[int, ...], end_tokens: tuple[int, ...]) -> "RolloutShape":
        """The shape of the rollouts of a run's PPO."""
        ppo = run.ppo
        return cls(
            ppo.num_trajectories,
            ppo.max_thoughts,
            run.sampled_length,
            opening,
            end_tokens,
            ppo.log_prob_scaling,
            ppo.ensemble,
            ppo.coupling,
            run.thoughts.max_trajectories > 0,
        )


@struct.dataclass
class Temperatures:
    """Exploration of a rollout, Float []: `thought_std` in units of the action; `stop` and `token` divide logits.

    Thoughts that are drawn as tokens have noise where `thought_std` is above 0, whatever its value.
    """

    thought_std: Array
    stop: Array
    token: Array


def make_temperatures(thought_std: float = 0.0, stop: float = 1.0, token: float = 1.0) -> Temperatures:
    """Temperatures as float32 scalars."""
    return Temperatures(*(jnp.asarray(value, jnp.float32) for value in (thought_std, stop, token)))


@struct.dataclass
class Rollout:
    """All actions of a rollout and the temperatures that sampled them, which suffices for rescoring.

    Attributes:
      prompt: Int [B, S], padded on the left; prompt_mask: Bool [B, S].
      actions: Float [B, N, T, X]; noise: Float [B, N, T, X], standard normal; embeddings: Float [B, N, T, D].
      thought_mask: Bool [B, N, T]; stops, is_action: Bool [B, N, T + 1]; num_thoughts: Int [B, N].
      tokens: Int [B, N, A]; token_mask: Bool [B, N, A]; ended: Bool [B, N].
      thought_std, stop_temperature, token_temperature: Float [], of the sampling policy; a learned factor of the noise
        is no part of `thought_std`.
      node_values: Float [B, N, T], read by later thoughts with the actions; None where thoughts read no history.
      bank_slots: Int [B, N, T, K], slots of the memory bank that each thought read, -1 for none; None without a bank.
      num_trajectories: Int [B]; count_is_action: Bool [B], whether that number was an action; active: Bool [B, N], the
        trajectories that exist. None where every question has all N.
      thought_tokens: Int [B, N, T, K], of which each thought is the mean embedding, drawn at `token_temperature`; None for
        thoughts with Gaussian noise.
    """

    prompt: Array
    prompt_mask: Array
    actions: Array
    noise: Array
    embeddings: Array
    thought_mask: Array
    stops: Array
    is_action: Array
    num_thoughts: Array
    tokens: Array
    token_mask: Array
    ended: Array
    thought_std: Array
    stop_temperature: Array
    token_temperature: Array
    node_values: Array | None = None
    bank_slots: Array | None = None
    num_trajectories: Array | None = None
    count_is_action: Array | None = None
    active: Array | None = None
    thought_tokens: Array | None = None


@struct.dataclass
class ThoughtScores:
    """Scores of a rollout's thoughts and stops; log-probs and entropies are zero where there was no action.

    Attributes:
      stop, stop_entropy: Float [B, N, T + 1], log-probs and entropies of stop decisions, in nats.
      stop_logits: Float [B, N, T + 1], divided by the stop temperature.
      thought: Float [B, N, T], log-probs of thoughts; zeros where thought_std is 0.
      means: Float [B, N, T, X], means of the thoughts' Gaussians.
      stds: Float [B, N, T], their standard deviations; zeros where thought_std is 0. Both are not used for thoughts drawn
        as tokens.
      values: Float [B, N, T + 1], expected return at h_0 ... h_T; zero after the stop.
      thought_entropy: Float [B, N, T], of the distribution that each token of a thought is drawn from, in nats; zeros where
        thought_std is 0. None for Gaussian noise.
    """

    stop: Array
    stop_logits: Array
    stop_entropy: Array
    thought: Array
    means: Array
    stds: Array
    values: Array
    thought_entropy: Array | None = None


@struct.dataclass
class Scores:
    """Scores of all actions of a rollout; `count` is None where numbers of trajectories are not actions."""

    thoughts: ThoughtScores
    tokens: TokenScores
    count: CountScores | None = None

    @property
    def values(self) -> Array:
        """Float [B, N, T + 1 + A]: thought positions, then answer positions."""
        return jnp.concatenate([self.thoughts.values, self.tokens.values], axis=-1)


def reached_positions(rollout: Rollout) -> Bool[Array, "B N Tplus1"]:
    """Mask of the decision points that each trajectory reached; False for inactive trajectories."""
    reached = position_mask(rollout.num_thoughts, rollout.thought_mask.shape[-1])
    return reached if rollout.active is None else reached & rollout.active[..., None]


def at_last_thought(values: Float[Array, "B N Tplus1"], num_thoughts: Int[Array, "B N"]) -> Float[Array, "B N"]:
    """Values at the decision points where the trajectories stopped."""
    return jnp.take_along_axis(values, num_thoughts[..., None], axis=-1)[..., 0]


def score_thoughts(
    reasoner: Reasoner,
    rollout: Rollout,
    hidden: Float[Array, "B N Tplus1 D"],
    means: Float[Array, "B N T X"],
    scaling: str,
) -> ThoughtScores:
    """Scores of stops and thoughts, from the hidden states that produced them."""
    navigator = reasoner.navigator
    stop_logits = navigator.stop_logit(hidden) / rollout.stop_temperature
    noisy = rollout.thought_std > 0
    drawn = rollout.thought_mask & noisy
    entropy = None
    stds = navigator.noise_std(hidden[:, :, :-1], rollout.thought_std)
    if rollout.thought_tokens is None:
        thought = gaussian_log_prob(jax.lax.stop_gradient(rollout.actions), means, jnp.where(noisy, stds, 1.0), scaling)
    else:
        tokens = rollout.thought_tokens, rollout.token_temperature
        thought, entropy = score_sampled(reasoner.backbone, hidden[:, :, :-1], *tokens, scaling)
        entropy = jnp.where(drawn, entropy, 0.0)
    reached = reached_positions(rollout)
    return ThoughtScores(
        stop=jnp.where(rollout.is_action, bernoulli_log_prob(stop_logits, rollout.stops), 0.0),
        stop_logits=stop_logits,
        stop_entropy=jnp.where(rollout.is_action, bernoulli_entropy(stop_logits), 0.0),
        thought=jnp.where(drawn, thought, 0.0),
        means=means,
        stds=stds,
        values=jnp.where(reached, navigator.value(hidden), 0.0),
        thought_entropy=entropy,
    )


def sample_rollout(
    reasoner: Reasoner,
    prompt: Int[Array, "B S"],
    prompt_mask: Bool[Array, "B S"],
    memory: MemoryBank | None,
    lengths: Lengths,
    temperatures: Temperatures,
    keys: Key[Array, "B"],
    shape: RolloutShape,
    greedy: bool = False,
) -> tuple[Rollout, Scores]:
    """Samples N trajectories per question; returns the rollout and its scores under the sampling policy.

    Args:
      prompt: left-padded token ids; prompt_mask: True on real tokens.
      memory: read while thinking, constant.
      lengths: bounds on the numbers of thoughts and trajectories.
      temperatures: of thoughts, stops and tokens; recorded, and applied in the log-probs.
      keys: one per question, so a row does not depend on the rest of the batch.
      shape: static sizes.
      greedy: no sampling: thoughts are their means; stops, tokens and counts are the most probable ones.
    """
    encoded = encode(reasoner, prompt, prompt_mask)
    kind = reasoner.navigator.config
    as_tokens = kind.noise == "tokens" and not greedy

    def draws(key):
        noise_key, stop_key, token_key = jax.random.split(key, 3)
        size = kind.sampled_tokens if as_tokens else reasoner.action_size
        noise = jax.random.normal(noise_key, (shape.max_thoughts, size))
        return noise, jax.random.uniform(stop_key, (shape.max_thoughts + 1,)), token_key

    trajectory_keys = jax.vmap(
        lambda key: jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(shape.num_trajectories))
    )(keys)
    noise, uniforms, token_keys = jax.vmap(jax.vmap(draws))(trajectory_keys)
    noise, token_draws = coupled(noise, shape.coupling), None
    if as_tokens:
        token_draws = TokenDraws(noise, temperatures.token)
        noise = jnp.zeros((*noise.shape[:-1], reasoner.action_size))
    count = count_is_action = active = None
    if shape.adaptive:
        # No trajectory has this index.
        count_keys = None if greedy else jax.vmap(jax.random.fold_in, (0, None))(keys, 2**31 - 1)
        count, count_is_action = draw_count(reasoner.navigator, encoded.hidden, lengths.num_trajectories, count_keys)
        active = active_trajectories(count, shape.num_trajectories)
    elif lengths.num_trajectories is not None:
        active = active_trajectories(lengths.num_trajectories, shape.num_trajectories)
    encoded = begin_trajectories(reasoner, encoded, shape.num_trajectories, active)
    if greedy:
        temperatures = replace(temperatures, thought_std=jnp.zeros_like(temperatures.thought_std))
    rule = StopRule(
        lengths.min_thoughts,
        lengths.max_thoughts,
        temperatures.stop,
        None if greedy else uniforms,
        True if active is None else active,
    )
    thoughts = think(
        reasoner, encoded, memory, rule, noise, temperatures.thought_std, ensemble=shape.ensemble, draws=token_draws
    )
    static = shape.opening, shape.end_tokens, shape.answer_length
    decoding = reasoner, encoded, thoughts, *static, temperatures.token, None if greedy else token_keys
    if kind.join:
        answers = decode_jointly(*decoding, text_end=shape.text_end, active=active)
    else:
        answers = decode_answers(*decoding, active)
    rollout = Rollout(
        prompt=prompt,
        prompt_mask=prompt_mask,
        actions=thoughts.actions,
        noise=noise,
        embeddings=thoughts.embeddings,
        thought_mask=thoughts.thought_mask,
        stops=thoughts.stops,
        is_action=thoughts.is_action,
        num_thoughts=thoughts.num_thoughts,
        tokens=answers.tokens,
        token_mask=answers.mask,
        ended=answers.ended,
        thought_std=jnp.asarray(temperatures.thought_std, jnp.float32),
        stop_temperature=jnp.asarray(temperatures.stop, jnp.float32),
        token_temperature=jnp.asarray(temperatures.token, jnp.float32),
        node_values=thoughts.node_values,
        bank_slots=thoughts.bank_slots,
        num_trajectories=count,
        count_is_action=count_is_action,
        active=active,
        thought_tokens=thoughts.tokens,
    )
    # The scores come from the cached passes that sampled, so that rescoring can be tested against them.
    recorded = score_thoughts(reasoner, rollout, thoughts.hidden, thoughts.means, shape.scaling)
    count_scores = None
    if count is not None and count_is_action is not None:
        count_scores = score_count(reasoner.navigator, encoded.hidden, count, count_is_action)
    return rollout, Scores(recorded, answers.scores, count_scores)
