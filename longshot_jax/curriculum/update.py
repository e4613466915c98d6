"""The supervised update and the compiled programs of the curriculum; nothing is allocated until one is called."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from longshot_jax.config import RunConfig
from longshot_jax.config.curriculum import CurriculumConfig
from longshot_jax.curriculum.batch import CurriculumBatch
from longshot_jax.curriculum.guidance import guidance_counts, guidance_weights
from longshot_jax.curriculum.loss import TokenSums
from longshot_jax.curriculum.parallel import ParallelBatch, sums_of
from longshot_jax.curriculum.variational import first_unit, unit_after, variational_metrics
from longshot_jax.model.sharding import check_divides, shardings, with_sharding
from longshot_jax.thoughts.reasoner import AbstractReasoner, gathering, is_trainable
from longshot_jax.training.optimizer import cut_rows, jit_update, make_optimizer, step_if_finite, summed_gradients
from longshot_jax.training.state import TrainState, count_skipped, start_state

Batch = CurriculumBatch | ParallelBatch
Update = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def curriculum_update(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: CurriculumConfig,
    latent_token: int = 0,
    prepare: Callable[[nnx.State], nnx.State] = lambda params: params,
) -> Update:
    """Makes `update(state, batch) -> state, metrics`, to be jitted with the state donated.

    `latent_token` fills thought slots in `pause` mode and initializes them for `jacobi`. `prepare` is `reasoner.gathering`.
    Where thoughts are sampled, the state's `thought_rms` is that of the last batch.
    """
    max_thoughts, guidance, dropout = config.max_thoughts, config.guidance, config.dropout
    pause_token = latent_token if config.mode == "pause" else None
    micro_batches = config.batch_size // (config.micro_batch_size or config.batch_size)
    variational = config.variational if config.variational.kl else None

    def with_dropout(state: TrainState, batch: Batch) -> tuple[TrainState, Batch]:
        """Draws the dropout mask before the batch is split, so it does not depend on micro-batches."""
        if not dropout or isinstance(batch, ParallelBatch):
            return state, batch
        key, next_key = jax.random.split(state.key)
        size = nnx.merge(graphdef, state.trainable, state.frozen).backbone.config.hidden_size
        shape = (*batch.num_thoughts.shape, max_thoughts, size)
        dropout_mask = jax.random.bernoulli(key, 1 - dropout, shape) / (1 - dropout)
        return replace(state, key=next_key), replace(batch, dropout_mask=dropout_mask)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        state, batch = with_dropout(state, batch)
        total, unit = jnp.maximum(batch.loss_count, 1.0), state.thought_rms
        counts_of, weights = guidance_counts(batch), guidance_weights(guidance)
        frozen = prepare(state.frozen)

        def share(trainable: nnx.State, micro_batch: Batch) -> tuple[Array, TokenSums]:
            reasoner = nnx.merge(graphdef, trainable, frozen)
            std = 0.0 if variational is None else variational.std * unit
            sums = sums_of(reasoner, micro_batch, max_thoughts, pause_token, guidance, latent_token, variational, std)
            guided = sum(weights[name] * part / counts_of[name] for name, part in sums.guidance.items())
            if variational is not None:  # per predicted token, as the loss: the sum of both is the bound
                guided += variational.kl * sums.variational["objective"] / total
            return sums.loss_sum / total + guided, sums

        gradients, sums = summed_gradients(
            share, state.trainable, cut_rows(batch, micro_batches), lambda a, b: jax.tree.map(jnp.add, a, b), prepare
        )
        loss = sums.loss_sum / total
        trainable, moments, norm, applied = step_if_finite(optimizer, loss, gradients, state.optimizer, state.trainable)
        counts = count_skipped(state, applied)
        metrics = {
            "loss": loss,
            "token_accuracy": sums.correct / total,
            "gradient_norm": norm,
            "thoughts": jnp.mean(batch.num_thoughts.astype(jnp.float32), where=getattr(batch, "active", None)),
            "real_positions": jnp.mean(batch.real_positions, dtype=jnp.float32),
            "skipped": counts["skipped_total"],
            "skipped_in_a_row": counts["skipped"],
        }
        metrics |= {f"guidance/{name}": part / counts_of[name] for name, part in sums.guidance.items()}
        if variational is not None:
            metrics |= variational_metrics(sums.variational, len(batch.num_thoughts), unit)
            unit = unit_after(sums.variational, unit)
        return replace(state, trainable=trainable, optimizer=moments, thought_rms=unit, **counts), metrics

    return update


class CurriculumPrograms:
    """Compiled programs: `start(params) -> state`, `update(state, batch)` and `fresh_optimizer(params)`.

    Training calls them; the planner compiles them from shapes. `start` and `update` donate their first argument. A
    micro-batch that the mesh does not divide is a UserError.

    Attributes:
      placement: shardings of the state. template: its shapes, dtypes and shardings.

    Args:
      run, abstract, mesh: settings, structure and shapes of the reasoner, device mesh.
      latent_token: see `curriculum_update`.
      limit: length of the learning rate schedule in updates.
      phase: `text` or `curriculum`.
    """

    def __init__(
        self,
        run: RunConfig,
        abstract: AbstractReasoner,
        mesh: Mesh,
        latent_token: int,
        limit: int,
        phase: str = "curriculum",
    ):
        config = run.supervised(phase)
        check_divides(
            config.micro_batch_size or config.batch_size, f"config.{phase}.batch_size (or micro_batch_size)", mesh
        )
        optimizer = make_optimizer(config.optimizer, limit)
        key = jax.random.fold_in(jax.random.key(run.seed), 1)

        def start(params: nnx.State) -> TrainState:
            trainable, frozen = nnx.split_state(params, is_trainable(config.trainable), ...)
            state = start_state(trainable, frozen, optimizer, key)
            if config.variational.kl:
                reasoner = nnx.merge(abstract.graphdef, params)
                state = replace(state, thought_rms=first_unit(reasoner, run.thoughts))
            return state

        shapes = jax.eval_shape(start, abstract.params)
        self.placement = shardings(shapes, mesh)
        self.template = with_sharding(shapes, self.placement)
        self.start = jax.jit(start, donate_argnums=0, out_shardings=self.placement)
        prepare = gathering(run.mesh, run.model.compute_dtype)
        update = curriculum_update(abstract.graphdef, optimizer, config, latent_token, prepare)
        self.update = jit_update(update, mesh, self.placement)
        self.fresh_optimizer = jax.jit(optimizer.init, out_shardings=self.placement.optimizer)
