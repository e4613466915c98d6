"""Sharding: which part of an array lies on which device, by logical axes of parameters and activations.

Parameters name their dimensions where they are declared (`model.parameters.weight`), and `RULES` maps these names to
mesh axes. Everything that mirrors a parameter (gradients, moments, the reference policy) is sharded like it. Data of
the train state (the memory bank) names its dimensions in `logical_axes` of its class. Batches are sharded along `data`
and `fsdp` jointly.

Without constraints the compiler follows the parameters: it shards activations along the hidden dimension, gives every
device the whole batch and sums over devices after every product. The model therefore constrains its activations: rows
to the devices that share the batch, heads and widths to `tensor`. The mesh is known only while a function is traced
(`on_mesh`); without a mesh nothing is constrained.
"""

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from longshot_jax.config.model import MeshConfig
from longshot_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axis -> mesh axis; None is a whole copy on every device.
RULES: Mapping[str, str | None] = {
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "layers": None,
    "head_dim": None,
    "norm": None,
    "reasoning": None,
    "slots": "fsdp",
    "rank": None,
}

# Name of a dimension of an activation -> mesh axes. Dimensions without a rule are whole on every device.
ActivationRules = Mapping[str, tuple[str, ...]]
ACTIVATION_RULES: ActivationRules = {
    "batch": ("data", "fsdp"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}

_P = ParamSpec("_P")
_R = TypeVar("_R")
_context: ContextVar[tuple[Mesh | AbstractMesh | None, ActivationRules]] = ContextVar(
    "context", default=(None, ACTIVATION_RULES)
)


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh of a run, over the first data x fsdp x tensor devices of all processes.

    Raises:
      UserError: a size is below 1, there are too few devices, or a run of several processes leaves devices unused.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    wanted, devices = math.prod(sizes.values()), jax.devices()
    shown = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    if min(sizes.values()) < 1:
        raise UserError(f"config.mesh is {shown}: every size must be at least 1.")
    if wanted > len(devices):
        near = _nearest(sizes, len(devices))
        raise UserError(
            f"config.mesh asks for {shown} = {wanted} devices, but there are {len(devices)}: "
            f"{' x '.join(f'{axis} {size}' for axis, size in near.items())} would fit."
        )
    if jax.process_count() > 1 and wanted != len(devices):
        raise UserError(
            f"config.mesh asks for {shown} = {wanted} devices, but the processes of this run have {len(devices)}: "
            "a run of several processes uses all of its devices."
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:wanted])


def _nearest(sizes: dict[str, int], available: int) -> dict[str, int]:
    """The sizes reduced until they fit the available devices, in the order of `AXES`: `data` first."""
    sizes = dict(sizes)
    for axis in AXES:
        others = math.prod(sizes.values()) // sizes[axis]
        sizes[axis] = max(min(sizes[axis], available // others), 1)
    return sizes


def partition_spec(
    shape: tuple[int, ...], logical_axes: tuple[str | None, ...], mesh: Mesh | AbstractMesh, name: str = "a weight"
) -> PartitionSpec:
    """How one parameter is sharded.

    Raises:
      UserError: two dimensions would lie along one mesh axis, or a mesh axis does not divide its dimension.
      KeyError: a logical axis has no rule.
    """
    parts: list[str | None] = []
    for size, logical in zip(shape, logical_axes, strict=True):
        axis = None if logical is None else RULES[logical]
        if axis is None or mesh.shape[axis] == 1:
            parts.append(None)
            continue
        if axis in parts:
            raise UserError(
                f"{name} has two dimensions along mesh axis {axis} (logical axes {logical_axes}): an axis can cut a "
                f"weight once, so set config.mesh.{axis} to 1."
            )
        if size % mesh.shape[axis]:
            near = max(n for n in range(1, mesh.shape[axis]) if size % n == 0)
            raise UserError(
                f"config.mesh.{axis} {mesh.shape[axis]} does not divide dimension {logical} of {name}, which is "
                f"{size}: {near} would."
            )
        parts.append(axis)
    return PartitionSpec(*parts)


def shardings(abstract: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A sharding for every leaf of a state: parameters, their mirrors and data by logical axes, all else replicated.

    NNX variables in `abstract` carry `logical_axes`. A dimension of data that its mesh axis does not divide stays
    whole; for a parameter this is an error, as in `partition_spec`.
    """
    whole = replicated(mesh)

    def named(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
        cuts = [RULES[axis] if axis else None for axis in axes]
        even = [cut if cut and size % mesh.shape[cut] == 0 else None for size, cut in zip(shape, cuts, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*even))

    def place(path: Any, node: Any) -> Any:
        if hasattr(type(node), "logical_axes"):
            fields = type(node).logical_axes
            return type(node)(**{name: named(getattr(node, name).shape, fields[name]) for name in fields})
        if not isinstance(node, nnx.Variable):
            return whole
        axes = node.get_metadata("logical_axes")
        name = jax.tree_util.keystr(path, simple=True, separator=".")

        def cut(leaf: Any) -> NamedSharding:
            return NamedSharding(mesh, partition_spec(tuple(leaf.shape), axes, mesh, name))

        return jax.tree.map(cut, node)

    def has_axes(node: Any) -> bool:
        return isinstance(node, nnx.Variable) or hasattr(type(node), "logical_axes")

    return jax.tree_util.tree_map_with_path(place, abstract, is_leaf=has_axes)


def with_sharding(abstract: Any, placement: Any) -> Any:
    """Shapes and dtypes with shardings, to compile a function for or to read a checkpoint into."""
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, placement)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis sharded over all devices that share the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Number of parts a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def platform_of(mesh: Mesh | AbstractMesh | None) -> str:
    """Platform of the devices of a mesh, or of the default device without one: `cpu`, `gpu` or `tpu`."""
    platform = mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else platform


def gpu_options(mesh: Mesh | AbstractMesh | None) -> dict[str, str] | None:
    """Compiler options of a program with weights, if the devices of its mesh are GPUs.

    XLA for GPUs joins small products with large ones that share an operand (an adapter's with its matrix's, a prompt's
    keys with an answer's) and copies the large operand to do so: at every token, and in every micro-batch.
    """
    return {"xla_gpu_dot_merger_threshold_mb": "0"} if platform_of(mesh) == "gpu" else None


def traced_mesh() -> Mesh | AbstractMesh | None:
    """The mesh for which a function is being traced; None without one."""
    return _context.get()[0]


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Host arrays of a whole batch on the mesh, sharded along their leading axis; scalars are replicated.

    Every process passes the same whole batch and keeps the rows of its own devices.
    """
    rows, whole = batch_sharding(mesh), replicated(mesh)
    places = jax.tree.map(lambda array: rows if np.ndim(array) else whole, batch)
    if jax.process_count() == 1:
        return jax.device_put(batch, places)

    def place(array: Any, target: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, target, lambda index: array[index])

    return jax.tree.map(place, batch, places)


def fetch(tree: Any) -> Any:
    """A tree of arrays as whole NumPy arrays on this host; every process must call it with the same tree."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def whole(leaf: Any) -> Any:
        # Only arrays that this process does not hold are transferred.
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def check_divides(count: int, key: str, mesh: Mesh | AbstractMesh) -> None:
    """UserError unless the devices that share a batch divide `count`, the value of the setting `key`."""
    parts = batch_parts(mesh)
    if count % parts:
        raise UserError(
            f"{key} {count} is not a multiple of the {parts} parts that config.mesh cuts a batch into "
            f"(data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}): {-(-count // parts) * parts} would be."
        )


def on_mesh(
    mesh: Mesh | AbstractMesh | None, function: Callable[_P, _R], rules: ActivationRules = ACTIVATION_RULES
) -> Callable[_P, _R]:
    """The function with its activations constrained to the mesh, to be jitted."""

    @wraps(function)
    def pinned(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        token = _context.set((mesh, rules))
        try:
            return function(*args, **kwargs)
        finally:
            _context.reset(token)

    return pinned


def axes_of(size: int, name: str | None) -> tuple[str, ...]:
    """Mesh axes along which `constrain` cuts a dimension: the first of its name's, as many as divide it."""
    mesh, rules = _context.get()
    if mesh is None or name is None:
        return ()
    axes = rules.get(name, ())
    while axes and size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains the sharding of an activation, with one name or None per dimension; values are unchanged.

    A batch of one question, or two heads on four devices, stay whole (`axes_of`).
    """
    mesh = traced_mesh()
    if mesh is None or mesh.size == 1:
        return x
    parts = [axes_of(size, name) or None for size, name in zip(x.shape, names, strict=True)]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*parts)))


def constrain_cache(x: jax.Array) -> jax.Array:
    """Constrains keys or values that trajectories add to a cache, [L, B, N, K, P, C]."""
    return constrain(x, None, "batch", None, "kv_heads", None, None)


def constrain_rows(tree: _R, axis: int = 0) -> _R:
    """Shards dimension `axis` of a tree's arrays over the devices that share the batch; smaller arrays stay."""

    def rows(x: jax.Array) -> jax.Array:
        if x.ndim <= axis:
            return x
        return constrain(x, *(None,) * axis, "batch", *(None,) * (x.ndim - axis - 1))

    return jax.tree.map(rows, tree)
