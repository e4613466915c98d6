"""Cross-trajectory attention: a thought reads what the other trajectories of its question did at earlier steps.

Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) from the reasoning state to the other trajectories'
recorded actions; see `thoughts.past` for why actions. It joins trajectories: they are no longer independent samples.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from longshot_jax.model.weights import normal, weight, zeros
from longshot_jax.thoughts.past import Past

# Finite, so that a thought that sees nobody yields a number, which the mask then removes.
HIDDEN = -1e30


class CrossAttention(nnx.Module):
    """Heads over the actions of the other trajectories; an older action loses weight by a learned slope per head."""

    def __init__(
        self, space: int, heads: int, rngs: nnx.Rngs, out_initializer: jax.nn.initializers.Initializer
    ):
        shape, axes = (space, heads, space // heads), ("reasoning", None, None)
        self.query = weight(rngs, shape, axes, normal(space**-0.5))
        self.key = weight(rngs, shape, axes, normal(space**-0.5))
        self.value = weight(rngs, shape, axes, normal(space**-0.5))
        self.age_slope = weight(rngs, (heads,), (None,), zeros())
        self.out = weight(rngs, (heads, space // heads, space), (None, None, "reasoning"), out_initializer)

    def __call__(
        self,
        state: Float[Array, "B N Q R"],
        positions: Float[Array, "B P R"],
        past: Past,
        steps: Int[Array, " Q"],
    ) -> Float[Array, "B N Q R"]:
        """What each state reads; zeros where no other trajectory has acted before. `positions`: of the actions."""
        visible = past.visible(steps) & ~past.own
        keys = jnp.einsum("bpr,rhc->bphc", positions, self.key[...])
        values = jnp.einsum("bpr,rhc->bphc", positions, self.value[...])
        queries = jnp.einsum("bnqr,rhc->bnqhc", state, self.query[...])
        logits = jnp.einsum("bnqhc,bphc->bnqhp", queries, keys) * queries.shape[-1] ** -0.5
        logits -= self.age_slope[...][:, None] * jnp.log1p(jnp.maximum(past.ages(steps), 0.0))[:, None]
        seen = visible[:, :, :, None]
        shares = jnp.where(seen, jax.nn.softmax(jnp.where(seen, logits, HIDDEN), axis=-1), 0.0)
        return jnp.einsum("bnqhp,bphc,hcr->bnqr", shares, values, self.out[...])
