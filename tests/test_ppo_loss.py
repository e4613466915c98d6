"""The whole loss of a rollout against plain loops: every term, every kind of mean, arbitrary masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_jax.config.ppo import PPOConfig
from longshot_jax.ppo.loss import (
    Experience,
    count_actions,
    estimate_advantages,
    kl_at_positions,
    policy_loss,
    sums_of,
    with_weights,
)
from longshot_jax.thoughts.answer import TokenScores
from longshot_jax.thoughts.rollout import Rollout, Scores, ThoughtScores

B, N, T, A, X = 2, 3, 3, 3, 2
STD, KL_COEFFICIENT = 0.5, 0.3


def random_scores(rng):
    shape = (B, N)
    thoughts = ThoughtScores(
        stop=rng.normal(size=(*shape, T + 1)), stop_logits=rng.normal(size=(*shape, T + 1)),
        stop_entropy=rng.random((*shape, T + 1)), thought=rng.normal(size=(*shape, T)),
        means=rng.normal(size=(*shape, T, X)), stds=rng.uniform(0.2, 0.8, (*shape, T)), values=rng.normal(size=(*shape, T + 1)),
    )  # fmt: skip
    tokens = TokenScores(
        log_probs=rng.normal(size=(*shape, A)), entropies=rng.random((*shape, A)),
        values=rng.normal(size=(*shape, A)), is_top=np.zeros((*shape, A), bool),
    )  # fmt: skip
    return jax.tree.map(lambda x: x.astype(np.float32) if x.dtype != bool else x, Scores(thoughts, tokens))


def gaussian_kl(ours, theirs):
    """KL of the thoughts' Gaussians, in nats, [B, N, T]."""
    squares = np.sum((ours.means - theirs.means) ** 2, axis=-1)
    ratio = ours.stds / theirs.stds
    return 0.5 * squares / theirs.stds**2 + X * (0.5 * ratio**2 - 0.5 - np.log(ratio))


def random_rollout(rng):
    """Some decisions free, some forced; some trajectories without any action; answers of any length."""
    num_thoughts = rng.integers(0, T + 1, (B, N))
    thought_mask = np.arange(T) < num_thoughts[..., None]
    token_mask = np.arange(A) < rng.integers(0, A + 1, (B, N))[..., None]
    zeros = np.zeros((B, N, T, X), np.float32)
    return Rollout(
        prompt=np.zeros((B, 1), np.int32), prompt_mask=np.ones((B, 1), bool), actions=zeros, noise=zeros,
        embeddings=zeros, thought_mask=thought_mask, stops=np.zeros((B, N, T + 1), bool),
        is_action=(np.arange(T + 1) <= num_thoughts[..., None]) & (rng.random((B, N, T + 1)) < 0.6),
        num_thoughts=num_thoughts,
        tokens=np.zeros((B, N, A), np.int32), token_mask=token_mask, ended=np.ones((B, N), bool),
        thought_std=np.float32(STD), stop_temperature=np.float32(1), token_temperature=np.float32(1),
    )  # fmt: skip


def zero_where_no_action(scores, rollout):
    thoughts = scores.thoughts.replace(
        stop=np.where(rollout.is_action, scores.thoughts.stop, 0),
        stop_entropy=np.where(rollout.is_action, scores.thoughts.stop_entropy, 0),
        thought=np.where(rollout.thought_mask, scores.thoughts.thought, 0),
    )
    entropies = np.where(rollout.token_mask, scores.tokens.entropies, 0)
    return Scores(thoughts, scores.tokens.replace(entropies=entropies))


def estimate(new, reference, kind):
    log_ratio = reference - new
    return {"k1": -log_ratio, "k2": log_ratio**2 / 2, "k3": np.exp(log_ratio) - 1 - log_ratio}[kind]


def loss_by_loop(new, old, reference, rollout, advantages, returns, config):
    """The documented loss, one action at a time."""
    per_trajectory, critic = {}, []
    for b, n in np.ndindex(B, N):
        terms = []
        for t in range(T + 1):
            if t <= rollout.num_thoughts[b, n]:
                critic.append((new.values[b, n, t], old.values[b, n, t], returns[b, n, t]))
            if rollout.is_action[b, n, t]:
                entropy = config.entropy_coefficient * new.thoughts.stop_entropy[b, n, t]
                pair = new.thoughts.stop[b, n, t], old.thoughts.stop[b, n, t]
                kl = estimate(pair[0], reference.thoughts.stop[b, n, t], config.kl_estimator)
                terms.append((*pair, advantages[b, n, t], kl, entropy))
            if config.gradient == "score" and t < T and rollout.thought_mask[b, n, t]:
                distance = gaussian_kl(new.thoughts, reference.thoughts)[b, n, t]
                pair = new.thoughts.thought[b, n, t], old.thoughts.thought[b, n, t]
                terms.append((*pair, advantages[b, n, t], distance, 0.0))
        for a in range(A):
            if rollout.token_mask[b, n, a]:
                place = T + 1 + a
                critic.append((new.values[b, n, place], old.values[b, n, place], returns[b, n, place]))
                entropy = config.token_entropy_coefficient * new.tokens.entropies[b, n, a]
                pair = new.tokens.log_probs[b, n, a], old.tokens.log_probs[b, n, a]
                kl = estimate(pair[0], reference.tokens.log_probs[b, n, a], config.kl_estimator)
                terms.append((*pair, advantages[b, n, place], kl, entropy))
        losses = []
        for log_prob, old_log_prob, advantage, kl, entropy in terms:
            ratio = np.exp(log_prob - old_log_prob)
            objective = min(ratio * advantage, np.clip(ratio, 1 - config.clip, 1 + config.clip) * advantage)
            if config.dual_clip and advantage < 0:
                objective = max(objective, config.dual_clip * advantage)
            losses.append(-objective + KL_COEFFICIENT * kl - entropy)
        if losses:
            per_trajectory[b, n] = losses
    if config.loss_mean == "sequence":
        policy = np.mean([np.mean(losses) for losses in per_trajectory.values()]) if per_trajectory else 0.0
    else:
        every = [loss for losses in per_trajectory.values() for loss in losses]
        policy = np.mean(every) if every else 0.0
    errors = []
    for value, before, target in critic:
        near = before + np.clip(value - before, -config.value_clip, config.value_clip)
        plain = 0.5 * (target - value) ** 2
        errors.append(max(plain, 0.5 * (target - near) ** 2) if config.value_clip else plain)
    return policy + config.value_coefficient * np.mean(errors)


SETTINGS = [
    PPOConfig(gradient="score", kl_estimator="k3", token_entropy_coefficient=0.02),
    PPOConfig(gradient="score", loss_mean="sequence", kl_estimator="k2", dual_clip=1.5, value_clip=0.0),
    PPOConfig(gradient="pathwise", loss_mean="sequence", kl_estimator="k1", token_entropy_coefficient=0.1),
]


@pytest.mark.parametrize("config", SETTINGS, ids=["token", "sequence", "pathwise"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_loss_matches_the_loop(config, seed):
    rng = np.random.default_rng(seed)
    rollout = random_rollout(rng)
    new, old, reference = (zero_where_no_action(random_scores(rng), rollout) for _ in range(3))
    advantages, returns = rng.normal(size=(2, B, N, T + 1 + A)).astype(np.float32)
    expected = loss_by_loop(new, old, reference, rollout, advantages, returns, config)
    whole = rollout, old, reference, advantages, returns
    loss, told = loss_of(config)(whole, new)
    # What is told is plain sums over actions, whatever weights the loss has.
    measured = [told.entropy, told.token_entropy, told.stops.count + told.tokens.count]
    stops, real = rollout.is_action, rollout.token_mask
    plain = new.thoughts.stop_entropy[stops].sum(), new.tokens.entropies[real].sum(), stops.sum() + real.sum()
    np.testing.assert_allclose(measured, plain, rtol=1e-4, atol=1e-5)
    kinds = (
        (new.thoughts.stop, reference.thoughts.stop, stops),
        (new.tokens.log_probs, reference.tokens.log_probs, real),
    )
    kl = sum(estimate(said, other, config.kl_estimator)[mask].sum() for said, other, mask in kinds)
    if config.gradient == "score":
        kl += gaussian_kl(new.thoughts, reference.thoughts)[rollout.thought_mask].sum()
    assert float(told.kl) == pytest.approx(float(kl), rel=1e-3, abs=1e-3)
    assert float(loss) == pytest.approx(float(expected), rel=2e-3, abs=2e-3)


def loss_of(config, memo={}):  # noqa: B006  (compiled once for each config)
    @jax.jit
    def loss(whole, new):
        """Micro-batches of one question, which must add up to the loss of the whole."""
        whole = with_weights(Experience(*whole), config)
        actions = count_actions(whole.rollout, config)
        reached = (jnp.sum(whole.rollout.num_thoughts + 1) + jnp.sum(whole.rollout.token_mask)).astype(jnp.float32)
        total, told = 0.0, []
        for row in range(B):
            part, said = jax.tree.map(lambda x: x[row : row + 1] if jnp.ndim(x) else x, (whole, new))  # noqa: B023
            told.append(sums_of(said, part, config))
            total += policy_loss(told[-1], actions, reached, jnp.float32(KL_COEFFICIENT), config)
        return total, told[0] + told[1]

    return memo.setdefault(config, loss)


charged = jax.jit(kl_at_positions, static_argnums=3)
advantages_of = jax.jit(estimate_advantages, static_argnums=4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_kl_in_the_reward_is_charged_where_each_action_was_taken(seed):
    rng = np.random.default_rng(seed)
    rollout = random_rollout(rng)
    old, reference = (zero_where_no_action(random_scores(rng), rollout) for _ in range(2))
    config = PPOConfig(kl_in="reward", kl_estimator="k1", whiten=False, gamma=0.9, gae_lambda=1.0)
    found = charged(old, reference, rollout, config)
    expected = np.zeros((B, N, T + 1 + A))
    for b, n in np.ndindex(B, N):
        for t in range(T + 1):
            if rollout.is_action[b, n, t]:
                expected[b, n, t] += old.thoughts.stop[b, n, t] - reference.thoughts.stop[b, n, t]
            if t < T and rollout.thought_mask[b, n, t]:
                expected[b, n, t] += old.thoughts.thought[b, n, t] - reference.thoughts.thought[b, n, t]
        for a in range(A):
            if rollout.token_mask[b, n, a]:
                expected[b, n, T + 1 + a] = old.tokens.log_probs[b, n, a] - reference.tokens.log_probs[b, n, a]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    answer_reward = rng.normal(size=(B, N)).astype(np.float32)
    costs = np.zeros((B, N, T + 1), np.float32)
    _, returns = advantages_of(rollout, old, answer_reward, costs, config, 0.5 * found)
    for b, n in np.ndindex(B, N):
        # With γ = 0.9 and λ = 1 the return at h_0 is the discounted sum of all that is earned and charged.
        real = list(range(rollout.num_thoughts[b, n] + 1))
        real += [T + 1 + a for a in range(A) if rollout.token_mask[b, n, a]]
        earned = -0.5 * expected[b, n, real]
        earned[-1] += answer_reward[b, n]  # also where nothing was written
        discounted = np.sum(earned * 0.9 ** np.arange(len(real)))
        assert float(returns[b, n, 0]) == pytest.approx(discounted, abs=1e-4)
