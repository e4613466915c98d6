"""Law 6, a stopped trajectory adds nothing; and the ways of rescoring have one gradient where both are exact."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import END, QUICK, VOCABULARY, question_keys, ragged_prompts, shaken, small_bank, small_reasoner
from flax import nnx

from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.rescore import rescore
from longshot_jax.thoughts.rollout import RolloutShape, Temperatures, sample_rollout
from longshot_jax.thoughts.stopping import Lengths, StopRule, position_mask
from longshot_jax.thoughts.think import encode, think

pytestmark = pytest.mark.law

QUESTIONS, TRAJECTORIES, STEPS, ANSWER, WIDTH = 2, 6, 3, 4, 6
OPENING = (7,)
WAYS = ("parallel", "actions", "noise")
CASES = [
    ("navigator", False, 3, True),
    pytest.param(("navigator_residual", True, 0, False), marks=pytest.mark.slow),
    pytest.param(("vocabulary", False, 3, False), marks=pytest.mark.slow),
    pytest.param(("hidden", True, 3, False), marks=pytest.mark.long),
    pytest.param(("navigator", True, 3, False, "all"), marks=pytest.mark.slow),
    pytest.param(("hidden", True, 0, True, "nothing", "learned"), marks=pytest.mark.slow),
]


def reasoner_of(case):
    """Of (feedback, normalised, memory_top, ensemble) and, where given, what thoughts read of actions and their noise."""
    *kind, _ = case[:4]
    return small_reasoner(*kind, **dict(zip(("reads", "noise"), case[4:], strict=False)))


@cache
def sampled(case):
    """Parameters, their rollout, and a compiled function of scores and gradients for each way of rescoring."""
    reasoner, ensemble = reasoner_of(case), case[3]
    bank = small_bank() if reasoner.navigator.config.memory_top else None

    def sample(reasoner, prompt, mask):
        return sample_rollout(
            reasoner,
            prompt,
            mask,
            bank,
            Lengths(jnp.int32(0), jnp.int32(STEPS)),
            Temperatures(jnp.float32(0.3), jnp.float32(4.0), jnp.float32(3.0)),
            question_keys(QUESTIONS, 6),
            RolloutShape(TRAJECTORIES, STEPS, ANSWER, OPENING, (END,), scaling="scaled", ensemble=ensemble),
        )[0]

    rollout = jax.jit(sample, compiler_options=QUICK)(reasoner, *ragged_prompts([3, 6], WIDTH))
    graphdef, params = nnx.split(reasoner)

    def loss(params, rollout, way):
        """A number in which every score of every action, and every value, has a weight of its own."""
        reasoner = nnx.merge(graphdef, params)
        scores = masked(rescore(reasoner, rollout, bank, OPENING, way, "scaled", ensemble=ensemble), rollout)
        total = jnp.zeros(())
        for index, score in enumerate(jax.tree.leaves(scores)):
            # Sums of places: the weights of the first steps do not depend on how many steps there are.
            factor = np.sin(1.0 + index + sum(2.3 * place for place in np.indices(score.shape)))
            total += jnp.sum(score * factor.astype(np.float32))
        return total, scores

    def all_ways(params, rollout):
        return {way: jax.grad(loss, has_aux=True)(params, rollout, way) for way in WAYS}

    return params, rollout, jax.jit(all_ways, compiler_options=QUICK)


def masked(scores, rollout):
    """The scores without those of positions that no trajectory reached, which nothing may read."""
    reached = position_mask(rollout.num_thoughts, rollout.thought_mask.shape[-1])
    thoughts = scores.thoughts
    return scores.replace(
        thoughts=thoughts.replace(
            stop_logits=jnp.where(reached, thoughts.stop_logits, 0.0),
            means=jnp.where(rollout.thought_mask[..., None], thoughts.means, 0.0),
            stds=jnp.where(rollout.thought_mask, thoughts.stds, 0.0),
        )
    )


def with_garbage(rollout, seed):
    """Everything recorded after a stop, or after an answer's end, and every padding token, drawn anew and large."""
    generator = np.random.default_rng(seed)

    def fill(array, keep):
        array, keep = np.asarray(array), np.asarray(keep)
        keep = keep.reshape(*keep.shape, *(1,) * (array.ndim - keep.ndim))
        garbage = generator.normal(size=array.shape) * 100
        if array.dtype == bool:
            garbage = garbage > 0
        elif array.dtype == np.int32:
            garbage = generator.integers(0, VOCABULARY, array.shape)
        return np.where(keep, array, garbage.astype(array.dtype))

    return rollout.replace(
        prompt=fill(rollout.prompt, rollout.prompt_mask),
        actions=fill(rollout.actions, rollout.thought_mask),
        noise=fill(rollout.noise, rollout.thought_mask),
        embeddings=fill(rollout.embeddings, rollout.thought_mask),
        node_values=None if rollout.node_values is None else fill(rollout.node_values, rollout.thought_mask),
        stops=fill(rollout.stops, rollout.is_action),
        tokens=fill(rollout.tokens, rollout.token_mask),
    )


def longer(rollout, extra):
    """The same trajectories in arrays with room for more thoughts and tokens."""

    def pad(array, by):
        return np.pad(np.asarray(array), [(0, 0), (0, 0), (0, by), *[(0, 0)] * (array.ndim - 3)])

    stepwise = ("actions", "noise", "embeddings", "thought_mask", "stops", "is_action")
    stepwise += tuple(name for name in ("node_values", "bank_slots") if getattr(rollout, name) is not None)
    padded = {name: pad(getattr(rollout, name), extra) for name in stepwise}
    return rollout.replace(**padded, **{name: pad(getattr(rollout, name), extra) for name in ("tokens", "token_mask")})


def agree(found, expected, what):
    """Of (gradient, scores) or of scores alone, to float error."""
    if isinstance(expected, tuple):
        # Rounding is that of the whole backward pass: a small gradient can be a difference of large numbers.
        gradient, true = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(part[0])]) for part in (found, expected))
        largest = np.max(np.abs(true))
        np.testing.assert_allclose(gradient / largest, true / largest, rtol=0, atol=1e-5, err_msg=what)
        found, expected = found[1], expected[1]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        largest = max(1.0, float(np.max(np.abs(b))))
        np.testing.assert_allclose(np.asarray(a) / largest, np.asarray(b) / largest, atol=1e-5, err_msg=what)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_garbage_after_the_stop_changes_nothing(case):
    params, rollout, all_ways = sampled(case)
    # Some end early and some do not.
    assert np.min(rollout.num_thoughts) < np.max(rollout.num_thoughts)
    assert len(np.unique(np.sum(rollout.token_mask, axis=-1))) > 1
    before = all_ways(params, rollout)
    for seed in range(2):
        changed = with_garbage(rollout, seed)
        assert not np.array_equal(changed.actions, rollout.actions)
        after = all_ways(params, changed)
        for way in WAYS:
            agree(after[way], before[way], way)


def test_garbage_before_the_stop_is_noticed():
    params, rollout, all_ways = sampled(CASES[0])
    before = all_ways(params, rollout)
    actions = jnp.where(rollout.thought_mask[..., None], rollout.actions + 0.1, rollout.actions)
    after = all_ways(params, rollout.replace(actions=actions))
    for way in ("parallel", "actions"):
        assert np.max(np.abs(after[way][1].tokens.log_probs - before[way][1].tokens.log_probs)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_room_for_more_thoughts_and_tokens_changes_no_score(case):
    params, rollout, all_ways = sampled(case)
    before = all_ways(params, rollout)
    after = all_ways(params, with_garbage(longer(rollout, 2), 0))
    for way in WAYS:
        _, scores = before[way]
        kept = jax.tree.map(lambda x, like: x[:, :, : like.shape[2]], after[way][1], scores)
        agree(kept, scores, way)
        rest = jax.tree.map(lambda x, like: x[:, :, like.shape[2] :], after[way][1], scores)
        assert not any(np.any(x) for x in jax.tree.leaves(rest))


def test_answers_follow_the_stop_directly():
    """Two thoughts in arrays with room for two and for five: the same answer, so its positions start at the stop."""
    reasoner = small_reasoner("hidden", seed=4)
    noise = np.random.default_rng(0).normal(size=(QUESTIONS, TRAJECTORIES, 5, 8)).astype(np.float32)
    num_thoughts = np.array([[0, 1, 2, 2, 1, 0], [2, 1, 0, 1, 1, 2]], np.int32)

    def answer(reasoner, prompt, mask, noise):
        encoded = encode(reasoner, prompt, mask)
        rule = StopRule(num_thoughts, num_thoughts)
        thoughts = think(reasoner, encoded, None, rule, noise, jnp.float32(0.3))
        answers = decode_answers(reasoner, encoded, thoughts, OPENING, (END,), ANSWER, jnp.float32(1.0), None)
        return thoughts.last_hidden, answers

    run = jax.jit(answer, compiler_options=QUICK)
    prompts = ragged_prompts([3, 6], WIDTH)
    (short_hidden, short), (long_hidden, long) = (run(reasoner, *prompts, noise[:, :, :room]) for room in (2, 5))
    np.testing.assert_allclose(short_hidden, long_hidden, atol=1e-5)
    np.testing.assert_array_equal(short.tokens, long.tokens)
    np.testing.assert_allclose(short.scores.log_probs, long.scores.log_probs, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parallel_and_sequential_gradients(case):
    """One gradient where both are exact, even far from the policy that sampled; two where a thought adds h_t."""
    params, rollout, all_ways = sampled(case)
    kind = case[0]
    graphdef, _ = nnx.split(reasoner_of(case))
    moved = nnx.split(shaken(nnx.merge(graphdef, params), 8, 0.1))[1]
    for policy in (params, moved):
        ways = all_ways(policy, rollout)
        if kind != "navigator_residual":
            agree(ways["parallel"], ways["actions"], "parallel and sequential")
            continue
        gradients = (jax.tree.leaves(ways[way][0]) for way in ("parallel", "actions"))
        assert max(float(np.max(np.abs(a - b))) for a, b in zip(*gradients, strict=True)) > 1e-2
    if kind == "navigator_residual":
        ways = all_ways(params, rollout)
        agree(ways["parallel"][1], ways["actions"][1], "scores under the policy that sampled")
