"""The whole state of a run as one frozen dataclass: what a checkpoint stores and `update(state, batch)` returns."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key

from longshot_jax.thoughts.reads.memory_bank import MemoryBank


@struct.dataclass
class TrainState:
    """State of a run between two updates.

    Attributes:
      trainable: parameters that are trained; frozen: the others. Together they are the `Reasoner`.
      optimizer: optimizer state of the trainable parameters.
      reference: copy of the trainable parameters at the start of PPO, or None; it shares the frozen ones.
      memory: memory bank, or None.
      kl_coefficient: weight of the KL, which the KL controller adapts.
      thought_rms: rms of noise-free thoughts at the start of PPO, or, where a curriculum samples them, in its last update;
        1 elsewhere. Standard deviations of thoughts are relative to it.
      step: updates of this phase, skipped ones included.
      skipped: consecutive updates skipped because the loss or its gradient was not finite; skipped_total: all of them.
      key: for dropout and for the order of minibatches; rollouts have keys of their own.
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
    def params(self) -> nnx.State:
        """All parameters of the `Reasoner`, trainable and frozen."""
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
    """State before the first update. Traceable, so `jax.eval_shape` gives its shapes without allocating."""
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
    """Counters of the next state, after an update that was `applied` or skipped."""
    return {
        "step": state.step + 1,
        "skipped": jnp.where(applied, 0, state.skipped + 1),
        "skipped_total": state.skipped_total + ~applied,
    }
