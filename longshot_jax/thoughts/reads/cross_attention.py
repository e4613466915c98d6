"""Cross-trajectory attention: a thought reads the earlier actions of the question's other trajectories.

Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) from the reasoning state to recorded actions; see
`thoughts.reads.history` for why actions. Trajectories that read one another are no longer independent samples.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, zeros
from jaxtyping import Array, Float, Int

from longshot_jax.model.attention import MASKED
from longshot_jax.model.parameters import weight
from longshot_jax.thoughts.reads.history import History


class CrossAttention(nnx.Module):
    """Heads over the actions of the other trajectories, weighted by age with a learned slope per head."""

    def __init__(self, space: int, heads: int, rngs: nnx.Rngs, out_initializer: jax.nn.initializers.Initializer):
        shape, axes = (space, heads, space // heads), ("reasoning", None, None)
        self.query = weight(rngs, shape, axes, normal(space**-0.5))
        self.key = weight(rngs, shape, axes, normal(space**-0.5))
        self.value = weight(rngs, shape, axes, normal(space**-0.5))
        self.age_slope = weight(rngs, (heads,), (None,), zeros)
        self.out = weight(rngs, (heads, space // heads, space), (None, None, "reasoning"), out_initializer)

    def __call__(
        self,
        state: Float[Array, "B N Q R"],
        positions: Float[Array, "B P R"],
        history: History,
        steps: Int[Array, " Q"],
    ) -> Float[Array, "B N Q R"]:
        """What each state reads of the actions at `positions`; zeros where no other trajectory has acted before."""
        visible = history.visible(steps) & ~history.own
        keys = jnp.einsum("bpr,rhc->bphc", positions, self.key[...])
        values = jnp.einsum("bpr,rhc->bphc", positions, self.value[...])
        queries = jnp.einsum("bnqr,rhc->bnqhc", state, self.query[...])
        logits = jnp.einsum("bnqhc,bphc->bnqhp", queries, keys) * queries.shape[-1] ** -0.5
        logits -= self.age_slope[...][:, None] * jnp.log1p(jnp.maximum(history.ages(steps), 0.0))[:, None]
        seen = visible[:, :, :, None]
        shares = jnp.where(seen, jax.nn.softmax(jnp.where(seen, logits, MASKED), axis=-1), 0.0)
        return jnp.einsum("bnqhp,bphc,hcr->bnqr", shares, values, self.out[...])
