"""One declaration gives a weight its shape, its logical axes and its initializer."""

import math
from collections.abc import Callable, Sequence

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
    """Declares a trainable weight.

    Args:
      rngs: the `params` stream gives the initial value.
      shape: dimensions of the weight.
      axes: one logical axis name per dimension; `longshot_jax.model.sharding` maps them to mesh axes.
      initializer: of `jax.nn.initializers`, or another function of (key, shape, dtype).
      dtype: of the stored (master) weight.
    """
    if len(shape) != len(axes):
        raise ValueError(f"a weight of shape {tuple(shape)} needs {len(shape)} axis names, got {tuple(axes)}")
    return nnx.Param(initializer(rngs.params(), tuple(shape), dtype), logical_axes=tuple(axes))


def normal(standard_deviation: float) -> jax.nn.initializers.Initializer:
    """Normal initializer with the given standard deviation."""
    return jax.nn.initializers.normal(standard_deviation)


def zeros() -> jax.nn.initializers.Initializer:
    """Zero initializer."""
    return jax.nn.initializers.zeros


def constant(value: float) -> jax.nn.initializers.Initializer:
    """Constant initializer."""
    return jax.nn.initializers.constant(value)


def apply_matrix(x: Float[Array, "..."], matrix: Num[Array, "..."], inputs: int = 1) -> Float[Array, "..."]:
    """Contracts the last `inputs` axes of x with the first ones of a matrix, in x's dtype.

    As one product of two-dimensional operands: with several leading axes the compiler transposes activations in
    the backward pass, which on a CPU costs more than the product itself.
    """
    batch, outputs = x.shape[: x.ndim - inputs], matrix.shape[inputs:]
    size = math.prod(matrix.shape[:inputs])
    rows = x.reshape(-1, size) @ matrix.astype(x.dtype).reshape(size, -1)
    return rows.reshape(*batch, *outputs)
