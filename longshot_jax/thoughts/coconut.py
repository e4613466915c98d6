"""COCONUT's published procedure: thoughts at any positions of a token sequence, by one full pass for each thought."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.thoughts.reads.history import empty_history
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Reasoner


def fill_thoughts(
    reasoner: Reasoner,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    latent: Bool[Array, "B S"],
    memory: MemoryBank | None = None,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"]]:
    """Fills the positions in `latent` with noise-free thoughts (Hao et al. 2024, arXiv:2412.06769).

    Pass t runs the whole sequence and fills the t-th latent position of every row with the thought computed from the
    last hidden state of the preceding real position. Padding may be on both sides. A row is one trajectory; thoughts
    that read history read the earlier thoughts of their row.

    Args:
      tokens: ids; not read at `latent` positions.
      mask: True on real positions.
      latent: positions of thoughts; a row's first real position cannot be one, as it has no predecessor.
      memory: read by every thought.

    Returns:
      Input embeddings with the thoughts filled in, and their last hidden states.
    """
    navigator = reasoner.navigator
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    latent = latent & mask
    order = jnp.where(latent, jnp.cumsum(latent, axis=1) - 1, -1)
    # The nearest real position before each: the running maximum of real indices, shifted right by one.
    real = jnp.where(mask, jnp.arange(tokens.shape[1]), 0)
    previous = jnp.pad(jax.lax.cummax(real, axis=1)[:, :-1], ((0, 0), (1, 0)))

    def hidden_of(embeddings):
        return reasoner.backbone(embeddings, positions, mask)[0]

    def fill(step, carry):
        embeddings, history = carry
        here = order == step
        before = jnp.take_along_axis(previous, jnp.argmax(here, axis=1)[:, None], axis=1)[..., None]
        hidden = jnp.take_along_axis(hidden_of(embeddings), before, axis=1)  # [B, 1, D]
        source = reasoner.thought_source(hidden[:, :, None])
        mean = navigator.action_mean(source, memory, history, jnp.asarray(step)[None])[:, :, 0]
        thought = navigator.to_embedding(mean, hidden)
        if history is not None:
            history = history.with_step(step, mean, navigator.value(hidden), jnp.any(here, axis=1, keepdims=True))
        return jnp.where(here[..., None], thought, embeddings), history

    embeddings = jnp.where(latent[..., None], 0.0, reasoner.backbone.embed(tokens))
    history = None
    if navigator.config.reads_history:
        history = empty_history(tokens.shape[0], 1, tokens.shape[1], reasoner.action_size)
    embeddings, _ = jax.lax.fori_loop(0, jnp.max(order, initial=-1) + 1, fill, (embeddings, history))
    return embeddings, hidden_of(embeddings)
