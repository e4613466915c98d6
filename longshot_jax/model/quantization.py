"""Matrices in 8 bits: integers from -127 to 127, and one float32 factor for each output of each layer.

Symmetric, by the largest magnitude, weights only: activations keep their dtype, and the factor multiplies the product,
not the matrix (as in LLM.int8's vector-wise scheme, Dettmers et al. 2022, arXiv:2208.07339, without its outliers).
Embedding table, head and norms stay in bfloat16. For a backbone that is not trained.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_MOST = 127


def is_quantised(dtype: jax.typing.DTypeLike) -> bool:
    """Whether matrices of this dtype are stored with factors."""
    return jnp.dtype(dtype) == jnp.int8


def dtype_beside(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Dtype of the embedding table, head and norms, where the layers' matrices are stored in `dtype`."""
    return jnp.bfloat16 if is_quantised(dtype) else dtype


def quantise(matrix: Any, inputs: int) -> tuple[Any, Any]:
    """Values, int8, and factors, float32, of stacked matrices [L, ...inputs, ...outputs] in floating point.

    A NumPy array stays on the host. `inputs` is the number of input axes, which share a factor.
    """
    xp = np if isinstance(matrix, np.ndarray) else jnp
    axes = tuple(range(1, inputs + 1))
    largest = xp.max(xp.abs(matrix), axis=axes).astype(xp.float32)
    scale = xp.where(largest > 0, largest / _MOST, 1.0).astype(xp.float32)
    return xp.round(matrix / xp.expand_dims(scale, axes)).astype(xp.int8), scale


def widen(values: Array, scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """The matrices in float32."""
    axes = tuple(range(1, values.ndim - scale.ndim + 1))
    return values.astype(jnp.float32) * jnp.expand_dims(scale, axes)


def quantised_block(
    read: Callable[[Sequence[slice]], np.ndarray], shape: Sequence[int], inputs: int, of_scale: bool
) -> Callable[[Sequence[slice]], np.ndarray]:
    """A reader of any block of the int8 values (or, with `of_scale`, the factors) of matrices in floating point.

    A factor depends on all inputs of its output; one layer of them is in memory at a time.

    Args:
      read: reader of any block of the matrices.
      shape: of the matrices, [L, ...inputs, ...outputs]; inputs: number of input axes.
    """

    def block(index: Sequence[slice]) -> np.ndarray:
        layers = range(*index[0].indices(shape[0]))
        into, out = ([], index[1:]) if of_scale else (index[1 : inputs + 1], index[inputs + 1 :])
        result = None
        for place, layer in enumerate(layers):
            whole = read([slice(layer, layer + 1), *[slice(None)] * inputs, *out])
            values, scale = quantise(whole, inputs)
            part = scale[0] if of_scale else values[(0, *into)]
            if result is None:
                result = np.empty((len(layers), *part.shape), part.dtype)
            result[place] = part
        assert result is not None
        return result

    return block
