"""Proximal policy optimisation as pure functions without a model: advantages, losses, divergences.

Contents: the clipped surrogate, per action (Schulman et al. 2017), with dual clip (Ye et al. 2020) and means over
trajectories (Shao et al. 2024) as options; generalised advantage estimation over real positions (Schulman et al. 2016);
the clipped value loss; advantages against the group instead of a critic (leave-one-out: Kool et al. 2019; mean and
deviation of the group: Shao et al. 2024); whitening; the k1, k2 and k3 estimators of a divergence to the reference
(Schulman 2020); the proportional controller of the KL coefficient (Ziegler et al. 2019).

Left out: truncated episodes and bootstrapping from a last state, because a trajectory ends with its answer, finished or
not; clip bounds that differ upward and downward; reward normalisation by a running deviation; and means. A loss is
returned as a SUM and a COUNT, so that micro-batches and devices add up exactly and the caller divides once by the
global count. A mean per micro-batch would weight its tokens by its padding.

Shapes: B questions, N trajectories per question, P positions of a trajectory (thought positions, then answer tokens),
`*shape` any shape. A mask is True where a position (or a trajectory) is real; other elements are never read and may be
NaN. Log-probs and divergences are in nats.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

# Bound of log-ratios: e^20 is far outside every clip range, and without the bound float32 overflows in the branch that
# the clip does not choose, where the gradient then is 0 · inf = NaN.
_LOG_RATIO_BOUND = 20.0


def reward_at_end(reward: Float[Array, "*batch"], mask: Bool[Array, "*batch P"]) -> Float[Array, "*batch P"]:
    """Puts each trajectory's reward on its last real position (the end token, or where a limit cut it off), if any."""
    from_the_end = jnp.flip(mask, axis=-1)
    # The first True, seen from the end, is the last real position.
    is_end = jnp.flip(from_the_end & (jnp.cumsum(from_the_end, axis=-1) == 1), axis=-1)
    return jnp.where(is_end, reward[..., None], 0.0)


def generalized_advantages(
    rewards: Float[Array, "*batch P"],
    values: Float[Array, "*batch P"],
    mask: Bool[Array, "*batch P"],
    gamma: float | Float[Array, ""],
    gae_lambda: float | Float[Array, ""],
) -> tuple[Float[Array, "*batch P"], Float[Array, "*batch P"]]:
    """Advantages and returns by one reverse scan over positions (Schulman et al. 2016, equation 16).

    Masked positions do not exist: the successor of a real position is the next real one, without a discount for the
    gap, and the value after the last one is zero. `gamma` and `gae_lambda` are γ and λ, both in [0, 1]. Returns are
    advantages plus values, the targets of the value function; both are zero where masked.
    """
    rewards = jnp.where(mask, rewards, 0.0)
    values = jnp.where(mask, values, 0.0)

    def step_back(successor, position):
        next_value, next_advantage = successor
        reward, value, is_real = position
        advantage = reward + gamma * next_value - value + gamma * gae_lambda * next_advantage
        successor = jnp.where(is_real, value, next_value), jnp.where(is_real, advantage, next_advantage)
        return successor, jnp.where(is_real, advantage, 0.0)

    nothing = jnp.zeros(rewards.shape[:-1], jnp.result_type(rewards, values))
    over_positions = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (rewards, values, mask))
    _, advantages = jax.lax.scan(step_back, (nothing, nothing), over_positions, reverse=True)
    advantages = jnp.moveaxis(advantages, 0, -1)
    return advantages, advantages + values


def leave_one_out_advantages(total_reward: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """Each trajectory's reward minus the mean of its question's *other* trajectories (Kool et al. 2019). Unbiased.

    Requires N > 1.
    """
    others = (jnp.sum(total_reward, axis=1, keepdims=True) - total_reward) / (total_reward.shape[1] - 1)
    return total_reward - others


def group_advantages(total_reward: Float[Array, "B N"], epsilon: float = 1e-4) -> Float[Array, "B N"]:
    """Each trajectory's reward minus its question's mean, over the question's standard deviation (Shao et al. 2024).

    `epsilon`, in units of reward, is added to the deviation: equal rewards of all trajectories give zero advantages,
    instead of amplified rounding errors.
    """
    centred = total_reward - jnp.mean(total_reward, axis=1, keepdims=True)
    return centred / (jnp.std(total_reward, axis=1, keepdims=True) + epsilon)


def whitening(
    advantages: Float[Array, "*shape"], mask: Bool[Array, "*shape"], epsilon: float = 1e-4
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean over all real positions, and their standard deviation plus `epsilon`: what to subtract, then to divide by.

    Call it once on the whole batch, before the split into minibatches: whitened per micro-batch, an advantage would
    depend on the other elements.
    """
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(advantages, where=mask) / count
    return mean, jnp.sqrt(jnp.sum(jnp.square(advantages - mean), where=mask) / count) + epsilon


@no_type_check  # JAX rebuilds it with leaves that are not scalars: stacked by a scan, shardings, None.
@struct.dataclass
class PolicyLossSums:
    """Sums of the surrogate over actions; `+` joins micro-batches.

    Attributes:
      loss_sum: sum of the clipped losses; divided by the global count it is the loss to minimise.
      count: number of real actions (float, exact to 2^24).
      clipped_count: number of actions whose gradient is cut off by the clip or the dual clip.
      kl_sum: sum of k3 estimates of KL(old ‖ new), nats; over the count, the approximate KL of the update.
      ratio_sum, ratio_max: sum and maximum of the probability ratios new / old; `+` takes the larger maximum.
    """

    loss_sum: Float[Array, ""]
    count: Float[Array, ""]
    clipped_count: Float[Array, ""]
    kl_sum: Float[Array, ""]
    ratio_sum: Float[Array, ""]
    ratio_max: Float[Array, ""]

    def __add__(self, other: "PolicyLossSums") -> "PolicyLossSums":
        total = jax.tree.map(jnp.add, self, other)
        return total.replace(ratio_max=jnp.maximum(self.ratio_max, other.ratio_max))


def clipped_policy_loss(
    log_prob: Float[Array, "*shape"],
    old_log_prob: Float[Array, "*shape"],
    advantages: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    clip: float | Float[Array, ""],
    dual_clip: float | None = None,
    weights: Float[Array, "*#shape"] | None = None,
) -> PolicyLossSums:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), one ratio per action, as sums.

    `clip` is the half-width of the trusted range of the ratio around 1. `dual_clip`, above 1 (else ValueError), bounds
    the loss of an action with negative advantage at `dual_clip · |advantage|` (Ye et al. 2020); None leaves it
    unbounded. `weights` multiply only the losses; see `sequence_weights`. No gradient flows into `old_log_prob` and
    `advantages`.
    """
    if dual_clip is not None and dual_clip <= 1.0:
        raise ValueError(f"dual_clip is {dual_clip}; it must be above 1")
    advantages = jax.lax.stop_gradient(jnp.where(mask, advantages, 0.0))
    log_ratio = jnp.where(mask, log_prob, 0.0) - jax.lax.stop_gradient(jnp.where(mask, old_log_prob, 0.0))
    log_ratio = jnp.clip(log_ratio, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
    ratio = jnp.exp(log_ratio)

    unclipped = -advantages * ratio
    loss = jnp.maximum(unclipped, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip))
    clipped = loss > unclipped
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        above = (advantages < 0) & (loss > ceiling)
        loss = jnp.where(above, ceiling, loss)
        clipped |= above

    return PolicyLossSums(
        loss_sum=jnp.sum(loss if weights is None else loss * weights, where=mask),
        count=jnp.sum(mask, dtype=loss.dtype),
        clipped_count=jnp.sum(clipped & mask, dtype=loss.dtype),
        kl_sum=jnp.sum(jnp.expm1(log_ratio) - log_ratio, where=mask),
        ratio_sum=jnp.sum(ratio, where=mask),
        ratio_max=jnp.max(ratio, where=mask, initial=0.0),
    )


def sequence_weights(action_counts: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Weights of trajectories' actions that turn the mean over actions into a mean over trajectories.

    Trajectory s has A_s actions; there are A in total and S trajectories with any. The weight A / (S A_s) makes the
    weighted sum over actions, divided by A, the mean of the per-trajectory means (Shao et al. 2024, equation 3).
    Weights average to 1 over the actions. Call it once on the whole minibatch, so that micro-batches add up to it.
    """
    real = action_counts > 0
    per_trajectory = jnp.sum(action_counts) / jnp.maximum(jnp.sum(real), 1)
    return jnp.where(real, per_trajectory / jnp.maximum(action_counts, 1.0), 0.0)


@no_type_check  # as above
@struct.dataclass
class ValueLossSums:
    """Sums of the value loss over positions; `+` joins micro-batches.

    Attributes:
      loss_sum: sum of the clipped half squared errors, squared units of reward.
      count: number of real positions (float, exact to 2^24).
      clipped_count: number of positions where the clipped error is the larger, so that no gradient flows.
      return_sum, return_square_sum: sums of the returns and of their squares.
      error_sum, error_square_sum: sums of return − value and of its square, without any clip.
    """

    loss_sum: Float[Array, ""]
    count: Float[Array, ""]
    clipped_count: Float[Array, ""]
    return_sum: Float[Array, ""]
    return_square_sum: Float[Array, ""]
    error_sum: Float[Array, ""]
    error_square_sum: Float[Array, ""]

    def __add__(self, other: "ValueLossSums") -> "ValueLossSums":
        return jax.tree.map(jnp.add, self, other)


def clipped_value_loss(
    values: Float[Array, "*shape"],
    old_values: Float[Array, "*shape"],
    returns: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    clip: float | Float[Array, ""] | None,
) -> ValueLossSums:
    """Half the larger squared error of the value and of the value clipped to the old one's neighbourhood, as sums.

    `clip`, in units of reward, is how far a value may move from `old_values` before further movement is not rewarded;
    None is the plain squared error. No gradient flows into `old_values` and `returns`.
    """
    values = jnp.where(mask, values, 0.0)
    old_values = jax.lax.stop_gradient(jnp.where(mask, old_values, 0.0))
    returns = jax.lax.stop_gradient(jnp.where(mask, returns, 0.0))

    error = returns - values
    clip = jnp.inf if clip is None else clip
    near_old = old_values + jnp.clip(values - old_values, -clip, clip)
    unclipped = 0.5 * jnp.square(error)
    loss = jnp.maximum(unclipped, 0.5 * jnp.square(returns - near_old))
    # Within the range the two errors are equal up to rounding, which must not be counted.
    clipped = (loss > unclipped) & (jnp.abs(values - old_values) > clip) & mask
    return ValueLossSums(
        loss_sum=jnp.sum(loss),
        count=jnp.sum(mask, dtype=loss.dtype),
        clipped_count=jnp.sum(clipped, dtype=loss.dtype),
        return_sum=jnp.sum(returns),
        return_square_sum=jnp.sum(jnp.square(returns)),
        error_sum=jnp.sum(error),
        error_square_sum=jnp.sum(jnp.square(error)),
    )


def explained_variance(sums: ValueLossSums) -> Float[Array, ""]:
    """1 − Var(return − value) / Var(return): 1 is perfect, 0 as good as a constant; 0 for constant float32 returns."""
    count = jnp.maximum(sums.count, 1.0)
    mean_square = sums.return_square_sum / count
    return_variance = mean_square - jnp.square(sums.return_sum / count)
    error_variance = sums.error_square_sum / count - jnp.square(sums.error_sum / count)
    varies = return_variance > 1e-6 * mean_square
    return jnp.where(varies, 1.0 - error_variance / jnp.where(varies, return_variance, 1.0), 0.0)


def kl_estimate(
    log_prob: Float[Array, "*shape"], reference_log_prob: Float[Array, "*shape"], estimator: str
) -> Float[Array, "*shape"]:
    """Estimates KL(policy ‖ reference) from each action that the policy sampled, in nats (Schulman 2020).

    With r = reference / policy: `k1` = −log r, unbiased, of either sign; `k2` = (log r)² / 2, biased, small variance;
    `k3` = r − 1 − log r, unbiased, never negative. As a loss on freshly sampled actions, `k2` has the gradient of
    KL(policy ‖ reference); that of `k1` is zero on average, and that of `k3` belongs to KL(reference ‖ policy). As part
    of each action's reward, without a gradient of its own, `k1` gives the gradient of KL(policy ‖ reference). Raises
    ValueError for another name.
    """
    log_ratio = reference_log_prob - log_prob
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * jnp.square(log_ratio)
    if estimator == "k3":
        return jnp.expm1(jnp.minimum(log_ratio, _LOG_RATIO_BOUND)) - log_ratio
    raise ValueError(f"estimator is {estimator!r}; it must be 'k1', 'k2' or 'k3'")


def adapt_kl_coefficient(
    coefficient: Float[Array, ""], measured_kl: Float[Array, ""], target: float | Float[Array, ""]
) -> Float[Array, ""]:
    """The KL coefficient for the next update (Ziegler et al. 2019, section 2.2), raised where the KL is above target.

    The relative error `measured_kl / target − 1` is clipped to ±0.2 and moves the coefficient by that fraction over ten
    updates (the paper's gain of 0.1). A non-finite KL changes nothing. `target` is in nats, in the units of `measured_kl`,
    and must be positive.
    """
    error = jnp.clip(measured_kl / target - 1.0, -0.2, 0.2)
    return jnp.where(jnp.isfinite(measured_kl), coefficient * (1.0 + error / 10.0), coefficient)
