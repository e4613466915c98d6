"""Grouped-query attention over several segments of keys and values, in plain JAX or by cuDNN's or XLA's kernel.

A query sees the prompt, the thoughts before it, and itself. These lie in separate arrays, because the prompt's keys and
values are shared by all trajectories and never copied: each segment is attended by itself, and the softmaxes are joined
by the largest logit and the sums of all (as in Dao et al. 2022, arXiv:2205.14135). Keys and values are stored by heads,
[O, K, P, C], so a product with them is one batched matrix product and only queries and outputs are transposed: a cache
is read at every thought and every token.

cuDNN's fused kernel prefers lengths to masks, so a pass without context (the prompt, where most positions are) moves
each row's real positions to the front, in order, which makes it causal with a length. A pass with context (thoughts and
answers) takes a dense mask over the concatenated segments. A single position gains nothing from the kernel and uses the
plain attention.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from longshot_jax.config.model import Attention
from longshot_jax.errors import UserError
from longshot_jax.model.parameters import wide_product

# Logit of masked positions. Finite, so that a fully masked (padding) query yields garbage instead of NaN.
MASKED = -1e30


class Segment(NamedTuple):
    """Keys and values of one layer, and their mask.

    Attributes:
      keys, values: Float [O, K, P, C], keys already rotated. O is the number of query rows or a divisor of it; then
        consecutive rows share keys, as a question's trajectories share its prompt.
      visible: Bool [O, Q, P] or [O, 1, P]; True where a query may attend.
    """

    keys: Float[Array, "O K P C"]
    values: Float[Array, "O K P C"]
    visible: Bool[Array, "O _ P"]

    def by_owner(self, x: Float[Array, "B Q K G X"]) -> Float[Array, "O K R X"]:
        """Stacks the queries that share keys as the R rows of one matrix."""
        owners, groups = self.keys.shape[:2]
        return x.reshape(owners, -1, groups, *x.shape[3:]).swapaxes(1, 2).reshape(owners, groups, -1, x.shape[4])

    def by_query(self, x: Float[Array, "O K R X"], like: Float[Array, "B Q K G C"]) -> Float[Array, "B Q K G X"]:
        """Inverse of `by_owner`."""
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
        products = wide_product("okrc,okpc->okrp", segment.by_owner(grouped), segment.keys)
        apart = products.reshape(owners, groups, batch // owners, length, heads // groups, past)
        visible = segment.visible[:, None, None, :, None]
        return jnp.where(visible, apart * head_dim**-0.5, MASKED).reshape(products.shape)

    every = [logits(segment) for segment in segments]
    largest = [
        # `initial`, because a segment may be empty: the thoughts of a run without thoughts.
        segment.by_query(jnp.max(jax.lax.stop_gradient(found), axis=-1, keepdims=True, initial=MASKED), grouped)
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


def check_attention(attention: Attention, platform: str, compute_dtype: str, head_dim: int) -> None:
    """UserError where cuDNN's kernel cannot run. `platform` is `jax.Device.platform`; `gpu` is NVIDIA or AMD."""
    if attention != "cudnn":
        return
    ways = "take 'plain', or 'xla'."
    if platform not in ("gpu", "cuda"):
        raise UserError(f"config.model.attention 'cudnn' needs an NVIDIA GPU, and these devices are {platform}: {ways}")
    if compute_dtype != "bfloat16":
        raise UserError(
            f"config.model.attention 'cudnn' computes in 16 bits, and config.model.compute_dtype is "
            f"{compute_dtype!r}: set it to 'bfloat16', or {ways}"
        )
    # The limit is 128 before Hopper; there the kernel itself rejects larger heads.
    if head_dim % 8 or head_dim > 256:
        raise UserError(
            f"config.model.attention 'cudnn' needs heads of at most 256 dimensions, a multiple of 8, and these have "
            f"{head_dim}: {ways}"
        )


def fused_attend(
    queries: Float[Array, "B Q H C"], segments: tuple[Segment, ...], implementation: Literal["xla", "cudnn"]
) -> Float[Array, "B Q H C"]:
    """`attend` by a fused kernel; the last segment must be the queries' own, causal except for padding.

    Outputs of padding queries are arbitrary, as in `attend`.
    """
    if queries.shape[1] == 1:
        return attend(queries, segments)
    if len(segments) == 1:
        return _causal(queries, segments[0], implementation)
    return _masked(queries, segments, implementation)


def _causal(queries, own: Segment, implementation):
    real = own.visible[:, -1]  # the last position sees every real one
    order = jnp.argsort(~real, axis=1, stable=True)
    lengths = jnp.sum(real, axis=1, dtype=jnp.int32)

    def sorted_rows(x):
        return jnp.take_along_axis(x, order[..., None, None], axis=1)

    mixed = jax.nn.dot_product_attention(
        sorted_rows(queries),
        sorted_rows(own.keys.swapaxes(1, 2)),
        sorted_rows(own.values.swapaxes(1, 2)),
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return jnp.take_along_axis(mixed, jnp.argsort(order, axis=1)[..., None, None], axis=1)


def _masked(queries, segments: tuple[Segment, ...], implementation):
    batch, length = queries.shape[:2]

    def of_rows(x):
        """Repeats shared rows for each query row that sees them."""
        return jnp.repeat(x, batch // x.shape[0], axis=0)

    def mask_of(segment: Segment) -> Bool[Array, "B Q P"]:
        visible = of_rows(segment.visible)
        return jnp.broadcast_to(visible, (batch, length, visible.shape[-1]))

    keys = jnp.concatenate([of_rows(segment.keys.swapaxes(1, 2)) for segment in segments], axis=1)
    values = jnp.concatenate([of_rows(segment.values.swapaxes(1, 2)) for segment in segments], axis=1)
    mask = jnp.concatenate([mask_of(segment) for segment in segments], axis=-1)
    # With a mask, the kernel's backward pass requires even lengths.
    odd, past_odd = length % 2, keys.shape[1] % 2
    keys, values = (jnp.pad(x, ((0, 0), (0, past_odd), (0, 0), (0, 0))) for x in (keys, values))
    mask = jnp.pad(mask, ((0, 0), (0, odd), (0, past_odd)))
    padded = jnp.pad(queries, ((0, 0), (0, odd), (0, 0), (0, 0)))
    mixed = jax.nn.dot_product_attention(padded, keys, values, mask=mask[:, None], implementation=implementation)
    return mixed[:, :length]
