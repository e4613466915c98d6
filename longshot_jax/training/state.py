"""One frozen dataclass is the whole run: what a checkpoint holds and what `update(state, batch)` returns."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key

from longshot_jax.thoughts.memory import MemoryBank


@struct.dataclass
class TrainState:
    """State of a run between two updates.

    Attributes:
      trainable: weights under training; frozen: the others. Together they are the `Reasoner`.
      optimizer: moments and counts of the trainable weights.
      reference: the trainable weights at the start of PPO, or None. What is frozen is shared.
      memory: the bank, or None.
      kl_coefficient: of the KL controller.
      thought_rms: rms of noise-free thoughts at the start of PPO; σ is relative to it.
      step: updates done in this stage.
      skipped: updates in a row that were skipped for non-finite gradients; skipped_total: in this stage.
      key: from which every iteration derives its randomness.
    """

    trainable: nnx.State
    frozen: nnx.State
    optimizer: Any
    reference: nnx.State | None
    memory: MemoryBank | None
    kl_coefficient: Float[Array, ""]
    thought_rms: Float[Array, ""]
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    skipped_total: Int[Array, ""]
    key: Key[Array, ""]

    @property
    def weights(self) -> nnx.State:
        """All weights of the `Reasoner`, trainable and frozen."""
        return nnx.merge_state(self.trainable, self.frozen)


def start_state(
    trainable: nnx.State,
    frozen: nnx.State,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    reference: bool = False,
    memory: MemoryBank | None = None,
    kl_coefficient: float = 0.0,
) -> TrainState:
    """A run before its first update; traceable, so that shapes cost nothing."""
    return TrainState(
        trainable=trainable,
        frozen=frozen,
        optimizer=optimizer.init(trainable),
        reference=jax.tree.map(jnp.copy, trainable) if reference else None,
        memory=memory,
        kl_coefficient=jnp.asarray(kl_coefficient, jnp.float32),
        thought_rms=jnp.ones((), jnp.float32),
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        skipped_total=jnp.zeros((), jnp.int32),
        key=key,
    )


def count_skipped(state: TrainState, applied: Array) -> dict[str, Array]:
    """The fields of the next state that record whether an update was applied."""
    return {
        "step": state.step + 1,
        "skipped": jnp.where(applied, 0, state.skipped + 1),
        "skipped_total": state.skipped_total + ~applied,
    }
