"""Laws 5 and 7: neighbours change nothing, and changing data never compiles anything again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import END, QUICK, question_keys, ragged_prompts, small_bank, small_reasoner
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from longshot_jax.config.ppo import PPOConfig
from longshot_jax.ppo.loss import Experience, count_actions, estimate_advantages, policy_loss, policy_sums
from longshot_jax.thoughts.reads.memory_bank import best_positions, empty_bank, write_bank
from longshot_jax.thoughts.rescore import rescore
from longshot_jax.thoughts.rollout import RolloutShape, Temperatures, sample_rollout
from longshot_jax.thoughts.stopping import Lengths, position_mask

pytestmark = pytest.mark.law

TRAJECTORIES, STEPS, ANSWER, WIDTH, OPENING = 3, 3, 4, 6, (7,)


def sampling(ensemble=False, num_trajectories=TRAJECTORIES):
    shape = RolloutShape(num_trajectories, STEPS, ANSWER, OPENING, (END,), scaling="summed", ensemble=ensemble)

    def sample(reasoner, prompt, mask, bank, lengths, temperatures, keys):
        return sample_rollout(reasoner, prompt, mask, bank, lengths, temperatures, keys, shape)

    return sample


def sampler(*args, **kwargs):
    return jax.jit(sampling(*args, **kwargs), compiler_options=QUICK)


def temperatures(thought_std=0.3, stop=1.2, token=0.9):
    return Temperatures(np.float32(thought_std), np.float32(stop), np.float32(token))


def per_row(tree):
    """The leaves with a leading axis of questions, the prompt and its mask aside, whose width may differ."""
    if hasattr(tree, "prompt"):
        tree = tree.replace(prompt=None, prompt_mask=None)
    return [np.asarray(x) for x in jax.tree.leaves(tree) if x.ndim]


def same(found, expected):
    """Equal decisions and nearly equal numbers. Steps after a stop are compared too: they must be dead, not wild."""
    for a, b in zip(found, expected, strict=True):
        if a.dtype == np.float32:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "case",
    [
        ("hidden", False, 0, False),
        ("navigator", True, 3, True),
        pytest.param(("navigator_residual", False, 3, False), marks=pytest.mark.slow),
        pytest.param(("vocabulary", False, 0, False), marks=pytest.mark.slow),
        pytest.param(("hidden", True, 0, False, "learned"), marks=pytest.mark.slow),
        pytest.param(("vocabulary", True, 0, False, "tokens"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_row_does_not_depend_on_padding_or_other_rows(case):
    *kind, ensemble = case[:4]
    reasoner = small_reasoner(*kind, seed=2, noise=case[4] if len(case) > 4 else "fixed")
    bank, sample = small_bank() if kind[2] else None, sampler(ensemble)

    @settings(max_examples=5, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
    @given(st.lists(st.integers(1, WIDTH), min_size=3, max_size=3), st.integers(0, 10_000))
    def holds(prompt_lengths, seed):
        bounds = np.sort(np.random.default_rng(seed).integers(0, STEPS + 1, (2, 3, TRAJECTORIES)), axis=0)
        lowest, highest = bounds.astype(np.int32)
        keys = question_keys(3, seed)
        wide = ragged_prompts(prompt_lengths, WIDTH + 3, seed)
        rollout, recorded = sample(reasoner, *wide, bank, Lengths(lowest, highest), temperatures(), keys)
        narrow = [np.asarray(x) for x in ragged_prompts(prompt_lengths, WIDTH, seed)]
        for row in range(3):
            only = slice(row, row + 1)
            alone, alone_recorded = sample(
                reasoner,
                narrow[0][only],
                narrow[1][only],
                bank,
                Lengths(lowest[only], highest[only]),
                temperatures(),
                keys[only],
            )
            same(per_row(alone), [x[only] for x in per_row(rollout)])
            same(per_row(alone_recorded), [x[only] for x in per_row(recorded)])

    holds()


@pytest.mark.slow
def test_a_trajectory_does_not_depend_on_their_number():
    reasoner, (prompt, mask) = small_reasoner(seed=2), ragged_prompts([3, 6], WIDTH)
    lengths = Lengths(np.int32(0), np.int32(STEPS))
    few, many = (
        sampler(num_trajectories=count)(reasoner, prompt, mask, None, lengths, temperatures(), question_keys(2))
        for count in (1, 3)
    )
    for found, expected in zip(few, many, strict=True):
        same(per_row(found), [x[:, :1] for x in per_row(expected)])


@pytest.mark.parametrize("gradient", ["score", pytest.param("pathwise", marks=pytest.mark.slow)])
def test_loss_and_gradient_do_not_depend_on_micro_batches(gradient):
    reasoner = small_reasoner("hidden", True, seed=2)
    prompt, mask = ragged_prompts([3, 6], WIDTH)
    lengths = Lengths(np.int32(0), np.int32(STEPS))
    rollout, recorded = sampler()(reasoner, prompt, mask, None, lengths, temperatures(), question_keys(2))
    config = PPOConfig(gradient=gradient, kl_coefficient=0.0)
    rewards = jnp.asarray(np.random.default_rng(0).normal(size=rollout.num_thoughts.shape), jnp.float32)
    costs = jnp.zeros((*rollout.num_thoughts.shape, STEPS + 1))
    advantages = jax.jit(partial(estimate_advantages, config=config))(rollout, recorded, rewards, costs)
    whole = Experience(rollout, recorded, None, *advantages)
    actions = count_actions(rollout, config)
    positions = jnp.sum(position_mask(rollout.num_thoughts, STEPS)) + jnp.sum(rollout.token_mask)
    graphdef, params = nnx.split(reasoner)

    def loss(params, part):
        sums = policy_sums(nnx.merge(graphdef, params), part, None, config, OPENING)
        return policy_loss(sums, actions, positions.astype(jnp.float32), jnp.float32(0), config)

    of_loss = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
    parts = [jax.tree.map(lambda x: x[row : row + 1] if x.ndim else x, whole) for row in range(2)]  # noqa: B023
    rows = [of_loss(params, part) for part in parts]
    total = jax.tree.map(lambda a, b: a + b, *rows)
    at_once = of_loss(params, whole)
    assert float(jnp.max(jnp.abs(rows[0][0]))) > 1e-4
    for found, expected in zip(jax.tree.leaves(total), jax.tree.leaves(at_once), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_changing_data_compiles_nothing_again():
    """Rollout, update and memory over epochs of ragged data, annealed temperatures and changing bounds."""
    graphdef, params = nnx.split(small_reasoner("navigator", True, 3))
    bank, compilations = empty_bank(9, 5), []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(duration)

    @partial(jax.jit, compiler_options=QUICK)
    def iterate(params, bank, prompt, mask, lengths, temperatures, keys):
        reasoner = nnx.merge(graphdef, params)
        rollout, recorded = sampling()(reasoner, prompt, mask, bank, lengths, temperatures, keys)

        def loss(params):
            scores = rescore(nnx.merge(graphdef, params), rollout, bank, OPENING, "parallel", "summed")
            return sum(jnp.mean(x) for x in (scores.thoughts.stop, scores.thoughts.thought, scores.tokens.log_probs))

        params = jax.tree.map(lambda x, g: x - 1e-3 * g, params, jax.grad(loss)(params))
        values = jnp.where(rollout.thought_mask, 1.0 + recorded.thoughts.values[..., :-1], 0.0)
        bank = write_bank(bank, *best_positions(rollout.actions, rollout.thought_mask, values, 4))
        return params, bank, rollout.num_thoughts

    counts = []
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for epoch in range(5):
            generator = np.random.default_rng(epoch)
            prompt, mask = ragged_prompts(generator.integers(1, WIDTH + 1, 2).tolist(), WIDTH, epoch)
            bounds = np.sort(generator.integers(0, STEPS + 1, (2, 2, TRAJECTORIES)), axis=0).astype(np.int32)
            annealed = temperatures(0.3 / (1 + epoch), 1.2 - 0.1 * epoch, 0.9)
            params, bank, num_thoughts = iterate(
                params, bank, prompt, mask, Lengths(*bounds), annealed, question_keys(2, epoch)
            )
            counts.append(np.asarray(num_thoughts))
            if epoch == 0:
                assert compilations  # the event is still called that
            if epoch == 1:
                compilations.clear()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert iterate._cache_size() == 1
    assert len(np.unique(np.stack(counts), axis=0)) > 2  # the data did change
    assert not compilations
