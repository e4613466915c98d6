"""Feedback `vocabulary`: a thought is the mean of token embeddings by the probabilities of the next token."""

import jax
import jax.numpy as jnp
import numpy as np
from builders import from_scratch, ragged_prompts, small_reasoner

from longshot_jax.thoughts.stopping import StopRule
from longshot_jax.thoughts.think import encode, think

THOUGHTS = 4


def thoughts_of(reasoner, prompt, mask):
    counts = jnp.full((len(prompt), 1), THOUGHTS)
    still = jnp.zeros((len(prompt), 1, THOUGHTS, reasoner.action_size))
    return think(reasoner, encode(reasoner, prompt, mask), None, StopRule(counts, counts), still, jnp.zeros(()))


def test_where_the_model_is_certain_its_thoughts_are_the_tokens_it_would_write():
    reasoner = small_reasoner("vocabulary", seed=3)
    head = reasoner.backbone.head
    head[...] = head[...] * 1000
    table, scores = np.asarray(reasoner.backbone.embedding[...]), np.asarray(head[...])
    prompt, mask = ragged_prompts([4, 6], 6)
    thoughts = jax.jit(thoughts_of)(reasoner, prompt, mask)
    for row, (tokens, real) in enumerate(zip(np.asarray(prompt), np.asarray(mask), strict=True)):
        inputs, written = table[tokens[real]], []
        for _ in range(THOUGHTS):
            written.append(int(np.argmax(scores @ from_scratch(reasoner, inputs)[-1])))
            inputs = np.concatenate([inputs, table[written[-1:]]])
        np.testing.assert_allclose(thoughts.embeddings[row, 0], table[written], atol=1e-5)
        assert len(set(written)) > 1


def test_many_positions_at_once_are_the_single_ones():
    """Rescoring makes all thoughts of a trajectory in one call: the same means, and the same gradients."""
    backbone = small_reasoner("vocabulary", seed=3).backbone
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, backbone.config.hidden_size)), jnp.float32)

    def together(hidden):
        return backbone.expected_embedding(hidden)

    def apart(hidden):
        return jnp.concatenate(
            [backbone.expected_embedding(hidden[:, :, step : step + 1]) for step in range(5)], axis=2
        )

    np.testing.assert_allclose(together(hidden), apart(hidden), rtol=1e-5, atol=1e-6)
    weights = jnp.cos(jnp.arange(hidden.size, dtype=jnp.float32)).reshape(hidden.shape)
    first, second = (jax.grad(lambda x, f=f: jnp.sum(f(x) * weights))(hidden) for f in (together, apart))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)
    assert float(jnp.max(jnp.abs(first))) > 1e-3
