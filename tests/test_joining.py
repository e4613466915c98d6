"""Fusion by attention: one answer over the thoughts of all trajectories, against a pass from scratch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import END, QUICK, from_scratch, ragged_prompts, small_reasoner

from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.joining import join_trajectories
from longshot_jax.thoughts.think import encode, think_given

STEPS, ANSWER, OPENING = 3, 4, (7,)


@pytest.fixture(scope="module")
def joined():
    def run(reasoner, prompt, mask, embeddings, counts):
        encoded = encode(reasoner, prompt, mask)
        thoughts = think_given(reasoner, encoded, embeddings, counts)
        one = join_trajectories(thoughts)
        return [
            decode_answers(reasoner, encoded, which, OPENING, END, ANSWER, jnp.float32(1), None)
            for which in (one, thoughts)
        ]

    return jax.jit(run, compiler_options=QUICK)


def test_the_answer_sees_the_thoughts_of_all_at_their_positions(joined):
    reasoner, (prompt, mask) = small_reasoner(seed=3), ragged_prompts([3, 6], 6)
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(2, 3, STEPS, 8)).astype(np.float32)
    counts = np.array([[1, 3, 2], [2, 0, 2]], np.int32)
    answers, _ = joined(reasoner, prompt, mask, embeddings, counts)
    assert answers.tokens.shape == (2, 1, ANSWER)
    table = np.asarray(reasoner.llama.embedding[...])
    head = np.asarray(reasoner.llama.head[...])
    for row in range(2):
        real = np.asarray(prompt)[row][np.asarray(mask)[row]]
        inputs, positions, groups = [*table[real]], [*range(len(real))], [-1] * len(real)
        for n in range(3):
            for t in range(counts[row, n]):
                inputs.append(embeddings[row, n, t])
                positions.append(len(real) + t)
                groups.append(n)
        start = len(real) + counts[row].max()
        tokens = [int(t) for t in np.asarray(answers.tokens)[row, 0][np.asarray(answers.mask)[row, 0]]]
        for place, token in enumerate([*OPENING, *tokens[:-1]]):
            inputs.append(table[token])
            positions.append(start + place)
            groups.append(-2)
        order, group = np.arange(len(inputs)), np.array(groups)
        # A thought sees the prompt and its own trajectory, the answer everything before it.
        related = (group[:, None] == -2) | (group[None] == -1) | (group[:, None] == group[None])
        sees = related & (order[None] <= order[:, None])
        hidden = from_scratch(reasoner, np.stack(inputs), positions=np.array(positions), sees=sees)
        logits = hidden[-len(tokens) :] @ head.T
        assert np.argmax(logits, axis=-1).tolist() == tokens
        chosen = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        found = np.asarray(answers.scores.log_probs)[row, 0, : len(tokens)]
        np.testing.assert_allclose(found, chosen[np.arange(len(tokens)), tokens], atol=1e-4)


def test_one_trajectory_joined_is_itself(joined):
    reasoner, prompts = small_reasoner(seed=3), ragged_prompts([3, 6], 6)
    embeddings = np.random.default_rng(1).normal(size=(2, 1, STEPS, 8)).astype(np.float32)
    one, own = joined(reasoner, *prompts, embeddings, np.array([[2], [0]], np.int32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, own)
