"""Noise that makes the trajectories of a question differ more than independent noise would.

Each trajectory's own noise stays exactly standard normal, so that its log-prob is what it was. Only the joint changes:

- `antithetic`: trajectories come in pairs, each the mirror image of the other (Hammersley & Morton 1956).
- `orthogonal`: at every step the noise of up to X trajectories is orthogonal, with lengths of its own (Yu et al. 2016,
  arXiv:1610.09072): Gram-Schmidt on independent noise, whose lengths do not depend on directions.

Given its noise, a trajectory's stops and tokens are as independent as before, so `pathwise` is exact with any baseline.
Under `score` the noise is what a thought's log-prob scores, and another trajectory's reward is no longer independent of
it: only a critic, and rewards that no other trajectory touches, keep that gradient unbiased.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Coupling = Literal["independent", "antithetic", "orthogonal"]


def coupled(noise: Float[Array, "B N T X"], kind: Coupling) -> Float[Array, "B N T X"]:
    """Independent standard normal noise turned into coupled noise; steps stay independent of one another."""
    if kind == "independent":
        return noise
    if kind == "antithetic":
        mirrored = noise.at[:, 1::2].set(-noise[:, 0 : 2 * (noise.shape[1] // 2) : 2])
        return mirrored
    size = noise.shape[-1]
    groups = [noise[:, start : start + size] for start in range(0, noise.shape[1], size)]
    return jnp.concatenate([_orthogonal(group) for group in groups], axis=1)


def _orthogonal(noise: Float[Array, "B N T X"]) -> Float[Array, "B N T X"]:
    columns = jnp.moveaxis(noise, 1, -1)  # [B, T, X, N]
    directions, triangle = jnp.linalg.qr(columns)
    # With a positive diagonal the directions are those of Gram-Schmidt, and uniform.
    signs = jnp.sign(jnp.diagonal(triangle, axis1=-2, axis2=-1))
    lengths = jnp.linalg.norm(columns, axis=-2)
    return jnp.moveaxis(directions * (signs * lengths)[..., None, :], -1, 1)


def diversity(actions: Float[Array, "B N T X"], taken: Array) -> Float[Array, "B N"]:
    """How far each trajectory's thoughts are from those of the others, from 0 (same directions) to 1 (opposite).

    The mean of (1 - cosine) / 2 over all other trajectories' thoughts of the same step; 0 where there is none.
    """
    unit = actions * jax.lax.rsqrt(jnp.sum(jnp.square(actions), axis=-1, keepdims=True) + 1e-12)
    cosine = jnp.einsum("bntx,bmtx->bnmt", unit, unit)
    others = ~jnp.eye(actions.shape[1], dtype=bool)[:, :, None]
    both = taken[:, :, None] & taken[:, None] & others
    total = jnp.sum((1 - cosine) / 2, axis=(2, 3), where=both)
    return total / jnp.maximum(jnp.sum(both, axis=(2, 3)), 1)
