"""Thoughts drawn as tokens: their distribution and their log-probs, laws 1 and 4, and what cannot be combined with them."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import END, QUICK, VOCABULARY, from_scratch, question_keys, ragged_prompts, shaken, small_reasoner
from flax import nnx
from test_law_gradient import ANSWERS, COST, OPENING, PROMPT, STOP_TEMPERATURE, TOKEN_TEMPERATURE, distance
from test_law_gradient import VOCABULARY as FEW
from test_law_gradient import tiny_reasoner as tiny

from longshot_jax.config import default_config, parse_config
from longshot_jax.config.ppo import PPOConfig
from longshot_jax.errors import UserError
from longshot_jax.ppo.loss import (
    Experience,
    _kl,
    estimate_advantages,
    kl_at_positions,
    policy_loss,
    policy_sums,
    sums_of,
)
from longshot_jax.ppo.update import _metrics
from longshot_jax.thoughts import sampled_tokens
from longshot_jax.thoughts.noise import coupled
from longshot_jax.thoughts.rescore import rescore
from longshot_jax.thoughts.rollout import Rollout, RolloutShape, Temperatures, sample_rollout
from longshot_jax.thoughts.sampled_tokens import draw_tokens, mean_embedding, score_sampled
from longshot_jax.thoughts.stopping import Lengths, StopRule
from longshot_jax.thoughts.think import Replay, encode, think

TRAJECTORIES, STEPS, ANSWER = 3, 3, 4


def test_tokens_are_drawn_from_the_distribution():
    """Chi-squared of 40,000 draws at 6 degrees of freedom: above 22.5 once in a thousand seeds."""
    logits = jnp.array([0.3, -2.0, 1.1, -jnp.inf, 0.0, 2.0, -0.7, -40.0, 0.5])
    noise = jax.random.normal(jax.random.key(0), (40_000, 1))
    found = np.bincount(np.asarray(draw_tokens(jnp.broadcast_to(logits, (40_000, 9)), noise))[:, 0], minlength=9)
    expected = 40_000 * np.asarray(jax.nn.softmax(logits))
    possible = expected > 1e-6
    assert not found[~possible].any()
    assert np.sum((found - expected)[possible] ** 2 / expected[possible]) < 22.5


def test_tokens_without_probability_are_not_drawn_by_rounding():
    """A sum of 50,000 float32 probabilities is off by more than most of them. Draws of 10^-10 would be one in a thousand runs."""
    logits = jax.random.normal(jax.random.key(2), (50_000,)) * 3
    logits = logits.at[7].set(jax.nn.logsumexp(logits) + 5)  # the rest has less than a hundredth
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    drawn = jax.jit(draw_tokens)(logits[None], jax.random.normal(jax.random.key(3), (1, 1_000_000)))
    assert float(np.min(log_probs[np.asarray(drawn)])) > np.log(1e-10)
    share = np.mean(np.asarray(drawn) == 7)
    assert abs(share - np.exp(log_probs[7])) < 5 * np.sqrt(0.007 / 1e6)


@pytest.mark.parametrize("size", [1, 7, 50_000])
def test_extreme_noise_draws_possible_tokens(size):
    """At both ends of the distribution, where the tokens at its ends have no probability."""
    logits = jnp.full(size + 2, -jnp.inf).at[1:-1].set(jax.random.normal(jax.random.key(size), (size,)))
    drawn = draw_tokens(logits[None], jnp.array([[-jnp.inf, -9.0, 9.0, jnp.inf]]))
    assert 1 <= int(drawn.min()) and int(drawn.max()) <= size
    assert drawn[0, 0] == 1 and drawn[0, -1] == size


def test_opposite_noise_draws_from_opposite_ends():
    noise = coupled(jax.random.normal(jax.random.key(1), (1, 2, 500, 1)), "antithetic")
    drawn = np.asarray(draw_tokens(jnp.zeros((1, 2, 500, 8)), noise))[0, ..., 0]
    np.testing.assert_array_equal(drawn[0], 7 - drawn[1])


@pytest.mark.parametrize("scaling", ["summed", "averaged", "scaled"])
@pytest.mark.parametrize("tied", [False, True])
def test_log_prob_and_entropy_of_a_thought_are_those_of_its_tokens(scaling, tied, monkeypatch):
    backbone = small_reasoner("vocabulary", seed=3, tie_word_embeddings=tied).backbone
    generator = np.random.default_rng(0)
    hidden = jnp.asarray(generator.normal(size=(2, 3, 8)), jnp.float32)
    tokens = jnp.asarray(generator.integers(0, VOCABULARY, (2, 3, 4)))
    head = np.asarray((backbone.embedding if tied else backbone.head)[...])
    log_probs = jax.nn.log_softmax(np.asarray(hidden) @ head.T / 0.7)
    by_hand = np.take_along_axis(np.asarray(log_probs), np.asarray(tokens), -1).sum(-1)
    by_hand = by_hand / {"summed": 1, "averaged": 4, "scaled": 2}[scaling]
    by_hand = np.stack([by_hand, -(np.exp(log_probs) * log_probs).sum(-1)])

    graphdef, params = nnx.split(backbone)

    def scores(hidden, params):
        return jnp.stack(score_sampled(nnx.merge(graphdef, params), hidden, tokens, jnp.float32(0.7), scaling))

    gradient = jax.grad(lambda *given: jnp.sum(jnp.sin(scores(*given))), argnums=(0, 1))
    whole, slope = scores(hidden, params), gradient(hidden, params)
    np.testing.assert_allclose(whole, by_hand, rtol=1e-5)
    monkeypatch.setattr(sampled_tokens, "chunks_of", lambda *_: 3)
    np.testing.assert_allclose(scores(hidden, params), whole, rtol=1e-5)
    for chunked, plain in zip(*map(jax.tree.leaves, (gradient(hidden, params), slope)), strict=True):
        np.testing.assert_allclose(chunked, plain, rtol=1e-4, atol=1e-6)
    assert float(jnp.max(jnp.abs(slope[0]))) > 0.1


@cache
def programs(scaling, ensemble):
    shape = RolloutShape(TRAJECTORIES, STEPS, ANSWER, (7,), (END,), scaling=scaling, ensemble=ensemble)

    def sample(reasoner, prompt, mask, lengths, temperatures, keys):
        return sample_rollout(reasoner, prompt, mask, None, lengths, temperatures, keys, shape)

    def replay(reasoner, rollout):
        return {
            way: rescore(reasoner, rollout, None, (7,), way, scaling, ensemble=ensemble)
            for way in ("parallel", "actions")
        }

    return jax.jit(sample, compiler_options=QUICK), jax.jit(replay, compiler_options=QUICK)


def sampled(reasoner, scaling="summed", ensemble=False, thought_std=0.3):
    sample, replay = programs(scaling, ensemble)
    fewest = np.array([[0, 1, 2], [3, 0, 1]], np.int32)
    temperatures = Temperatures(*np.array([thought_std, 1.2, 0.8], np.float32))
    rollout, recorded = sample(
        reasoner, *ragged_prompts([4, 6], 6), Lengths(fewest, 0 * fewest + STEPS), temperatures, question_keys(2)
    )
    return rollout, recorded, replay


# Every value of every setting.
CASES = [(1, "summed", False, False, 0), (3, "scaled", False, True, 3), (2, "averaged", True, False, 0)]


@pytest.mark.law
@pytest.mark.parametrize(("count", "scaling", "ensemble", "normalised", "roles"), CASES)
def test_ratio_is_one_before_the_update(count, scaling, ensemble, normalised, roles):
    reasoner = small_reasoner("vocabulary", normalised, noise="tokens", sampled_tokens=count, roles=roles)
    rollout, recorded, replay = sampled(reasoner, scaling, ensemble)
    taken = np.asarray(rollout.thought_mask)
    assert taken.sum() > 3 and rollout.thought_tokens.shape == (2, TRAJECTORIES, STEPS, count)
    table = np.asarray(reasoner.backbone.embedding[...])
    if not normalised:
        mean = table[np.asarray(rollout.thought_tokens)].mean(-2)
        np.testing.assert_allclose(np.asarray(rollout.actions)[taken], mean[taken], atol=1e-6)
    assert len(np.unique(np.asarray(rollout.thought_tokens)[taken])) > 2
    for way, again in replay(reasoner, rollout).items():
        for name in ("stop", "thought", "values"):
            found, expected = getattr(again.thoughts, name), getattr(recorded.thoughts, name)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=f"{way}: {name}")
        np.testing.assert_allclose(again.tokens.log_probs, recorded.tokens.log_probs, rtol=1e-4, atol=1e-4)
    assert np.all(np.asarray(recorded.thoughts.thought)[taken] < 0)
    for again in replay(shaken(reasoner, 3, 0.05), rollout).values():
        assert float(jnp.max(jnp.abs(again.thoughts.thought - recorded.thoughts.thought))) > 1e-3


@pytest.mark.slow
@pytest.mark.law
def test_without_noise_thoughts_are_expected_embeddings():
    """Where `thought_std` is 0, and greedily, also when rescored."""
    reasoner = small_reasoner("vocabulary", noise="tokens", sampled_tokens=2)
    fixed = small_reasoner("vocabulary")
    rollout, recorded, replay = sampled(reasoner, thought_std=0.0)
    source = fixed.thought_source(encode(fixed, *ragged_prompts([4, 6], 6)).hidden[:, None])
    first = np.asarray(rollout.thought_mask)[..., 0]
    expected = np.broadcast_to(np.asarray(source), (2, TRAJECTORIES, 8))
    np.testing.assert_allclose(np.asarray(rollout.embeddings)[..., 0, :][first], expected[first], atol=1e-5)
    assert not np.any(recorded.thoughts.thought)
    for again in replay(reasoner, rollout).values():
        np.testing.assert_allclose(again.thoughts.stop, recorded.thoughts.stop, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(again.tokens.log_probs, recorded.tokens.log_probs, rtol=1e-4, atol=1e-4)


# Law 4, as in test_law_gradient; with tokens for thoughts every action is enumerated and there is no quadrature.
DEPTH, PER_THOUGHT = 2, 2


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield


def outcomes():
    """Every number of thoughts, all their tokens, and every answer: the arrays of one row each, and their rewards."""
    worth = np.random.default_rng(3).normal(size=(DEPTH + 1, FEW**PER_THOUGHT, len(ANSWERS)))
    rows = []
    for count in range(DEPTH + 1):
        for drawn in itertools.product(itertools.product(range(FEW), repeat=PER_THOUGHT), repeat=count):
            for index, answer in enumerate(ANSWERS):
                tokens, thoughts = np.full(2, END), np.zeros((DEPTH, PER_THOUGHT), int)
                tokens[: len(answer)] = answer
                thoughts[:count] = drawn or thoughts[:count]
                # Also the tokens themselves are worth something, so that their log-probs matter.
                reward = worth[count, int(thoughts[0] @ FEW ** np.arange(PER_THOUGHT)), index]
                rows.append((count, thoughts, tokens, np.arange(2) < len(answer), reward))
    return [np.array(column) for column in zip(*rows, strict=True)]


def probability(reasoner, count, drawn, tokens, token_mask):
    """Of one outcome: from scratch, one row."""
    backbone, navigator = reasoner.backbone, reasoner.navigator
    table, head = backbone.embedding[...], backbone.head[...]
    inputs, log_prob = table[jnp.asarray(PROMPT)], 0.0
    for step in range(count + 1):
        hidden = from_scratch(reasoner, inputs, jnp)[-1]
        logit = (hidden @ navigator.stop_weight[...] + navigator.stop_bias[...][0]) / STOP_TEMPERATURE
        if step < DEPTH:
            log_prob += jax.nn.log_sigmoid(logit if step == count else -logit)
        if step < count:
            log_prob += jnp.sum(jax.nn.log_softmax(hidden @ head.T / TOKEN_TEMPERATURE)[drawn[step]])
            thought = navigator.action_mean(jnp.mean(table[drawn[step]], axis=0), None)
            inputs = jnp.concatenate([inputs, thought[None]])
    inputs = jnp.concatenate([inputs, table[jnp.asarray(OPENING)], table[tokens[:-1]]])
    logits = from_scratch(reasoner, inputs, jnp)[-2:] @ head.T / TOKEN_TEMPERATURE
    token_log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], axis=1)[:, 0]
    return jnp.exp(log_prob + jnp.sum(jnp.where(token_mask, token_log_probs, 0.0)))


def recorded_rollout(reasoner, count, drawn, tokens, token_mask):
    """All outcomes as the trajectories of one question, whose prompt is padded on the left."""
    number = jnp.asarray(count)[None]
    prompt, mask = jnp.array([[2, *PROMPT]]), jnp.array([[False, *(True for _ in PROMPT)]])
    thought_tokens = jnp.asarray(drawn)[None]
    actions = reasoner.navigator.action_mean(mean_embedding(reasoner.backbone, thought_tokens), None)
    still, rule = jnp.zeros(actions.shape), StopRule(number, number, STOP_TEMPERATURE)
    thoughts = think(reasoner, encode(reasoner, prompt, mask), None, rule, still, jnp.zeros(()), replay=Replay(actions))
    decisions = jnp.arange(DEPTH + 1)
    return Rollout(
        prompt=prompt,
        prompt_mask=mask,
        actions=actions,
        noise=still,
        embeddings=thoughts.embeddings,
        thought_mask=thoughts.thought_mask,
        stops=decisions == number[..., None],
        is_action=(decisions <= number[..., None]) & (decisions < DEPTH),
        num_thoughts=number,
        tokens=jnp.asarray(tokens)[None],
        token_mask=jnp.asarray(token_mask)[None],
        ended=jnp.any(jnp.asarray(tokens)[None] == END, axis=-1),
        thought_std=jnp.float32(1),
        stop_temperature=jnp.float32(STOP_TEMPERATURE),
        token_temperature=jnp.float32(TOKEN_TEMPERATURE),
        thought_tokens=thought_tokens,
    )


@pytest.mark.slow
@pytest.mark.law
@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("normalised", [False, True])
def test_gradient_is_that_of_the_expected_reward(normalised):
    count, drawn, tokens, token_mask, rewards = outcomes()
    kind = {"noise": "tokens", "sampled_tokens": PER_THOUGHT}
    graphdef, params = nnx.split(tiny("vocabulary", normalised, **kind))

    def expected_reward(params):
        reasoner, found = nnx.merge(graphdef, params), []
        for number in range(DEPTH + 1):
            here = count == number
            of_one = partial(probability, reasoner, number)
            found.append(jax.vmap(of_one)(*(jnp.asarray(x[here]) for x in (drawn, tokens, token_mask))))
        assigned = jnp.concatenate(found)
        return jnp.sum(assigned * (rewards - COST * count)), assigned

    true, assigned = jax.jit(jax.grad(expected_reward, has_aux=True), compiler_options=QUICK)(params)
    assert abs(float(assigned.sum()) - 1) < 1e-6

    def distance_with(gradient):
        config = PPOConfig(
            gradient=gradient,
            whiten=False,
            gae_lambda=1.0,
            value_coefficient=0.0,
            entropy_coefficient=0.0,
            kl_coefficient=0.0,
        )

        def collect(params):
            reasoner = nnx.merge(graphdef, params)
            rollout = recorded_rollout(reasoner, count, drawn, tokens, token_mask)
            recorded = rescore(reasoner, rollout, None, OPENING, "parallel", "summed")
            costs = jnp.pad(jnp.where(rollout.thought_mask, -COST, 0.0), ((0, 0), (0, 0), (0, 1)))
            advantages, returns = estimate_advantages(rollout, recorded, jnp.asarray(rewards)[None], costs, config)
            return Experience(rollout, recorded, None, advantages * assigned[:, None], returns)

        def loss(params, experience):
            sums = policy_sums(nnx.merge(graphdef, params), experience, None, config, OPENING)
            return policy_loss(sums, *(jnp.float32(x) for x in (1, 1, 0)), config)

        experience = jax.jit(collect, compiler_options=QUICK)(params)
        of_loss = jax.jit(jax.grad(loss), compiler_options=QUICK)(params, experience)
        scores = experience.recorded.thoughts.stop, experience.recorded.thoughts.thought, experience.recorded.tokens
        log_prob = sum(jnp.sum(x, -1) for x in (*scores[:2], scores[2].log_probs))
        np.testing.assert_allclose(np.exp(log_prob)[0], assigned, rtol=1e-4, atol=1e-12)
        return distance(jax.tree.map(jnp.negative, of_loss), true)

    assert distance_with("score") < 1e-5
    assert distance_with("none") > 1e-2  # so that the law can fail


def test_the_kl_of_thoughts_is_estimated_from_their_tokens():
    reasoner = small_reasoner("vocabulary", noise="tokens", sampled_tokens=2)
    rollout, recorded, replay = sampled(reasoner)
    reference = replay(shaken(reasoner, 3, 0.05), rollout)["parallel"]
    config = PPOConfig(gradient="score", kl_coefficient=0.1)
    total = _kl(recorded, reference, rollout, config)
    np.testing.assert_allclose(total, jnp.sum(kl_at_positions(recorded, reference, rollout, config), -1), rtol=1e-5)
    without = _kl(recorded, reference, rollout, PPOConfig(gradient="none", kl_coefficient=0.1))
    assert np.all(np.asarray(total - without)[np.asarray(rollout.num_thoughts) > 0] > 0)


def test_entropy_of_thoughts_in_the_loss():
    reasoner = small_reasoner("vocabulary", noise="tokens", sampled_tokens=2)
    rollout, recorded, _ = sampled(reasoner)
    entropy, taken = np.asarray(recorded.thoughts.thought_entropy), np.asarray(rollout.thought_mask)
    assert np.all(entropy[taken] > 0) and np.all(entropy[taken] < np.log(VOCABULARY)) and not entropy[~taken].any()
    zeros = jnp.zeros((2, TRAJECTORIES, STEPS + 1 + ANSWER))

    def of(gradient, coefficient):
        config = PPOConfig(gradient=gradient, token_entropy_coefficient=coefficient)
        sums = sums_of(recorded, Experience(rollout, recorded, None, zeros, zeros), config)
        return sums.thought_entropy, float(policy_loss(sums, *(jnp.float32(x) for x in (1, 1, 0)), config))

    found, loss = of("score", 0.0)
    assert float(found) == pytest.approx(entropy.sum(), rel=1e-5)
    expected = entropy.sum() + float(recorded.tokens.entropies.sum(where=rollout.token_mask))
    assert loss - of("score", 0.1)[1] == pytest.approx(0.1 * expected, rel=1e-4)
    assert of("none", 0.1)[0] is None  # thoughts are not actions
    sums = sums_of(recorded, Experience(rollout, recorded, None, zeros, zeros), PPOConfig(gradient="score"))
    assert float(_metrics(sums)["thought_entropy"]) == pytest.approx(entropy[taken].mean(), rel=1e-5)


REFUSED = [
    ({"thoughts.feedback": "hidden"}, "config.thoughts.feedback 'hidden'"),
    ({"thoughts.memory_top": 2, "ppo.memory_slots": 4}, "config.thoughts.memory_top"),
    ({"thoughts.graph": "own"}, "config.thoughts.graph"),
    ({"thoughts.cross_attention": True, "ppo.baseline": "critic"}, "config.thoughts.cross_attention"),
    ({"ppo.gradient": "pathwise"}, "config.ppo.gradient 'pathwise'"),
    ({"ppo.gradient": "mixture"}, "config.ppo.gradient 'mixture'"),
    ({"ppo.thought_std": (0.0, 0.0)}, "config.ppo.thought_std above 0"),
    ({"ppo.thought_std": (0.2, 0.1)}, "config.ppo.thought_std"),
    ({"ppo.coupling": "orthogonal", "thoughts.sampled_tokens": 7}, "config.ppo.coupling 'orthogonal'"),
    ({"thoughts.noise": "fixed", "thoughts.sampled_tokens": 7}, "config.thoughts.sampled_tokens 7"),
    ({"thoughts.sampled_tokens": 2**30}, "config.thoughts.sampled_tokens is"),
]


@pytest.mark.parametrize(("settings", "named"), REFUSED)
def test_what_tokens_cannot_be_combined_with_is_refused(settings, named):
    config = default_config()
    config.thoughts.feedback, config.thoughts.noise = "vocabulary", "tokens"
    parse_config(config)
    for key, value in settings.items():
        group, name = key.split(".")
        config[group][name] = value
    with pytest.raises(UserError, match=named):
        parse_config(config)
