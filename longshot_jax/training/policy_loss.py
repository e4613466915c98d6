"""The PPO loss of a rollout: thoughts, stops and tokens as actions. Joins `ppo` (mathematics) to `rescore` (model)."""

from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from longshot_jax.thoughts.densities import gaussian_kl
from longshot_jax.thoughts.memory import MemoryBank
from longshot_jax.thoughts.navigator import Reasoner
from longshot_jax.thoughts.rescore import Replay, Rollout, Scores, reached_positions, rescore
from longshot_jax.training.ppo import (
    PolicyLossSums,
    ValueLossSums,
    clipped_policy_loss,
    clipped_value_loss,
    generalized_advantages,
    group_advantages,
    kl_estimate,
    leave_one_out_advantages,
    reward_at_end,
    sequence_weights,
    whiten,
)
from longshot_jax.training.settings import PPOConfig


@struct.dataclass
class Experience:
    """A rollout with what its update needs; the leading axis of every leaf is questions, or is absent.

    Attributes:
      rollout: recorded actions.
      recorded: what the policy that sampled said of them.
      reference: what the reference policy says of them, or None where the loss has no KL.
      advantages, returns: of thought positions, then answer positions.
      weights: of each trajectory's actions in the policy's loss, of the minibatch that it is in; None for 1.
      of_number: advantages of the questions' numbers of trajectories; None where these are no actions.
    """

    rollout: Rollout
    recorded: Scores
    reference: Scores | None
    advantages: Float[Array, "B N P"]
    returns: Float[Array, "B N P"]
    weights: Float[Array, "B N"] | None = None
    of_number: Float[Array, " B"] | None = None


@struct.dataclass
class PolicySums:
    """Sums over the actions of a minibatch, per kind of action.

    Attributes:
      stops, thoughts, tokens: of the clipped surrogate.
      values: of the critic's loss.
      entropy: of free stop decisions, in nats; token_entropy: of answer tokens.
      kl: to the reference, in nats, over all actions.
      weighted_kl, entropy_bonus: what enters the loss: the KL and, times their coefficients, the entropies, with the
        weights of trajectories.
      numbers, number_entropy: surrogate and entropy of the numbers of trajectories; None where these are no actions.
    """

    stops: PolicyLossSums
    thoughts: PolicyLossSums
    tokens: PolicyLossSums
    values: ValueLossSums
    entropy: Float[Array, ""]
    token_entropy: Float[Array, ""]
    kl: Float[Array, ""]
    weighted_kl: Float[Array, ""]
    entropy_bonus: Float[Array, ""]
    numbers: PolicyLossSums | None = None
    number_entropy: Float[Array, ""] | None = None

    def __add__(self, other: "PolicySums") -> "PolicySums":
        total: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            ours = getattr(self, name)
            total[name] = None if ours is None else ours + getattr(other, name)
        return PolicySums(**total)

    @property
    def surrogates(self) -> tuple[PolicyLossSums, ...]:
        """Of all kinds of action."""
        always = self.stops, self.thoughts, self.tokens
        return always if self.numbers is None else (*always, self.numbers)

    @property
    def actions(self) -> Array:
        """Number of scored actions of all kinds."""
        return sum((part.count for part in self.surrogates), jnp.zeros(()))

    @property
    def approximate_kl(self) -> Array:
        """KL per action from the policy that sampled to the present one, nats: how far the update has moved."""
        total = sum((part.kl_sum for part in self.surrogates), jnp.zeros(()))
        return total / jnp.maximum(self.actions, 1.0)


def replay_of(config: PPOConfig, feedback: str) -> Replay:
    """Which way of rescoring is exact for a gradient and a kind of thought (and the cheapest of those)."""
    if config.gradient == "pathwise":
        return "noise"
    residual = feedback == "navigator_residual" and config.rescore == "auto"
    if config.gradient == "mixture" or (residual and config.gradient == "score"):
        return "actions"
    return "parallel"


def has_thought_density(config: PPOConfig) -> bool:
    """Whether thoughts themselves are scored actions."""
    return config.gradient in ("score", "mixture")


def thought_mask(rollout: Rollout, config: PPOConfig) -> Bool[Array, "B N T"]:
    """Which thoughts are scored actions: those taken, under `score` or `mixture`, with noise."""
    return rollout.taken & has_thought_density(config) & (rollout.std > 0)


def actions_of(rollout: Rollout, config: PPOConfig) -> Float[Array, "B N"]:
    """Stops, thoughts and tokens of each trajectory that carry a loss."""
    parts = (rollout.free, thought_mask(rollout, config), rollout.token_mask)
    counts = [jnp.sum(part, axis=-1, dtype=jnp.float32) for part in parts]
    return counts[0] + counts[1] + counts[2]


def count_actions(rollout: Rollout, config: PPOConfig) -> Float[Array, ""]:
    """All actions that carry a loss: what every policy term is divided by."""
    total = jnp.sum(actions_of(rollout, config))
    return total if rollout.number_free is None else total + jnp.sum(rollout.number_free)


def with_weights(minibatch: Experience, config: PPOConfig) -> Experience:
    """The minibatch with the weights of its trajectories, which depend on it as a whole."""
    if config.loss_mean == "token":
        return minibatch
    return replace(minibatch, weights=sequence_weights(actions_of(minibatch.rollout, config)))


def estimate_advantages(
    rollout: Rollout,
    recorded: Scores,
    answer_reward: Float[Array, "B N"],
    thought_reward: Float[Array, "B N Tplus1"],
    config: PPOConfig,
    penalty: Float[Array, "B N P"] | None = None,
) -> tuple[Float[Array, "B N P"], Float[Array, "B N P"]]:
    """Advantages and returns of every position: thought positions h_0 ... h_T, then answer tokens.

    The cost of a thought is charged where it is taken, the answer's reward on its end token, a `penalty` (the KL in
    the reward) at the position of its actions. With a group baseline
    a trajectory has one advantage at all of its positions; its value head is still trained on the returns.
    """
    mask = jnp.concatenate([reached_positions(rollout), rollout.token_mask], axis=-1)
    rewards = jnp.concatenate([thought_reward, reward_at_end(answer_reward, rollout.token_mask)], axis=-1)
    if penalty is not None:
        rewards = rewards - penalty
    advantages, returns = generalized_advantages(
        rewards, recorded.values, mask, config.discount, config.trace
    )
    if config.baseline != "critic":
        total = jnp.sum(jnp.where(mask, rewards, 0.0), axis=-1)
        exists = jnp.ones(total.shape, bool)
        compare = leave_one_out_advantages if config.baseline == "leave_one_out" else group_advantages
        advantages = jnp.where(mask, compare(total, exists)[..., None], 0.0)
        # Without bootstrapping, the return is what was really earned from a position on.
        _, returns = generalized_advantages(rewards, recorded.values, mask, config.discount, 1.0)
    if config.whiten:
        advantages = whiten(advantages, mask)
    return advantages, returns


def share_advantages(
    advantages: Float[Array, "B N P"], rollout: Rollout, config: PPOConfig
) -> tuple[Float[Array, "B N P"], Float[Array, " B"] | None]:
    """Advantages of trajectories' actions, and of the questions' numbers of trajectories where these are actions.

    A question is worth the mean over its c trajectories. Of that, a trajectory's own actions earn a share of 1 / c, or
    all where the reward is shared; the number, which is chosen at h_0 before anything else, earns the mean of the
    advantages there. Own shares are shown times N: where all N exist, nothing changes.
    """
    if rollout.number is None or rollout.exists is None:
        return advantages, None
    number = rollout.number.astype(advantages.dtype)
    of_number = jnp.sum(advantages[..., 0], axis=1, where=rollout.exists) / number
    if config.shared_reward:
        return advantages, of_number
    trajectories = rollout.exists.shape[1]
    return advantages * (trajectories / number)[:, None, None], trajectories * of_number


def policy_sums(
    reasoner: Reasoner,
    part: Experience,
    memory: MemoryBank | None,
    config: PPOConfig,
    opening: tuple[int, ...],
) -> PolicySums:
    """Rescores a part of the experience and sums every term of the loss over its actions."""
    rollout = part.rollout
    scores = rescore(
        reasoner,
        rollout,
        memory,
        opening,
        replay_of(config, reasoner.navigator.config.feedback),
        config.log_prob_scaling,
        config.together,
        constant_thoughts=config.gradient == "none",
        action_gradient=1 - config.mixture if config.gradient == "mixture" else 0.0,
    )
    return sums_of(scores, part, config)


def sums_of(scores: Scores, part: Experience, config: PPOConfig) -> PolicySums:
    """Every term of the loss, given what the present policy says of the actions."""
    rollout, recorded = part.rollout, part.recorded
    steps = rollout.taken.shape[-1]
    at_thoughts, at_tokens = part.advantages[..., : steps + 1], part.advantages[..., steps + 1 :]

    weights = jnp.ones((1, 1, 1)) if part.weights is None else part.weights[..., None]
    # In a mixture the rest of a thought's gradient comes through its embedding.
    score_share = config.mixture if config.gradient == "mixture" else 1.0

    def clipped(new: Array, old: Array, advantages: Array, mask: Array, share: float = 1.0) -> PolicyLossSums:
        return clipped_policy_loss(
            new, old, advantages, mask, config.clip, config.dual_clip or None, weights * share
        )

    def weighted(per_trajectory: Array) -> Array:
        return jnp.sum(per_trajectory if part.weights is None else per_trajectory * part.weights)

    real = jnp.concatenate([reached_positions(rollout), rollout.token_mask], axis=-1)
    kl = jnp.zeros(rollout.counts.shape)
    if part.reference is not None:
        kl = _kl(scores, part.reference, rollout, config)
    stop_entropy = jnp.sum(scores.thoughts.stop_entropy, axis=-1)
    token_entropy = jnp.sum(scores.tokens.entropies, axis=-1)
    bonus = config.entropy_coefficient * stop_entropy + config.token_entropy_coefficient * token_entropy
    sums = PolicySums(
        stops=clipped(scores.thoughts.stop, recorded.thoughts.stop, at_thoughts, rollout.free),
        thoughts=clipped(
            scores.thoughts.thought,
            recorded.thoughts.thought,
            at_thoughts[..., :-1],
            thought_mask(rollout, config),
            score_share,
        ),
        tokens=clipped(scores.tokens.log_probs, recorded.tokens.log_probs, at_tokens, rollout.token_mask),
        values=clipped_value_loss(
            scores.values, recorded.values, part.returns, real, config.value_clip or None
        ),
        entropy=jnp.sum(stop_entropy),
        token_entropy=jnp.sum(token_entropy),
        kl=jnp.sum(kl),
        weighted_kl=weighted(kl),
        entropy_bonus=weighted(bonus),
    )
    return sums if scores.number is None else _with_numbers(sums, scores, part, config)


def _with_numbers(sums: PolicySums, scores: Scores, part: Experience, config: PPOConfig) -> PolicySums:
    """The sums with the terms of the questions' numbers of trajectories, one action each."""
    free, new, old = part.rollout.number_free, scores.number, part.recorded.number
    assert free is not None and new is not None and old is not None and part.of_number is not None
    kl = jnp.zeros(())
    if part.reference is not None and part.reference.number is not None:
        estimate = kl_estimate(new.log_prob, part.reference.number.log_prob, config.kl_estimator)
        kl = jnp.sum(estimate, where=free)
    entropy = jnp.sum(new.entropy)
    return replace(
        sums,
        numbers=clipped_policy_loss(
            new.log_prob, old.log_prob, part.of_number, free, config.clip, config.dual_clip or None
        ),
        number_entropy=entropy,
        kl=sums.kl + kl,
        weighted_kl=sums.weighted_kl + kl,
        entropy_bonus=sums.entropy_bonus + config.entropy_coefficient * entropy,
    )


def _kl(scores: Scores, reference: Scores, rollout: Rollout, config: PPOConfig) -> Float[Array, "B N"]:
    """Sum over a trajectory's actions of the KL to the reference: an estimate for stops and tokens, for thoughts exact."""
    estimator = config.kl_estimator
    stops = kl_estimate(scores.thoughts.stop, reference.thoughts.stop, estimator)
    tokens = kl_estimate(scores.tokens.log_probs, reference.tokens.log_probs, estimator)
    total = jnp.sum(stops, -1, where=rollout.free) + jnp.sum(tokens, -1, where=rollout.token_mask)
    if has_thought_density(config):
        std = jnp.where(rollout.std > 0, rollout.std, 1.0)
        thoughts = gaussian_kl(scores.thoughts.means, reference.thoughts.means, std, config.log_prob_scaling)
        total += jnp.sum(thoughts, -1, where=thought_mask(rollout, config))
    return total


def kl_at_positions(
    recorded: Scores, reference: Scores, rollout: Rollout, config: PPOConfig
) -> Float[Array, "B N P"]:
    """Estimates of the KL to the reference at each position, summed over its actions: what the reward is charged.

    Of the policy that sampled, from log-probs alone. The closed form for thoughts has no place here: it does not
    depend on the thought that was sampled, so that as a reward it would say nothing about it.
    """
    kind = config.kl_estimator
    old, other = recorded.thoughts, reference.thoughts
    stops = jnp.where(rollout.free, kl_estimate(old.stop, other.stop, kind), 0.0)
    thoughts = jnp.where(thought_mask(rollout, config), kl_estimate(old.thought, other.thought, kind), 0.0)
    tokens = kl_estimate(recorded.tokens.log_probs, reference.tokens.log_probs, kind)
    at_thoughts = stops + jnp.pad(thoughts, ((0, 0), (0, 0), (0, 1)))
    return jnp.concatenate([at_thoughts, jnp.where(rollout.token_mask, tokens, 0.0)], axis=-1)


def policy_loss(
    sums: PolicySums,
    action_count: Float[Array, ""],
    position_count: Float[Array, ""],
    kl_coefficient: Float[Array, ""],
    config: PPOConfig,
) -> Float[Array, ""]:
    """The loss to minimise, or a micro-batch's share of it: counts are those of the whole minibatch."""
    actions = jnp.maximum(action_count, 1.0)
    surrogate = sum((part.loss_sum for part in sums.surrogates), jnp.zeros(()))
    regular = kl_coefficient * sums.weighted_kl - sums.entropy_bonus
    critic = config.value_coefficient * sums.values.loss_sum / jnp.maximum(position_count, 1.0)
    return (surrogate + regular) / actions + critic


def rollout_kl_reference(
    reasoner: Reasoner,
    rollout: Rollout,
    memory: MemoryBank | None,
    config: PPOConfig,
    opening: tuple[int, ...],
) -> Scores:
    """What the reference policy says of a rollout: on its own thoughts, from the same noise, for `pathwise`."""
    scores = rescore(
        reasoner,
        rollout,
        memory,
        opening,
        replay_of(config, reasoner.navigator.config.feedback),
        config.log_prob_scaling,
        config.together,
    )
    return jax.lax.stop_gradient(scores)
