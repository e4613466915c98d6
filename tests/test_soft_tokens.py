"""Feedback `vocabulary`: a thought is the mean of token embeddings by the probabilities of the next token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import VOCABULARY, from_scratch, ragged_prompts, small_reasoner
from flax import nnx

from longshot_jax.evaluation.patching import swapped_answers
from longshot_jax.model import llama
from longshot_jax.thoughts.reads.memory_bank import empty_bank, write_bank
from longshot_jax.thoughts.stopping import StopRule
from longshot_jax.thoughts.think import encode, think

THOUGHTS = 4


def certain_reasoner():
    """One whose next token has nearly all of the probability."""
    reasoner = small_reasoner("vocabulary", seed=3)
    head = reasoner.backbone.head
    head[...] = head[...] * 1000
    return reasoner


def thoughts_of(reasoner, prompt, mask):
    counts = jnp.full((len(prompt), 1), THOUGHTS)
    still = jnp.zeros((len(prompt), 1, THOUGHTS, reasoner.action_size))
    return think(reasoner, encode(reasoner, prompt, mask), None, StopRule(counts, counts), still, jnp.zeros(()))


def test_where_the_model_is_certain_its_thoughts_are_the_tokens_it_would_write():
    reasoner = certain_reasoner()
    table, scores = (np.asarray(x[...]) for x in (reasoner.backbone.embedding, reasoner.backbone.head))
    prompt, mask = ragged_prompts([4, 6], 6)
    thoughts = jax.jit(thoughts_of)(reasoner, prompt, mask)
    for row, (tokens, real) in enumerate(zip(np.asarray(prompt), np.asarray(mask), strict=True)):
        inputs, written = table[tokens[real]], []
        for _ in range(THOUGHTS):
            written.append(int(np.argmax(scores @ from_scratch(reasoner, inputs)[-1])))
            inputs = np.concatenate([inputs, table[written[-1:]]])
        np.testing.assert_allclose(thoughts.embeddings[row, 0], table[written], atol=1e-5)
        assert len(set(written)) > 1


def test_the_donor_experiment_names_the_tokens_of_thoughts():
    reasoner = certain_reasoner()
    prompt, mask = ragged_prompts([4, 6], 6)
    thoughts = thoughts_of(reasoner, prompt, mask)
    graphdef, params = nnx.split(reasoner)
    nearest, _ = swapped_answers(graphdef, (), (9,), 2, THOUGHTS, (params,), None, prompt, mask)
    table = np.asarray(reasoner.backbone.embedding[...])
    np.testing.assert_allclose(table[np.asarray(nearest)], thoughts.embeddings[:, 0], atol=1e-5)


def test_a_thought_finds_itself_in_the_memory_bank():
    """What is written, a thought's place in the reasoning space, is what the same thought asks for."""
    reasoner = small_reasoner("vocabulary", memory_top=1)
    prompt, mask = ragged_prompts([4, 6], 6)
    thoughts = thoughts_of(reasoner, prompt, mask)
    places = (thoughts.actions @ reasoner.navigator.state_in[...]).reshape(-1, 5)
    bank = write_bank(empty_bank(len(places), 5), places, jnp.ones(len(places)), jnp.ones(len(places), bool))
    source = reasoner.thought_source(thoughts.hidden[:, :, :-1])
    slots = reasoner.navigator.bank_slots(source, bank)
    found = np.asarray(bank.positions)[np.asarray(slots)[..., 0]]
    np.testing.assert_allclose(found, places.reshape(*slots.shape[:-1], 5), rtol=1e-5)


@pytest.mark.parametrize("fit", [1, 2, 5])
def test_many_positions_at_once_are_the_single_ones(fit, monkeypatch):
    """Rescoring makes all thoughts of a trajectory in one call, in parts where their logits would not fit."""
    monkeypatch.setattr(llama, "CHUNK_ELEMENTS", fit * 2 * 3 * VOCABULARY)
    backbone = small_reasoner("vocabulary", seed=3).backbone
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, backbone.config.hidden_size)), jnp.float32)

    def together(hidden):
        return backbone.expected_embedding(hidden)

    def apart(hidden):
        return jnp.concatenate(
            [backbone.expected_embedding(hidden[:, :, step : step + 1]) for step in range(5)], axis=2
        )

    weights = jnp.cos(jnp.arange(hidden.size, dtype=jnp.float32)).reshape(hidden.shape)
    np.testing.assert_allclose(together(hidden), apart(hidden), rtol=1e-5, atol=1e-6)
    first, second = (jax.grad(lambda x, f=f: jnp.sum(f(x) * weights))(hidden) for f in (together, apart))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)
    assert float(jnp.max(jnp.abs(first))) > 1e-3
