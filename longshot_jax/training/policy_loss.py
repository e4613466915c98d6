"""The PPO loss of a rollout: thoughts, stops and tokens as actions. Joins `ppo` (mathematics) to `rescore` (model)."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from longshot_jax.thoughts.densities import gaussian_kl
from longshot_jax.thoughts.memory import MemoryBank
from longshot_jax.thoughts.navigator import Reasoner
from longshot_jax.thoughts.rescore import Replay, Rollout, Scores, position_mask, rescore
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
    whiten,
)
from longshot_jax.training.settings import PPOConfig


@struct.dataclass
class Experience:
    """A rollout with what its update needs; the leading axis of every leaf is questions, or is absent.

    Attributes:
      rollout: recorded actions.
      recorded: what the policy that sampled said of them.
      reference: what the reference policy says of them, or None.
      advantages, returns: of thought positions, then answer positions.
    """

    rollout: Rollout
    recorded: Scores
    reference: Scores | None
    advantages: Float[Array, "B N P"]
    returns: Float[Array, "B N P"]


@struct.dataclass
class PolicySums:
    """Sums over the actions of a minibatch, per kind of action.

    Attributes:
      stops, thoughts, tokens: of the clipped surrogate.
      values: of the critic's loss.
      entropy: of free stop decisions, in nats; token_entropy: of answer tokens.
      kl: to the reference, in nats, over all actions.
    """

    stops: PolicyLossSums
    thoughts: PolicyLossSums
    tokens: PolicyLossSums
    values: ValueLossSums
    entropy: Float[Array, ""]
    token_entropy: Float[Array, ""]
    kl: Float[Array, ""]

    def __add__(self, other: "PolicySums") -> "PolicySums":
        return PolicySums(
            self.stops + other.stops,
            self.thoughts + other.thoughts,
            self.tokens + other.tokens,
            self.values + other.values,
            self.entropy + other.entropy,
            self.token_entropy + other.token_entropy,
            self.kl + other.kl,
        )

    @property
    def actions(self) -> Array:
        """Number of scored actions of all kinds."""
        return self.stops.count + self.thoughts.count + self.tokens.count


def replay_of(config: PPOConfig, feedback: str) -> Replay:
    """Which way of rescoring is exact for a gradient and a kind of thought (and the cheapest of those)."""
    if config.gradient == "pathwise":
        return "noise"
    residual = feedback == "navigator_residual"
    if residual and config.rescore == "auto" and config.gradient == "score":
        return "actions"
    return "parallel"


def has_thought_density(config: PPOConfig) -> bool:
    """Whether thoughts themselves are scored actions."""
    return config.gradient == "score"


def thought_mask(rollout: Rollout, config: PPOConfig) -> Bool[Array, "B N T"]:
    """Which thoughts are scored actions: those taken, under `score`, with noise."""
    return rollout.taken & has_thought_density(config) & (rollout.std > 0)


def count_actions(rollout: Rollout, config: PPOConfig) -> Float[Array, ""]:
    """Stops, thoughts and tokens that carry a loss: what every policy term is divided by."""
    parts = (rollout.free, thought_mask(rollout, config), rollout.token_mask)
    return sum((jnp.sum(part, dtype=jnp.float32) for part in parts), jnp.zeros(()))


def estimate_advantages(
    rollout: Rollout,
    recorded: Scores,
    answer_reward: Float[Array, "B N"],
    thought_reward: Float[Array, "B N Tplus1"],
    config: PPOConfig,
) -> tuple[Float[Array, "B N P"], Float[Array, "B N P"]]:
    """Advantages and returns of every position: thought positions h_0 ... h_T, then answer tokens.

    The cost of a thought is charged where it is taken, the answer's reward on its end token. With a group baseline
    a trajectory has one advantage at all of its positions; its value head is still trained on the returns.
    """
    steps = rollout.taken.shape[-1]
    mask = jnp.concatenate([position_mask(rollout.counts, steps), rollout.token_mask], axis=-1)
    rewards = jnp.concatenate([thought_reward, reward_at_end(answer_reward, rollout.token_mask)], axis=-1)
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


def policy_sums(
    reasoner: Reasoner,
    part: Experience,
    memory: MemoryBank | None,
    config: PPOConfig,
    opening: tuple[int, ...],
) -> PolicySums:
    """Rescores a part of the experience and sums every term of the loss over its actions."""
    rollout, recorded = part.rollout, part.recorded
    scores = rescore(
        reasoner,
        rollout,
        memory,
        opening,
        replay_of(config, reasoner.navigator.config.feedback),
        config.log_prob_scaling,
        config.together,
        constant_thoughts=config.gradient == "none",
    )
    steps = rollout.taken.shape[-1]
    at_thoughts, at_tokens = part.advantages[..., : steps + 1], part.advantages[..., steps + 1 :]

    def clipped(new: Array, old: Array, advantages: Array, mask: Array) -> PolicyLossSums:
        return clipped_policy_loss(new, old, advantages, mask, config.clip)

    real = jnp.concatenate([position_mask(rollout.counts, steps), rollout.token_mask], axis=-1)
    kl = jnp.zeros(())
    if part.reference is not None:
        kl = _kl(scores, part.reference, rollout, config)
    return PolicySums(
        stops=clipped(scores.thoughts.stop, recorded.thoughts.stop, at_thoughts, rollout.free),
        thoughts=clipped(
            scores.thoughts.thought,
            recorded.thoughts.thought,
            at_thoughts[..., :-1],
            thought_mask(rollout, config),
        ),
        tokens=clipped(scores.tokens.log_probs, recorded.tokens.log_probs, at_tokens, rollout.token_mask),
        values=clipped_value_loss(scores.values, recorded.values, part.returns, real, config.value_clip),
        entropy=jnp.sum(scores.thoughts.stop_entropy),
        token_entropy=jnp.sum(scores.tokens.entropies),
        kl=kl,
    )


def _kl(scores: Scores, reference: Scores, rollout: Rollout, config: PPOConfig) -> Float[Array, ""]:
    """Sum over actions of the KL to the reference: an estimate for stops and tokens, closed form for thoughts."""
    estimator = config.kl_estimator
    stops = kl_estimate(scores.thoughts.stop, reference.thoughts.stop, estimator)
    tokens = kl_estimate(scores.tokens.log_probs, reference.tokens.log_probs, estimator)
    total = jnp.sum(stops, where=rollout.free) + jnp.sum(tokens, where=rollout.token_mask)
    if has_thought_density(config):
        std = jnp.where(rollout.std > 0, rollout.std, 1.0)
        thoughts = gaussian_kl(scores.thoughts.means, reference.thoughts.means, std, config.log_prob_scaling)
        total += jnp.sum(thoughts, where=thought_mask(rollout, config))
    return total


def policy_loss(
    sums: PolicySums,
    action_count: Float[Array, ""],
    position_count: Float[Array, ""],
    kl_coefficient: Float[Array, ""],
    config: PPOConfig,
) -> Float[Array, ""]:
    """The loss to minimise, or a micro-batch's share of it: counts are those of the whole minibatch."""
    actions = jnp.maximum(action_count, 1.0)
    surrogate = sums.stops.loss_sum + sums.thoughts.loss_sum + sums.tokens.loss_sum
    regular = kl_coefficient * sums.kl - config.entropy_coefficient * sums.entropy
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
