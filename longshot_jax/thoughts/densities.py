"""Log-probs, entropies and KL divergences of actions, in nats, without a model.

Actions are thoughts (Gaussian vectors, each with one scalar standard deviation), stop decisions (Bernoulli, given as logits)
and answer tokens (categorical, given as logits). Computed in float32, or in float64 for float64 inputs.

A thought's log-prob is reduced over its X dimensions according to `scaling`; only `summed` gives a density, the others
deliberately rescale the thought's part of the loss. An unknown scaling raises ValueError.

- `summed`: the exact log-density. In high dimension most ratios leave PPO's clip range.
- `averaged`: the log-density divided by X. The clip hardly ever acts.
- `scaled`: the log-density divided by √X, so the spread of the log-ratio does not grow with X.

Shapes: `*batch` any leading shape, X size of a thought (D for `hidden` and `vocabulary`, R for the navigator), V vocabulary.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def reduce_dimensions(per_dimension: Float[Array, "*batch X"], scaling: str) -> Float[Array, "*batch"]:
    """Log-prob of a thought from those of its dimensions, or of its tokens, by `scaling` as above."""
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
    action: Float[Array, "*batch X"], mean: Float[Array, "*batch X"], std: Float[Array, "*#batch"] | float, scaling: str
) -> Float[Array, "*batch"]:
    """Log-prob of a thought under Normal(mean, std² I), in nats, reduced by `scaling`; undefined for std 0."""
    std = _at_least_float32(jnp.asarray(std))[..., None]
    noise = (_at_least_float32(action) - _at_least_float32(mean)) / std
    return reduce_dimensions(-0.5 * jnp.square(noise) - jnp.log(std) - 0.5 * math.log(2 * math.pi), scaling)


def gaussian_kl(
    mean: Float[Array, "*batch X"],
    std: Float[Array, "*#batch"] | float,
    reference_mean: Float[Array, "*batch X"],
    reference_std: Float[Array, "*#batch"] | float,
    scaling: str,
) -> Float[Array, "*batch"]:
    """KL(policy ‖ reference) of two Gaussians with stds > 0, in nats, reduced over X like the log-prob."""
    std, reference_std = (_at_least_float32(jnp.asarray(x))[..., None] for x in (std, reference_std))
    distance = (_at_least_float32(mean) - _at_least_float32(reference_mean)) / reference_std
    # expm1 keeps the precision of nearly equal stds, and equal ones add exactly nothing.
    log_ratio = jnp.log(std / reference_std)
    of_stds = 0.5 * jnp.expm1(2 * log_ratio) - log_ratio
    return reduce_dimensions(0.5 * jnp.square(distance) + of_stds, scaling)


def bernoulli_log_prob(logit: Float[Array, "*batch"], decision: Bool[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Log-prob, in nats, of a decision that is True with probability sigmoid(logit). Finite for finite logits."""
    logit = _at_least_float32(logit)
    return jax.nn.log_sigmoid(jnp.where(decision, logit, -logit))


def bernoulli_entropy(logit: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Entropy, in nats, of a decision that is True with probability sigmoid(logit); tends to 0 for large |logit|."""
    logit = _at_least_float32(logit)
    # The entropy is even in the logit. softplus(-|x|) + |x| sigmoid(-|x|) adds two small positive numbers instead of
    # subtracting two large ones, so the tail keeps its relative precision.
    size = jnp.abs(logit)
    return jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size)


def categorical_log_prob(logits: Float[Array, "*batch V"], token: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Log-prob, in nats, of `token` in [0, V) under softmax(logits); logits are already divided by the temperature."""
    logits = _at_least_float32(logits)
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def categorical_entropy(logits: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
    """Entropy, in nats, of softmax(logits); logits of minus infinity (forbidden tokens) add nothing."""
    log_probs = jax.nn.log_softmax(_at_least_float32(logits), axis=-1)
    forbidden = jnp.isneginf(log_probs)
    # The inner `where` keeps -inf out of the product, so that neither the value nor the gradient becomes NaN.
    finite = jnp.where(forbidden, 0.0, log_probs)
    return -jnp.sum(jnp.where(forbidden, 0.0, jnp.exp(finite) * finite), axis=-1)
