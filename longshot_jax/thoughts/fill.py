"""Thoughts at any place of a token sequence: COCONUT's published procedure, one full pass for each thought."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.thoughts.memory import MemoryBank
from longshot_jax.thoughts.navigator import Reasoner, action_size
from longshot_jax.thoughts.past import empty_past


def fill_thoughts(
    reasoner: Reasoner,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    latent: Bool[Array, "B S"],
    memory: MemoryBank | None = None,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"]]:
    """Fills the positions in `latent` with noise-free thoughts (Hao et al. 2024, arXiv:2412.06769).

    Pass t computes the whole sequence and fills each row's t-th such position with the thought of the last hidden
    state of the real position before it. Padding may stand on both sides. A row is one trajectory: it reads its own
    earlier thoughts where thoughts read any.

    Args:
      reasoner: the policy.
      tokens: ids; those at `latent` are not read.
      mask: True on real positions.
      latent: where thoughts belong; a row's first real position cannot be one, as nothing precedes it.
      memory: read by every thought.

    Returns:
      Input embeddings, thoughts filled in, and the last hidden states that they give.
    """
    navigator = reasoner.navigator
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    latent = latent & mask
    order = jnp.where(latent, jnp.cumsum(latent, axis=1) - 1, -1)
    # The nearest real position before each: the running maximum of real indices, one place to the right.
    real = jnp.where(mask, jnp.arange(tokens.shape[1]), 0)
    previous = jnp.pad(jax.lax.cummax(real, axis=1)[:, :-1], ((0, 0), (1, 0)))

    def hidden_of(embeddings):
        return reasoner.llama(embeddings, positions, mask)[0]

    def fill(step, carry):
        embeddings, past = carry
        here = order == step
        before = jnp.take_along_axis(previous, jnp.argmax(here, axis=1)[:, None], axis=1)[..., None]
        hidden = jnp.take_along_axis(hidden_of(embeddings), before, axis=1)  # [B, 1, D]
        mean = navigator.action_mean(hidden[:, :, None], memory, past, jnp.asarray(step)[None])[:, :, 0]
        thought = navigator.to_embedding(mean, hidden)
        if past is not None:
            past = past.with_step(step, mean, navigator.value(hidden), jnp.any(here, axis=1, keepdims=True))
        return jnp.where(here[..., None], thought, embeddings), past

    embeddings = jnp.where(latent[..., None], 0.0, reasoner.llama.embed(tokens))
    past = None
    if navigator.config.reads_past:
        size = action_size(reasoner)
        past = empty_past(tokens.shape[0], 1, tokens.shape[1], size)
    embeddings, _ = jax.lax.fori_loop(0, jnp.max(order, initial=-1) + 1, fill, (embeddings, past))
    return embeddings, hidden_of(embeddings)
