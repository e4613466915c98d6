"""Decoding: how a program that differentiates nothing holds and reads the weights.

A rollout or an evaluation reads every weight once for each thought and each token. It therefore runs from a copy of the
weights, made once in the program: in the compute dtype, to which every use would cast them, and placed so that no
device waits for another one's part within a layer's matrix (`DECODING_RULES`). Training keeps its own copy and
placement.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from longshot_jax.config.model import Decoding
from longshot_jax.model.sharding import AXES, constrain, gpu_options, on_mesh, traced_mesh
from longshot_jax.model.storage import as_used

# Name of a dimension of a weight or an activation -> mesh axes, by `config.mesh.decoding_weights`.
DECODING_RULES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "replicated": {"batch": AXES},
    "tensor": {"batch": ("data",), **dict.fromkeys(("vocab", "heads", "kv_heads", "mlp"), ("fsdp", "tensor"))},
}


def decoding_jit(
    function: Callable[..., Any], mesh: Mesh | None, placement: Decoding = "replicated", **options: Any
) -> Any:
    """`jax.jit` of a function that decodes, for the devices of `mesh`; None is the default device."""
    placed = on_mesh(mesh, function, DECODING_RULES[placement])
    return jax.jit(placed, compiler_options=gpu_options(mesh), **options)


def decoding_weights(weights: nnx.State, compute_dtype: DTypeLike | None = None, layer: int | None = None) -> nnx.State:
    """The weights to decode from, inside a function of `decoding_jit`; what already is as wanted stays uncopied.

    `weights` are a Llama's to be cast to `compute_dtype`, or others that keep their dtype if it is None; with `layer`,
    a copy of that layer of stacked ones.
    """
    if layer is not None:
        weights = jax.tree.map(lambda x: x[layer], weights)
    cast = weights if compute_dtype is None else as_used(weights, compute_dtype)

    def placed(before: nnx.Variable, after: nnx.Variable) -> nnx.Variable:
        value, axes = after[...], after.get_metadata("logical_axes")
        if layer is not None or value.dtype != before[...].dtype:
            # Without the barrier the compiler moves the wide weights between devices and casts, or cuts, at every use.
            value = jax.lax.optimization_barrier(value)
        return after.replace(constrain(value, *axes[-value.ndim :]))

    old, new = (dict(nnx.to_flat_state(state)) for state in (weights, cast))
    return nnx.from_flat_state({path: placed(old[path], new[path]) for path in new})


def is_copied(layers: nnx.State, compute_dtype: DTypeLike) -> bool:
    """Whether `decoding_weights` copies the matrices of stacked layers: casts them, or moves them between devices."""
    before, after = (jax.tree.leaves(state) for state in (layers, as_used(layers, compute_dtype)))
    largest = max(range(len(before)), key=lambda place: before[place].size)
    mesh = traced_mesh()
    return before[largest].dtype != after[largest].dtype or (mesh is not None and mesh.size > 1)
