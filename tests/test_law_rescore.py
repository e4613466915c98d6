"""Laws 1 and 2: rescore gives what the rollout recorded, and the cache changes nothing."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import (
    ADAPTERS,
    END,
    QUICK,
    oracle_trajectories,
    question_keys,
    ragged_prompts,
    shaken,
    small_bank,
    small_reasoner,
)
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.rescore import rescore
from longshot_jax.thoughts.rollout import RolloutShape, Temperatures, sample_rollout
from longshot_jax.thoughts.stopping import Lengths, StopRule
from longshot_jax.thoughts.think import Replay, encode, think

pytestmark = pytest.mark.law

# One shape for all examples, so that a property compiles once.
QUESTIONS, TRAJECTORIES, STEPS, ANSWER, WIDTH = 2, 3, 3, 4, 6
KINDS = ("hidden", "vocabulary", "navigator", "navigator_residual")
OPENINGS = ((), (7,), (7, 3))
SCALINGS = ("summed", "averaged", "scaled")
# Without shrinking: examples are small, and minutes of search for a smaller one would hide the failure.
few = settings(max_examples=6, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))


@st.composite
def situations(draw):
    """What may change from one rollout to the next: prompts, bounds, temperatures and randomness."""
    lengths = draw(st.lists(st.integers(1, WIDTH), min_size=QUESTIONS, max_size=QUESTIONS))
    bound = st.tuples(st.integers(0, STEPS), st.integers(0, STEPS)).map(sorted)
    count = QUESTIONS * TRAJECTORIES
    bounds = np.array(draw(st.lists(bound, min_size=count, max_size=count)), np.int32)
    seed = draw(st.integers(0, 10_000))
    positive = st.sampled_from([0.5, 1.0, 1.3])
    temperatures = Temperatures(*(np.float32(draw(positive) * scale) for scale in (0.4, 1.0, 1.0)))
    shape = (QUESTIONS, TRAJECTORIES)
    return lengths, Lengths(bounds[:, 0].reshape(shape), bounds[:, 1].reshape(shape)), temperatures, seed


@cache
def sampler(opening, scaling, ensemble):
    shape = RolloutShape(TRAJECTORIES, STEPS, ANSWER, opening, (END,), scaling=scaling, ensemble=ensemble)

    def sample(reasoner, prompt, mask, bank, lengths, temperatures, keys):
        return sample_rollout(reasoner, prompt, mask, bank, lengths, temperatures, keys, shape)

    return jax.jit(sample, compiler_options=QUICK)


@cache
def replayer(opening, scaling, ensemble):
    """All three ways of rescoring, and the thoughts from the recorded noise."""

    def replay(reasoner, rollout, bank):
        scores = {
            way: rescore(reasoner, rollout, bank, opening, way, scaling, ensemble=ensemble)
            for way in ("parallel", "actions", "noise")
        }
        encoded = encode(reasoner, rollout.prompt, rollout.prompt_mask)
        rule = StopRule(rollout.num_thoughts, rollout.num_thoughts, rollout.stop_temperature)
        again = Replay(node_values=rollout.node_values)
        return scores, think(
            reasoner, encoded, bank, rule, rollout.noise, rollout.thought_std, ensemble=ensemble, replay=again
        )

    return jax.jit(replay, compiler_options=QUICK)


def check_ratio_one(
    feedback, normalised, memory_top, ensemble, opening, scaling, reads="nothing", lora=None, noise="fixed"
):
    reasoner = small_reasoner(feedback, normalised, memory_top, reads=reads, lora=lora, noise=noise)
    bank = small_bank() if memory_top else None
    sample, replay = sampler(opening, scaling, ensemble), replayer(opening, scaling, ensemble)

    @few
    @given(situations())
    def holds(situation):
        prompt_lengths, lengths, temperatures, seed = situation
        prompt, mask = ragged_prompts(prompt_lengths, WIDTH, seed)
        rollout, recorded = sample(reasoner, prompt, mask, bank, lengths, temperatures, question_keys(QUESTIONS, seed))
        if not ensemble:  # by majority, a trajectory may be carried past its own bounds
            assert np.all(rollout.num_thoughts >= lengths.min_thoughts)
            assert np.all(rollout.num_thoughts <= lengths.max_thoughts)
        decisions = np.arange(STEPS + 1)
        within = decisions >= np.asarray(lengths.min_thoughts)[..., None]
        within &= decisions < np.asarray(lengths.max_thoughts)[..., None]
        within &= decisions <= np.asarray(rollout.num_thoughts)[..., None]
        np.testing.assert_array_equal(rollout.is_action, within)
        scores, thoughts = replay(reasoner, rollout, bank)
        for way, again in scores.items():
            for name in ("stop", "stop_entropy", "thought", "values"):
                close(getattr(again.thoughts, name), getattr(recorded.thoughts, name), f"{way}: {name}")
            taken = np.asarray(rollout.thought_mask)
            close(np.asarray(again.thoughts.stds)[taken], np.asarray(recorded.thoughts.stds)[taken], f"{way}: stds")
            for name in ("log_probs", "entropies", "values"):
                close(getattr(again.tokens, name), getattr(recorded.tokens, name), f"{way}: token {name}")
        thought_mask = np.asarray(rollout.thought_mask)
        np.testing.assert_array_equal(thoughts.thought_mask, thought_mask)
        for name in ("actions", "embeddings"):
            again, before = np.asarray(getattr(thoughts, name)), np.asarray(getattr(rollout, name))
            close(again[thought_mask], before[thought_mask], f"{name} from the recorded noise")
        if noise == "learned" and thought_mask.sum() > 1:
            factors = np.asarray(recorded.thoughts.stds)[thought_mask] / temperatures.thought_std
            assert np.max(np.abs(np.log(factors))) > 0.01
        # Log-probs of zero everywhere would agree as well.
        assert np.all(np.asarray(recorded.thoughts.stop)[within] < 0)
        assert np.all(np.asarray(recorded.tokens.log_probs)[np.asarray(rollout.token_mask)] < 0)

    holds()


def close(found, expected, what, tolerance=1e-4):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance, err_msg=what)


@pytest.fixture
def fresh_caches():
    """Compiled functions are freed between many tests: each holds memory maps, of which a process has a limit."""
    yield
    jax.clear_caches()


ALL = list(itertools.product(KINDS, (False, True), (0, 3), (False, True), OPENINGS))
# Every value of every setting. The slow ones have every pair of values (7 shares no factor with the numbers of values).
FAST = [
    ("hidden", False, 0, False, (7,)),
    ("navigator", True, 3, False, ()),
    ("navigator_residual", True, 0, True, (7, 3)),
    ("hidden", True, 3, True, (7,)),
    ("vocabulary", False, 0, False, (7,)),
]
SLOW = [case for case in ALL[1::7] if case not in FAST]


# Thoughts that read earlier actions: of all trajectories in every way at once, or of their own in a graph.
READING = [
    ("navigator", False, 2, False, (7,), "summed", "all"),
    ("hidden", True, 0, False, (), "scaled", "own"),
    ("navigator_residual", True, 3, True, (7, 3), "averaged", "all"),
    ("hidden", False, 3, True, (7,), "averaged", "all"),
    ("navigator", True, 0, False, (7,), "scaled", "own"),
]


# Every way of thinking with a standard deviation of its own for each thought, from a head that is not zero.
LEARNED = [
    ("hidden", True, 0, False, (7,), "summed", "nothing", None, "learned"),
    ("navigator", False, 3, True, (7, 3), "scaled", "nothing", ADAPTERS, "learned"),
    ("navigator_residual", True, 0, False, (), "averaged", "own", None, "learned"),
]


def with_scalings(cases):
    """Every scaling, and every second case with adapters."""
    return [(*case, SCALINGS[index % 3], "nothing", (None, ADAPTERS)[index % 2]) for index, case in enumerate(cases)]


@pytest.mark.card
@pytest.mark.parametrize("case", with_scalings(FAST), ids=str)
def test_ratio_is_one_before_the_update(case):
    check_ratio_one(*case)


@pytest.mark.parametrize(
    "case", [READING[0], *(pytest.param(case, marks=pytest.mark.slow) for case in READING[1:])], ids=str
)
def test_ratio_is_one_where_thoughts_read_actions(case):
    check_ratio_one(*case)


@pytest.mark.parametrize(
    "case", [LEARNED[0], *(pytest.param(case, marks=pytest.mark.slow) for case in LEARNED[1:])], ids=str
)
def test_ratio_is_one_with_learned_noise(case):
    check_ratio_one(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", with_scalings(SLOW), ids=str)
@pytest.mark.usefixtures("fresh_caches")
def test_ratio_is_one_in_every_pair(case):
    check_ratio_one(*case)


@pytest.mark.long
@pytest.mark.parametrize("case", with_scalings(case for case in ALL if case not in FAST + SLOW), ids=str)
@pytest.mark.usefixtures("fresh_caches")
def test_ratio_is_one_in_every_combination(case):
    check_ratio_one(*case)


@pytest.mark.parametrize("feedback", KINDS)
def test_ratio_is_one_without_thoughts(feedback):
    """Rollouts with room for no thought have actions of the right size all the same."""
    reasoner, prompt = small_reasoner(feedback, True), ragged_prompts([4, 6], WIDTH)
    none, shape = np.zeros((QUESTIONS, TRAJECTORIES), np.int32), RolloutShape(TRAJECTORIES, 0, ANSWER, (7,), (END,))
    temperatures = Temperatures(*np.array([0.3, 1.0, 1.0], np.float32))

    @partial(jax.jit, compiler_options=QUICK)
    def both(reasoner, prompt, mask, *given):
        rollout, recorded = sample_rollout(reasoner, prompt, mask, None, *given, shape)
        again = {way: rescore(reasoner, rollout, None, (7,), way, "scaled") for way in ("parallel", "actions", "noise")}
        return rollout, recorded, again

    rollout, recorded, again = both(reasoner, *prompt, Lengths(none, none), temperatures, question_keys(QUESTIONS))
    assert rollout.actions.shape == (QUESTIONS, TRAJECTORIES, 0, reasoner.action_size)
    for way, scores in again.items():
        close(scores.tokens.log_probs, recorded.tokens.log_probs, way)
        close(scores.thoughts.values, recorded.thoughts.values, way)
    assert np.all(np.asarray(recorded.tokens.log_probs)[np.asarray(rollout.token_mask)] < 0)


@pytest.mark.card
@pytest.mark.slow
def test_ratio_is_one_within_bounds_in_bfloat16():
    """Activations of 8 bits: the cached and the parallel pass round differently, and one log-ratio stays below 0.3."""
    graphdef, _ = nnx.split(small_reasoner("navigator", True, dtype=jnp.bfloat16))
    reasoner = nnx.merge(graphdef, nnx.split(small_reasoner("navigator", True))[1])
    assert reasoner.backbone.compute_dtype == jnp.bfloat16 and reasoner.backbone.embedding.dtype == jnp.float32
    lowest = np.ones((QUESTIONS, TRAJECTORIES), np.int32)
    lengths, temperatures = Lengths(lowest, 3 * lowest), Temperatures(*np.array([0.3, 1.0, 1.0], np.float32))
    sample, replay = sampler((7,), "scaled", False), replayer((7,), "scaled", False)
    prompt = ragged_prompts([4, 6], WIDTH)
    rollout, recorded = sample(reasoner, *prompt, None, lengths, temperatures, question_keys(QUESTIONS))
    scores, _ = replay(reasoner, rollout, None)
    for way, again in scores.items():
        for new, old, mask in (
            (again.thoughts.stop, recorded.thoughts.stop, rollout.is_action),
            (again.thoughts.thought, recorded.thoughts.thought, rollout.thought_mask),
            (again.tokens.log_probs, recorded.tokens.log_probs, rollout.token_mask),
        ):
            log_ratio = np.asarray(new - old)[np.asarray(mask)]
            assert len(log_ratio) and np.abs(log_ratio).max() < 0.3, way
            assert abs(np.exp(log_ratio).mean() - 1) < 0.05, way


def test_ratio_is_not_one_after_an_update():
    """The comparison above notices other parameters."""
    reasoner, prompt = small_reasoner(), ragged_prompts([4, 6], WIDTH)
    lowest = np.ones((QUESTIONS, TRAJECTORIES), np.int32)
    lengths, temperatures = Lengths(lowest, 3 * lowest), Temperatures(*np.array([0.3, 1.0, 1.0], np.float32))
    rollout, recorded = sampler((7,), "summed", False)(
        reasoner, *prompt, None, lengths, temperatures, question_keys(QUESTIONS)
    )
    scores, _ = replayer((7,), "summed", False)(shaken(reasoner, 3, 0.05), rollout, None)
    for again in scores.values():
        assert float(jnp.max(jnp.abs(again.tokens.log_probs - recorded.tokens.log_probs))) > 1e-3
        assert float(jnp.max(jnp.abs(again.thoughts.stop - recorded.thoughts.stop))) > 1e-3


def cached_pass(opening, ensemble):
    def run(reasoner, prompt, mask, bank, lengths, noise, thought_std):
        encoded = encode(reasoner, prompt, mask)
        rule = StopRule(lengths.min_thoughts, lengths.max_thoughts)
        thoughts = think(reasoner, encoded, bank, rule, noise, thought_std, ensemble=ensemble)
        return thoughts, decode_answers(reasoner, encoded, thoughts, opening, (END,), ANSWER, jnp.float32(1.0), None)

    return jax.jit(run, compiler_options=QUICK)


def check_cached_is_uncached(
    feedback, normalised, memory_top, ensemble, opening, examples, reads="nothing", noise="fixed"
):
    lora = ADAPTERS if normalised else None
    reasoner = small_reasoner(feedback, normalised, memory_top, seed=1, reads=reads, lora=lora, noise=noise)
    bank = small_bank() if memory_top else None
    run = cached_pass(opening, ensemble)
    size = 5 if feedback.startswith("navigator") else 8
    # The softmax over tokens of a thought multiplies the rounding of the thoughts before it.
    near = partial(close, tolerance=1e-3 if feedback == "vocabulary" else 1e-4)

    @settings(few, max_examples=examples)
    @given(situations(), st.sampled_from([0.0, 0.3]))
    def holds(situation, thought_std):
        prompt_lengths, lengths, _, seed = situation
        prompt, mask = ragged_prompts(prompt_lengths, WIDTH, seed)
        shape = (QUESTIONS, TRAJECTORIES, STEPS, size)
        drawn = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        found = run(reasoner, prompt, mask, bank, lengths, drawn, np.float32(thought_std))
        thoughts, answers = jax.tree.map(np.asarray, found)
        for question in range(QUESTIONS):
            real = np.asarray(prompt)[question][np.asarray(mask)[question]].tolist()
            bounds = list(zip(lengths.min_thoughts[question], lengths.max_thoughts[question], strict=True))
            expected = oracle_trajectories(
                reasoner, real, bank, bounds, drawn[question], thought_std, opening, ANSWER, ensemble
            )
            for row, oracle in enumerate(expected):
                here = (question, row)
                count, length = len(oracle.actions), len(oracle.tokens)
                assert int(thoughts.num_thoughts[here]) == count
                near(thoughts.stop_logits[here][: count + 1], oracle.stop_logits[: count + 1], "stops")
                near(thoughts.hidden[here][: count + 1], oracle.hidden[: count + 1], "hidden")
                if count:
                    near(thoughts.actions[here][:count], oracle.actions, "actions")
                assert answers.tokens[here][answers.mask[here]].tolist() == oracle.tokens
                assert bool(answers.ended[here]) == (oracle.tokens[-1] == END)
                near(answers.scores.log_probs[here][:length], oracle.log_probs, "token log-probs")

    holds()


@pytest.mark.card
@pytest.mark.parametrize("case", FAST[1:3], ids=str)
def test_cached_equals_uncached(case):
    check_cached_is_uncached(*case, examples=3)


@pytest.mark.parametrize(
    "case", [LEARNED[0], *(pytest.param(case, marks=pytest.mark.slow) for case in LEARNED[1:])], ids=str
)
def test_cached_equals_uncached_with_learned_noise(case):
    check_cached_is_uncached(*case[:5], examples=3, reads=case[6], noise="learned")


@pytest.mark.slow
@pytest.mark.parametrize("case", READING[:3], ids=str)
def test_cached_equals_uncached_where_thoughts_read_actions(case):
    *case, _, reads = case
    check_cached_is_uncached(*case, examples=3, reads=reads)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL[1::14], ids=str)  # every value of every setting
@pytest.mark.usefixtures("fresh_caches")
def test_cached_equals_uncached_in_more_combinations(case):
    check_cached_is_uncached(*case, examples=6)
