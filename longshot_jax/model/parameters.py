"""Declare parameters with their shape, logical axes and initializer."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num


def weight(
    rngs: nnx.Rngs,
    shape: Sequence[int],
    axes: Sequence[str | None],
    initializer: Callable[[jax.Array, tuple[int, ...], jax.typing.DTypeLike], jax.Array],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> nnx.Param:
    """Declares a trainable parameter.

    Args:
      rngs: the `params` stream gives the initial value.
      axes: one logical axis name per dimension; `model.sharding` maps them to mesh axes.
      initializer: of `jax.nn.initializers`, or another function of (key, shape, dtype).
      dtype: of the stored (master) parameter.
    """
    if len(shape) != len(axes):
        raise ValueError(f"a weight of shape {tuple(shape)} needs {len(shape)} axis names, got {tuple(axes)}")
    return nnx.Param(initializer(rngs.params(), tuple(shape), dtype), logical_axes=tuple(axes))


def apply_matrix(x: Float[Array, "..."], matrix: Num[Array, "..."], inputs: int = 1) -> Float[Array, "..."]:
    """Contracts the last `inputs` axes of x with the first ones of a matrix, in x's dtype.

    Uses one product of two-dimensional operands: with several leading axes the compiler transposes activations in the
    backward pass, which on a CPU costs more than the product itself.
    """
    batch, outputs = x.shape[: x.ndim - inputs], matrix.shape[inputs:]
    size = math.prod(matrix.shape[:inputs])
    rows = x.reshape(-1, size) @ matrix.astype(x.dtype).reshape(size, -1)
    return rows.reshape(*batch, *outputs)


def wide_product(subscripts: str, x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """An einsum of operands of one dtype, accumulated and returned in float32.

    Below float32, cotangents are rounded to the dtype of the operands. Otherwise the backward pass would widen the
    operands (an output table, all keys) and multiply in float32.
    """
    if x.dtype == y.dtype and jnp.finfo(x.dtype).bits < 32:
        return _wide_product(subscripts, x, y)
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide_product(subscripts, x, y):
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _forward(subscripts, x, y):
    return _wide_product(subscripts, x, y), (x, y)


def _backward(subscripts, operands, cotangent):
    _, transposed = jax.vjp(partial(jnp.einsum, subscripts), *operands)
    return transposed(cotangent.astype(operands[0].dtype))


_wide_product.defvjp(_forward, _backward)
