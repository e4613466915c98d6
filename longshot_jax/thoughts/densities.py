"""Log-probs, entropies and divergences of the actions a trajectory takes.

Three kinds of action are scored here: a thought (a Gaussian vector with one scalar standard deviation), a
stop decision (a Bernoulli variable given as a logit) and an answer token (a categorical variable given as
logits). Everything is computed in float32 (float64 where the inputs are float64) and measured in nats. No
model is involved.

A thought's log-prob is reduced over its X dimensions in one of three ways, called its scaling:

- ``summed``: the exact log-density. In high dimension most ratios leave PPO's clip range.
- ``averaged``: the log-density divided by X. The clip hardly ever acts.
- ``scaled``: the log-density divided by √X, so that the spread of the log-ratio does not grow with X.

The last two are deliberate rescalings of the thought's share of the loss; they are not densities.

Shapes: ``*batch`` is any leading shape, X the size of a thought (D for hidden feedback, R for the navigator),
V the vocabulary.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _reduce_dimensions(per_dimension: Float[Array, "*batch X"], scaling: str) -> Float[Array, "*batch"]:
    total = jnp.sum(per_dimension, axis=-1)
    size = per_dimension.shape[-1]
    if scaling == "summed":
        return total
    if scaling == "averaged":
        return total / size
    if scaling == "scaled":
        return total / math.sqrt(size)
    raise ValueError(f"scaling is {scaling!r}; it must be 'summed', 'averaged' or 'scaled'")


def gaussian_log_prob(
    action: Float[Array, "*batch X"],
    mean: Float[Array, "*batch X"],
    std: Float[Array, "*#batch"] | float,
    scaling: str,
) -> Float[Array, "*batch"]:
    """Log-prob of a thought under ``Normal(mean, std² I)``, in nats, reduced over X by ``scaling``.

    ``std`` is one number for all dimensions of a thought, in the units of the action, and must be above zero:
    a thought without noise is deterministic and has no log-prob. Raises ValueError for an unknown scaling.
    """
    std = _at_least_float32(jnp.asarray(std))[..., None]
    noise = (_at_least_float32(action) - _at_least_float32(mean)) / std
    return _reduce_dimensions(-0.5 * jnp.square(noise) - jnp.log(std) - 0.5 * math.log(2 * math.pi), scaling)


def gaussian_kl(
    mean: Float[Array, "*batch X"],
    reference_mean: Float[Array, "*batch X"],
    std: Float[Array, "*#batch"] | float,
    scaling: str,
) -> Float[Array, "*batch"]:
    """KL(policy ‖ reference) of two Gaussians with one ``std``: half the squared distance of means over std².

    In nats, reduced over X exactly as the log-prob is; ``std`` must be above zero.
    """
    std = _at_least_float32(jnp.asarray(std))[..., None]
    distance = (_at_least_float32(mean) - _at_least_float32(reference_mean)) / std
    return _reduce_dimensions(0.5 * jnp.square(distance), scaling)


def bernoulli_log_prob(
    logit: Float[Array, "*batch"], decision: Bool[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Log-prob, in nats, of a yes (or no) of probability ``sigmoid(logit)``. Finite for finite logits."""
    logit = _at_least_float32(logit)
    return jax.nn.log_sigmoid(jnp.where(decision, logit, -logit))


def bernoulli_entropy(logit: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Entropy, in nats, of a yes-or-no of probability ``sigmoid(logit)``; tends to 0 for large |logit|."""
    logit = _at_least_float32(logit)
    # The entropy is even in the logit. With |logit|, softplus(-|x|) + |x| sigmoid(-|x|) adds two small
    # positive numbers instead of subtracting two large ones, so the tail keeps its relative precision.
    size = jnp.abs(logit)
    return jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size)


def bernoulli_kl(
    logit: Float[Array, "*batch"], reference_logit: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """KL(policy ‖ reference), in nats, of two Bernoulli decisions given by their logits; never negative."""
    logit = _at_least_float32(logit)
    reference_logit = _at_least_float32(reference_logit)
    taken = jax.nn.sigmoid(logit) * (jax.nn.log_sigmoid(logit) - jax.nn.log_sigmoid(reference_logit))
    left = jax.nn.sigmoid(-logit) * (jax.nn.log_sigmoid(-logit) - jax.nn.log_sigmoid(-reference_logit))
    # Rounding can leave the sum a few ulps below zero where the distributions agree; `maximum` would change
    # the gradient there, so the value alone is clamped.
    total = taken + left
    return total + jax.lax.stop_gradient(jnp.maximum(total, 0.0) - total)


def categorical_log_prob(
    logits: Float[Array, "*batch V"], token: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Log-prob, in nats, of ``token`` under ``softmax(logits)``.

    The logits are those that sampled, so divided by the temperature already. ``token`` must lie in [0, V).
    """
    logits = _at_least_float32(logits)
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def categorical_entropy(logits: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
    """Entropy, in nats, of ``softmax(logits)``; logits of minus infinity (forbidden tokens) add nothing."""
    log_probs = jax.nn.log_softmax(_at_least_float32(logits), axis=-1)
    forbidden = jnp.isneginf(log_probs)
    # The inner `where` keeps -inf out of the product, so that neither the value nor the gradient becomes NaN.
    finite = jnp.where(forbidden, 0.0, log_probs)
    return -jnp.sum(jnp.where(forbidden, 0.0, jnp.exp(finite) * finite), axis=-1)
