"""What is drawn has the density that is recorded: frequencies of stops and answers over thousands of samples.

The other laws score what was drawn, whatever drew it.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import QUICK, small_reasoner

from longshot_jax.thoughts.rollout import RolloutShape, Temperatures, sample_rollout
from longshot_jax.thoughts.stopping import Lengths

pytestmark = pytest.mark.law

SAMPLES, STEPS, ANSWER, VOCABULARY, END = 6_000, 1, 2, 3, 2


@pytest.fixture(scope="module", params=[(2.0, 0.5), (0.5, 2.0)], ids=str)
def drawn(request):
    """Number of thoughts, tokens and recorded log-prob of two trajectories of one question, with a key for each sample."""
    reasoner = small_reasoner("hidden", vocab_size=VOCABULARY, num_hidden_layers=1, seed=3)
    stop, token = request.param
    prompt = jnp.full((SAMPLES, 2), 1)
    bounds = jnp.zeros((SAMPLES, 2), jnp.int32)
    rollout, scores = jax.jit(
        lambda keys: sample_rollout(
            reasoner, prompt, jnp.ones(prompt.shape, bool), None, Lengths(bounds, bounds + STEPS),
            Temperatures(jnp.zeros(()), jnp.asarray(stop), jnp.asarray(token)), keys,
            RolloutShape(2, STEPS, ANSWER, (0,), (END,), scaling="summed"),
        ), compiler_options=QUICK,
    )(jax.random.split(jax.random.key(11), SAMPLES))  # fmt: skip
    log_probs = scores.thoughts.stop.sum(-1) + jnp.where(rollout.token_mask, scores.tokens.log_probs, 0.0).sum(-1)
    tokens = np.where(rollout.token_mask, rollout.tokens, END)
    return np.asarray(rollout.num_thoughts), tokens, np.asarray(log_probs)


def outcomes(drawn):
    """Each sample's outcome of both trajectories: number of thoughts and tokens."""
    number, tokens, _ = drawn
    return [[(int(n), *map(int, t)) for n, t in zip(*row, strict=True)] for row in zip(number, tokens, strict=True)]


def test_outcomes_are_as_frequent_as_their_recorded_density_says(drawn):
    told = {
        outcome: log_prob
        for row, log_probs in zip(outcomes(drawn), drawn[2], strict=True)
        for outcome, log_prob in zip(row, log_probs, strict=True)
    }
    # Without a thought or with one: the end at once, or one of two tokens and one of three after it.
    assert len(told) == 2 * (1 + 2 * 3)
    density = np.exp(list(told.values()))
    assert density.sum() == pytest.approx(1.0, abs=1e-4)
    for trajectory in range(2):
        counts = Counter(row[trajectory] for row in outcomes(drawn))
        found = np.array([counts[outcome] for outcome in told])
        distance = np.sum((found - SAMPLES * density) ** 2 / (SAMPLES * density))
        assert distance < 45, dict(
            zip(told, zip(found, SAMPLES * density, strict=True), strict=True)
        )  # 13 degrees of freedom


def test_trajectories_of_a_question_are_drawn_independently(drawn):
    rows = outcomes(drawn)
    first, second, both = Counter(a for a, _ in rows), Counter(b for _, b in rows), Counter(map(tuple, rows))
    expected = {(a, b): first[a] * second[b] / SAMPLES for a in first for b in second}
    large = {pair: count for pair, count in expected.items() if count >= 5}
    distance = sum((both[pair] - count) ** 2 / count for pair, count in large.items())
    assert distance < len(large) + 6 * (2 * len(large)) ** 0.5
