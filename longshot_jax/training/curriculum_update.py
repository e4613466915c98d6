"""The supervised update: one jitted, donated function of (state, batch)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from longshot_jax.training.curriculum import CurriculumBatch, TokenSums, curriculum_sums
from longshot_jax.training.optimizer import apply_if_finite, summed_gradients
from longshot_jax.training.state import TrainState, count_skipped

Update = Callable[[TrainState, CurriculumBatch], tuple[TrainState, dict[str, Array]]]


def curriculum_update(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    max_thoughts: int,
    pause_token: int | None,
    micro_batches: int,
) -> Update:
    """Makes `update(state, batch) -> state, metrics`, still to be jitted with the state donated."""

    def update(state: TrainState, batch: CurriculumBatch) -> tuple[TrainState, dict[str, Array]]:
        total = jnp.maximum(jnp.sum(batch.loss_mask, dtype=jnp.float32), 1.0)

        def share(trainable: nnx.State, micro_batch: CurriculumBatch) -> tuple[Array, TokenSums]:
            reasoner = nnx.merge(graph, trainable, state.frozen)
            sums = curriculum_sums(reasoner, micro_batch, max_thoughts, pause_token)
            return sums.loss_sum / total, sums

        parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
        gradients, sums = summed_gradients(
            share, state.trainable, parts, lambda a, b: jax.tree.map(jnp.add, a, b)
        )
        trainable, moments, norm, applied = apply_if_finite(
            optimizer, gradients, state.optimizer, state.trainable
        )
        metrics = {
            "loss": sums.loss_sum / total,
            "token_accuracy": sums.correct / total,
            "gradient_norm": norm,
            "thoughts": jnp.mean(batch.thought_counts.astype(jnp.float32)),
            "skipped": (~applied).astype(jnp.float32),
        }
        state = state.replace(trainable=trainable, optimizer=moments, **count_skipped(state, applied))
        return state, metrics

    return update
