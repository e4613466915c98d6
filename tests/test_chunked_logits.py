"""Token statistics in chunks of the vocabulary against the plain ones: values, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import QUICK, small_reasoner

from longshot_jax.model import chunked_logits
from longshot_jax.model.chunked_logits import chunks_of, token_statistics
from longshot_jax.thoughts.answer import score_tokens
from longshot_jax.thoughts.densities import categorical_entropy, categorical_log_prob

POSITIONS, WIDTH, TEMPERATURE = 7, 5, 0.7


def inputs(words, dtype):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(POSITIONS, WIDTH)), dtype)
    table = jnp.asarray(3 * rng.normal(size=(words, WIDTH)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, words, POSITIONS), jnp.int32).at[:2].set(jnp.array([0, words - 1]))
    weights = jnp.asarray(rng.normal(size=(2, POSITIONS)), jnp.float32)
    return hidden, table, tokens, weights


def plain(hidden, table, tokens, temperature):
    """As `Llama.logits` and `densities` have it."""
    products = jnp.einsum("pd,vd->pv", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
    logits = products / temperature
    return categorical_log_prob(logits, tokens), categorical_entropy(logits), jnp.argmax(logits, -1)


# Vocabularies that the chunks divide and do not divide, and one token a chunk.
@pytest.mark.parametrize(("words", "chunks"), [(12, 3), (13, 4), (6, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_values_and_gradients_are_the_plain_ones(words, chunks, dtype, tolerance):
    hidden, table, tokens, weights = inputs(words, dtype)

    def loss(statistics):
        def of(hidden, table, temperature):
            log_probs, entropies, best = statistics(hidden, table, tokens, temperature)
            return jnp.sum(weights[0] * log_probs + weights[1] * entropies), (log_probs, entropies, best)

        return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True), compiler_options=QUICK)(
            hidden, table, jnp.float32(TEMPERATURE)
        )

    (value, theirs), gradients = loss(plain)
    (our_value, ours), our_gradients = loss(lambda *given: token_statistics(*given, chunks))
    np.testing.assert_array_equal(ours[2], theirs[2])
    for ours_one, theirs_one in zip(
        (our_value, *ours[:2], *our_gradients), (value, *theirs[:2], *gradients), strict=True
    ):
        assert ours_one.dtype == theirs_one.dtype
        scale = float(jnp.max(jnp.abs(theirs_one)))
        np.testing.assert_allclose(
            np.asarray(ours_one, np.float32), np.asarray(theirs_one, np.float32), rtol=0, atol=tolerance * scale
        )


def test_ties_go_to_the_lowest_token_and_large_logits_do_no_harm():
    hidden = jnp.array([[1.0], [300.0], [-300.0]])
    table = jnp.array([[1.0], [2.0], [2.0], [-1.0], [2.0]])
    found = token_statistics(hidden, table, jnp.array([4, 1, 0], jnp.int32), jnp.float32(1.0), 2)
    expected = plain(hidden, table, jnp.array([4, 1, 0]), 1.0)
    np.testing.assert_array_equal(found.best, [1, 1, 3])
    np.testing.assert_allclose(found.log_probs, expected[0], rtol=1e-6)
    np.testing.assert_allclose(found.entropies, expected[1], rtol=1e-6, atol=1e-30)


def test_scores_of_answers_take_the_chunks_where_the_vocabulary_is_large(monkeypatch):
    reasoner = small_reasoner()
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(2, 3, 4, 8)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 13, (2, 3, 4)), jnp.int32)
    mask = jnp.asarray(rng.random((2, 3, 4)) < 0.7)
    whole = score_tokens(reasoner, hidden, tokens, mask, jnp.float32(TEMPERATURE))
    monkeypatch.setattr(chunked_logits, "CHUNK_ELEMENTS", 100)
    assert chunks_of(24, 13) == 4
    cut = score_tokens(reasoner, hidden, tokens, mask, jnp.float32(TEMPERATURE))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), cut, whole)
    assert not np.any(np.asarray(cut.log_probs)[~np.asarray(mask)])


def test_memory_at_llamas_vocabulary():
    words, positions, width = 128_256, 1024, 8
    shapes = (
        jax.ShapeDtypeStruct((positions, width), jnp.float32),
        jax.ShapeDtypeStruct((words, width), jnp.float32),
        jax.ShapeDtypeStruct((positions,), jnp.int32),
    )

    def temporary(statistics):
        def loss(hidden, table, tokens):
            log_probs, entropies, _ = statistics(hidden, table, tokens, jnp.float32(1.0))
            return jnp.sum(log_probs) + jnp.sum(entropies)

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * words * positions
    assert temporary(plain) >= logits
    # Four chunks' worth: logits, their log-probs and gradients in the backward pass.
    assert temporary(lambda *given: token_statistics(*given, chunks_of(positions, words) * 4)) < logits / 2
