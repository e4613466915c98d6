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
      keys: Float [B, P, K, C], already rotated.
      values: Float [B, P, K, C].
      visible: Bool [B, Q, P] or [B, 1, P]; True where the query may look.
    """

    keys: Float[Array, "B P K C"]
    values: Float[Array, "B P K C"]
    visible: Bool[Array, "B _ P"]


def attend(queries: Float[Array, "B Q H C"], segments: tuple[Segment, ...]) -> Float[Array, "B Q H C"]:
    """Softmax attention of every query over the union of the segments; the softmax is in float32."""
    batch, length, heads, head_dim = queries.shape
    groups = segments[0].keys.shape[2]
    grouped = queries.reshape(batch, length, groups, heads // groups, head_dim)
    logits = [
        jnp.where(
            segment.visible[:, None, None],
            jnp.einsum("bqkgc,bpkc->bkgqp", grouped, segment.keys, preferred_element_type=jnp.float32)
            * head_dim**-0.5,
            _MASKED,
        )
        for segment in segments
    ]
    weights = jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1).astype(queries.dtype)
    output, start = 0.0, 0
    for segment in segments:
        stop = start + segment.keys.shape[1]
        output += jnp.einsum("bkgqp,bpkc->bqkgc", weights[..., start:stop], segment.values)
        start = stop
    return jnp.asarray(output).reshape(batch, length, heads, head_dim)
