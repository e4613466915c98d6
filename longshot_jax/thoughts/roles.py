"""Roles: a learned embedding that tells each trajectory of a question which one it is.

It is read at a position of its own, between the question and the thoughts (as ParaThinker's control tokens open its
parallel paths: Wen et al. 2025, arXiv:2509.04475), so trajectories differ by construction, and so does the text that
follows a role without any thought.

Shapes: B questions, N trajectories per question, D hidden size.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from longshot_jax.model.key_values import Context
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.think import EncodedPrompt, Roles, extend


@jax.named_scope("roles")
def begin_trajectories(
    reasoner: Reasoner,
    prompt: EncodedPrompt,
    trajectories: int,
    active: Bool[Array, "B N"] | None = None,
    roles: Int[Array, "#B N"] | None = None,
) -> EncodedPrompt:
    """The prompt, continued by the role of each of its N trajectories; unchanged for a navigator without roles.

    Args:
      active: trajectories that exist; None is all. No joined answer sees the role of another one.
      roles: role of each trajectory; None gives trajectory n role n, and where there are fewer roles, in turn.
    """
    if not reasoner.navigator.config.roles:
        return prompt
    shape = (len(prompt.hidden), trajectories)
    mask = jnp.broadcast_to(True if active is None else active, shape)[..., None]
    embeddings = role_embeddings(reasoner, shape, roles)
    positions = jnp.broadcast_to(prompt.lengths[:, None, None], mask.shape)
    hidden, cache = extend(reasoner, embeddings, positions, mask, prompt)
    return replace(prompt, lengths=prompt.lengths + 1, roles=Roles(Context(cache, mask), hidden[:, :, 0]))


def role_embeddings(reasoner: Reasoner, shape: tuple[int, int], roles: Int[Array, "#B N"] | None = None) -> Array:
    """Float [B, N, 1, D]: what every trajectory reads at its first position. `shape` is (B, N)."""
    table = reasoner.navigator.role_table[...]
    chosen = jnp.broadcast_to(jnp.arange(shape[1]) % len(table) if roles is None else roles, shape)
    return table[chosen].astype(reasoner.backbone.compute_dtype)[:, :, None]
