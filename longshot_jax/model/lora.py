"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) beside the stacked matrices of a Llama.

A matrix W from some input axes to some output axes becomes W + (alpha / rank) · A B, where A maps the input axes to
`rank` numbers and B maps these to the output axes. B starts at zero, so an adapted model starts as the model itself.
W is not trained and may be stored in few bits; A and B are float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from longshot_jax.errors import UserError
from longshot_jax.model.weights import apply_matrix, normal, weight, zeros

Target = Literal["query", "key", "value", "output", "gate", "up", "down"]


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of the Llama; they exist where a stage of the run trains `lora`.

    Attributes:
      rank: of each adapter.
      alpha: an adapter's output is multiplied by alpha / rank.
      targets: which matrices of every layer have one.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[Target, ...] = ("query", "key", "value", "output", "gate", "up", "down")

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Matrix:
    """What one matrix of every layer maps to what.

    Attributes:
      inputs, outputs: sizes of the axes; input_axes, output_axes: their logical names.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_axes: tuple[str, ...]
    output_axes: tuple[str, ...]

    @property
    def most_rank(self) -> int:
        """The rank of a matrix without any structure."""
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
            out = weight(
                rngs,
                (depth, config.rank, *matrix.outputs),
                ("layers", "rank", *matrix.output_axes),
                zeros(),
            )
            setattr(self, f"{name}_in", into)
            setattr(self, f"{name}_out", out)

    def __call__(self, name: str, x: Float[Array, "..."]) -> Float[Array, "..."] | float:
        """What the adapter of a matrix adds to its product with x; 0 where it has none."""
        if name not in self.config.targets:
            return 0.0
        into, out = getattr(self, f"{name}_in")[...], getattr(self, f"{name}_out")[...]
        return apply_matrix(apply_matrix(x, into, into.ndim - 1), out) * self.config.scale


def is_adapter(path: tuple[Any, ...], _: Any) -> bool:
    """NNX filter of the adapters' weights."""
    return "lora" in path


def check_rank(config: LoraConfig, matrices: Mapping[str, Matrix]) -> None:
    """UserError where an adapter would hold no fewer numbers of freedom than its matrix."""
    for name in config.targets:
        if config.rank > matrices[name].most_rank:
            raise UserError(
                f"config.model.lora.rank {config.rank} is more than the matrix {name!r} has, which is "
                f"{matrices[name].most_rank}: take fewer, or leave it out of config.model.lora.targets."
            )


def merged_matrix(
    matrix: Float[Array, "..."], into: Float[Array, "..."], out: Float[Array, "..."], scale: float
) -> Float[Array, "..."]:
    """W + scale · A B of all layers at once, float32."""
    layers = range(into.shape[0])
    change = jnp.stack([jnp.tensordot(into[layer], out[layer], 1) for layer in layers])
    return matrix.astype(jnp.float32) + scale * change
