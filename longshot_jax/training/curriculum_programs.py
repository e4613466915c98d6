"""The compiled functions of the curriculum and the shapes of its state; nothing is allocated until one is called."""

import jax
from flax import nnx
from jax.sharding import Mesh

from longshot_jax.config import RunConfig
from longshot_jax.data.examples import has_thoughts
from longshot_jax.model.activations import on_mesh
from longshot_jax.model.sharding import check_divides, placed, replicated, shardings
from longshot_jax.training.curriculum_update import curriculum_update
from longshot_jax.training.optimizer import is_trainable, make_optimizer
from longshot_jax.training.settings import CurriculumConfig
from longshot_jax.training.setup import Blueprint
from longshot_jax.training.state import TrainState, start_state


def max_curriculum_thoughts(config: CurriculumConfig) -> int:
    """T of the curriculum: thought slots that all of its stages share."""
    return config.c_thought * config.max_latent_stage if has_thoughts(config.mode) else 0


class CurriculumPrograms:
    """What the curriculum compiles: `start(weights) -> state`, `update(state, batch)` and `fresh_optimizer(weights)`.

    Training calls them; the planner compiles them from shapes alone.

    Attributes:
      placement: shardings of the state. template: its shapes and dtypes, placed.
      start, update, fresh_optimizer: jitted; `start` and `update` are given what they are called with.

    Args:
      run: settings.
      blueprint: structure and shapes of the reasoner.
      mesh: of devices.
      pause_token: what stands in thought slots in `pause` mode, and before the first of `jacobi`'s iterations.
      limit: updates that the learning rate's schedule spans.

    Raises:
      UserError: the mesh does not divide a micro-batch.
    """

    def __init__(self, run: RunConfig, blueprint: Blueprint, mesh: Mesh, pause_token: int, limit: int):
        config = run.curriculum
        micro = config.micro_batch_size or config.batch_size
        check_divides(micro, "config.curriculum.batch_size (or micro_batch_size)", mesh)
        optimizer = make_optimizer(config.optimizer, limit)
        key = jax.random.fold_in(jax.random.key(run.seed), 1)

        def start(weights: nnx.State) -> TrainState:
            trainable, frozen = nnx.split_state(weights, is_trainable(config.trainable), ...)
            return start_state(trainable, frozen, optimizer, key)

        abstract = jax.eval_shape(start, blueprint.abstract)
        self.placement = shardings(abstract, mesh)
        self.template = placed(abstract, self.placement)
        self.start = jax.jit(start, donate_argnums=0, out_shardings=self.placement)
        update = curriculum_update(
            blueprint.graph,
            optimizer,
            max_thoughts=max_curriculum_thoughts(config),
            pause_token=pause_token if config.mode == "pause" else None,
            micro_batches=config.batch_size // micro,
            guidance=config.guidance,
            latent_token=pause_token,
            dropout=config.dropout,
        )
        self.update = jax.jit(
            on_mesh(mesh, update), donate_argnums=0, out_shardings=(self.placement, replicated(mesh))
        )
        self.fresh_optimizer = jax.jit(optimizer.init, out_shardings=self.placement.optimizer)
