"""Log-probs and entropies of given tokens without holding the logits of a large vocabulary at once.

A scan over chunks of the vocabulary keeps running sums (Milakov & Gimelshein 2018, arXiv:1805.02867), and the backward
pass recomputes the logits of every chunk. A chunk takes every n-th row of the table, so a table sharded along its rows
is sharded alike in every chunk.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from longshot_jax.model.sharding import constrain

# Logits held at once: 256 MB of float32.
CHUNK_ELEMENTS = 2**26


class TokenStatistics(NamedTuple):
    """For each position, the token's log-prob and the entropy, in nats, and the most probable token."""

    log_probs: Float[Array, " P"]
    entropies: Float[Array, " P"]
    best: Int[Array, " P"]


def chunks_of(positions: int, vocabulary: int) -> int:
    """Number of chunks that keeps the logits of the positions within `CHUNK_ELEMENTS`."""
    return min(max(1, math.ceil(positions * vocabulary / CHUNK_ELEMENTS)), vocabulary)


def token_statistics(
    hidden: Float[Array, "P D"],
    table: Float[Array, "V D"],
    tokens: Int[Array, " P"],
    temperature: Float[Array, ""],
    chunks: int,
) -> TokenStatistics:
    """Log-probs, entropies and the likeliest token under softmax(hidden · table / temperature).

    Args:
      hidden: in the compute dtype; products are accumulated in float32.
      table: the output head, in its own dtype; its gradient has this dtype too, without rounding in between.
      chunks: number of chunks of the vocabulary.
    """
    statistics: Any = _statistics(chunks, hidden, table, tokens, temperature)
    return TokenStatistics(*statistics)


def _chunked(table: Float[Array, "V D"], chunks: int) -> Float[Array, "W n D"]:
    """Row v of the table at [v // n, v % n], zeros after the last."""
    padding = -table.shape[0] % chunks
    return jnp.pad(table, ((0, padding), (0, 0))).reshape(-1, chunks, table.shape[1])


def _wide(dtype: jax.typing.DTypeLike) -> np.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _chunk(number, hidden, chunked, vocabulary, temperature):
    """A chunk's rows in the compute dtype, its logits [P, W] and the ids of its tokens [W]."""
    rows = jax.lax.dynamic_index_in_dim(chunked, number, 1, keepdims=False).astype(hidden.dtype)
    ids = jnp.arange(rows.shape[0]) * chunked.shape[1] + number
    logits = jnp.einsum("pd,wd->pw", hidden, rows, preferred_element_type=_wide(hidden.dtype)) / temperature
    logits = constrain(jnp.where(ids < vocabulary, logits, -jnp.inf), "batch", "vocab")
    return rows, logits, ids


def _sums(chunks, hidden, table, tokens, temperature):
    """Log of the normaliser, entropy, the token's logit, and the likeliest token, of each position."""
    chunked, vocabulary = _chunked(table, chunks), table.shape[0]
    dtype = _wide(hidden.dtype)

    def add(carry, number):
        top, mass, moment, chosen, best = carry
        _, logits, ids = _chunk(number, hidden, chunked, vocabulary, temperature)
        place = jnp.argmax(logits, axis=-1)
        highest = jnp.take_along_axis(logits, place[:, None], axis=-1)[:, 0]
        # Ties go to the lowest id, as in an argmax over the whole vocabulary.
        found = ids[place].astype(best.dtype)
        better = (highest > top) | ((highest == top) & (found < best))
        new_top = jnp.maximum(top, highest)
        # mass: sum of exp(logit - top); moment: sum of exp(logit - top) · (logit - top).
        first = jnp.isneginf(top)
        shift = jnp.where(first, 0.0, top - new_top)
        shrink = jnp.where(first, 0.0, jnp.exp(shift))
        away = logits - new_top[:, None]
        weights = jnp.exp(away)
        finite = jnp.where(jnp.isneginf(away), 0.0, away)
        moment = shrink * (moment + mass * shift) + jnp.sum(weights * finite, axis=-1)
        mass = shrink * mass + jnp.sum(weights, axis=-1)
        chosen += jnp.sum(jnp.where(ids == tokens[:, None], finite + new_top[:, None], 0.0), axis=-1)
        return (new_top, mass, moment, chosen, jnp.where(better, found, best)), None

    blank = jnp.zeros(tokens.shape, dtype)
    start = (blank - jnp.inf, blank, blank, blank, jnp.full(tokens.shape, vocabulary, jnp.int32))
    (top, mass, moment, chosen, best), _ = jax.lax.scan(add, start, jnp.arange(chunks))
    return top + jnp.log(mass), jnp.log(mass) - moment / mass, chosen, best


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(chunks, hidden, table, tokens, temperature):
    normaliser, entropy, chosen, best = _sums(chunks, hidden, table, tokens, temperature)
    return chosen - normaliser, entropy, best


def _forward(chunks, hidden, table, tokens, temperature):
    normaliser, entropy, chosen, best = _sums(chunks, hidden, table, tokens, temperature)
    kept = (hidden, table, tokens, temperature, normaliser, entropy)
    return (chosen - normaliser, entropy, best), kept


def _backward(chunks, kept, cotangents):
    hidden, table, tokens, temperature, normaliser, entropy = kept
    of_log_prob, of_entropy, _ = cotangents
    chunked, vocabulary, dtype = _chunked(table, chunks), table.shape[0], _wide(hidden.dtype)

    def add(carry, number):
        of_hidden, of_temperature = carry
        rows, logits, ids = _chunk(number, hidden, chunked, vocabulary, temperature)
        log_probs = logits - normaliser[:, None]
        probabilities = jnp.exp(log_probs)
        finite = jnp.where(jnp.isneginf(log_probs), 0.0, log_probs)
        # d log p_token / d logit = onehot - p;  d H / d logit = - p (log p + H)
        slope = of_log_prob[:, None] + of_entropy[:, None] * (finite + entropy[:, None])
        of_logits = jnp.where(ids == tokens[:, None], of_log_prob[:, None], 0.0) - probabilities * slope
        real = jnp.where(jnp.isneginf(logits), 0.0, logits)
        of_temperature -= jnp.sum(of_logits * real) / temperature
        of_products = (of_logits / temperature).astype(hidden.dtype)
        of_hidden += jnp.einsum("pw,wd->pd", of_products, rows, preferred_element_type=dtype)
        of_rows = jnp.einsum("pw,pd->wd", of_products, hidden, preferred_element_type=dtype)
        return (of_hidden, of_temperature), of_rows.astype(table.dtype)

    start = (jnp.zeros(hidden.shape, dtype), jnp.zeros((), dtype))
    (of_hidden, of_temperature), of_rows = jax.lax.scan(add, start, jnp.arange(chunks))
    of_table = jnp.moveaxis(of_rows, 0, 1).reshape(-1, table.shape[1])[:vocabulary]
    nothing = np.zeros(tokens.shape, jax.dtypes.float0)
    return (of_hidden.astype(hidden.dtype), of_table, nothing, of_temperature.astype(jnp.result_type(temperature)))


_statistics.defvjp(_forward, _backward)
