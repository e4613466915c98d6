"""Gathering: a whole copy of sharded weights on every device, made once for all passes of an update.

Weights cut along `fsdp` (ZeRO-3: Rajbhandari et al. 2020, arXiv:1910.02054) are gathered where they are used: by default a
layer at a time, forward and again backward, in every micro-batch. With `config.mesh.gather = "model"` all are gathered
once a minibatch, in the compute dtype.
"""

from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from longshot_jax.model.sharding import constrain, partition_spec, traced_mesh
from longshot_jax.model.storage import as_used


def gathered(weights: nnx.State, compute_dtype: DTypeLike) -> nnx.State:
    """A Llama's weights in `compute_dtype`, whole along `fsdp`; unchanged on one device.

    Along `tensor` they stay cut. Inside a function of `sharding.on_mesh`. A cotangent is summed in the compute dtype, over all
    uses of a weight and over devices, each device keeping its part, and then has the dtype of its weight. A layer at a time,
    the uses are summed in the weight's own dtype.
    """
    mesh = traced_mesh()
    if mesh is None or mesh.size == 1:
        return weights
    old, used = (dict(nnx.to_flat_state(state)) for state in (weights, as_used(weights, compute_dtype)))
    whole = {}
    for path, variable in used.items():
        value, axes = old[path][...], variable.get_metadata("logical_axes")
        part = NamedSharding(mesh, partition_spec(value.shape, axes, mesh))
        whole[path] = variable.replace(_whole(axes, part, variable[...].dtype, value))
    return nnx.from_flat_state(whole)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _whole(axes: tuple[str | None, ...], part: NamedSharding, dtype: DTypeLike, value: jax.Array) -> jax.Array:
    # Without the barrier the compiler gathers the wide weights and casts them afterwards.
    whole = constrain(jax.lax.optimization_barrier(value.astype(dtype)), *axes)
    # Gathered along an inner dimension, a stack of layers would lie with that dimension outermost, and each layer would be
    # copied out of it, twice a pass.
    return with_layout_constraint(whole, Layout(tuple(range(whole.ndim))))


def _forward(axes: Any, part: Any, dtype: Any, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _whole(axes, part, dtype, value), value[..., :0]  # which knows the dtype and has no elements


def _backward(axes: Any, part: NamedSharding, dtype: Any, like: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    del axes, dtype
    return (jax.lax.with_sharding_constraint(cotangent, part).astype(like.dtype),)


_whole.defvjp(_forward, _backward)
