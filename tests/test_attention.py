"""Attention over segments against one softmax over their union, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import QUICK

from longshot_jax.model.attention import Segment, attend

HEADS, GROUPS, SIZE = 4, 2, 3


def one_softmax(queries, segments):
    """The definition, row by row and head by head, in float64."""
    result = np.zeros(queries.shape)
    for row, query, head in np.ndindex(*queries.shape[:3]):
        logits, values = [], []
        for segment in segments:
            owner = row * len(segment.keys) // len(queries)
            keys = np.asarray(segment.keys, float)[owner, head * GROUPS // HEADS]
            seen = np.asarray(segment.visible)[owner, query if segment.visible.shape[1] > 1 else 0]
            logits.append((keys @ np.asarray(queries, float)[row, query, head] / SIZE**0.5)[seen])
            values.append(np.asarray(segment.values, float)[owner, head * GROUPS // HEADS][seen])
        every = np.concatenate(logits)
        weights = np.exp(every - every.max())
        result[row, query, head] = weights @ np.concatenate(values) / weights.sum()
    return result


def segment(rng, owners, past, visible, size=1.0):
    keys, values = (size * rng.normal(size=(owners, GROUPS, past, SIZE)) for _ in range(2))
    return Segment(jnp.asarray(keys, jnp.float32), jnp.asarray(values, jnp.float32), jnp.asarray(visible))


def a_case(rows, length, owners, past, size=1.0):
    """Queries that see a shared prompt with holes, an empty segment, and themselves causally."""
    rng = np.random.default_rng([rows, length, owners, past])
    queries = jnp.asarray(size * rng.normal(size=(rows, length, HEADS, SIZE)), jnp.float32)
    causal = np.broadcast_to(np.tril(np.ones((length, length), bool)), (rows, length, length))
    holes = rng.random((owners, 1, past)) < 0.6
    return queries, (
        segment(rng, owners, past, holes, size),
        segment(rng, rows, 0, np.zeros((rows, 1, 0), bool)),
        segment(rng, rows, length, causal, size),
    )


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (6, 1, 2, 4), (3, 2, 3, 1), (2, 4, 1, 0)])
def test_segments_are_one_softmax(shape):
    queries, segments = a_case(*shape)
    found = jax.jit(attend, compiler_options=QUICK)(queries, segments)
    np.testing.assert_allclose(found, one_softmax(queries, segments), atol=2e-6)


def test_logits_far_from_each_other_do_not_overflow():
    queries, segments = a_case(4, 3, 2, 5, size=30.0)
    assert np.isfinite(attend(queries, segments)).all()
    np.testing.assert_allclose(attend(queries, segments), one_softmax(queries, segments), atol=1e-3)


def test_gradient_is_that_of_one_softmax():
    queries, segments = a_case(4, 3, 2, 5)

    def plain(queries, segments):
        def laid(x):
            return jnp.repeat(jnp.repeat(x, 4 // len(x), 0), HEADS // GROUPS, 1)

        keys, values = (
            jnp.concatenate([laid(getattr(s, name)) for s in segments], 2) for name in ("keys", "values")
        )
        masks = [
            jnp.broadcast_to(jnp.repeat(s.visible, 4 // len(s.visible), 0), (4, 3, s.keys.shape[2]))
            for s in segments
        ]
        logits = jnp.einsum("bqhc,bhpc->bhqp", queries, keys) * SIZE**-0.5
        weights = jax.nn.softmax(jnp.where(jnp.concatenate(masks, -1)[:, None], logits, -jnp.inf), axis=-1)
        return jnp.einsum("bhqp,bhpc->bqhc", weights, values)

    def gradient(function):
        loss = lambda queries, segments: jnp.sum(jnp.sin(function(queries, segments)))  # noqa: E731
        return jax.grad(loss, argnums=(0, 1), allow_int=True)(queries, segments)

    for ours, theirs in zip(jax.tree.leaves(gradient(attend)), jax.tree.leaves(gradient(plain)), strict=True):
        if jnp.issubdtype(ours.dtype, jnp.floating):
            np.testing.assert_allclose(ours, theirs, atol=2e-6)
