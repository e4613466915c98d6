"""Arrays of a state by path, their fingerprints, and their form in a checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32

# Components of an array's path in checkpoints before version 1 -> present components.
_RENAMED_COMPONENTS = {
    "llama": "backbone",
    "cross": "cross_attention",
    "number_weight": "count_weight",
    "number_bias": "count_bias",
}


def current_name(name: str) -> str:
    """The present path of an array that may have been stored before version 1."""
    return ".".join(_RENAMED_COMPONENTS.get(part, part) for part in name.split("."))


def named_arrays(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of `tree` by path, names joined by dots; Python numbers become arrays."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = ".".join(part for part in (prefix, name) if part) or "value"
        if name in named:
            raise ValueError(f"two arrays of the state have the path {name}")
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            array = jnp.asarray(leaf)
            if hasattr(leaf, "dtype") and array.dtype != leaf.dtype:
                raise TypeError(f"{name} is {leaf.dtype}, which JAX would narrow: convert it, or put it in `metadata`")
            leaf = array
        named[name] = leaf
    return named


def describe(leaf: Any, fingerprint: bool = False) -> dict[str, Any]:
    """Shape and dtype as JSON; with `fingerprint`, also the fingerprint, and the generator of a random key."""
    described = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    if fingerprint and leaf.size:
        described["fingerprint"] = int(fingerprint_of(key_bits(leaf)))
        if leaf.dtype != key_bits(leaf).dtype:
            described["generator"] = str(jax.random.key_impl(leaf))
    return described


@jax.jit
def fingerprint_of(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Sum over elements of their bits times an odd weight made from the position, modulo 2³².

    Integer sums do not depend on order, so the fingerprint does not depend on sharding. Odd weights make every change
    of a single element visible. Arrays are not reshaped, because that would move sharded arrays.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype.itemsize == 8:
        words = jax.lax.bitcast_convert_type(array, jnp.uint32)
    elif jnp.issubdtype(array.dtype, jnp.integer):
        words = array.astype(jnp.uint32)  # also integers of less than a byte
    else:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    weight = jnp.full(words.shape, 0x9E3779B9, jnp.uint32)
    for axis in range(words.ndim):
        weight = (weight ^ jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)) * jnp.uint32(0x85EBCA6B)
        weight = weight ^ (weight >> 15)
    return jnp.sum(words * (weight | 1), dtype=jnp.uint32)


def key_bits(array: Any) -> Any:
    """The words of a typed random key; other arrays unchanged."""
    return jax.random.key_data(array) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array


def placement_of(leaf: Any) -> jax.sharding.Sharding:
    """The sharding of a template's leaf, by default the first local device."""
    return leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def stored_form(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a leaf in the file; the words of a key are a trailing axis, which no partition spec names."""
    bits = jax.eval_shape(key_bits, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(bits.shape, bits.dtype, sharding=placement_of(leaf))
