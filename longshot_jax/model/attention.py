"""Grouped-query attention over several segments of keys and values, in plain JAX or by cuDNN's or XLA's kernel.

A query sees the prompt, the thoughts before it, and itself. These lie in separate arrays, because the prompt's keys and
values are shared by all trajectories and never copied: each segment is attended by itself, and the softmaxes are joined
by the largest logit and the sums of all (as in Dao et al. 2022, arXiv:2205.14135). Keys and values are stored by heads,
[O, K, P, C], so a product with them is one batched matrix product and only queries and outputs are transposed: a cache
is read at every thought and every token.

cuDNN's fused kernel prefers lengths to masks, so a pass without context (the prompt, where most positions are) moves
each row's real positions to the front, in order and once for all layers, which makes it causal with a length. A pass with context (thoughts and
answers) takes a dense mask over the concatenated segments. A single position gains nothing from the kernel and uses the
plain attention.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.config.model import Attention, Implementation
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


def chosen_attention(attention: Attention, device: Any, compute_dtype: str, head_dim: int) -> Implementation:
    """The attention of a setting on a `jax.Device`: `auto` is `cudnn` where its kernel runs, else `plain`."""
    if attention != "auto":
        return attention
    # The kernel needs an NVIDIA GPU of compute capability 8.0; AMD's have names such as gfx942.
    major = str(getattr(device, "compute_capability", "0")).partition(".")[0]
    runs = device.platform in ("gpu", "cuda") and major.isdecimal() and int(major) >= 8
    return "cudnn" if runs and compute_dtype == "bfloat16" and not head_dim % 8 and head_dim <= 128 else "plain"


def check_attention(attention: Attention, platform: str, compute_dtype: str, head_dim: int) -> None:
    """UserError where cuDNN's kernel is asked for and cannot run. `platform` is `jax.Device.platform`."""
    if attention != "cudnn":
        return
    ways = "take 'auto', 'plain' or 'xla'."
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


class Branches(NamedTuple):
    """Queries of prompts, then of everything that continues each prompt, as one row [S + N Q] a prompt.

    Attributes:
      prompts: Bool [B, S, S], who sees whom in a prompt; its last position sees all that is real.
      rows: Bool [B N, Q, Q], who sees whom in each continuation; all of it sees its prompt.
    """

    prompts: Bool[Array, "B S S"]
    rows: Bool[Array, "R Q Q"]

    def attend(
        self,
        attention: Callable[[Array, tuple[Segment, ...]], Array],
        queries: Float[Array, "B P H C"],
        keys: Float[Array, "B K P C"],
        values: Float[Array, "B K P C"],
    ) -> Float[Array, "B P H C"]:
        """`attention` of the prompts, and of their continuations over prompt and themselves."""
        batch, length = self.prompts.shape[:2]
        rows, after = self.rows.shape[:2]

        def apart(x: Float[Array, "B K P C"]) -> Float[Array, "R K Q C"]:
            """Keys or values of the continuations, each a row."""
            cut = x[:, :, length:].reshape(batch, x.shape[1], -1, after, x.shape[3])
            return cut.swapaxes(1, 2).reshape(rows, x.shape[1], after, x.shape[3])

        own = keys[:, :, :length], values[:, :, :length]
        first = attention(queries[:, :length], (Segment(*own, self.prompts),))
        later = attention(
            queries[:, length:].reshape(rows, after, *queries.shape[2:]),
            (Segment(*own, self.prompts[:, -1:]), Segment(apart(keys), apart(values), self.rows)),
        )
        return jnp.concatenate([first, later.reshape(batch, -1, *queries.shape[2:])], axis=1)


class PaddingLast(NamedTuple):
    """Moves each row's real positions to the front, in order.

    Attributes:
      order, inverse: Int [B, P], where each position comes from, and the way back.
    """

    order: Int[Array, "B P"]
    inverse: Int[Array, "B P"]

    @classmethod
    def of(cls, mask: Bool[Array, "B P"]) -> "PaddingLast":
        """The order of a mask that is True at real positions."""
        order = jnp.argsort(~mask, axis=1, stable=True)
        return cls(order, jnp.argsort(order, axis=1))

    def apply(self, x: Array, batch: int = 0, axis: int = 1) -> Array:
        """x with its positions, which lie along `axis`, in this order."""
        shape = [x.shape[place] if place in (batch, axis) else 1 for place in range(x.ndim)]
        return _reordered(x, self.order.reshape(shape), self.inverse.reshape(shape), axis)

    def undo(self, x: Array, batch: int = 0, axis: int = 1) -> Array:
        """The inverse of `apply`."""
        return PaddingLast(self.inverse, self.order).apply(x, batch, axis)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _reordered(x, order, inverse, axis):
    return jnp.take_along_axis(x, order, axis=axis)


def _reorder(x, order, inverse, axis):
    return _reordered(x, order, inverse, axis), (order, inverse)


def _reorder_back(axis, orders, cotangent):
    """Takes the inverse order, where the gradient of `take_along_axis` would add rows one by one."""
    order, inverse = orders
    nothing = np.zeros(order.shape, jax.dtypes.float0)
    return _reordered(cotangent, inverse, order, axis), nothing, nothing


_reordered.defvjp(_reorder, _reorder_back)


def fused_attend(
    queries: Float[Array, "B Q H C"], segments: tuple[Segment, ...], implementation: Literal["xla", "cudnn"]
) -> Float[Array, "B Q H C"]:
    """`attend` by a fused kernel; the last segment must be the queries' own, causal except for padding.

    Where it is the only one, padding must follow what is real (`PaddingLast`). Outputs of padding queries are
    arbitrary, as in `attend`.
    """
    if queries.shape[1] <= 1:  # a call without positions, as T = 0 makes, seems to end the process in cuDNN
        return attend(queries, segments)
    if len(segments) == 1:
        return _causal(queries, segments[0], implementation)
    return _masked(queries, segments, implementation)


def _even(x: Array, axis: int = 1) -> Array:
    """x with zeros at the end of an axis of odd length: the kernel's backward pass requires even lengths."""
    return jnp.pad(x, [(0, x.shape[axis] % 2 if place == axis else 0) for place in range(x.ndim)])


def _causal(queries, own: Segment, implementation):
    length = queries.shape[1]
    lengths = jnp.sum(own.visible[:, -1], axis=1, dtype=jnp.int32)  # the last position sees every real one
    mixed = jax.nn.dot_product_attention(
        _even(queries),
        _even(own.keys.swapaxes(1, 2)),
        _even(own.values.swapaxes(1, 2)),
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return mixed[:, :length]


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
    mixed = jax.nn.dot_product_attention(
        _even(queries),
        _even(keys),
        _even(values),
        mask=_even(_even(mask, 1), 2)[:, None],
        implementation=implementation,
    )
    return mixed[:, :length]
