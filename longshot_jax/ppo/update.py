"""The PPO update (epochs and minibatches as nested scans) and the compiled programs of PPO."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from longshot_jax.config import RunConfig
from longshot_jax.config.ppo import PPOConfig
from longshot_jax.model.decoding import decoding_jit
from longshot_jax.model.sharding import batch_sharding, check_divides, replicated, shardings, with_sharding
from longshot_jax.ppo.loss import (
    Experience,
    PolicySums,
    count_actions,
    estimate_advantages,
    kl_at_positions,
    log_prob_difference,
    policy_loss,
    policy_sums,
    rollout_scores,
    share_advantages,
    with_weights,
)
from longshot_jax.ppo.objective import adapt_kl_coefficient, explained_variance
from longshot_jax.thoughts.noise import diversity
from longshot_jax.thoughts.reads.memory_bank import MemoryBank, best_positions, empty_bank, write_bank
from longshot_jax.thoughts.reasoner import AbstractReasoner, Reasoner, decoding_reasoner, gathering, is_trainable
from longshot_jax.thoughts.rescore import rescore_method
from longshot_jax.thoughts.rollout import (
    Rollout,
    RolloutShape,
    Scores,
    Temperatures,
    at_last_thought,
    reached_positions,
    sample_rollout,
)
from longshot_jax.thoughts.stopping import Lengths
from longshot_jax.training.optimizer import cut_rows, jit_update, make_optimizer, step_if_finite, summed_gradients
from longshot_jax.training.state import TrainState, count_skipped, start_state

Update = Callable[[TrainState, Rollout, Scores, Array, Array], tuple[TrainState, dict[str, Array]]]


def policy_update(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
    opening: tuple[int, ...],
    prepare: Callable[[nnx.State], nnx.State] = lambda params: params,
) -> Update:
    """Makes `update(state, rollout, recorded, answer_reward, thought_reward) -> state, metrics`.

    To be jitted with the state donated. The rewards are Float [B, N] and [B, N, T + 1]. `prepare` is `reasoner.gathering`.
    """

    def minibatch_step(state: TrainState, part: Experience) -> tuple[TrainState, dict[str, Array]]:
        part = with_weights(part, config)
        actions = count_actions(part.rollout, config)
        positions = jnp.sum(reached_positions(part.rollout), dtype=jnp.float32)
        positions += jnp.sum(part.rollout.token_mask, dtype=jnp.float32)
        frozen = prepare(state.frozen)

        def share(trainable: nnx.State, micro: Experience) -> tuple[Array, PolicySums]:
            reasoner = nnx.merge(graphdef, trainable, frozen)
            sums = policy_sums(reasoner, micro, state.memory, config, opening)
            return policy_loss(sums, actions, positions, state.kl_coefficient, config), sums

        micro_batches = cut_rows(part, config.micro_batches)
        gradients, sums = summed_gradients(share, state.trainable, micro_batches, lambda a, b: a + b, prepare)
        loss = policy_loss(sums, actions, positions, state.kl_coefficient, config)
        trainable, moments, norm, applied = step_if_finite(optimizer, loss, gradients, state.optimizer, state.trainable)
        metrics = {"loss": loss, "gradient_norm": norm, **_metrics(sums)}
        state = replace(state, trainable=trainable, optimizer=moments, **count_skipped(state, applied))
        return state, metrics

    def step_unless_far(
        carry: tuple[TrainState, Array], part: Experience
    ) -> tuple[tuple[TrainState, Array], tuple[dict[str, Array], Array]]:
        """A minibatch step, skipped after an early stop; returns metrics, and whether they were measured."""
        if not config.early_stop_kl:
            state, metrics = minibatch_step(carry[0], part)
            return (state, carry[1]), (metrics, jnp.ones((), bool))

        def measured(state: TrainState) -> tuple[TrainState, Array, dict[str, Array]]:
            after, metrics = minibatch_step(state, part)
            far = metrics["approximate_kl"] > config.early_stop_kl
            # The minibatch whose KL is too large is not applied either.
            kept = {
                name: jax.tree.map(partial(jnp.where, far), getattr(state, name), getattr(after, name))
                for name in ("trainable", "optimizer", "step", "skipped", "skipped_total")
            }
            return replace(after, **kept), far, metrics

        def ended(state: TrainState) -> tuple[TrainState, Array, dict[str, Array]]:
            *_, metrics = jax.eval_shape(measured, state)
            return state, jnp.ones((), bool), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

        state, far, metrics = jax.lax.cond(carry[1], ended, measured, carry[0])
        return (state, far), (metrics, ~carry[1])

    def update(
        state: TrainState,
        rollout: Rollout,
        recorded: Scores,
        answer_reward: Float[Array, "B N"],
        thought_reward: Float[Array, "B N Tplus1"],
    ) -> tuple[TrainState, dict[str, Array]]:
        old_policy, sampler_difference = nnx.merge(graphdef, state.trainable, state.frozen), None

        def scored(trainable: nnx.State) -> Scores:
            """Scores of the rollout under other weights; in one pass, a layer at a time is gathered once anyway."""
            feedback = old_policy.navigator.config.feedback
            # Thoughts of `vocabulary` may read the tables several times.
            one_pass = rescore_method(config, feedback) == "parallel" and feedback != "vocabulary"
            parts = (trainable, state.frozen) if one_pass else map(prepare, (trainable, state.frozen))
            return rollout_scores(nnx.merge(graphdef, *parts), rollout, state.memory, config, opening)

        if jnp.finfo(old_policy.backbone.compute_dtype).bits < 32:
            # In 16 bits decoding rounds otherwise than the pass that is differentiated, and the ratio would not start
            # at one.
            sampled, recorded = recorded, scored(state.trainable)
            sampler_difference = log_prob_difference(recorded, sampled, rollout, config)
            sampler_difference /= jnp.maximum(count_actions(rollout, config), 1.0)
        reference = None if state.reference is None else scored(state.reference)
        charged = penalty = None
        if reference is not None and config.kl_in == "reward":
            charged = kl_at_positions(recorded, reference, rollout, config)
            penalty, reference = state.kl_coefficient * charged, None
        advantages, returns = estimate_advantages(rollout, recorded, answer_reward, thought_reward, config, penalty)
        advantages, count_advantage = share_advantages(advantages, recorded.values, rollout, config)
        experience = Experience(rollout, recorded, reference, advantages, returns, count_advantage=count_advantage)
        order_key, next_key = jax.random.split(state.key)

        def epoch(carry: tuple[TrainState, Array], key: Array) -> tuple[tuple[TrainState, Array], Any]:
            order = jax.random.permutation(key, answer_reward.shape[0])
            # Every leaf has a leading axis of questions, except the rollout's scalar temperatures.
            shuffled = jax.tree.map(lambda x: x[order] if x.ndim else x, experience)
            return jax.lax.scan(step_unless_far, carry, cut_rows(shuffled, config.minibatches))

        state = replace(state, key=next_key)
        keys = jax.random.split(order_key, config.epochs)
        (state, ended), (metrics, measured) = jax.lax.scan(epoch, (state, jnp.zeros((), bool)), keys)
        # In 32 bits that of the first minibatch, which no update has moved yet.
        first = metrics.pop("sampler_difference")[0, 0]
        metrics = {
            name: jnp.max(x) if name.endswith("_max") else jnp.mean(x, where=measured) for name, x in metrics.items()
        }
        if config.early_stop_kl:
            updates = jnp.sum(measured, dtype=jnp.float32) - ended
            metrics["minibatches_used"] = updates / measured.size
        if charged is not None:
            metrics["kl"] = jnp.sum(charged) / jnp.maximum(count_actions(rollout, config), 1.0)
        kl_coefficient = state.kl_coefficient
        if config.kl_target > 0:
            kl_coefficient = adapt_kl_coefficient(kl_coefficient, metrics["kl"], config.kl_target)
        metrics["kl_coefficient"] = kl_coefficient
        metrics["sampler_difference"] = first if sampler_difference is None else sampler_difference
        metrics["skipped"] = state.skipped_total
        metrics["skipped_in_a_row"] = state.skipped
        memory = state.memory
        if memory is not None:
            memory = _remember(old_policy, memory, rollout, returns, config.memory_writes)
            metrics["memory_entries"] = memory.filled.astype(jnp.float32)
        return replace(state, kl_coefficient=kl_coefficient, memory=memory), metrics

    return update


def _remember(
    policy: Reasoner, memory: MemoryBank, rollout: Rollout, returns: Float[Array, "B N P"], count: int
) -> MemoryBank:
    """Writes the positions of the rollout with the largest returns, after all epochs."""
    navigator = policy.navigator
    positions = rollout.actions
    if not navigator.config.in_reasoning_space:
        positions = positions @ navigator.state_in[...]
    values = returns[..., : rollout.thought_mask.shape[-1]]
    return write_bank(memory, *best_positions(positions, rollout.thought_mask, values, count))


def _metrics(sums: PolicySums) -> dict[str, Array]:
    """Means by name."""

    def share(total: Array, count: Array) -> Array:
        return total / jnp.maximum(count, 1.0)

    metrics = {
        "value_loss": share(sums.values.loss_sum, sums.values.count),
        "value_clip_fraction": share(sums.values.clipped_count, sums.values.count),
        "explained_variance": explained_variance(sums.values),
        "stop_entropy": share(sums.entropy, sums.stops.count),
        "token_entropy": share(sums.token_entropy, sums.tokens.count),
        "kl": share(sums.kl, sums.actions),
        "approximate_kl": sums.approximate_kl,
        "sampler_difference": share(sums.sampler_difference, sums.actions),
    }
    kinds = ["stops", "thoughts", "tokens"]
    if sums.trajectory_counts is not None and sums.count_entropy is not None:
        kinds.append("trajectory_counts")
        metrics["count_entropy"] = share(sums.count_entropy, sums.trajectory_counts.count)
    if sums.thought_entropy is not None:
        metrics["thought_entropy"] = share(sums.thought_entropy, sums.thoughts.count)
    for kind in kinds:
        part = getattr(sums, kind)
        metrics[f"{kind}/loss"] = share(part.loss_sum, part.count)
        metrics[f"{kind}/clip_fraction"] = share(part.clipped_count, part.count)
        metrics[f"{kind}/ratio"] = share(part.ratio_sum, part.count)
        metrics[f"{kind}/ratio_max"] = part.ratio_max
        metrics[f"{kind}/approximate_kl"] = share(part.kl_sum, part.count)
    return metrics


class PPOPrograms:
    """Compiled programs: `start(params) -> state`, `rollout(state, ...)` and `update(state, rollout, ...)`.

    Nothing is allocated until one is called: training calls them, the planner compiles them from shapes. `start` and
    `update` donate their first argument. A micro-batch that the mesh does not divide is a UserError.

    Attributes:
      shape: static sizes of a rollout.
      placement: shardings of the state. template: its shapes, dtypes and shardings.

    Args:
      run, abstract, mesh: settings, structure and shapes of the reasoner, device mesh.
      opening: forced tokens between thoughts and answer. end_tokens: tokens that end an answer.
    """

    def __init__(
        self,
        run: RunConfig,
        abstract: AbstractReasoner,
        mesh: Mesh,
        opening: tuple[int, ...],
        end_tokens: tuple[int, ...],
    ):
        config = self.config = run.ppo
        self.graphdef, self.mesh = abstract.graphdef, mesh
        self.shape = RolloutShape.of_ppo(run, opening, end_tokens)
        part = config.questions // (config.minibatches * config.micro_batches)
        check_divides(part, "config.ppo.questions / (minibatches x micro_batches)", mesh)
        optimizer = make_optimizer(config.optimizer, config.iterations * config.epochs * config.minibatches)
        self.sampling_key = jax.random.fold_in(jax.random.key(run.seed), 2)
        key = jax.random.fold_in(jax.random.key(run.seed), 3)

        def start(params: nnx.State) -> TrainState:
            trainable, frozen = nnx.split_state(params, is_trainable(config.trainable), ...)
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

        shapes = jax.eval_shape(start, abstract.params)
        self.placement = shardings(shapes, mesh)
        self.template = with_sharding(shapes, self.placement)
        self.start = jax.jit(start, donate_argnums=0, out_shardings=self.placement)
        self.rollout = decoding_jit(self._rollout, mesh, run.mesh.decoding_weights)
        update = policy_update(
            abstract.graphdef, optimizer, config, opening, gathering(run.mesh, run.model.compute_dtype)
        )
        self.update = jit_update(update, mesh, self.placement)

    def _rollout(
        self,
        state: TrainState,
        prompt: Int[Array, "B S"],
        mask: Array,
        lengths: Lengths,
        temperatures: Temperatures,
        iteration: Int[Array, ""],
    ) -> tuple[Rollout, Scores, dict[str, Array]]:
        """Trajectories of an iteration, their scores, and their outcome as small arrays for the host.

        `temperatures.thought_std` is relative to `state.thought_rms`.
        """
        config = self.config
        key = jax.random.fold_in(self.sampling_key, iteration)
        reasoner = decoding_reasoner(self.graphdef, state.trainable, state.frozen, unrolled=True)
        rollout, recorded = sample_rollout(
            reasoner,
            prompt,
            mask,
            state.memory,
            lengths,
            replace(temperatures, thought_std=temperatures.thought_std * state.thought_rms),
            jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(prompt.shape[0])),
            self.shape,
        )
        squares = jnp.mean(jnp.square(recorded.thoughts.means), axis=-1)
        taken = jnp.sum(rollout.thought_mask)
        rms = jnp.sqrt(jnp.sum(squares, where=rollout.thought_mask) / jnp.maximum(taken, 1))
        decided = jnp.take_along_axis(rollout.is_action, rollout.num_thoughts[..., None], axis=-1)[..., 0]
        outcome = {
            "tokens": rollout.tokens,
            "ended": rollout.ended,
            "num_thoughts": rollout.num_thoughts,
            "natural_stop": decided,
            "thought_rms": rms,  # 0 where no thought was taken
        }
        if reasoner.navigator.config.noise == "learned":
            stds = jnp.sum(recorded.thoughts.stds, where=rollout.thought_mask)
            outcome["thought_std"] = stds / (jnp.maximum(taken, 1) * state.thought_rms)
        if rollout.num_trajectories is not None:
            outcome |= {"num_trajectories": rollout.num_trajectories, "active": rollout.active}
        if config.rewards.vote_correct:
            outcome["values"] = at_last_thought(recorded.thoughts.values, rollout.num_thoughts)
        if config.rewards.diversity:
            outcome["diversity"] = diversity(rollout.actions, rollout.thought_mask)
        rows, whole = batch_sharding(self.mesh), replicated(self.mesh)
        rollout, recorded = jax.lax.with_sharding_constraint(
            (rollout, recorded), jax.tree.map(lambda x: rows if x.ndim else whole, (rollout, recorded))
        )
        return rollout, recorded, jax.lax.with_sharding_constraint(outcome, whole)
