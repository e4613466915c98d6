"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) beside the stacked matrices of a Llama.

A matrix W becomes W + (alpha / rank) · A B, where A maps the input axes of W to `rank` numbers and B maps these to its
output axes. B starts at zero, so an adapted model starts as the unadapted one. W is not trained and may be quantised; A
and B are float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, zeros
from jaxtyping import Array, Float

from longshot_jax.config.model import LoraConfig
from longshot_jax.errors import UserError
from longshot_jax.model.parameters import apply_matrix, weight


@dataclass(frozen=True)
class Matrix:
    """Input and output axes of one matrix of every layer: their sizes and logical names."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_axes: tuple[str, ...]
    output_axes: tuple[str, ...]

    @property
    def most_rank(self) -> int:
        """The largest possible rank."""
        return min(prod(self.inputs), prod(self.outputs))


class Adapters(nnx.Module):
    """The adapters of all layers, stacked on a leading axis L like the matrices; called with the slice of one layer."""

    def __init__(self, config: LoraConfig, matrices: Mapping[str, Matrix], depth: int, rngs: nnx.Rngs):
        self.config = config
        for name in config.targets:
            matrix = matrices[name]
            into = weight(
                rngs,
                (depth, *matrix.inputs, config.rank),
                ("layers", *matrix.input_axes, "rank"),
                normal(prod(matrix.inputs) ** -0.5),
            )
            out = weight(rngs, (depth, config.rank, *matrix.outputs), ("layers", "rank", *matrix.output_axes), zeros)
            setattr(self, f"{name}_in", into)
            setattr(self, f"{name}_out", out)

    def __call__(self, name: str, x: Float[Array, "..."]) -> Float[Array, "..."] | float:
        """The adapter's term of the product of x and matrix `name`; 0 without an adapter."""
        if name not in self.config.targets:
            return 0.0
        into, out = getattr(self, f"{name}_in")[...], getattr(self, f"{name}_out")[...]
        return apply_matrix(apply_matrix(x, into, into.ndim - 1), out) * self.config.scale


def is_adapter(path: tuple[Any, ...], _: Any) -> bool:
    """NNX filter of the adapters' parameters."""
    return "lora" in path


def check_rank(config: LoraConfig, matrices: Mapping[str, Matrix]) -> None:
    """Raises UserError where an adapter's rank exceeds the largest possible rank of its matrix."""
    for name in config.targets:
        if config.rank > matrices[name].most_rank:
            raise UserError(
                f"config.model.lora.rank {config.rank} exceeds the largest rank of the matrix {name!r}, "
                f"{matrices[name].most_rank}: lower it, or remove {name!r} from config.model.lora.targets."
            )


def merged_matrix(
    matrix: Float[Array, "..."], into: Float[Array, "..."], out: Float[Array, "..."], scale: float
) -> Float[Array, "..."]:
    """W + scale · A B of all layers at once, float32."""
    layers = range(into.shape[0])
    change = jnp.stack([jnp.tensordot(into[layer], out[layer], 1) for layer in layers])
    return matrix.astype(jnp.float32) + scale * change
