"""Trajectories with roles and one answer over the thoughts of all: exact in every replay, and blind where it should be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import END, QUICK, from_scratch, question_keys, ragged_prompts, small_reasoner

from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.joint import join_trajectories
from longshot_jax.thoughts.rescore import rescore
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.rollout import RolloutShape, Temperatures, sample_rollout
from longshot_jax.thoughts.stopping import Lengths
from longshot_jax.thoughts.think import encode, think_given

pytestmark = pytest.mark.law

MANY, STEPS, ANSWER, OPENING = 3, 3, 4, (7,)


@pytest.fixture(scope="module")
def joined():
    """Answers over all trajectories, and of each alone, from given thoughts."""

    def run(reasoner, prompt, mask, embeddings, num_thoughts, active):
        encoded = begin_trajectories(reasoner, encode(reasoner, prompt, mask), embeddings.shape[1], active)
        thoughts = think_given(reasoner, encoded, embeddings, num_thoughts)
        return [
            decode_answers(reasoner, *which, OPENING, (END,), ANSWER, jnp.float32(1), None)
            for which in (join_trajectories(encoded, thoughts), (encoded, thoughts))
        ]

    return jax.jit(run, compiler_options=QUICK)


@pytest.mark.parametrize("roles", [0, MANY])
def test_the_answer_sees_the_thoughts_of_all_at_their_positions(joined, roles):
    reasoner, (prompt, mask) = small_reasoner(seed=3, roles=roles), ragged_prompts([3, 6], 6)
    embeddings = np.random.default_rng(0).normal(size=(2, MANY, STEPS, 8)).astype(np.float32)
    num_thoughts = np.array([[1, 3, 2], [2, 0, 0]], np.int32)
    active = np.array([[True, True, True], [True, True, False]])
    answers, _ = joined(reasoner, prompt, mask, embeddings, num_thoughts, active)
    assert answers.tokens.shape == (2, 1, ANSWER)
    table, head = (np.asarray(x[...]) for x in (reasoner.backbone.embedding, reasoner.backbone.head))
    for row in range(2):
        real = np.asarray(prompt)[row][np.asarray(mask)[row]]
        inputs, positions, groups = [*table[real]], [*range(len(real))], [-1] * len(real)
        for n in range(MANY):
            own = [embeddings[row, n, t] for t in range(num_thoughts[row, n])]
            if roles and active[row, n]:
                own = [np.asarray(reasoner.navigator.role_table[...])[n], *own]
            inputs += own
            positions += range(len(real), len(real) + len(own))
            groups += [n] * len(own)
        start = len(real) + (roles > 0) + num_thoughts[row].max()
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
    one, own = joined(reasoner, *prompts, embeddings, np.array([[2], [0]], np.int32), None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, own)


@partial(jax.jit, compiler_options=QUICK)
def sampled(reasoner):
    prompt, mask = ragged_prompts([3, 6], 6)
    adaptive = reasoner.navigator.config.max_trajectories > 0
    shape = RolloutShape(MANY, STEPS, ANSWER, OPENING, (END,), adaptive=adaptive)
    temperatures = Temperatures(jnp.float32(0.3), jnp.float32(1.3), jnp.float32(1.3))
    lengths = Lengths(jnp.int32(0), jnp.int32(STEPS))
    return sample_rollout(reasoner, prompt, mask, None, lengths, temperatures, question_keys(2, 4), shape)


CASES = [
    ("hidden", {"roles": MANY, "join": True}),
    ("navigator", {"roles": MANY, "join": True, "reads": "all", "max_trajectories": MANY}),
    ("navigator_residual", {"roles": MANY, "normalised": True}),
    ("vocabulary", {"roles": MANY}),
]


@pytest.mark.parametrize(("feedback", "kind"), CASES, ids=str)
def test_ratio_is_one_in_every_replay(feedback, kind):
    reasoner = small_reasoner(feedback, seed=2, **kind)
    rollout, recorded = sampled(reasoner)
    ways = ("parallel", "actions", "noise")
    replay = jax.jit(
        lambda reasoner: [rescore(reasoner, rollout, None, OPENING, way, "summed") for way in ways],
        compiler_options=QUICK,
    )
    for way, again in zip(ways, replay(reasoner), strict=True):
        for name in ("stop", "thought", "values"):
            found, expected = getattr(again.thoughts, name), getattr(recorded.thoughts, name)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=f"{way}: {name}")
        for name in ("log_probs", "entropies", "values"):
            found, expected = getattr(again.tokens, name), getattr(recorded.tokens, name)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=f"{way}: token {name}")
    # One action sequence of the question: its tokens count once, and every trajectory ends as it does.
    rows: np.ndarray = np.any(rollout.token_mask, axis=-1)
    assert np.all(rows[:, 0]) and np.any(rows[:, 1:]) != kind.get("join", False)
    if kind.get("join"):
        tokens = np.asarray(rollout.tokens)
        assert (tokens == tokens[:, :1]).all()


def test_the_joint_density_does_not_depend_on_the_order_of_roles():
    """Trajectories in another order, each with its role and its actions, have the same scores, and so has the answer."""
    reasoner, order = small_reasoner(seed=2, roles=MANY, join=True), np.array([2, 0, 1])
    prompt, mask = ragged_prompts([3, 6], 6)
    embeddings = np.random.default_rng(0).normal(size=(2, MANY, STEPS, 8)).astype(np.float32)
    num_thoughts = np.array([[1, 3, 2], [2, 0, 3]], np.int32)

    @partial(jax.jit, compiler_options=QUICK)
    def answer(roles, embeddings, num_thoughts):
        encoded = begin_trajectories(reasoner, encode(reasoner, prompt, mask), MANY, None, roles)
        thoughts = think_given(reasoner, encoded, embeddings, num_thoughts)
        one = join_trajectories(encoded, thoughts)
        answers = decode_answers(reasoner, *one, OPENING, (END,), ANSWER, jnp.float32(1), None)
        return thoughts.hidden, answers.scores.log_probs

    hidden, scores = answer(jnp.arange(MANY)[None], embeddings, num_thoughts)
    again, permuted = answer(jnp.asarray(order)[None], embeddings[:, order], num_thoughts[:, order])
    np.testing.assert_allclose(again, np.asarray(hidden)[:, order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(permuted, scores, rtol=1e-4, atol=1e-5)
    exchanged, _ = answer(jnp.asarray(order)[None], embeddings, num_thoughts)
    assert np.abs(np.asarray(exchanged) - np.asarray(hidden)).max() > 1e-2
