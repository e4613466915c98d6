"""The PPO loss of a rollout with thoughts, stops and tokens as actions: `ppo.objective` on `thoughts.rescore`."""

from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from longshot_jax.config.ppo import PPOConfig
from longshot_jax.ppo.objective import (
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
    whitening,
)
from longshot_jax.thoughts.densities import gaussian_kl
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.rescore import rescore, rescore_method
from longshot_jax.thoughts.rollout import Rollout, Scores, reached_positions


@struct.dataclass
class Experience:
    """A rollout with the inputs of its update; the leading axis of every leaf is questions, or is absent.

    Attributes:
      rollout: recorded actions.
      recorded, reference: scores under the sampling and the reference policy; the latter None without KL in the loss.
      advantages, returns: at thought positions, then answer positions.
      weights: of each trajectory's actions in the policy loss, relative to its minibatch; None for 1.
      count_advantage: advantages of the numbers of trajectories; None where these are not actions.
    """

    rollout: Rollout
    recorded: Scores
    reference: Scores | None
    advantages: Float[Array, "B N P"]
    returns: Float[Array, "B N P"]
    weights: Float[Array, "B N"] | None = None
    count_advantage: Float[Array, " B"] | None = None


@struct.dataclass
class PolicySums:
    """Sums over the actions of a minibatch, per kind of action.

    Attributes:
      stops, thoughts, tokens: clipped surrogates.
      values: the critic's loss.
      entropy, token_entropy: entropies of stop decisions and of answer tokens, in nats.
      kl: KL to the reference over all actions, in nats.
      weighted_kl, entropy_bonus: KL, and entropies times coefficients, with trajectory weights, as in the loss.
      sampler_difference: sizes of the differences between log-probs now and when they were recorded, in nats.
      trajectory_counts, count_entropy: of the numbers of trajectories; None where these are not actions.
      thought_entropy: entropy of the distributions that thoughts were drawn from, in nats; None for Gaussian noise.
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
    sampler_difference: Float[Array, ""]
    trajectory_counts: PolicyLossSums | None = None
    count_entropy: Float[Array, ""] | None = None
    thought_entropy: Float[Array, ""] | None = None

    def __add__(self, other: "PolicySums") -> "PolicySums":
        total: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            ours = getattr(self, name)
            total[name] = None if ours is None else ours + getattr(other, name)
        return PolicySums(**total)

    @property
    def surrogates(self) -> tuple[PolicyLossSums, ...]:
        """The surrogates of all kinds of action."""
        always = self.stops, self.thoughts, self.tokens
        return always if self.trajectory_counts is None else (*always, self.trajectory_counts)

    @property
    def actions(self) -> Array:
        """Number of scored actions of all kinds."""
        return sum((part.count for part in self.surrogates), jnp.zeros(()))

    @property
    def approximate_kl(self) -> Array:
        """KL per action from the sampling policy to the current one, in nats: how far the update has moved."""
        total = sum((part.kl_sum for part in self.surrogates), jnp.zeros(()))
        return total / jnp.maximum(self.actions, 1.0)


def scored_thoughts(rollout: Rollout, config: PPOConfig) -> Bool[Array, "B N T"]:
    """Mask of the thoughts that are scored actions: taken, with noise, under `score` or `mixture`."""
    return rollout.thought_mask & config.scores_thoughts & (rollout.thought_std > 0)


def actions_of(rollout: Rollout, config: PPOConfig) -> Float[Array, "B N"]:
    """Number of stops, thoughts and tokens of each trajectory that carry a loss."""
    parts = (rollout.is_action, scored_thoughts(rollout, config), rollout.token_mask)
    counts = [jnp.sum(part, axis=-1, dtype=jnp.float32) for part in parts]
    return counts[0] + counts[1] + counts[2]


def count_actions(rollout: Rollout, config: PPOConfig) -> Float[Array, ""]:
    """Number of all actions that carry a loss, the divisor of every policy term."""
    total = jnp.sum(actions_of(rollout, config))
    return total if rollout.count_is_action is None else total + jnp.sum(rollout.count_is_action)


def with_weights(minibatch: Experience, config: PPOConfig) -> Experience:
    """The minibatch with the weights of its trajectories, which depend on the whole minibatch."""
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

    A thought's cost is charged where it is taken, the answer's reward at the trajectory's end, `penalty` (the KL in the
    reward) at the position of its actions. With a group baseline a trajectory has one advantage at all of its
    positions; its value head is still trained on the returns.
    """
    mask = jnp.concatenate([reached_positions(rollout), rollout.token_mask], axis=-1)
    # A trajectory of a joined answer that has no tokens of its own ends with its last thought.
    charged = jnp.pad(thought_reward, ((0, 0), (0, 0), (0, rollout.token_mask.shape[-1])))
    rewards = charged + reward_at_end(answer_reward, mask)
    if penalty is not None:
        rewards = rewards - penalty
    advantages, returns = generalized_advantages(rewards, recorded.values, mask, config.gamma, config.gae_lambda)
    if config.baseline != "critic":
        total = jnp.sum(jnp.where(mask, rewards, 0.0), axis=-1)
        compare = leave_one_out_advantages if config.baseline == "leave_one_out" else group_advantages
        advantages = jnp.where(mask, compare(total)[..., None], 0.0)
        # With lambda 1 the return is the discounted reward from a position on, without bootstrapping.
        _, returns = generalized_advantages(rewards, recorded.values, mask, config.gamma, 1.0)
    return advantages, returns


def share_advantages(
    advantages: Float[Array, "B N P"], values: Float[Array, "B N P"], rollout: Rollout, config: PPOConfig
) -> tuple[Float[Array, "B N P"], Float[Array, " B"] | None]:
    """Advantages of trajectories' actions, whitened if asked, and of the numbers of trajectories where these are actions.

    A question's objective is the mean over its c trajectories. A trajectory's own actions therefore get 1 / c of their
    advantage, or all of it where the reward is shared; the number c, chosen at h_0 before anything else, gets the mean
    over its trajectories of what each earns, less the first one's value: with roles each has a value of its own, whose mean over
    c trajectories depends on c and would be no baseline for it. Without a shared reward both are multiplied by N, so that nothing
    changes where all N exist.

    `values` are the recorded ones, by which `advantages` were estimated.
    """
    mask = jnp.concatenate([reached_positions(rollout), rollout.token_mask], axis=-1)
    mean, scale = whitening(advantages, mask) if config.whiten else (0.0, 1.0)
    whitened = jnp.where(mask, advantages - mean, 0.0) / scale
    if rollout.num_trajectories is None or rollout.active is None:
        return whitened, None
    number = rollout.num_trajectories.astype(advantages.dtype)
    earned = jnp.sum((advantages + values)[..., 0], axis=1, where=rollout.active) / number
    count_advantage = (earned - values[:, 0, 0] - mean) / scale
    if config.shared_reward:
        return whitened, count_advantage
    trajectories = rollout.active.shape[1]
    return whitened * (trajectories / number)[:, None, None], trajectories * count_advantage


def policy_sums(
    reasoner: Reasoner, part: Experience, memory: MemoryBank | None, config: PPOConfig, opening: tuple[int, ...]
) -> PolicySums:
    """Rescores a part of the experience and sums every term of the loss over its actions."""
    action_gradient = 1 - config.mixture if config.gradient == "mixture" else 0.0
    options = {"constant_thoughts": config.gradient == "none", "action_gradient": action_gradient}
    return sums_of(_rescored(reasoner, part.rollout, memory, config, opening, **options), part, config)


def _rescored(
    reasoner: Reasoner,
    rollout: Rollout,
    memory: MemoryBank | None,
    config: PPOConfig,
    opening: tuple[int, ...],
    **options: Any,
) -> Scores:
    """`rescore` by the settings; `options` are its further ones, of a loss."""
    method = rescore_method(config, reasoner.navigator.config.feedback)
    scaling = config.log_prob_scaling
    return rescore(reasoner, rollout, memory, opening, method, scaling, ensemble=config.ensemble, **options)


def sums_of(scores: Scores, part: Experience, config: PPOConfig) -> PolicySums:
    """Every term of the loss, from the scores of the actions under the current policy."""
    rollout, recorded = part.rollout, part.recorded
    steps = rollout.thought_mask.shape[-1]
    at_thoughts, at_tokens = part.advantages[..., : steps + 1], part.advantages[..., steps + 1 :]

    weights = jnp.ones((1, 1, 1)) if part.weights is None else part.weights[..., None]
    # In a mixture the rest of a thought's gradient flows through its embedding.
    score_share = config.mixture if config.gradient == "mixture" else 1.0

    def clipped(new: Array, old: Array, advantages: Array, mask: Array, share: float = 1.0) -> PolicyLossSums:
        return clipped_policy_loss(new, old, advantages, mask, config.clip, config.dual_clip or None, weights * share)

    def weighted(per_trajectory: Array) -> Array:
        return jnp.sum(per_trajectory if part.weights is None else per_trajectory * part.weights)

    real = jnp.concatenate([reached_positions(rollout), rollout.token_mask], axis=-1)
    kl = jnp.zeros(rollout.num_thoughts.shape)
    if part.reference is not None:
        kl = _kl(scores, part.reference, rollout, config)
    stop_entropy = jnp.sum(scores.thoughts.stop_entropy, axis=-1)
    token_entropy = jnp.sum(scores.tokens.entropies, axis=-1)
    bonus = config.entropy_coefficient * stop_entropy + config.token_entropy_coefficient * token_entropy
    thought_entropy = None
    if scores.thoughts.thought_entropy is not None and config.scores_thoughts:
        of_thoughts = jnp.sum(scores.thoughts.thought_entropy, axis=-1)
        thought_entropy = jnp.sum(of_thoughts)
        if config.token_entropy_coefficient:  # 0 times the entropy would still have its gradient computed
            bonus += config.token_entropy_coefficient * of_thoughts
    sums = PolicySums(
        stops=clipped(scores.thoughts.stop, recorded.thoughts.stop, at_thoughts, rollout.is_action),
        thoughts=clipped(
            scores.thoughts.thought,
            recorded.thoughts.thought,
            at_thoughts[..., :-1],
            scored_thoughts(rollout, config),
            score_share,
        ),
        tokens=clipped(scores.tokens.log_probs, recorded.tokens.log_probs, at_tokens, rollout.token_mask),
        values=clipped_value_loss(scores.values, recorded.values, part.returns, real, config.value_clip or None),
        entropy=jnp.sum(stop_entropy),
        token_entropy=jnp.sum(token_entropy),
        kl=jnp.sum(kl),
        weighted_kl=weighted(kl),
        entropy_bonus=weighted(bonus),
        sampler_difference=jax.lax.stop_gradient(log_prob_difference(scores, recorded, rollout, config)),
        thought_entropy=thought_entropy,
    )
    return sums if scores.count is None else _with_counts(sums, scores, part, config)


def log_prob_difference(scores: Scores, recorded: Scores, rollout: Rollout, config: PPOConfig) -> Float[Array, ""]:
    """Sizes of the differences between two scores of the same stops, thoughts and tokens, in nats, summed."""
    total = jnp.zeros(())
    for new, old, mask in (
        (scores.thoughts.stop, recorded.thoughts.stop, rollout.is_action),
        (scores.thoughts.thought, recorded.thoughts.thought, scored_thoughts(rollout, config)),
        (scores.tokens.log_probs, recorded.tokens.log_probs, rollout.token_mask),
    ):
        total += jnp.sum(jnp.abs(new - old), where=mask, dtype=jnp.float32)
    return total


def _with_counts(sums: PolicySums, scores: Scores, part: Experience, config: PPOConfig) -> PolicySums:
    """Adds the terms of the numbers of trajectories, one action per question."""
    is_action, new, old = part.rollout.count_is_action, scores.count, part.recorded.count
    assert is_action is not None and new is not None and old is not None and part.count_advantage is not None
    kl = jnp.zeros(())
    if part.reference is not None and part.reference.count is not None:
        estimate = kl_estimate(new.log_prob, part.reference.count.log_prob, config.kl_estimator)
        kl = jnp.sum(estimate, where=is_action)
    entropy = jnp.sum(new.entropy)
    return replace(
        sums,
        trajectory_counts=clipped_policy_loss(
            new.log_prob, old.log_prob, part.count_advantage, is_action, config.clip, config.dual_clip or None
        ),
        count_entropy=entropy,
        kl=sums.kl + kl,
        weighted_kl=sums.weighted_kl + kl,
        entropy_bonus=sums.entropy_bonus + config.entropy_coefficient * entropy,
    )


def _kl(scores: Scores, reference: Scores, rollout: Rollout, config: PPOConfig) -> Float[Array, "B N"]:
    """KL to the reference, summed over a trajectory's actions: estimated, but exact for thoughts with Gaussian noise."""
    estimator = config.kl_estimator
    stops = kl_estimate(scores.thoughts.stop, reference.thoughts.stop, estimator)
    tokens = kl_estimate(scores.tokens.log_probs, reference.tokens.log_probs, estimator)
    total = jnp.sum(stops, -1, where=rollout.is_action) + jnp.sum(tokens, -1, where=rollout.token_mask)
    if config.scores_thoughts:
        if rollout.thought_tokens is not None:
            thoughts = kl_estimate(scores.thoughts.thought, reference.thoughts.thought, estimator)
        else:
            ours, theirs = (
                (of.means, jnp.where(rollout.thought_std > 0, of.stds, 1.0))
                for of in (scores.thoughts, reference.thoughts)
            )
            thoughts = gaussian_kl(*ours, *theirs, config.log_prob_scaling)
        total += jnp.sum(thoughts, -1, where=scored_thoughts(rollout, config))
    return total


def kl_at_positions(recorded: Scores, reference: Scores, rollout: Rollout, config: PPOConfig) -> Float[Array, "B N P"]:
    """KL to the reference at each position, summed over its actions, to be charged in the reward.

    Estimated from log-probs under the sampling policy. The closed form for thoughts does not depend on the sampled
    thought, so as a reward it would carry no information about it.
    """
    kind = config.kl_estimator
    old, other = recorded.thoughts, reference.thoughts
    stops = jnp.where(rollout.is_action, kl_estimate(old.stop, other.stop, kind), 0.0)
    thoughts = jnp.where(scored_thoughts(rollout, config), kl_estimate(old.thought, other.thought, kind), 0.0)
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
    """The loss to minimise, or a micro-batch's part of it; the counts are of the whole minibatch."""
    actions = jnp.maximum(action_count, 1.0)
    surrogate = sum((part.loss_sum for part in sums.surrogates), jnp.zeros(()))
    regular = kl_coefficient * sums.weighted_kl - sums.entropy_bonus
    critic = config.value_coefficient * sums.values.loss_sum / jnp.maximum(position_count, 1.0)
    return (surrogate + regular) / actions + critic


def rollout_scores(
    reasoner: Reasoner, rollout: Rollout, memory: MemoryBank | None, config: PPOConfig, opening: tuple[int, ...]
) -> Scores:
    """Scores of a rollout under another policy, as constants; for `pathwise`, of its own thoughts from the same noise.

    That policy is the reference, or the sampling policy in the arithmetic of the update.
    """
    return jax.lax.stop_gradient(_rescored(reasoner, rollout, memory, config, opening))
