"""Where activations and caches lie on a mesh: said at the places that the compiler cannot guess.

Weights say by themselves how they are cut (`model.sharding`). Between them the compiler is free, and left alone it
follows the weights: it cuts activations along the hidden dimension, like the `fsdp` parts of a weight, gives every
device the whole batch and sums over devices after every product. So the model pins its activations: rows to the
devices that share the batch, heads and widths to `tensor`.

The mesh is known while a function is traced (`on_mesh`) and only then; without one nothing is pinned, and code that
runs on one device needs to know nothing of it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from math import prod
from typing import ParamSpec, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

# Name of a dimension of an activation -> axes of the mesh. What has no name is whole on every device.
ACTIVATION_RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}

_P = ParamSpec("_P")
_R = TypeVar("_R")
_mesh: ContextVar[Mesh | AbstractMesh | None] = ContextVar("mesh", default=None)


@contextmanager
def activations_on(mesh: Mesh | AbstractMesh | None) -> Iterator[None]:
    """What is traced inside pins its activations to the mesh."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def on_mesh(mesh: Mesh | AbstractMesh | None, function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function with its activations pinned to the mesh, to be jitted."""

    @wraps(function)
    def pinned(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with activations_on(mesh):
            return function(*args, **kwargs)

    return pinned


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins an activation, one name or None a dimension; values are unchanged.

    A dimension that its axes do not divide stays whole: a batch of one question, or two heads on four devices.
    """
    mesh = _mesh.get()
    if mesh is None or mesh.size == 1:
        return x
    parts = []
    for size, name in zip(x.shape, names, strict=True):
        axes = () if name is None else ACTIVATION_RULES[name]
        parts.append(axes if axes and size % prod(mesh.shape[axis] for axis in axes) == 0 else None)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*parts)))


def constrain_cache(x: jax.Array) -> jax.Array:
    """Pins what trajectories add to a cache: keys or values [L, B, N, K, P, C]."""
    return constrain(x, None, "batch", None, "kv_heads", None, None)


def constrain_rows(tree: _R, axis: int = 0) -> _R:
    """Pins dimension `axis` of every array of a tree to the devices that share the batch; smaller arrays stay."""

    def rows(x: jax.Array) -> jax.Array:
        if x.ndim <= axis:
            return x
        return constrain(x, *(None,) * axis, "batch", *(None,) * (x.ndim - axis - 1))

    return jax.tree.map(rows, tree)
