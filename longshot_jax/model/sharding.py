"""Which part of which array lies on which device: logical axes of weights -> axes of a mesh.

Every weight names its dimensions when it is declared (`model.weights.weight`); `RULES` says along which mesh axis a
named dimension is cut. Everything that mirrors a weight (gradients, moments, the reference policy) is cut like it.
Data of the train state (the memory bank) names its dimensions in `logical_axes` of its class.
Batches are cut along `data` and `fsdp` jointly, and the compiler derives the rest.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from longshot_jax.config import MeshConfig
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


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh of a run, over the first data x fsdp x tensor devices of all processes.

    Raises:
      UserError: a size below 1, more devices than there are, or, in a run of several processes, not all of them.
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
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:wanted]
    )


def _nearest(sizes: dict[str, int], available: int) -> dict[str, int]:
    """The sizes with as many as possible kept: the axis cut least painfully goes first (copies, then parts)."""
    sizes = dict(sizes)
    for axis in AXES:
        others = math.prod(sizes.values()) // sizes[axis]
        sizes[axis] = max(min(sizes[axis], available // others), 1)
    return sizes


def partition_spec(
    shape: tuple[int, ...],
    logical_axes: tuple[str | None, ...],
    mesh: Mesh | AbstractMesh,
    rules: Mapping[str, str | None] = RULES,
    name: str = "a weight",
) -> PartitionSpec:
    """How one weight is cut.

    Raises:
      UserError: two dimensions would lie along one mesh axis, or a mesh axis does not divide its dimension.
      KeyError: a logical axis without a rule.
    """
    parts: list[str | None] = []
    for size, logical in zip(shape, logical_axes, strict=True):
        axis = None if logical is None else rules[logical]
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


def shardings(abstract: Any, mesh: Mesh | AbstractMesh, rules: Mapping[str, str | None] = RULES) -> Any:
    """A sharding for every leaf of a state: weights, what mirrors them and data by their axes, all else as copies.

    A dimension of data that its mesh axis does not divide stays whole; of a weight this is an error.

    Args:
      abstract: any pytree; NNX variables in it carry `logical_axes`.
      mesh: of `make_mesh`.
      rules: logical axis -> mesh axis.

    Raises:
      UserError: see `partition_spec`.
    """
    whole = replicated(mesh)

    def named(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
        cuts = [rules[axis] if axis else None for axis in axes]
        even = [
            cut if cut and size % mesh.shape[cut] == 0 else None
            for size, cut in zip(shape, cuts, strict=True)
        ]
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
            return NamedSharding(mesh, partition_spec(tuple(leaf.shape), axes, mesh, rules, name))

        return jax.tree.map(cut, node)

    def has_axes(node: Any) -> bool:
        return isinstance(node, nnx.Variable) or hasattr(type(node), "logical_axes")

    return jax.tree_util.tree_map_with_path(place, abstract, is_leaf=has_axes)


def placed(abstract: Any, places: Any) -> Any:
    """Shapes and dtypes with their shardings: what a function is compiled for, and what a checkpoint is read into."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, places
    )


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis cut over all devices that share the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Number of parts a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Host arrays of a whole batch onto the mesh: cut along their leading axis, scalars as copies.

    Every process gives the same whole batch and keeps the rows of its own devices.
    """
    rows, whole = batch_sharding(mesh), replicated(mesh)

    def place(array: Any) -> jax.Array:
        array = np.asarray(array)
        target = rows if array.ndim else whole
        if jax.process_count() == 1:
            return jax.device_put(array, target)
        return jax.make_array_from_callback(array.shape, target, lambda index: array[index])

    return jax.tree.map(place, batch)


def fetch(tree: Any) -> Any:
    """A tree of arrays as NumPy on this host, whole, in one transfer."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def whole(leaf: Any) -> Any:
        # Only what other processes hold has to travel; every process comes here with the same tree.
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
