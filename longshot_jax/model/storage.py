"""A Llama's parameters in another form of storage: adapters merged, 8 bits widened, another dtype."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from longshot_jax.config.model import LoraConfig
from longshot_jax.errors import UserError, shown
from longshot_jax.model.lora import merged_matrix
from longshot_jax.model.quantization import is_quantised, quantise, widen


def float_dtype(dtype: Any) -> str:
    """`float32` or `bfloat16`, from a dtype of JAX, NumPy or PyTorch or a usual name; a UserError for another."""
    try:
        spelt = jnp.dtype(dtype).name
    except (TypeError, ValueError):
        spelt = str(dtype).lower().removeprefix("torch.")
    for known, short in (("float32", "fp32"), ("bfloat16", "bf16")):
        if spelt in (known, short):
            return known
    raise UserError(f"dtype is {shown(dtype)}: it may be 'float32' (or 'fp32') or 'bfloat16' (or 'bf16').")


def plain_weights(state: nnx.State, lora: LoraConfig | None, dtype: DTypeLike = jnp.float32) -> nnx.State:
    """The floating-point parameters of the equivalent Llama without adapters.

    `state` is that of a `Llama` with adapters of `lora`, which are merged in float32, or without adapters if `lora` is
    None. Returns the state of `Llama(config, weight_dtype=dtype)`.
    """
    stored = dict(iter(nnx.to_flat_state(state)))
    plain = {}
    for path, variable in stored.items():
        if "lora" in path or str(path[-1]).endswith("_scale"):
            continue
        value, name = variable[...], path[-1]
        if is_quantised(value.dtype):
            value = widen(value, stored[*path[:-1], f"{name}_scale"][...])
        if lora is not None and path[0] == "layers" and name in lora.targets:
            into, out = (stored["layers", "lora", f"{name}_{way}"][...] for way in ("in", "out"))
            value = merged_matrix(value, into, out, lora.scale)
        plain[path] = variable.replace(value.astype(dtype))
    return nnx.from_flat_state(plain)


def merge_states(**parts: nnx.State) -> nnx.State:
    """One state of the states of several submodules, by name."""
    return nnx.from_flat_state(
        {(name, *path): variable for name, part in parts.items() for path, variable in nnx.to_flat_state(part)}
    )


def as_used(state: nnx.State, dtype: DTypeLike) -> nnx.State:
    """A Llama's parameters as a pass in `dtype` casts them at every use; 8-bit matrices and their factors stay."""

    def cast(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        value = variable[...]
        kept = is_quantised(value.dtype) or str(path[-1]).endswith("_scale")
        return variable if kept else variable.replace(value.astype(dtype))

    return nnx.from_flat_state({path: cast(path, variable) for path, variable in nnx.to_flat_state(state)})


def cast_like(state: nnx.State, abstract: nnx.State) -> nnx.State:
    """The parameters of a plain Llama as `abstract` stores them, without the adapters of `abstract`."""
    wanted = dict(iter(nnx.to_flat_state(abstract)))
    stored = {}
    for path, variable in nnx.to_flat_state(state):
        value, aim = variable[...], wanted[path]
        if not is_quantised(aim.dtype):
            stored[path] = variable.replace(value.astype(aim.dtype))
            continue
        beside = (*path[:-1], f"{path[-1]}_scale")
        values, scale = quantise(value, aim.ndim - wanted[beside].ndim)
        stored[path], stored[beside] = variable.replace(values), wanted[beside].replace(scale)
    return nnx.from_flat_state(stored)
