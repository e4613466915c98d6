"""The PPO update as a whole: it improves a small case, and its result does not depend on how the work is cut."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import END, VOCABULARY, ragged_prompts, small_bank, small_reasoner
from flax import nnx

from longshot_jax.config.optimizer import OptimizerConfig
from longshot_jax.config.ppo import PPOConfig
from longshot_jax.ppo.loss import Experience, count_actions, estimate_advantages, policy_sums
from longshot_jax.ppo.update import policy_update
from longshot_jax.thoughts.reasoner import is_trainable
from longshot_jax.thoughts.rollout import RolloutShape, Temperatures, sample_rollout
from longshot_jax.thoughts.stopping import Lengths
from longshot_jax.training.optimizer import make_optimizer, step_if_finite
from longshot_jax.training.state import start_state

B, N, T, A, OPENING = 8, 2, 2, 3, (4,)
PPO = PPOConfig(
    questions=B, num_trajectories=N, epochs=1, minibatches=1, micro_batches=1, max_thoughts=T, kl_coefficient=0.0,
    value_clip=10.0,
)  # fmt: skip


@partial(jax.jit, static_argnames=("count", "answer_length"))
def sampled(reasoner, key, memory, std, count, answer_length):
    prompt, mask = ragged_prompts([1 + row % 4 for row in range(count)], 4)
    zeros = jnp.zeros((count, N), jnp.int32)
    return sample_rollout(
        reasoner, prompt, mask, memory, Lengths(zeros, zeros + T),
        Temperatures(std, jnp.ones(()), jnp.ones(())), jax.random.split(key, count),
        RolloutShape(N, T, answer_length, OPENING, (END,), scaling="summed"),
    )  # fmt: skip


def rolled_out(reasoner, seed=0, memory=None, std=0.5, count=B, answer_length=A):
    return sampled(reasoner, jax.random.key(seed), memory, jnp.asarray(std), count, answer_length)


def rewards(seed=0, count=B):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(count, N)), jnp.float32), jnp.full((count, N, T + 1), -0.02)


def begun(reasoner, config, optimizer, memory=None, reference=False):
    graph, trainable, frozen = nnx.split(reasoner, is_trainable(config.trainable), ...)
    state = start_state(
        trainable, frozen, optimizer, jax.random.key(7),
        reference=reference, memory=memory, kl_coefficient=config.kl_coefficient,
    )  # fmt: skip
    return graph, state


def updated(reasoner, config, data, optimizer, **options):
    graph, state = begun(reasoner, config, optimizer, **options)
    return state, *jax.jit(policy_update(graph, optimizer, config, OPENING))(state, *data)


def change(before, after):
    parts = jax.tree.map(lambda a, b: np.asarray(b - a).ravel(), before.trainable, after.trainable)
    return np.concatenate(jax.tree.leaves(parts))


@pytest.mark.law
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_ratio_is_one_in_the_first_update(dtype):
    """In 16 bits too, in which decoding rounds otherwise: the old log-probs come from the graph of the update."""
    reasoner = small_reasoner("navigator", memory_top=2, dtype=dtype)
    bank = small_bank()
    rollout, recorded = rolled_out(reasoner, memory=bank)
    assert (
        bool(jnp.any(rollout.is_action))
        and bool(jnp.any(rollout.thought_mask))
        and bool(jnp.any(~rollout.thought_mask))
    )
    config = replace(PPO, memory_slots=9)
    graph, state = begun(reasoner, config, optax.sgd(0.1), memory=bank, reference=True)
    update = jax.jit(policy_update(graph, optax.sgd(0.1), config, OPENING))
    after, metrics = update(state, rollout, recorded, *rewards())
    # What the sampler recorded is compared with the pass of the update, here as it is and with half a nat more per token.
    rounding = 1e-4 if dtype == jnp.float32 else 0.1
    assert metrics["sampler_difference"] < rounding
    more = recorded.tokens.log_probs + jnp.where(rollout.token_mask, 0.5, 0.0)
    _, shifted = update(state, rollout, replace(recorded, tokens=replace(recorded.tokens, log_probs=more)), *rewards())
    share = jnp.sum(rollout.token_mask) / count_actions(rollout, config)
    assert shifted["sampler_difference"] == pytest.approx(float(0.5 * share), abs=rounding)
    for kind in ("stops", "thoughts", "tokens"):
        assert metrics[f"{kind}/ratio"] == pytest.approx(1.0, abs=1e-4)
        assert metrics[f"{kind}/ratio_max"] == pytest.approx(1.0, abs=1e-3)
        assert metrics[f"{kind}/clip_fraction"] == 0 and abs(metrics[f"{kind}/approximate_kl"]) < 1e-6
    assert abs(metrics["kl"]) < 1e-6  # the reference is the policy itself
    assert all(np.isfinite(value) for value in metrics.values())
    assert after.memory.filled == min(bank.filled + config.memory_writes, bank.values.size)


@pytest.mark.law
@pytest.mark.slow
@pytest.mark.parametrize("gradient", [pytest.param("score", marks=pytest.mark.long), "pathwise"])
def test_gradient_does_not_depend_on_micro_batches(gradient):
    reasoner = small_reasoner("hidden", normalised=True)
    config = replace(PPO, gradient=gradient, kl_coefficient=0.1, loss_mean="sequence", token_entropy_coefficient=0.1)
    data = (*rolled_out(reasoner), *rewards())
    steps, losses = [], []
    for micro_batches in (1, 4):
        before, after, metrics = updated(
            reasoner, replace(config, micro_batches=micro_batches), data, optax.sgd(1.0), reference=True
        )
        steps.append(change(before, after))
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert np.abs(steps[0]).max() > 1e-3
    np.testing.assert_allclose(steps[0], steps[1], atol=2e-5 * max(1, np.abs(steps[0]).max()))


@pytest.mark.law
def test_sums_do_not_depend_on_minibatches():
    reasoner = small_reasoner("navigator")
    rollout, recorded = rolled_out(reasoner)
    moved = recorded.tokens.log_probs + jnp.where(rollout.token_mask, 0.3, 0.0)  # or all ratios were 1
    recorded = replace(recorded, tokens=replace(recorded.tokens, log_probs=moved))
    advantages, returns = estimate_advantages(rollout, recorded, *rewards(), PPO)
    whole = Experience(rollout, recorded, None, advantages, returns)

    @jax.jit
    def sums(rows):
        part = jax.tree.map(lambda x: x[rows] if x.ndim else x, whole)
        total = policy_sums(reasoner, part, None, PPO, OPENING)
        return total, count_actions(part.rollout, PPO)

    total, actions = sums(jnp.arange(B))
    (odd, odd_actions), (even, even_actions) = sums(jnp.arange(1, B, 2)), sums(jnp.arange(0, B, 2))
    assert actions == odd_actions + even_actions == total.stops.count + total.thoughts.count + total.tokens.count
    for one, two in zip(jax.tree.leaves(total), jax.tree.leaves(odd + even), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_update_ends_before_the_minibatch_that_has_moved_too_far():
    """The first minibatch of the first epoch alone: as if there were no other."""
    reasoner = small_reasoner("hidden")
    data = (*rolled_out(reasoner), *rewards())
    config = replace(PPO, epochs=3, minibatches=1, early_stop_kl=1e-3)
    first = updated(reasoner, replace(config, epochs=1, early_stop_kl=0.0), data, optax.sgd(0.5))
    before, after, metrics = updated(reasoner, config, data, optax.sgd(0.5))
    assert after.step == 1 and metrics["minibatches_used"] == pytest.approx(1 / 3)
    assert after.skipped_total == 0 and np.abs(change(before, after)).max() > 1e-4
    # The keys that shuffle differ with the number of epochs; rows are summed in another order.
    np.testing.assert_allclose(change(first[1], after), 0.0, atol=1e-6)
    # The minibatch that found it too far is told, beside the first at KL 0; the one never begun is not.
    assert metrics["approximate_kl"] > 1e-3 / 2


@pytest.mark.slow
def test_kl_in_the_reward_reaches_the_advantages_and_not_the_loss():
    reasoner = small_reasoner("hidden")
    rollout, recorded = rolled_out(reasoner)
    reward = (jnp.zeros((B, N)), jnp.zeros((B, N, T + 1)))
    config = replace(PPO, baseline="leave_one_out", whiten=False, kl_coefficient=0.5, kl_in="reward", kl_estimator="k1",
                     entropy_coefficient=0.0, value_coefficient=0.0)  # fmt: skip
    graph, state = begun(reasoner, config, optax.sgd(1.0), reference=True)
    update = jax.jit(policy_update(graph, optax.sgd(1.0), config, OPENING))
    at_rest, metrics = update(state, rollout, recorded, *reward)
    assert np.abs(change(state, at_rest)).max() < 1e-5 and abs(metrics["kl"]) < 1e-6  # the reference itself
    apart = state.replace(reference=jax.tree.map(lambda x: x * 1.2, state.reference))
    after, metrics = update(apart, rollout, recorded, *reward)
    step = change(apart, after)
    assert np.abs(step).max() > 1e-4 and abs(metrics["kl"]) > 1e-3
    twice, _ = update(apart.replace(kl_coefficient=2 * apart.kl_coefficient), rollout, recorded, *reward)
    np.testing.assert_allclose(change(apart, twice), 2 * step, atol=1e-5)
    # It leads to the reference, as the loss with the estimator does whose gradient is that of the exact KL.
    in_loss = replace(config, kl_in="loss", kl_estimator="k2")
    towards, _ = jax.jit(policy_update(graph, optax.sgd(1.0), in_loss, OPENING))(apart, rollout, recorded, *reward)
    other = change(apart, towards)
    assert step @ other > 0.1 * np.linalg.norm(step) * np.linalg.norm(other)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "grows"), [(0.1, True), (10.0, False)], ids=str)
def test_the_weight_of_the_kl_follows_its_target(scale, grows):
    """With a target below the KL the coefficient grows, with one above it it falls."""
    reasoner = small_reasoner("hidden")
    rollout, recorded = rolled_out(reasoner)
    config = replace(PPO, kl_coefficient=0.5, kl_estimator="k3")
    graph, state = begun(reasoner, config, optax.sgd(0.0), reference=True)
    apart = state.replace(reference=jax.tree.map(lambda x: x * 1.2, state.reference))
    found = float(
        jax.jit(policy_update(graph, optax.sgd(0.0), config, OPENING))(apart, rollout, recorded, *rewards())[1]["kl"]
    )
    aimed = replace(config, kl_target=scale * found)
    after, _ = jax.jit(policy_update(graph, optax.sgd(0.0), aimed, OPENING))(apart, rollout, recorded, *rewards())
    assert found > 0 and (float(after.kl_coefficient) > 0.5) is grows and float(after.kl_coefficient) != 0.5


@pytest.mark.parametrize("trainable", ["all", "navigator"])
def test_reference_is_a_copy_of_what_is_trained_and_nothing_else(trainable):
    config = replace(PPO, trainable=trainable, kl_coefficient=0.1)
    assert config.keeps_reference and not PPO.keeps_reference
    _, state = begun(small_reasoner("hidden"), config, optax.sgd(1.0), reference=config.keeps_reference)
    assert jax.tree.structure(state.reference) == jax.tree.structure(state.trainable)
    assert ("backbone" in state.reference) is (trainable == "all")
    for kept, trained in zip(jax.tree.leaves(state.reference), jax.tree.leaves(state.trainable), strict=True):
        assert kept is not trained
        np.testing.assert_array_equal(kept, trained)


def test_frozen_backbone_stays_bit_for_bit():
    reasoner = small_reasoner("navigator")
    config = replace(PPO, trainable="navigator", epochs=2, minibatches=2)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, navigator_learning_rate=0.01), 4)
    before, after, _ = updated(reasoner, config, (*rolled_out(reasoner), *rewards()), optimizer)
    for old, new in zip(jax.tree.leaves(before.frozen), jax.tree.leaves(after.frozen), strict=True):
        np.testing.assert_array_equal(old, new)
    assert np.abs(change(before, after)).max() > 1e-4
    assert after.step == 4 and "backbone" not in before.trainable
    assert not [
        leaf for leaf in jax.tree.leaves(before.optimizer) if leaf.shape == before.frozen["backbone"]["embedding"].shape
    ]


def test_non_finite_updates_are_skipped_and_counted():
    reasoner = small_reasoner("hidden")
    rollout, recorded = rolled_out(reasoner)
    answer_reward, thought_reward = rewards()
    config = replace(PPO, epochs=2, whiten=False)
    optimizer = make_optimizer(OptimizerConfig(), 2)
    graph, before = begun(reasoner, config, optimizer)
    update = jax.jit(policy_update(graph, optimizer, config, OPENING))
    tokens = recorded.tokens.replace(log_probs=recorded.tokens.log_probs.at[0, 0, 0].set(jnp.nan))
    for broken in (
        (rollout, recorded, answer_reward.at[0, 0].set(jnp.nan), thought_reward),
        (rollout, recorded.replace(tokens=tokens), answer_reward, thought_reward),
    ):
        after, metrics = update(before, *broken)
        np.testing.assert_array_equal(change(before, after), 0.0)
        for old, new in zip(jax.tree.leaves(before.optimizer), jax.tree.leaves(after.optimizer), strict=True):
            np.testing.assert_array_equal(old, new)
        assert after.skipped == metrics["skipped_in_a_row"] == 2 and metrics["skipped"] == 2
    # A good update starts the count in a row anew; the total stays.
    after, metrics = update(after, rollout, recorded, answer_reward, thought_reward)
    assert after.skipped == metrics["skipped_in_a_row"] == 0 and metrics["skipped"] == 2
    assert np.abs(change(before, after)).max() > 0


def test_loss_that_is_not_finite_skips_even_with_a_finite_gradient():
    reasoner = small_reasoner("hidden")
    _, state = begun(reasoner, PPO, optax.sgd(1.0))
    ones = jax.tree.map(jnp.ones_like, state.trainable)
    for loss, expected in ((0.5, True), (jnp.inf, False)):
        new, _, _, applied = step_if_finite(optax.sgd(1.0), jnp.asarray(loss), ones, state.optimizer, state.trainable)
        moved = jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.all(a != b)), new, state.trainable))
        assert bool(applied) is expected and all(moved) is expected


def test_group_baselines_give_one_advantage_to_a_trajectory():
    reasoner = small_reasoner("hidden")
    rollout, recorded = rolled_out(reasoner)
    answer_reward, _ = rewards()
    nothing = jnp.zeros((B, N, T + 1))
    config = replace(PPO, baseline="leave_one_out", whiten=False)
    advantages, returns = estimate_advantages(rollout, recorded, answer_reward, nothing, config)
    for row in range(B):
        difference = float(answer_reward[row, 0] - answer_reward[row, 1])
        real = np.asarray(advantages[row, 0][advantages[row, 0] != 0])
        assert len(real) == int(rollout.num_thoughts[row, 0] + 1 + rollout.token_mask[row, 0].sum())
        np.testing.assert_allclose(real, difference, rtol=1e-4)
    # γ = 1: what is earned at the end is earned from every position on.
    np.testing.assert_allclose(returns[:, :, 0], answer_reward, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("gradient", "baseline"), [("score", "group"), ("pathwise", "critic")])
def test_updates_raise_the_reward_of_a_bandit(gradient, baseline):
    # A reward for one token as the answer's first: whatever the question, this can be learned in a few updates.
    reasoner, wanted = small_reasoner("navigator"), 7
    count = 32
    config = replace(PPO, questions=count, gradient=gradient, baseline=baseline, epochs=2, minibatches=2)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.03, navigator_learning_rate=0.03), 100)
    graph, state = begun(reasoner, config, optimizer)
    update = jax.jit(policy_update(graph, optimizer, config, OPENING))
    roll = jax.jit(
        lambda state, seed: rolled_out(nnx.merge(graph, state.trainable, state.frozen), seed, None, 0.3, count, 1)
    )
    earned = []
    for seed in range(12):
        rollout, recorded = roll(state, seed)
        answer_reward = (rollout.tokens[..., 0] == wanted).astype(jnp.float32)
        state, _ = update(state, rollout, recorded, answer_reward, jnp.zeros((count, N, T + 1)))
        earned.append(float(answer_reward.mean()))
    assert earned[0] < 3 / VOCABULARY + 0.1 and np.mean(earned[-2:]) > 0.8, earned
