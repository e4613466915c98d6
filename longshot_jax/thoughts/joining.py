"""Fusion by attention: one more answer, whose attention sees the thoughts of every trajectory.

Keys and values of the trajectories' thoughts are laid side by side and read as one context; nothing is recomputed. The
thoughts keep the rotary positions at which they were thought, so that those of one step share a position, and the
answer starts where that of the longest trajectory would.

N identical trajectories are not one: their thoughts take N shares of the attention where one trajectory has one.
That alone can change an answer, so the fusion is always shown beside that of N identical copies.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array

from longshot_jax.model.llama import Context, KeyValues
from longshot_jax.thoughts.think import Thoughts


def join_trajectories(thoughts: Thoughts) -> Thoughts:
    """One trajectory [B, 1] in place of N: that of most thoughts, with a context of N · T slots, of all of them.

    `decode_answers` decodes from it as from any other. Among equally long trajectories the first is taken; it gives
    the hidden state that predicts the first token where no opening is forced.
    """
    longest = jnp.argmax(thoughts.counts, axis=1)

    def of_longest(array: Array) -> Array:
        return jnp.take_along_axis(array, longest.reshape(-1, *(1,) * (array.ndim - 1)), axis=1)

    def side_by_side(array: Array) -> Array:
        """Of keys or values [L, B, N, K, T, C]: [L, B, 1, K, N · T, C]."""
        depth, batch, many, groups, steps, size = array.shape
        return array.swapaxes(2, 3).reshape(depth, batch, 1, groups, many * steps, size)

    one = jax.tree.map(of_longest, replace(thoughts, context=None))
    cache = thoughts.context.cache
    keys_and_values = KeyValues(side_by_side(cache.keys), side_by_side(cache.values))
    return replace(one, context=Context(keys_and_values, thoughts.context.mask.reshape(len(longest), 1, -1)))
