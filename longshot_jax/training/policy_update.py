"""The PPO update: epochs and minibatches as nested scans in one jitted, donated function."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from longshot_jax.thoughts.memory import MemoryBank, best_positions, write_bank
from longshot_jax.thoughts.navigator import Reasoner
from longshot_jax.thoughts.rescore import Rollout, Scores, reached_positions
from longshot_jax.training.optimizer import apply_if_finite, cut_rows, summed_gradients
from longshot_jax.training.policy_loss import (
    Experience,
    PolicySums,
    count_actions,
    estimate_advantages,
    kl_at_positions,
    policy_loss,
    policy_sums,
    rollout_kl_reference,
    share_advantages,
    with_weights,
)
from longshot_jax.training.ppo import adapt_kl_coefficient, explained_variance
from longshot_jax.training.settings import PPOConfig
from longshot_jax.training.state import TrainState, count_skipped

Update = Callable[[TrainState, Rollout, Scores, Array, Array], tuple[TrainState, dict[str, Array]]]


def policy_update(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
    opening: tuple[int, ...],
) -> Update:
    """Makes `update(state, rollout, recorded, answer_reward, thought_reward) -> state, metrics`.

    To be jitted with the state donated. Rewards are Float [B, N] and [B, N, T + 1].
    """

    def minibatch_step(state: TrainState, part: Experience) -> tuple[TrainState, dict[str, Array]]:
        part = with_weights(part, config)
        actions = count_actions(part.rollout, config)
        positions = _count_positions(part.rollout)

        def share(trainable: nnx.State, micro: Experience) -> tuple[Array, PolicySums]:
            reasoner = nnx.merge(graph, trainable, state.frozen)
            sums = policy_sums(reasoner, micro, state.memory, config, opening)
            return policy_loss(sums, actions, positions, state.kl_coefficient, config), sums

        micro_batches = cut_rows(part, config.micro_batches)
        gradients, sums = summed_gradients(share, state.trainable, micro_batches, lambda a, b: a + b)
        loss = policy_loss(sums, actions, positions, state.kl_coefficient, config)
        trainable, moments, norm, applied = apply_if_finite(
            optimizer, loss, gradients, state.optimizer, state.trainable
        )
        metrics = {"loss": loss, "gradient_norm": norm, **_metrics(sums)}
        state = replace(state, trainable=trainable, optimizer=moments, **count_skipped(state, applied))
        return state, metrics

    def step_unless_far(
        carry: tuple[TrainState, Array], part: Experience
    ) -> tuple[tuple[TrainState, Array], tuple[dict[str, Array], Array]]:
        """A minibatch, or nothing once the policy has moved too far; metrics, and whether they were measured."""
        if not config.early_stop_kl:
            state, metrics = minibatch_step(carry[0], part)
            return (state, carry[1]), (metrics, jnp.ones((), bool))

        def measured(state: TrainState) -> tuple[TrainState, Array, dict[str, Array]]:
            after, metrics = minibatch_step(state, part)
            far = metrics["approximate_kl"] > config.early_stop_kl
            # The gradient of the minibatch that finds it too far is not used either.
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
        reference = None
        if state.reference is not None:
            policy = nnx.merge(graph, state.reference, state.frozen)
            reference = rollout_kl_reference(policy, rollout, state.memory, config, opening)
        charged = penalty = None
        if reference is not None and config.kl_in == "reward":
            charged = kl_at_positions(recorded, reference, rollout, config)
            penalty, reference = state.kl_coefficient * charged, None
        advantages, returns = estimate_advantages(
            rollout, recorded, answer_reward, thought_reward, config, penalty
        )
        advantages, of_number = share_advantages(advantages, rollout, config)
        experience = Experience(rollout, recorded, reference, advantages, returns, of_number=of_number)
        order_key, next_key = jax.random.split(state.key)

        def epoch(carry: tuple[TrainState, Array], key: Array) -> tuple[tuple[TrainState, Array], Any]:
            order = jax.random.permutation(key, answer_reward.shape[0])
            # Every leaf has a leading axis of questions, but for the rollout's temperatures, which are scalars.
            shuffled = jax.tree.map(lambda x: x[order] if x.ndim else x, experience)
            return jax.lax.scan(step_unless_far, carry, cut_rows(shuffled, config.minibatches))

        state = replace(state, key=next_key)
        old_policy = nnx.merge(graph, state.trainable, state.frozen)
        keys = jax.random.split(order_key, config.epochs)
        (state, ended), (metrics, measured) = jax.lax.scan(epoch, (state, jnp.zeros((), bool)), keys)
        metrics = {
            name: jnp.max(x) if name.endswith("_max") else jnp.mean(x, where=measured)
            for name, x in metrics.items()
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
        metrics["skipped"] = state.skipped_total
        metrics["skipped_in_a_row"] = state.skipped
        memory = state.memory
        if memory is not None:
            memory = _remember(old_policy, memory, rollout, returns, config.memory_writes)
            metrics["memory_entries"] = memory.filled.astype(jnp.float32)
        return replace(state, kl_coefficient=kl_coefficient, memory=memory), metrics

    return update


def _count_positions(rollout: Rollout) -> Float[Array, ""]:
    thoughts = jnp.sum(reached_positions(rollout), dtype=jnp.float32)
    return thoughts + jnp.sum(rollout.token_mask, dtype=jnp.float32)


def _remember(
    policy: Reasoner,
    memory: MemoryBank,
    rollout: Rollout,
    returns: Float[Array, "B N P"],
    count: int,
) -> MemoryBank:
    """Writes the rollout's best positions, once, after all epochs."""
    navigator = policy.navigator
    positions = rollout.actions
    if not navigator.config.in_reasoning_space:
        positions = positions @ navigator.state_in[...]
    values = returns[..., : rollout.taken.shape[-1]]
    return write_bank(memory, *best_positions(positions, rollout.taken, values, count))


def _metrics(sums: PolicySums) -> dict[str, Array]:
    """Averages of the sums, by name."""

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
    }
    kinds = ["stops", "thoughts", "tokens"]
    if sums.numbers is not None and sums.number_entropy is not None:
        kinds.append("numbers")
        metrics["number_entropy"] = share(sums.number_entropy, sums.numbers.count)
    for kind in kinds:
        part = getattr(sums, kind)
        metrics[f"{kind}/loss"] = share(part.loss_sum, part.count)
        metrics[f"{kind}/clip_fraction"] = share(part.clipped_count, part.count)
        metrics[f"{kind}/ratio"] = share(part.ratio_sum, part.count)
        metrics[f"{kind}/ratio_max"] = part.ratio_max
        metrics[f"{kind}/approximate_kl"] = share(part.kl_sum, part.count)
    return metrics
