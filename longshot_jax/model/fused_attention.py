"""Attention through `jax.nn.dot_product_attention`: cuDNN's fused kernel on NVIDIA GPUs, or XLA's as its twin.

The kernel wants lengths rather than masks where it can have them, so a pass without context (the prompt, where most
positions are) is reordered: each row's real positions first, in their order, which makes it causal with a length.
A pass with context (thoughts and answers that see the prompt) takes a dense mask over the joined segments. One
position at a time is no work for such a kernel and stays with the plain attention.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from longshot_jax.errors import UserError
from longshot_jax.model.attention import Segment, attend

Attention = Literal["plain", "xla", "cudnn"]


def check_attention(attention: Attention, platform: str, compute_dtype: str, head_dim: int) -> None:
    """UserError where cuDNN's kernel cannot run.

    Args:
      attention: the setting.
      platform: of the devices, as `jax.Device.platform` names it; `gpu` is NVIDIA's or AMD's.
      compute_dtype: of activations. head_dim: C.
    """
    if attention != "cudnn":
        return
    ways = "take 'plain', or 'xla'."
    if platform not in ("gpu", "cuda"):
        raise UserError(
            f"config.model.attention 'cudnn' needs an NVIDIA GPU, and these devices are {platform}: {ways}"
        )
    if compute_dtype != "bfloat16":
        raise UserError(
            f"config.model.attention 'cudnn' computes in 16 bits, and config.model.compute_dtype is "
            f"{compute_dtype!r}: set it to 'bfloat16', or {ways}"
        )
    # 128 before Hopper; a larger one is left to the kernel's own word on the newer cards.
    if head_dim % 8 or head_dim > 256:
        raise UserError(
            f"config.model.attention 'cudnn' needs heads of at most 256 dimensions, a multiple of 8, and these have "
            f"{head_dim}: {ways}"
        )


def fused_attend(
    queries: Float[Array, "B Q H C"], segments: tuple[Segment, ...], implementation: Literal["xla", "cudnn"]
) -> Float[Array, "B Q H C"]:
    """The same as `attend`, for segments of which the last is the queries' own, causal but for its padding.

    What a query of a padding position gets is arbitrary, as it is there.
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
        """What rows share, once for each row that sees it."""
        return jnp.repeat(x, batch // x.shape[0], axis=0)

    def mask_of(segment: Segment) -> Bool[Array, "B Q P"]:
        visible = of_rows(segment.visible)
        return jnp.broadcast_to(visible, (batch, length, visible.shape[-1]))

    keys = jnp.concatenate([of_rows(segment.keys.swapaxes(1, 2)) for segment in segments], axis=1)
    values = jnp.concatenate([of_rows(segment.values.swapaxes(1, 2)) for segment in segments], axis=1)
    mask = jnp.concatenate([mask_of(segment) for segment in segments], axis=-1)
    # With a mask the kernel's backward pass wants even lengths.
    odd, past_odd = length % 2, keys.shape[1] % 2
    keys, values = (jnp.pad(x, ((0, 0), (0, past_odd), (0, 0), (0, 0))) for x in (keys, values))
    mask = jnp.pad(mask, ((0, 0), (0, odd), (0, past_odd)))
    padded = jnp.pad(queries, ((0, 0), (0, odd), (0, 0), (0, 0)))
    mixed = jax.nn.dot_product_attention(
        padded, keys, values, mask=mask[:, None], implementation=implementation
    )
    return mixed[:, :length]
