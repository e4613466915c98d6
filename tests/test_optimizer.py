"""The optimizer's steps by hand: schedules, groups, weight decay, clipping, restarts; and sums over micro-batches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from longshot_jax.config.optimizer import OptimizerConfig
from longshot_jax.training.optimizer import cut_rows, make_optimizer, restart_schedule, step_if_finite, summed_gradients

# Without memory Adam's step is the learning rate times the sign of the gradient.
SIGNS = OptimizerConfig(
    learning_rate=0.1, navigator_learning_rate=0.4, weight_decay=0.0, navigator_weight_decay=0.0, b1=0.0, b2=0.0
)


def weights():
    """A matrix and a vector of each group, all ones; a vector of each layer is not decayed either."""

    def group():
        return nnx.State(
            {
                "matrix": nnx.Param(jnp.ones((2, 3)), logical_axes=("embed", "mlp")),
                "norms": nnx.Param(jnp.ones((2, 3)), logical_axes=("layers", "embed")),
            }
        )

    return nnx.State({"backbone": group(), "navigator": group()})


def flat(state):
    return {".".join(path): np.asarray(value[...]) for path, value in nnx.to_flat_state(state)}


def steps(config, total, number, gradient=1.0):
    """The change of every weight in each of the first steps, with the same gradient in all."""
    optimizer, params = make_optimizer(config, total), weights()
    state, changes = optimizer.init(params), []
    for _ in range(number):
        gradients = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
        after, state, _, _ = step_if_finite(optimizer, jnp.ones(()), gradients, state, params)
        changes.append({name: value - flat(params)[name] for name, value in flat(after).items()})
        params = after
    return changes


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ("linear", [0.05, 0.075, 0.1, 0.08, 0.06, 0.04, 0.02]),
        ("cosine", [0.05, 0.075, 0.1, 0.02 + 0.08 * (1 + np.cos(np.pi / 4)) / 2, 0.06, 0.02 + 0.08 * (1 - np.cos(np.pi / 4)) / 2, 0.02]),
    ],
    ids=str,
)  # fmt: skip
def test_learning_rates_rise_over_the_warmup_and_fall_to_their_share(schedule, rates):
    config = replace(SIGNS, schedule=schedule, warmup_steps=2, final_learning_rate=0.2)
    changes = steps(config, 6, 7)
    for name, factor in (("backbone.matrix", 1), ("navigator.matrix", 4)):
        found = [-change[name][0, 0] / factor for change in changes]
        np.testing.assert_allclose(found, rates, rtol=1e-5, err_msg=name)


def test_matrices_decay_at_the_rate_of_their_group_and_vectors_do_not():
    (change,) = steps(replace(SIGNS, weight_decay=0.5, navigator_weight_decay=0.25, schedule="constant"), 1, 1)
    for name, rate, decay in (("backbone", 0.1, 0.5), ("navigator", 0.4, 0.25)):
        np.testing.assert_allclose(change[f"{name}.matrix"], -rate * (1 + decay), rtol=1e-5)
        np.testing.assert_allclose(change[f"{name}.norms"], -rate, rtol=1e-5)


def test_the_norm_over_all_weights_is_clipped():
    """After a step of known size Adam's second tells how large the gradient is that reaches it: 24 elements of norm 1."""
    config = replace(SIGNS, clip_norm=1.0, schedule="constant", b2=0.5)
    optimizer, params = make_optimizer(config, 2), weights()

    def second(size):
        state, change = optimizer.init(params), None
        for scale in (0.1, size):
            gradients = jax.tree.map(lambda x, scale=scale: jnp.full_like(x, scale), params)
            change, state = optimizer.update(gradients, state, params)
        return -flat(change)["backbone.matrix"][0, 0] / config.learning_rate

    def adam(size):
        return size / np.sqrt((0.25 * 0.1**2 + 0.5 * size**2) / 0.75)

    bound = 24**-0.5
    for size in (bound / 2, bound, 100.0):
        assert second(size) == pytest.approx(adam(min(size, bound)), rel=1e-4)
    assert adam(100.0) > 1.05 * adam(bound) > 1.1 * adam(bound / 2)


def test_a_restart_begins_the_schedule_anew_and_keeps_the_moments():
    config = replace(SIGNS, schedule="linear", warmup_steps=2, b1=0.9, b2=0.9)
    optimizer, params = make_optimizer(config, 5), weights()
    gradients, state = jax.tree.map(jnp.ones_like, params), optimizer.init(params)
    for _ in range(4):
        _, state = optimizer.update(gradients, state, params)
    again = restart_schedule(state)
    first, _ = optimizer.update(gradients, again, params)
    # Moments of equal gradients give the sign, whatever their number; the rate is that of the first update.
    np.testing.assert_allclose(flat(first)["backbone.matrix"], -0.05, rtol=1e-4)
    before, after = (
        [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim] for tree in (state, again)
    )  # the moments are arrays, counts are not
    assert before and all((a == b).all() for a, b in zip(before, after, strict=True))
    assert all(leaf.any() for leaf in before)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_gradients_of_micro_batches_sum_to_that_of_the_batch(parts):
    """Rows count unequally, as answers of different lengths do; every part is divided by the count of the whole batch."""
    x, y = jax.random.normal(jax.random.key(0), (2, 8, 3))
    counts = jnp.arange(1.0, 9.0)
    params = jax.random.normal(jax.random.key(1), (3,))

    def loss_and_sums(doubled, batch):
        x, y, counts = batch
        errors = jnp.square(x @ doubled - y[:, 0]) * counts
        return errors.sum() / 36, {"count": counts.sum(), "error": errors.sum()}

    def join(one, other):
        return jax.tree.map(jnp.add, one, other)

    found, sums = summed_gradients(loss_and_sums, params, cut_rows((x, y, counts), parts), join, lambda p: 2 * p)
    expected = jax.grad(lambda p: (jnp.square(x @ (2 * p) - y[:, 0]) * counts).sum() / 36)(params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert sums["count"] == 36


def test_a_step_that_is_not_finite_changes_nothing():
    optimizer, params = make_optimizer(SIGNS, 1), weights()
    state = optimizer.init(params)
    gradients = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    for loss, broken in ((jnp.ones(()), gradients), (jnp.full((), jnp.inf), jax.tree.map(jnp.ones_like, params))):
        after, kept, norm, applied = step_if_finite(optimizer, loss, broken, state, params)
        assert not applied and jax.tree.all(
            jax.tree.map(lambda a, b: bool((a == b).all()), (after, kept), (params, state))
        )
    assert norm == pytest.approx(24**0.5)
