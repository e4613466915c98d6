"""Grouped-query attention over several segments of keys and values.

A query sees the prompt, the thoughts before it, and itself. These lie in separate arrays, because the prompt's
keys and values are shared by all trajectories and never copied: each segment is attended by itself, and their
softmaxes are joined by the largest logit and the sums of all (as in Dao et al. 2022, arXiv:2205.14135).

Keys and values lie by heads, [O, K, P, C], so that a product with them is one batched matrix product and nothing is
transposed but queries and outputs: a cache is read at every thought and every token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Finite, so that a fully masked (padding) query yields garbage instead of NaN; nothing reads it.
_MASKED = -1e30


class Segment(NamedTuple):
    """Keys and values of one layer, and who may see them.

    Attributes:
      keys: Float [O, K, P, C], already rotated. O is the number of rows of the queries, or a divisor of it: then
        each is shared by consecutive rows, as a question's prompt is by its trajectories.
      values: Float [O, K, P, C].
      visible: Bool [O, Q, P] or [O, 1, P]; True where the query may look.
    """

    keys: Float[Array, "O K P C"]
    values: Float[Array, "O K P C"]
    visible: Bool[Array, "O _ P"]

    def by_owner(self, x: Float[Array, "B Q K G X"]) -> Float[Array, "O K R X"]:
        """Of queries: all that share the same keys as the R rows of one matrix."""
        owners, groups = self.keys.shape[:2]
        return (
            x.reshape(owners, -1, groups, *x.shape[3:]).swapaxes(1, 2).reshape(owners, groups, -1, x.shape[4])
        )

    def by_query(
        self, x: Float[Array, "O K R X"], like: Float[Array, "B Q K G C"]
    ) -> Float[Array, "B Q K G X"]:
        """The way back."""
        owners, groups = self.keys.shape[:2]
        apart = x.reshape(owners, groups, -1, like.shape[3], x.shape[-1]).swapaxes(1, 2)
        return apart.reshape(*like.shape[:-1], x.shape[-1])


def attend(queries: Float[Array, "B Q H C"], segments: tuple[Segment, ...]) -> Float[Array, "B Q H C"]:
    """Softmax attention of every query over the union of the segments; the softmax is in float32."""
    batch, length, heads, head_dim = queries.shape
    groups = segments[0].keys.shape[1]
    grouped = queries.reshape(batch, length, groups, heads // groups, head_dim)

    def logits(segment: Segment) -> Float[Array, "O K R P"]:
        owners, past = segment.visible.shape[0], segment.visible.shape[-1]
        products = jnp.einsum(
            "okrc,okpc->okrp",
            segment.by_owner(grouped),
            segment.keys,
            preferred_element_type=jnp.float32,
        )
        apart = products.reshape(owners, groups, batch // owners, length, heads // groups, past)
        visible = segment.visible[:, None, None, :, None]
        return jnp.where(visible, apart * head_dim**-0.5, _MASKED).reshape(products.shape)

    every = [logits(segment) for segment in segments]
    largest = [
        # A segment may have no position: the thoughts of a run that takes none.
        segment.by_query(
            jnp.max(jax.lax.stop_gradient(found), axis=-1, keepdims=True, initial=_MASKED), grouped
        )
        for segment, found in zip(segments, every, strict=True)
    ]
    top = largest[0]
    for other in largest[1:]:
        top = jnp.maximum(top, other)
    mixed, total = jnp.zeros(()), jnp.zeros(())
    for segment, found in zip(segments, every, strict=True):
        shares = jnp.exp(found - segment.by_owner(top))
        total += segment.by_query(jnp.sum(shares, axis=-1, keepdims=True), grouped)
        # In the dtype of the activations, so that its gradient is too.
        product = jnp.einsum("okrp,okpc->okrc", shares.astype(queries.dtype), segment.values)
        mixed += segment.by_query(product.astype(jnp.float32), grouped)
    return (mixed / total).astype(queries.dtype).reshape(queries.shape)
