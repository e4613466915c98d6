"""The compiled functions of PPO and the shapes of its state; nothing is allocated until one of them is called."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int

from longshot_jax.config import RunConfig
from longshot_jax.model.activations import on_mesh
from longshot_jax.model.sharding import batch_sharding, check_divides, placed, replicated, shardings
from longshot_jax.thoughts.coupling import diversity
from longshot_jax.thoughts.memory import empty_bank
from longshot_jax.thoughts.rescore import Rollout, Scores
from longshot_jax.thoughts.rollout import Lengths, Temperatures, sample_rollout
from longshot_jax.training.optimizer import is_trainable, make_optimizer
from longshot_jax.training.policy_update import policy_update
from longshot_jax.training.setup import Blueprint
from longshot_jax.training.state import TrainState, start_state


class PPOPrograms:
    """What PPO compiles: `start(weights) -> state`, `rollout(state, ...)` and `update(state, rollout, ...)`.

    Training calls them; the planner compiles them from shapes alone.

    Attributes:
      placement: shardings of the state. template: its shapes and dtypes, placed.
      start, rollout, update: jitted; `start` and `update` are given what they are called with.

    Args:
      run: settings.
      blueprint: structure and shapes of the reasoner.
      mesh: of devices.
      opening: forced tokens between thoughts and answer.
      end_token: ends an answer.

    Raises:
      UserError: the mesh does not divide a micro-batch.
    """

    def __init__(
        self, run: RunConfig, blueprint: Blueprint, mesh: Mesh, opening: tuple[int, ...], end_token: int
    ):
        config = self.config = run.ppo
        self.adaptive = run.thoughts.max_trajectories > 0
        self.graph, self.mesh, self.opening, self.end_token = blueprint.graph, mesh, opening, end_token
        self.answer_length = config.answer_length or run.data.answer_length
        part = config.questions // (config.minibatches * config.micro_batches)
        check_divides(part, "config.ppo.questions / (minibatches x micro_batches)", mesh)
        total = config.iterations * config.epochs * config.minibatches
        optimizer = make_optimizer(config.optimizer, total)
        self.sampling_key = jax.random.fold_in(jax.random.key(run.seed), 2)
        chosen, graph = is_trainable(config.trainable), blueprint.graph
        key = jax.random.fold_in(jax.random.key(run.seed), 3)

        def start(weights: nnx.State) -> TrainState:
            trainable, frozen = nnx.split_state(weights, chosen, ...)
            slots = config.memory_slots
            return start_state(
                trainable,
                frozen,
                optimizer,
                key,
                reference=config.keeps_reference,
                memory=empty_bank(slots, run.thoughts.reasoning_dim) if slots else None,
                kl_coefficient=config.kl_coefficient,
            )

        abstract = jax.eval_shape(start, blueprint.abstract)
        self.placement = shardings(abstract, mesh)
        self.template = placed(abstract, self.placement)
        self.start = jax.jit(start, donate_argnums=0, out_shardings=self.placement)
        self.rollout = jax.jit(on_mesh(mesh, self._rollout))
        self.update = jax.jit(
            on_mesh(mesh, policy_update(graph, optimizer, config, opening)),
            donate_argnums=0,
            out_shardings=(self.placement, replicated(mesh)),
        )

    def _rollout(
        self,
        state: TrainState,
        prompt: Int[Array, "B S"],
        mask: Array,
        lengths: Lengths,
        temperatures: Temperatures,
        iteration: Int[Array, ""],
    ) -> tuple[Rollout, Scores, dict[str, Array]]:
        """The trajectories of an iteration and, small enough for the host, how they ended.

        `temperatures.std` is σ relative to the thoughts' rms.
        """
        config = self.config
        key = jax.random.fold_in(self.sampling_key, iteration)
        rollout, recorded = sample_rollout(
            nnx.merge(self.graph, state.trainable, state.frozen),
            prompt,
            mask,
            state.memory,
            lengths,
            replace(temperatures, std=temperatures.std * state.thought_rms),
            jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(prompt.shape[0])),
            num_trajectories=config.num_trajectories,
            max_thoughts=config.max_steps,
            answer_length=self.answer_length,
            opening=self.opening,
            end_token=self.end_token,
            scaling=config.log_prob_scaling,
            together=config.together,
            coupling=config.coupling,
            adaptive=self.adaptive,
        )
        squares = jnp.mean(jnp.square(recorded.thoughts.means), axis=-1)
        taken = jnp.sum(rollout.taken)
        rms = jnp.sqrt(jnp.sum(squares, where=rollout.taken) / jnp.maximum(taken, 1))
        decided = jnp.take_along_axis(rollout.free, rollout.counts[..., None], axis=-1)[..., 0]
        outcome = {
            "tokens": rollout.tokens,
            "ended": rollout.ended,
            "thoughts": rollout.counts,
            "natural_stop": decided,
            "thought_rms": jnp.where(taken > 0, rms, 1.0),
        }
        if rollout.number is not None:
            outcome |= {"number": rollout.number, "exists": rollout.exists}
        if config.rewards.vote_correct:
            values = recorded.thoughts.values
            outcome["values"] = jnp.take_along_axis(values, rollout.counts[..., None], axis=-1)[..., 0]
        if config.rewards.diversity:
            outcome["diversity"] = diversity(rollout.actions, rollout.taken)
        rows, whole = batch_sharding(self.mesh), replicated(self.mesh)
        rollout, recorded = jax.lax.with_sharding_constraint(
            (rollout, recorded), jax.tree.map(lambda x: rows if x.ndim else whole, (rollout, recorded))
        )
        return rollout, recorded, jax.lax.with_sharding_constraint(outcome, whole)
