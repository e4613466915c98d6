"""The supervised update: one jitted, donated function of (state, batch)."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from longshot_jax.training.curriculum import CurriculumBatch, TokenSums, curriculum_sums
from longshot_jax.training.guidance import guidance_counts, guidance_weights
from longshot_jax.training.optimizer import apply_if_finite, cut_rows, summed_gradients
from longshot_jax.training.settings import GuidanceConfig
from longshot_jax.training.state import TrainState, count_skipped

Update = Callable[[TrainState, CurriculumBatch], tuple[TrainState, dict[str, Array]]]


def curriculum_update(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    max_thoughts: int,
    pause_token: int | None,
    micro_batches: int,
    guidance: GuidanceConfig | None = None,
    latent_token: int = 0,
    dropout: float = 0.0,
) -> Update:
    """Makes `update(state, batch) -> state, metrics`, still to be jitted with the state donated.

    `dropout` is the share of a fed-back thought's entries that are zeroed.
    """

    def with_dropout(state: TrainState, batch: CurriculumBatch) -> tuple[TrainState, CurriculumBatch]:
        """A mask for every row, drawn before the batch is cut: it does not depend on micro-batches."""
        if not dropout:
            return state, batch
        key, next_key = jax.random.split(state.key)
        size = nnx.merge(graph, state.trainable, state.frozen).llama.config.hidden_size
        shape = (*batch.thought_counts.shape, max_thoughts, size)
        kept = jax.random.bernoulli(key, 1 - dropout, shape) / (1 - dropout)
        return replace(state, key=next_key), replace(batch, kept=kept)

    def update(state: TrainState, batch: CurriculumBatch) -> tuple[TrainState, dict[str, Array]]:
        state, batch = with_dropout(state, batch)
        total = jnp.maximum(jnp.sum(batch.loss_mask, dtype=jnp.float32), 1.0)
        counts_of, weights = guidance_counts(batch), guidance_weights(guidance or GuidanceConfig())

        def share(trainable: nnx.State, micro_batch: CurriculumBatch) -> tuple[Array, TokenSums]:
            reasoner = nnx.merge(graph, trainable, state.frozen)
            sums = curriculum_sums(reasoner, micro_batch, max_thoughts, pause_token, guidance, latent_token)
            guided = sum(weights[name] * part / counts_of[name] for name, part in sums.guidance.items())
            return sums.loss_sum / total + guided, sums

        gradients, sums = summed_gradients(
            share,
            state.trainable,
            cut_rows(batch, micro_batches),
            lambda a, b: jax.tree.map(jnp.add, a, b),
        )
        loss = sums.loss_sum / total
        trainable, moments, norm, applied = apply_if_finite(
            optimizer, loss, gradients, state.optimizer, state.trainable
        )
        counts = count_skipped(state, applied)
        metrics = {
            "loss": loss,
            "token_accuracy": sums.correct / total,
            "gradient_norm": norm,
            "thoughts": jnp.mean(batch.thought_counts.astype(jnp.float32)),
            "skipped": counts["skipped_total"],
            "skipped_in_a_row": counts["skipped"],
        }
        metrics |= {f"guidance/{name}": part / counts_of[name] for name, part in sums.guidance.items()}
        return replace(state, trainable=trainable, optimizer=moments, **counts), metrics

    return update
