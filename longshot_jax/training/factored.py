"""Adafactor's second moment (Shazeer & Stern 2018, arXiv:1804.04235), cut over the mesh like the weights it belongs to."""

from typing import Any

import jax
import optax
from flax import nnx

_TREES = ("v_row", "v_col", "v")


def factored_second_moment(least: int = 128) -> optax.GradientTransformation:
    """optax's factored rms, whose moments name the axes that they keep of their weight.

    Args:
      least: a weight whose second largest dimension is smaller keeps a whole second moment.
    """
    inner = optax.scale_by_factored_rms(min_dim_size_to_factor=least)

    def named(state: Any, weights: Any) -> Any:
        """The moments as variables with logical axes, in the structure of the weights."""
        structure = jax.tree.structure(weights)

        def name(weight: nnx.Variable, moment: nnx.Variable) -> nnx.Variable:
            if not jax.tree.leaves(weight):  # of another group
                return moment
            axes = kept_axes(weight.shape, weight.get_metadata("logical_axes"), moment.shape)
            return moment.replace(logical_axes=axes)

        trees = {
            tree: jax.tree.map(
                name, weights, jax.tree.unflatten(structure, getattr(state, tree)), is_leaf=_is_variable
            )
            for tree in _TREES
        }
        return state._replace(**trees)

    def init(weights: Any) -> Any:
        return named(inner.init(jax.tree.leaves(weights)), weights)

    def update(gradients: Any, state: Any, weights: Any = None) -> tuple[Any, Any]:
        bare = state._replace(**{tree: jax.tree.leaves(getattr(state, tree)) for tree in _TREES})
        leaves, structure = jax.tree.flatten(gradients)
        scaled, bare = inner.update(leaves, bare, jax.tree.leaves(weights))
        return jax.tree.unflatten(structure, jax.tree.leaves(scaled)), named(bare, gradients)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def kept_axes(
    shape: tuple[int, ...], axes: tuple[str | None, ...], kept: tuple[int, ...]
) -> tuple[str | None, ...]:
    """Axes of a moment of shape `kept`: all of its weight's, all but the one summed over, or none (a placeholder)."""
    if kept == shape:
        return axes
    for dropped in range(len(shape)):
        if shape[:dropped] + shape[dropped + 1 :] == kept:
            return axes[:dropped] + axes[dropped + 1 :]
    return (None,) * len(kept)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)
