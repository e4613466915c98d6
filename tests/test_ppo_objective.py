"""PPO's mathematics against plain loops, for arbitrary masks with holes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_jax.ppo.objective import (
    adapt_kl_coefficient,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    generalized_advantages,
    group_advantages,
    kl_estimate,
    leave_one_out_advantages,
    reward_at_end,
    sequence_weights,
    whitening,
)

SHAPE = (4, 6)  # one shape, so that every example of a property reuses the compiled function
masks = st.lists(st.booleans(), min_size=24, max_size=24).map(lambda bits: np.array(bits).reshape(SHAPE))
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=30, deadline=None)

gae = jax.jit(generalized_advantages)
left_out_of = jax.jit(leave_one_out_advantages)
grouped_of = jax.jit(group_advantages)
of_whitening = jax.jit(whitening)
policy_loss = jax.jit(clipped_policy_loss, static_argnums=(4, 5))
variance_of = jax.jit(explained_variance)
value_loss = jax.jit(clipped_value_loss)


def advantages_by_loop(rewards, values, mask, gamma, gae_lambda):
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for row in range(rewards.shape[0]):
        real = [p for p in range(rewards.shape[1]) if mask[row, p]]
        for place, position in enumerate(real):
            for ahead, later in enumerate(real[place:]):
                following = real[place + ahead + 1] if place + ahead + 1 < len(real) else None
                next_value = values[row, following] if following is not None else 0.0
                delta = rewards[row, later] + gamma * next_value - values[row, later]
                advantages[row, position] += (gamma * gae_lambda) ** ahead * delta
            returns[row, position] = advantages[row, position] + values[row, position]
    return advantages, returns


@few
@given(masks, seeds, st.floats(0, 1), st.floats(0, 1))
def test_generalized_advantages_match_the_loop(mask, seed, gamma, gae_lambda):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, *SHAPE))
    expected = advantages_by_loop(rewards, values, mask, gamma, gae_lambda)
    poison = np.where(mask, 0.0, np.nan)
    got = gae(
        jnp.float32(rewards + poison),
        jnp.float32(values + poison),
        jnp.asarray(mask),
        jnp.float32(gamma),
        jnp.float32(gae_lambda),
    )
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_without_discount_and_trace_one_returns_are_rewards_to_go():
    rewards = jnp.array([[0.0, -0.1, -0.1, 0.0, 1.0]])
    values = jnp.array([[0.3, 0.9, 0.2, 0.1, 0.5]])
    _, returns = generalized_advantages(rewards, values, jnp.ones((1, 5), bool), 1.0, 1.0)
    np.testing.assert_allclose(returns, [[0.8, 0.8, 0.9, 1.0, 1.0]], atol=1e-6)


def test_value_after_the_end_token_is_zero():
    """Whatever the critic says of padding after the end, the end token's return is its reward."""
    rewards = jnp.array([[0.0, 1.0, 0.0, 0.0]])
    mask = jnp.array([[True, True, False, False]])
    for padding_value in (0.0, 7.0, float("inf")):
        values = jnp.array([[0.5, 0.25, padding_value, padding_value]])
        advantages, returns = generalized_advantages(rewards, values, mask, 1.0, 0.95)
        assert float(returns[0, 1]) == 1.0
        np.testing.assert_allclose(advantages[0], [-0.25 + 0.95 * 0.75, 0.75, 0.0, 0.0], atol=1e-6)


def test_reward_stands_on_the_end_token_and_not_on_padding():
    mask = jnp.array(
        [
            [True, True, True, False, False],  # ended early: the end token is at 2, padding follows
            [True, True, True, True, True],  # cut off by the limit
            [True, False, True, False, False],  # a hole before the end
            [False, False, False, False, False],  # does not exist
        ]
    )
    got = reward_at_end(jnp.array([1.0, -0.5, 2.0, 9.0]), mask)
    expected = np.zeros((4, 5))
    expected[0, 2], expected[1, 4], expected[2, 2] = 1.0, -0.5, 2.0
    np.testing.assert_array_equal(got, expected)


@few
@given(seeds)
def test_group_baselines_match_the_loop(seed):
    reward = np.random.default_rng(seed).choice([0.0, 1.0, 0.3], size=SHAPE)
    left_out, grouped = np.zeros(SHAPE), np.zeros(SHAPE)
    for b, n in np.ndindex(*SHAPE):
        left_out[b, n] = reward[b, n] - np.mean([reward[b, m] for m in range(SHAPE[1]) if m != n])
        grouped[b, n] = (reward[b, n] - reward[b].mean()) / (reward[b].std() + 1e-4)
    np.testing.assert_allclose(left_out_of(jnp.float32(reward)), left_out, atol=1e-5)
    np.testing.assert_allclose(grouped_of(jnp.float32(reward)), grouped, atol=2e-3)


def test_a_group_that_agrees_teaches_nothing():
    advantages = group_advantages(jnp.full((1, 7), 0.7))
    assert np.abs(advantages).max() < 1e-2


@few
@given(masks, seeds)
def test_whitening_uses_real_positions_only(mask, seed):
    x = np.random.default_rng(seed).normal(3.0, 5.0, size=SHAPE)
    mean, scale = of_whitening(jnp.float32(np.where(mask, x, np.nan)), jnp.asarray(mask))
    if mask.any():
        np.testing.assert_allclose((mean, scale), (x[mask].mean(), x[mask].std() + 1e-4), rtol=1e-4, atol=1e-4)
    else:
        assert (mean, scale) == (0.0, np.float32(1e-4))


def policy_loss_by_loop(new, old, advantages, mask, clip, dual_clip):
    loss = count = clipped = kl = ratio_sum = ratio_max = 0.0
    for place in np.ndindex(mask.shape):
        if not mask[place]:
            continue
        ratio, a = np.exp(new[place] - old[place]), advantages[place]
        objective = min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
        cut = objective < ratio * a
        if dual_clip is not None and a < 0 and objective < dual_clip * a:
            objective, cut = dual_clip * a, True
        loss, count, clipped = loss - objective, count + 1, clipped + cut
        kl += ratio - 1 - np.log(ratio)
        ratio_sum, ratio_max = ratio_sum + ratio, max(ratio_max, ratio)
    return loss, count, clipped, kl, ratio_sum, ratio_max


@pytest.mark.parametrize("dual_clip", [None, 1.5])
@few
@given(mask=masks, seed=seeds)
def test_policy_loss_matches_the_loop(dual_clip, mask, seed):
    rng = np.random.default_rng(seed)
    new, old, advantages = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    expected = policy_loss_by_loop(new, old, advantages, mask, 0.2, dual_clip)
    poison = np.where(mask, 0.0, np.nan).astype(np.float32)
    sums = policy_loss(*(jnp.asarray(x + poison) for x in (new, old, advantages)), jnp.asarray(mask), 0.2, dual_clip)
    np.testing.assert_allclose(jax.tree.leaves(sums), expected, rtol=2e-4, atol=1e-4)


def test_policy_gradient_at_ratio_one_is_that_of_the_unclipped_objective():
    advantages = jnp.array([1.0, -2.0, 0.5, 3.0])
    mask = jnp.array([True, True, True, False])
    log_prob = jnp.log(jnp.array([0.3, 0.2, 0.9, 0.5]))
    gradient = jax.grad(lambda x: clipped_policy_loss(x, log_prob, advantages, mask, 0.2).loss_sum)(log_prob)
    np.testing.assert_allclose(gradient, [-1.0, 2.0, -0.5, 0.0], atol=1e-6)


def test_clipped_actions_have_no_gradient_and_are_counted():
    # Above the range with A > 0, below with A < 0: cut off. The other two directions must still pull back.
    log_prob = jnp.log(jnp.array([1.5, 0.5, 1.5, 0.5]))
    advantages = jnp.array([1.0, -1.0, -1.0, 1.0])

    def loss(x):
        return clipped_policy_loss(x, jnp.zeros(4), advantages, jnp.ones(4, bool), 0.2)

    np.testing.assert_allclose(jax.grad(lambda x: loss(x).loss_sum)(log_prob), [0.0, 0.0, 1.5, -0.5], atol=1e-6)
    assert loss(log_prob).clipped_count == 2
    dual = clipped_policy_loss(jnp.log(jnp.array([9.0])), jnp.zeros(1), -jnp.ones(1), jnp.ones(1, bool), 0.2, 3.0)
    assert dual.loss_sum == 3.0 and dual.clipped_count == 1


def test_extreme_log_ratios_give_finite_losses_and_gradients():
    log_prob = jnp.array([500.0, -500.0, 500.0, -500.0])
    advantages = jnp.array([1.0, 1.0, -1.0, -1.0])
    function = jax.value_and_grad(
        lambda x: clipped_policy_loss(x, jnp.zeros(4), advantages, jnp.ones(4, bool), 0.2).loss_sum
    )
    loss, gradient = function(log_prob)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_a_loss_that_is_not_finite_is_not_hidden():
    sums = clipped_policy_loss(jnp.array([jnp.nan]), jnp.zeros(1), jnp.ones(1), jnp.ones(1, bool), 0.2)
    assert np.isnan(sums.loss_sum)


def test_dual_clip_must_exceed_one():
    with pytest.raises(ValueError, match="dual_clip"):
        clipped_policy_loss(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), jnp.ones(1, bool), 0.2, 1.0)


@few
@given(masks, seeds)
def test_sequence_weights_give_the_mean_over_trajectories_of_their_means(mask, seed):
    losses = np.random.default_rng(seed).normal(size=SHAPE)
    weights = np.asarray(sequence_weights(jnp.sum(jnp.asarray(mask), axis=-1, dtype=jnp.float32)))
    means = [losses[row, mask[row]].mean() for row in range(SHAPE[0]) if mask[row].any()]
    found = np.sum(losses * weights[:, None] * mask) / max(mask.sum(), 1)
    assert found == pytest.approx(np.mean(means) if means else 0.0, abs=1e-5)


def whole_batch(x, old, advantages, mask):
    sums = clipped_policy_loss(x, old, advantages, mask, 0.2)
    values = clipped_value_loss(x, old, advantages, mask, 0.2)
    return sums.loss_sum / jnp.maximum(sums.count, 1), (sums, values)


def micro_batches(x, old, advantages, mask):
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):  # of unequal size, and with unequal numbers of real positions
        part = x[rows], old[rows], advantages[rows], mask[rows], 0.2
        parts.append((clipped_policy_loss(*part), clipped_value_loss(*part)))
    (sums, values), (more_sums, more_values) = parts
    sums, values = sums + more_sums, values + more_values
    return sums.loss_sum / jnp.maximum(sums.count, 1), (sums, values)


whole_gradient = jax.jit(jax.grad(whole_batch, has_aux=True))
micro_gradient = jax.jit(jax.grad(micro_batches, has_aux=True))


@few
@given(masks, seeds)
def test_losses_do_not_depend_on_the_split_into_micro_batches(mask, seed):
    """Sums over a split, joined and divided once by the global count, are the loss and gradient of the whole."""
    new, old, advantages = jnp.float32(np.random.default_rng(seed).normal(size=(3, *SHAPE)))
    whole = whole_gradient(new, old, advantages, jnp.asarray(mask))
    split = micro_gradient(new, old, advantages, jnp.asarray(mask))
    for ours, theirs in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_sums_accumulate_through_a_scan():
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)

    def sums_of(row):
        return clipped_policy_loss(row, jnp.zeros(4), jnp.ones(4), jnp.ones(4, bool), 0.2)

    def step(total, row):
        sums = sums_of(row)
        return total + sums, sums

    first = sums_of(x[0])
    total, stacked = jax.lax.scan(step, first, x[1:])
    assert stacked.loss_sum.shape == (2,) and first.count == 4
    assert total.count == 12 and total.ratio_max == jnp.exp(1.0)


@few
@given(masks, seeds)
def test_value_loss_and_explained_variance_match_the_loop(mask, seed):
    rng = np.random.default_rng(seed)
    values, old, returns = rng.normal(size=(3, *SHAPE))
    loss = clipped = 0.0
    for place in np.ndindex(SHAPE):
        if mask[place]:
            near_old = old[place] + np.clip(values[place] - old[place], -0.3, 0.3)
            plain, held = (values[place] - returns[place]) ** 2 / 2, (near_old - returns[place]) ** 2 / 2
            loss, clipped = (
                loss + max(plain, held),
                clipped + (held > plain and abs(values[place] - old[place]) > 0.3),
            )
    poison = np.where(mask, 0.0, np.nan)
    sums = value_loss(*(jnp.float32(x + poison) for x in (values, old, returns)), jnp.asarray(mask), 0.3)
    np.testing.assert_allclose([sums.loss_sum, sums.count, sums.clipped_count], [loss, mask.sum(), clipped], rtol=1e-4)
    if mask.sum() >= 2:
        expected = 1 - np.var(returns[mask] - values[mask]) / np.var(returns[mask])
        np.testing.assert_allclose(variance_of(sums), expected, rtol=2e-2, atol=1e-3)


def test_explained_variance_at_its_landmarks():
    returns, mask = jnp.array([0.0, 1.0, 0.5, 1.0]), jnp.ones(4, bool)

    def of(values, returns=returns):
        return float(explained_variance(clipped_value_loss(values, values, returns, mask, 0.2)))

    assert of(returns) == pytest.approx(1.0)
    assert of(jnp.full(4, 0.9)) == pytest.approx(0.0, abs=1e-6)
    assert of(1 - returns) < 0
    assert of(returns, jnp.full(4, 0.7)) == 0.0


def test_kl_metric_is_the_divergence_and_not_its_reverse():
    """Averaged over the policy's own samples, k1 and k3 are KL(policy ‖ reference) in nats; k2 nearly so."""
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.3])
    exact = float(np.sum(policy * np.log(policy / reference)))
    reverse = float(np.sum(reference * np.log(reference / policy)))
    assert abs(exact - reverse) > 1e-4
    p, q = jnp.log(jnp.float32(policy)), jnp.log(jnp.float32(reference))
    for estimator in ("k1", "k3"):
        assert float(jnp.sum(policy * kl_estimate(p, q, estimator))) == pytest.approx(exact, rel=1e-4)
    assert float(jnp.sum(policy * kl_estimate(p, q, "k2"))) == pytest.approx(exact, rel=0.1)
    assert np.all(np.asarray(kl_estimate(p, q, "k3")) >= 0)
    assert np.isfinite(kl_estimate(jnp.array([-400.0]), jnp.array([0.0]), "k3")).all()
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(p, q, "k4")


def test_the_update_reports_its_kl_in_the_right_direction():
    old, new = np.array([0.5, 0.3, 0.2]), np.array([0.35, 0.35, 0.3])
    copies = np.array([50, 30, 20])  # actions in the proportions of the old policy
    actions = np.repeat(np.arange(3), copies)
    log_old, log_new = (jnp.log(jnp.float32(p))[actions] for p in (old, new))
    sums = clipped_policy_loss(log_new, log_old, jnp.ones(100), jnp.ones(100, bool), 0.2)
    assert float(sums.kl_sum / sums.count) == pytest.approx(float(np.sum(old * np.log(old / new))), rel=1e-3)
    assert float(sums.ratio_sum / sums.count) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_gradients_are_as_documented(estimator):
    """By exact enumeration: k2 gives KL(policy ‖ reference)'s gradient, k1 zero, k3 KL(reference ‖ policy)'s."""
    logits, reference = jnp.array([0.3, -0.5, 1.0]), jax.nn.log_softmax(jnp.array([0.1, 0.4, -0.2]))

    def sampled(x):
        log_p = jax.nn.log_softmax(x)
        weights = jax.lax.stop_gradient(jnp.exp(log_p))
        return jnp.sum(weights * kl_estimate(log_p, reference, estimator))

    def forward(x):
        log_p = jax.nn.log_softmax(x)
        return jnp.sum(jnp.exp(log_p) * (log_p - reference))

    def backward(x):
        return jnp.sum(jnp.exp(reference) * (reference - jax.nn.log_softmax(x)))

    exact = {"k1": lambda x: 0.0 * x.sum(), "k2": forward, "k3": backward}[estimator]
    np.testing.assert_allclose(jax.grad(sampled)(logits), jax.grad(exact)(logits), atol=1e-6)

    def rewarded(x):
        """The policy gradient of an estimate that is charged as a reward."""
        log_p = jax.nn.log_softmax(x)
        charge = jax.lax.stop_gradient(kl_estimate(log_p, reference, estimator))
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(log_p)) * log_p * charge)

    gap = np.abs(jax.grad(rewarded)(logits) - jax.grad(forward)(logits)).max()
    assert gap < 1e-6 if estimator == "k1" else gap > 1e-2


def test_kl_coefficient_follows_the_proportional_controller():
    adapt = jax.jit(adapt_kl_coefficient)
    coefficient = jnp.float32(0.1)
    assert adapt(coefficient, jnp.float32(0.02), 0.02) == coefficient
    assert float(adapt(coefficient, jnp.float32(0.022), 0.02)) == pytest.approx(0.1 * 1.01)
    assert float(adapt(coefficient, jnp.float32(9.0), 0.02)) == pytest.approx(0.1 * 1.02)
    assert float(adapt(coefficient, jnp.float32(0.0), 0.02)) == pytest.approx(0.1 * 0.98)
    assert adapt(coefficient, jnp.float32(jnp.nan), 0.02) == coefficient
