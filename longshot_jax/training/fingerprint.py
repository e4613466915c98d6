"""A number that stands for the bits of an array, the same however the array is laid out over devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32


@jax.jit
def fingerprint_of(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Sum over elements of bits times an odd weight made from the position, modulo 2³².

    Integer sums do not depend on order, so neither does the fingerprint on sharding. An odd weight makes any
    change of a single element visible; reshapes are avoided because they would move sharded arrays.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype.itemsize == 8:
        words = jax.lax.bitcast_convert_type(array, jnp.uint32)
    elif jnp.issubdtype(array.dtype, jnp.integer):
        words = array.astype(jnp.uint32)  # also the integers of less than a byte
    else:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    weight = jnp.full(words.shape, 0x9E3779B9, jnp.uint32)
    for axis in range(words.ndim):
        weight = (weight ^ jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)) * jnp.uint32(0x85EBCA6B)
        weight = weight ^ (weight >> 15)
    return jnp.sum(words * (weight | 1), dtype=jnp.uint32)
