"""Where the time of training goes: seconds of each part of an iteration, rates, and model FLOPs utilisation."""

import time
from dataclasses import dataclass, field
from math import prod

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from longshot_jax.thoughts.reasoner import AbstractReasoner
from longshot_jax.training.accelerators import peak_flops


@dataclass
class Clock:
    """Seconds between successive calls of `lap`."""

    last: float = field(default_factory=time.monotonic)

    def lap(self) -> float:
        """Seconds since the last call, or since the clock was made."""
        before, self.last = self.last, time.monotonic()
        return self.last - before


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs that a model's matrices need, of which utilisation tells the share of the published peak.

    As is usual (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): two for each weight and position forward, as much again
    for the gradient of the activations, and as much for that of the weights where they train. Attention, the navigator,
    and what is computed twice to save memory are not counted.

    Attributes:
      layers, head: weights of the layers' matrices, which every position uses, and of the output head.
      passes: forward passes that an update takes for one forward and backward pass, 3 or 2.
      peak: FLOP/s of all devices; None where it is unknown.
    """

    layers: int
    head: int
    passes: int
    peak: float | None

    @classmethod
    def of(cls, abstract: AbstractReasoner, mesh: Mesh, trainable: str) -> "ModelFlops":
        shape, peak = abstract.backbone, peak_flops(mesh.devices.flat[0].device_kind)
        layers = sum(prod(each.inputs) * prod(each.outputs) for each in shape.matrices.values())
        return cls(
            layers * shape.num_hidden_layers,
            shape.hidden_size * shape.vocab_size,
            3 if trainable == "all" else 2,
            peak and peak * mesh.devices.size,
        )

    def forward(self, positions: int, heads: int) -> float:
        """FLOPs of a pass over `positions` tokens, with `heads` products of a state and a table of the vocabulary."""
        return 2.0 * (self.layers * positions + self.head * heads)


def answer_lengths(tokens: Int[np.ndarray, "B N A"], ends: tuple[int, ...]) -> Int[np.ndarray, "B N"]:
    """Number of tokens of each answer, up to and including the end token."""
    is_end = np.isin(tokens, ends)
    return np.where(is_end.any(-1), is_end.argmax(-1) + 1, tokens.shape[-1])
