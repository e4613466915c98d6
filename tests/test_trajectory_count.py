"""How many trajectories a question gets: an action with an exact ratio and gradient, and masks that hide the others."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import END, QUICK, from_scratch, question_keys, ragged_prompts, small_bank, small_reasoner
from flax import nnx

from longshot_jax.config.ppo import PPOConfig
from longshot_jax.ppo.loss import (
    Experience,
    count_actions,
    estimate_advantages,
    policy_loss,
    policy_sums,
    share_advantages,
)
from longshot_jax.thoughts.rescore import rescore
from longshot_jax.thoughts.rollout import Rollout, RolloutShape, Temperatures, sample_rollout
from longshot_jax.thoughts.stopping import Lengths, draw_count

pytestmark = pytest.mark.law

QUESTIONS, MOST, STEPS, ANSWER, OPENING = 4, 4, 3, 3, (7,)


def sample(reasoner, bank, forced=None, room=MOST, adaptive=True, ensemble=False):
    """A rollout with room for `room` trajectories of every question, and its scores."""
    shape = RolloutShape(room, STEPS, ANSWER, OPENING, (END,), scaling="summed", adaptive=adaptive, ensemble=ensemble)
    prompt, mask = ragged_prompts([3, 6, 1, 4], 6)
    return jax.jit(
        lambda reasoner: sample_rollout(
            reasoner,
            prompt,
            mask,
            bank,
            Lengths(jnp.int32(0), jnp.int32(STEPS), forced),
            Temperatures(jnp.float32(0.3), jnp.float32(2.0), jnp.float32(2.0)),
            question_keys(QUESTIONS, 6),
            shape,
        ),
        compiler_options=QUICK,
    )(reasoner)


@pytest.fixture(scope="module")
def reading():
    """Thoughts read the other trajectories too, where one that does not exist could be seen."""
    return small_reasoner("navigator", memory_top=2, reads="all", max_trajectories=MOST), small_bank()


@pytest.mark.parametrize("ensemble", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ratio_is_one_and_trajectories_beyond_their_count_are_masked(reading, ensemble):
    reasoner, bank = reading
    rollout, recorded = sample(reasoner, bank, ensemble=ensemble)
    assert len(np.unique(rollout.num_trajectories)) > 1 and bool(rollout.count_is_action.all())
    np.testing.assert_array_equal(rollout.active, np.arange(MOST) < np.asarray(rollout.num_trajectories)[:, None])
    gone = ~np.asarray(rollout.active)
    for part in (rollout.thought_mask, rollout.is_action, rollout.token_mask, recorded.values, recorded.thoughts.stop):
        assert not np.asarray(part)[gone].any()
    assert np.all(np.asarray(recorded.count.log_prob) < 0) and np.all(recorded.count.entropy > 0)
    replay = jax.jit(
        lambda reasoner: [
            rescore(reasoner, rollout, bank, OPENING, way, "summed", ensemble=ensemble)
            for way in ("parallel", "actions", "noise")
        ],
        compiler_options=QUICK,
    )
    for again in replay(reasoner):
        for name in ("stop", "thought", "values", "stop_entropy"):
            found, expected = getattr(again.thoughts, name), getattr(recorded.thoughts, name)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(again.tokens.log_probs, recorded.tokens.log_probs, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(again.count.log_prob, recorded.count.log_prob, rtol=1e-5)


@pytest.mark.slow
def test_inactive_trajectories_add_nothing(reading):
    """Loss and gradient are those of a rollout that has no room for them."""
    reasoner, bank = reading
    config = PPOConfig(kl_coefficient=0.0, whiten=True, loss_mean="token")
    graphdef, params = nnx.split(reasoner)
    found = []
    for room in (MOST, 2):
        forced = jnp.full(QUESTIONS, 2, jnp.int32) if room == MOST else None
        rollout, recorded = sample(reasoner, bank, forced, room, adaptive=room == MOST)
        assert rollout.num_trajectories is None or not rollout.count_is_action.any()
        rng = np.random.default_rng(0)
        reward = jnp.float32(rng.normal(size=(QUESTIONS, MOST)))[:, :room]
        costs = jnp.zeros((QUESTIONS, room, STEPS + 1))

        def loss(params, rollout=rollout, recorded=recorded, reward=reward, costs=costs):
            advantages, returns = estimate_advantages(rollout, recorded, reward, costs, config)
            advantages, count_advantage = share_advantages(advantages, recorded.values, rollout, config)
            if count_advantage is not None:
                advantages /= MOST / 2  # scaled by N over the number of trajectories
            part = Experience(rollout, recorded, None, advantages, returns, count_advantage=count_advantage)
            sums = policy_sums(nnx.merge(graphdef, params), part, bank, config, OPENING)
            actions = count_actions(rollout, config)
            return policy_loss(sums, actions, jnp.float32(7), jnp.float32(0), config), actions

        of_loss = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
        found.append(of_loss(params))
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_counts_are_forced_drawn_or_the_likeliest():
    navigator = small_reasoner(max_trajectories=MOST).navigator
    hidden = jax.random.normal(jax.random.key(0), (4, 8))
    forced = jnp.array([0, 2, 4, 0], jnp.int32)
    num_trajectories, is_action = draw_count(navigator, hidden, forced, None)
    likeliest = 2 + np.argmax(navigator.count_logits(hidden), axis=-1)
    np.testing.assert_array_equal(num_trajectories, np.where(forced == 0, likeliest, forced))
    np.testing.assert_array_equal(is_action, [True, False, False, True])
    many = jax.vmap(lambda seed: draw_count(navigator, hidden, None, question_keys_of(seed))[0])(jnp.arange(2000))
    shares = np.stack([(np.asarray(many) == count).mean(0) for count in (2, 3, 4)], axis=-1)
    np.testing.assert_allclose(shares, jax.nn.softmax(navigator.count_logits(hidden)), atol=0.05)


def question_keys_of(seed):
    return jax.random.split(jax.random.key(seed), 4)


PROMPT, CHOICES, LARGEST = (0, 1, 1), 3, 3


def answers_alone(tokens, active, num_trajectories):
    """A rollout without thoughts, with answers of one token; the numbers of trajectories are actions."""
    rows, everything = len(tokens), tokens.shape
    return Rollout(
        prompt=jnp.broadcast_to(jnp.asarray(PROMPT), (rows, 3)),
        prompt_mask=jnp.ones((rows, 3), bool),
        actions=jnp.zeros((*everything, 0, 4)),
        noise=jnp.zeros((*everything, 0, 4)),
        embeddings=jnp.zeros((*everything, 0, 4)),
        thought_mask=jnp.zeros((*everything, 0), bool),
        stops=jnp.ones((*everything, 1), bool),
        is_action=jnp.zeros((*everything, 1), bool),
        num_thoughts=jnp.zeros(everything, jnp.int32),
        tokens=jnp.asarray(tokens)[..., None],
        token_mask=jnp.asarray(active)[..., None],
        ended=jnp.asarray(active),
        thought_std=jnp.float32(0),
        stop_temperature=jnp.float32(1),
        token_temperature=jnp.float32(1),
        num_trajectories=jnp.asarray(num_trajectories),
        count_is_action=jnp.ones(rows, bool),
        active=jnp.asarray(active),
    )


@pytest.mark.law
@pytest.mark.parametrize(("shared", "whitens"), [(False, False), (False, True), (True, False)])
def test_the_number_of_trajectories_has_a_baseline_that_does_not_depend_on_it(shared, whitens):
    """Law 4 for the number alone: with roles each trajectory has a reward and a value of its own."""
    rewards, values = np.array([0.2, 1.0, 0.4, -0.3]), np.array([0.1, 1.1, 0.5, -0.2])
    logits, counts = jnp.array([0.3, -0.2, 0.1]), np.array([2, 3, 4])
    active = np.arange(MOST) < counts[:, None]
    mean = np.where(active, rewards, 0).sum(1) / counts
    earned = np.where(active, mean[:, None] if shared else rewards, 0.0)
    rollout = answers_alone(np.zeros(active.shape, np.int32), active, np.int32(counts))
    # Of each trajectory h_0 and a token, at whose end it earns.
    guessed = jnp.asarray(np.where(active, values, 0.0))[..., None] * jnp.ones(2)
    given = jnp.asarray(earned)[..., None] - guessed
    config = PPOConfig(whiten=whitens, shared_reward=shared)
    advantages, of_count = share_advantages(given, guessed, rollout, config)
    chances = jax.nn.softmax(logits)
    found = jax.grad(lambda logits: jnp.sum(chances * of_count * jax.nn.log_softmax(logits)))(logits)
    true = jax.grad(lambda logits: jnp.sum(jax.nn.softmax(logits) * mean))(logits)
    scale = 1.0 if shared else MOST
    if whitens:
        scale /= float(np.asarray(given)[active].std() + 1e-4)
    np.testing.assert_allclose(found, scale * true, rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(true).max()) > 1e-2 and advantages.shape == given.shape


def all_counts_and_answers():
    """Every number of trajectories, 2 or 3, with every answer of one token for each."""
    rows = [(count, answers) for count in (2, 3) for answers in itertools.product(range(CHOICES), repeat=count)]
    tokens = np.zeros((len(rows), LARGEST), np.int32)
    for row, (_, answers) in enumerate(rows):
        tokens[row, : len(answers)] = answers
    return np.array([count for count, _ in rows], np.int32), tokens


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradient_is_that_of_the_expected_mean_over_trajectories(shared):
    """Law 4, by enumeration: rewards of one's own answer and the count, or of all answers together (a fused reward)."""
    with jax.enable_x64(True):
        shape = {"vocab_size": CHOICES, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
        shape |= {"num_attention_heads": 1, "num_key_value_heads": 1}
        reasoner = small_reasoner(seed=7, dtype=jnp.float64, max_trajectories=LARGEST, **shape)
        graphdef, params = nnx.split(reasoner)
        num_trajectories, tokens = all_counts_and_answers()
        active = np.arange(LARGEST) < num_trajectories[:, None]
        rng = np.random.default_rng(3)
        reward = rng.normal(size=(4, CHOICES))[num_trajectories[:, None], tokens] - 0.3 * num_trajectories[:, None]
        if shared:
            whole = np.where(active, reward, 0).sum(1) / num_trajectories + rng.normal(size=len(num_trajectories))
            reward = np.broadcast_to(whole[:, None], reward.shape)
        reward = np.where(active, reward, 0.0)

        def probability(params):
            reasoner = nnx.merge(graphdef, params)
            inputs = reasoner.backbone.embedding[...][jnp.asarray([*PROMPT, 1])]
            hidden = from_scratch(reasoner, inputs, jnp)
            first = jax.nn.log_softmax(reasoner.navigator.count_logits(hidden[-2][None])[0])
            answer = jax.nn.log_softmax(hidden[-1] @ reasoner.backbone.head[...].T)
            return jnp.exp(first[num_trajectories - 2] + jnp.sum(jnp.where(active, answer[tokens], 0.0), axis=1))

        def expected(params):
            return jnp.sum(probability(params) * reward.sum(1) / num_trajectories)

        chances = jax.jit(probability, compiler_options=QUICK)(params)
        assert abs(float(chances.sum()) - 1) < 1e-9
        everything = tokens.shape
        rollout = answers_alone(tokens, active, num_trajectories)
        config = PPOConfig(
            gradient="none",
            whiten=False,
            gae_lambda=1.0,
            value_coefficient=0.0,
            entropy_coefficient=0.0,
            kl_coefficient=0.0,
            shared_reward=shared,
        )

        def loss(params):
            reasoner = nnx.merge(graphdef, params)
            recorded = jax.lax.stop_gradient(rescore(reasoner, rollout, None, (1,), "parallel", "summed"))
            costs = jnp.zeros((*everything, 1))
            advantages, returns = estimate_advantages(rollout, recorded, jnp.asarray(reward), costs, config)
            advantages, count_advantage = share_advantages(advantages, recorded.values, rollout, config)
            part = Experience(
                rollout,
                recorded,
                None,
                advantages * chances[:, None, None],
                returns,
                count_advantage=count_advantage * chances,
            )
            sums = policy_sums(reasoner, part, None, config, (1,))
            return policy_loss(sums, *(jnp.float32(x) for x in (1, 1, 0)), config)

        true = jax.jit(jax.grad(expected), compiler_options=QUICK)(params)
        found = jax.jit(jax.grad(loss), compiler_options=QUICK)(params)
        scale = -1.0 if shared else -LARGEST
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(true["navigator"])) > 1e-3
        largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(true))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True):
            np.testing.assert_allclose(a / scale / largest, b / largest, atol=1e-4)
