"""Noise that makes the trajectories of a question differ more than independent noise does.

The noise of each trajectory stays exactly standard normal, so its log-prob is unchanged; only the joint changes:

- `antithetic`: trajectories come in pairs with opposite noise (Hammersley & Morton 1956).
- `orthogonal`: at every step the noise of up to X trajectories is orthogonal, with independent lengths: Gram-Schmidt on
  independent noise, whose lengths do not depend on directions (Yu et al. 2016, arXiv:1610.09072).

Given its noise, a trajectory's stops and tokens are as independent as before, so `pathwise` is exact with any baseline.
Under `score` the noise is what a thought's log-prob scores, and other trajectories' rewards depend on it: the gradient
is unbiased only with a critic and with rewards that no other trajectory influences.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from longshot_jax.config.thoughts import Coupling


def coupled(noise: Float[Array, "B N T X"], kind: Coupling) -> Float[Array, "B N T X"]:
    """Coupled noise from independent standard normal noise; steps stay independent of one another."""
    if kind == "independent":
        return noise
    if kind == "antithetic":
        return noise.at[:, 1::2].set(-noise[:, 0 : 2 * (noise.shape[1] // 2) : 2])
    size = noise.shape[-1]
    groups = [noise[:, start : start + size] for start in range(0, noise.shape[1], size)]
    return jnp.concatenate([_orthogonal(group) for group in groups], axis=1)


def relative_std_of_mean(trajectories: int, kind: Coupling) -> float:
    """Standard deviation of the mean of the trajectories' noise at one step, where each has standard deviation 1."""
    if kind == "antithetic":  # pairs cancel
        return (trajectories % 2) / trajectories
    return trajectories**-0.5


def _orthogonal(noise: Float[Array, "B N T X"]) -> Float[Array, "B N T X"]:
    columns = jnp.moveaxis(noise, 1, -1)  # [B, T, X, N]
    directions, triangle = jnp.linalg.qr(columns)
    # A positive diagonal gives the directions of Gram-Schmidt, which are uniform.
    signs = jnp.sign(jnp.diagonal(triangle, axis1=-2, axis2=-1))
    lengths = jnp.linalg.norm(columns, axis=-2)
    return jnp.moveaxis(directions * (signs * lengths)[..., None, :], -1, 1)


def diversity(actions: Float[Array, "B N T X"], thought_mask: Array) -> Float[Array, "B N"]:
    """Mean of (1 - cosine) / 2, from 0 to 1, to the other trajectories' thoughts of the same step; 0 without others."""
    unit = actions * jax.lax.rsqrt(jnp.sum(jnp.square(actions), axis=-1, keepdims=True) + 1e-12)
    cosine = jnp.einsum("bntx,bmtx->bnmt", unit, unit)
    others = ~jnp.eye(actions.shape[1], dtype=bool)[:, :, None]
    both = thought_mask[:, :, None] & thought_mask[:, None] & others
    total = jnp.sum((1 - cosine) / 2, axis=(2, 3), where=both)
    return total / jnp.maximum(jnp.sum(both, axis=(2, 3)), 1)
