"""How many trajectories a question gets: an action with an exact ratio and gradient, and masks that hide the others."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import END, QUICK, from_scratch, question_keys, ragged_prompts, small_bank, small_reasoner
from flax import nnx

from longshot_jax.thoughts.complexity import draw_number
from longshot_jax.thoughts.rescore import Rollout, rescore
from longshot_jax.thoughts.rollout import Lengths, Temperatures, sample_rollout
from longshot_jax.training.policy_loss import (
    Experience,
    count_actions,
    estimate_advantages,
    policy_loss,
    policy_sums,
    share_advantages,
)
from longshot_jax.training.settings import PPOConfig

pytestmark = pytest.mark.law

QUESTIONS, MOST, STEPS, ANSWER, OPENING = 4, 4, 3, 3, (7,)


def sample(reasoner, bank, forced=None, trajectories=MOST, adaptive=True, together=False):
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
            num_trajectories=trajectories,
            max_thoughts=STEPS,
            answer_length=ANSWER,
            opening=OPENING,
            end_token=END,
            scaling="summed",
            adaptive=adaptive,
            together=together,
        ),
        compiler_options=QUICK,
    )(reasoner)


@pytest.fixture(scope="module")
def reading():
    """Thoughts read the other trajectories too, where one that does not exist could be seen."""
    return small_reasoner("navigator", memory_top=2, reads="all", max_trajectories=MOST), small_bank()


@pytest.mark.parametrize("together", [False, True])
def test_ratio_is_one_and_trajectories_beyond_the_number_are_masked(reading, together):
    reasoner, bank = reading
    rollout, recorded = sample(reasoner, bank, together=together)
    assert len(np.unique(rollout.number)) > 1 and bool(rollout.number_free.all())
    np.testing.assert_array_equal(rollout.exists, np.arange(MOST) < np.asarray(rollout.number)[:, None])
    gone = ~np.asarray(rollout.exists)
    for part in (rollout.taken, rollout.free, rollout.token_mask, recorded.values, recorded.thoughts.stop):
        assert not np.asarray(part)[gone].any()
    assert np.all(np.asarray(recorded.number.log_prob) < 0) and np.all(recorded.number.entropy > 0)
    replay = jax.jit(
        lambda reasoner: [
            rescore(reasoner, rollout, bank, OPENING, way, "summed", together)
            for way in ("parallel", "actions", "noise")
        ],
        compiler_options=QUICK,
    )
    for again in replay(reasoner):
        for name in ("stop", "thought", "values", "stop_entropy"):
            found, expected = getattr(again.thoughts, name), getattr(recorded.thoughts, name)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(again.tokens.log_probs, recorded.tokens.log_probs, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(again.number.log_prob, recorded.number.log_prob, rtol=1e-5)


@pytest.mark.slow
def test_trajectories_that_do_not_exist_add_nothing(reading):
    """Loss and gradient are those of a rollout that has no room for them."""
    reasoner, bank = reading
    config = PPOConfig(kl_coefficient=0.0, whiten=True, loss_mean="token")
    graph, weights = nnx.split(reasoner)
    found = []
    for count in (MOST, 2):
        forced = jnp.full(QUESTIONS, 2, jnp.int32) if count == MOST else None
        rollout, recorded = sample(reasoner, bank, forced, count, adaptive=count == MOST)
        assert rollout.number is None or not rollout.number_free.any()
        rng = np.random.default_rng(0)
        reward = jnp.float32(rng.normal(size=(QUESTIONS, MOST)))[:, :count]
        costs = jnp.zeros((QUESTIONS, count, STEPS + 1))

        def loss(weights, rollout=rollout, recorded=recorded, reward=reward, costs=costs):
            advantages, returns = estimate_advantages(rollout, recorded, reward, costs, config)
            advantages, of_number = share_advantages(advantages, rollout, config)
            if of_number is not None:
                advantages /= MOST / 2  # shown times N over the number that there is
            part = Experience(rollout, recorded, None, advantages, returns, of_number=of_number)
            sums = policy_sums(nnx.merge(graph, weights), part, bank, config, OPENING)
            count = count_actions(rollout, config)
            return policy_loss(sums, count, jnp.float32(7), jnp.float32(0), config), count

        of_loss = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
        found.append(of_loss(weights))
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_numbers_are_forced_drawn_or_the_likeliest():
    navigator = small_reasoner(max_trajectories=MOST).navigator
    hidden = jax.random.normal(jax.random.key(0), (4, 8))
    forced = jnp.array([0, 2, 4, 0], jnp.int32)
    number, free = draw_number(navigator, hidden, forced, None)
    likeliest = 2 + np.argmax(navigator.number_logits(hidden), axis=-1)
    np.testing.assert_array_equal(number, np.where(forced == 0, likeliest, forced))
    np.testing.assert_array_equal(free, [True, False, False, True])
    many = jax.vmap(lambda seed: draw_number(navigator, hidden, None, question_keys_of(seed))[0])(
        jnp.arange(2000)
    )
    shares = np.stack([(np.asarray(many) == count).mean(0) for count in (2, 3, 4)], axis=-1)
    np.testing.assert_allclose(shares, jax.nn.softmax(navigator.number_logits(hidden)), atol=0.05)


def question_keys_of(seed):
    return jax.random.split(jax.random.key(seed), 4)


PROMPT, CHOICES, LARGEST = (0, 1, 1), 3, 3


def all_numbers_and_answers():
    """Every number of trajectories, 2 or 3, with every answer of one token for each."""
    rows = [
        (number, answers) for number in (2, 3) for answers in itertools.product(range(CHOICES), repeat=number)
    ]
    tokens = np.zeros((len(rows), LARGEST), np.int32)
    for row, (_, answers) in enumerate(rows):
        tokens[row, : len(answers)] = answers
    return np.array([number for number, _ in rows], np.int32), tokens


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradient_is_that_of_the_expected_mean_over_trajectories(shared):
    """Law 4, by enumeration: rewards of one's own answer and number, or of all answers together (a fused reward)."""
    with jax.enable_x64(True):
        shape = {"vocab_size": CHOICES, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
        shape |= {"num_attention_heads": 1, "num_key_value_heads": 1}
        reasoner = small_reasoner(seed=7, dtype=jnp.float64, max_trajectories=LARGEST, **shape)
        graph, weights = nnx.split(reasoner)
        number, tokens = all_numbers_and_answers()
        exists = np.arange(LARGEST) < number[:, None]
        rng = np.random.default_rng(3)
        reward = rng.normal(size=(4, CHOICES))[number[:, None], tokens] - 0.3 * number[:, None]
        if shared:
            whole = np.where(exists, reward, 0).sum(1) / number + rng.normal(size=len(number))
            reward = np.broadcast_to(whole[:, None], reward.shape)
        reward = np.where(exists, reward, 0.0)

        def probability(weights):
            reasoner = nnx.merge(graph, weights)
            inputs = reasoner.llama.embedding[...][jnp.asarray([*PROMPT, 1])]
            hidden = from_scratch(reasoner, inputs, jnp)
            first = jax.nn.log_softmax(reasoner.navigator.number_logits(hidden[-2][None])[0])
            answer = jax.nn.log_softmax(hidden[-1] @ reasoner.llama.head[...].T)
            return jnp.exp(first[number - 2] + jnp.sum(jnp.where(exists, answer[tokens], 0.0), axis=1))

        def expected(weights):
            return jnp.sum(probability(weights) * reward.sum(1) / number)

        chances = jax.jit(probability, compiler_options=QUICK)(weights)
        assert abs(float(chances.sum()) - 1) < 1e-9
        rows, everything = len(number), (len(number), LARGEST)
        rollout = Rollout(
            prompt=jnp.broadcast_to(jnp.asarray(PROMPT), (rows, 3)),
            prompt_mask=jnp.ones((rows, 3), bool),
            actions=jnp.zeros((*everything, 0, 4)),
            noise=jnp.zeros((*everything, 0, 4)),
            embeddings=jnp.zeros((*everything, 0, 4)),
            taken=jnp.zeros((*everything, 0), bool),
            stops=jnp.ones((*everything, 1), bool),
            free=jnp.zeros((*everything, 1), bool),
            counts=jnp.zeros(everything, jnp.int32),
            tokens=jnp.asarray(tokens)[..., None],
            token_mask=jnp.asarray(exists)[..., None],
            ended=jnp.asarray(exists),
            std=jnp.float32(0),
            stop_temperature=jnp.float32(1),
            token_temperature=jnp.float32(1),
            number=jnp.asarray(number),
            number_free=jnp.ones(rows, bool),
            exists=jnp.asarray(exists),
        )
        config = PPOConfig(
            gradient="none",
            whiten=False,
            trace=1.0,
            value_coefficient=0.0,
            entropy_coefficient=0.0,
            kl_coefficient=0.0,
            shared_reward=shared,
        )

        def loss(weights):
            reasoner = nnx.merge(graph, weights)
            recorded = jax.lax.stop_gradient(rescore(reasoner, rollout, None, (1,), "parallel", "summed"))
            costs = jnp.zeros((*everything, 1))
            advantages, returns = estimate_advantages(rollout, recorded, jnp.asarray(reward), costs, config)
            advantages, of_number = share_advantages(advantages, rollout, config)
            part = Experience(
                rollout,
                recorded,
                None,
                advantages * chances[:, None, None],
                returns,
                of_number=of_number * chances,
            )
            sums = policy_sums(reasoner, part, None, config, (1,))
            return policy_loss(sums, *(jnp.float32(x) for x in (1, 1, 0)), config)

        true = jax.jit(jax.grad(expected), compiler_options=QUICK)(weights)
        found = jax.jit(jax.grad(loss), compiler_options=QUICK)(weights)
        scale = -1.0 if shared else -LARGEST
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(true["navigator"])) > 1e-3
        largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(true))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True):
            np.testing.assert_allclose(a / scale / largest, b / largest, atol=1e-4)
