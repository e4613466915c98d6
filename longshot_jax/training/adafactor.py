"""Adafactor's second moment (Shazeer & Stern 2018, arXiv:1804.04235), sharded like its parameter."""

from typing import Any

import jax
import optax
from flax import nnx

_TREES = ("v_row", "v_col", "v")


def factored_second_moment() -> optax.GradientTransformation:
    """`optax.scale_by_factored_rms` whose moments have the logical axes of their parameters.

    A parameter whose second largest dimension is below 128 has an unfactored second moment.
    """
    inner = optax.scale_by_factored_rms(min_dim_size_to_factor=128)

    def named(state: Any, params: Any) -> Any:
        """Moments as variables with logical axes, in the structure of the parameters."""
        structure = jax.tree.structure(params)

        def name(weight: nnx.Variable, moment: nnx.Variable) -> nnx.Variable:
            if not jax.tree.leaves(weight):  # masked: it belongs to another group
                return moment
            axes = kept_axes(weight.shape, weight.get_metadata("logical_axes"), moment.shape)
            return moment.replace(logical_axes=axes)

        trees = {
            tree: jax.tree.map(name, params, jax.tree.unflatten(structure, getattr(state, tree)), is_leaf=_is_variable)
            for tree in _TREES
        }
        return state._replace(**trees)

    def init(params: Any) -> Any:
        return named(inner.init(jax.tree.leaves(params)), params)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        bare = state._replace(**{tree: jax.tree.leaves(getattr(state, tree)) for tree in _TREES})
        leaves, structure = jax.tree.flatten(gradients)
        scaled, bare = inner.update(leaves, bare, jax.tree.leaves(params))
        return jax.tree.unflatten(structure, jax.tree.leaves(scaled)), named(bare, gradients)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def kept_axes(shape: tuple[int, ...], axes: tuple[str | None, ...], kept: tuple[int, ...]) -> tuple[str | None, ...]:
    """Logical axes of a moment of shape `kept`: its parameter's without the axis summed over; None in a placeholder."""
    if kept == shape:
        return axes
    for dropped in range(len(shape)):
        if shape[:dropped] + shape[dropped + 1 :] == kept:
            return axes[:dropped] + axes[dropped + 1 :]
    return (None,) * len(kept)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)
