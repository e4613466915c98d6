"""Settings of the optimizer of a phase."""

from dataclasses import dataclass
from typing import Annotated, Literal

from longshot_jax.config.bounds import BELOW_ONE, NON_NEGATIVE, POSITIVE


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with separate learning rates for backbone and navigator."""

    learning_rate: Annotated[float, NON_NEGATIVE] = 1e-4
    """Peak learning rate of the backbone, or of its adapters."""
    navigator_learning_rate: Annotated[float, NON_NEGATIVE] = 1e-4
    """Peak learning rate of the navigator."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up; `cosine` and `linear` would reach `final_learning_rate` one update after the last."""
    warmup_steps: Annotated[int, NON_NEGATIVE] = 0
    """Updates of linear warm-up, at the start of each stage; the first has 1 / warmup_steps of the peak."""
    final_learning_rate: Annotated[float, NON_NEGATIVE] = 0.1
    """Final learning rate as a fraction of the peak."""
    weight_decay: Annotated[float, NON_NEGATIVE] = 0.01
    """Decoupled weight decay of the backbone; norms and biases have none."""
    navigator_weight_decay: Annotated[float, NON_NEGATIVE] = 0.001
    """Decoupled weight decay of the navigator; norms and biases have none."""
    b1: Annotated[float, BELOW_ONE] = 0.9
    """Decay rate of the first moment."""
    b2: Annotated[float, BELOW_ONE] = 0.999
    """Decay rate of the second moment."""
    moments: Literal["float32", "bfloat16", "factored"] = "float32"
    """Moments: `float32` (8 bytes per parameter), `bfloat16` (the first in bfloat16; 6 bytes), or `factored`: the first
    in bfloat16, the second by rows and columns with a schedule for b2 (Adafactor, arXiv:1804.04235; 2 bytes, up to 2.8
    where heads are narrower than 128)."""
    clip_norm: Annotated[float, POSITIVE] = 1.0
    """Largest global norm of the gradient."""
