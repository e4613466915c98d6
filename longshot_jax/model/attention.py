"""Grouped-query attention over several segments of keys and values.

A query sees the prompt, the thoughts before it, and itself. These lie in separate arrays, because the prompt's
keys and values are shared by all trajectories and never copied: each segment gives its logits, one softmax
runs over all of them.
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
      keys: Float [O, P, K, C], already rotated. O is the number of rows of the queries, or a divisor of it: then
        each is shared by consecutive rows, as a question's prompt is by its trajectories.
      values: Float [O, P, K, C].
      visible: Bool [O, Q, P] or [O, 1, P]; True where the query may look.
    """

    keys: Float[Array, "O P K C"]
    values: Float[Array, "O P K C"]
    visible: Bool[Array, "O _ P"]


def attend(queries: Float[Array, "B Q H C"], segments: tuple[Segment, ...]) -> Float[Array, "B Q H C"]:
    """Softmax attention of every query over the union of the segments; the softmax is in float32."""
    batch, length, heads, head_dim = queries.shape
    groups = segments[0].keys.shape[2]

    def logits(segment: Segment) -> Float[Array, "B Q K G P"]:
        owners, past = segment.visible.shape[0], segment.visible.shape[-1]
        sharing = batch // owners
        # The queries of all rows that share these keys are one matrix.
        grouped = queries.reshape(owners, sharing * length, groups, heads // groups, head_dim)
        products = jnp.einsum("oqkgc,opkc->oqkgp", grouped, segment.keys, preferred_element_type=jnp.float32)
        products = products.reshape(owners, sharing, length, groups, heads // groups, past)
        visible = segment.visible[:, None, :, None, None]
        products = jnp.where(visible, products * head_dim**-0.5, _MASKED)
        return products.reshape(batch, length, groups, heads // groups, past)

    weights = jax.nn.softmax(jnp.concatenate([*map(logits, segments)], axis=-1), axis=-1)
    weights = weights.astype(queries.dtype)
    output, start = 0.0, 0
    for segment in segments:
        owners, past = segment.visible.shape[0], segment.visible.shape[-1]
        share = weights[..., start : start + past]
        share = share.reshape(owners, batch // owners * length, groups, heads // groups, past)
        mixed = jnp.einsum("oqkgp,opkc->oqkgc", share, segment.values)
        output += mixed.reshape(batch, length, heads, head_dim)
        start += past
    return jnp.asarray(output)
