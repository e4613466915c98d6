"""Soft tokens with exploration: a sampled thought is the mean embedding of K tokens drawn from the next token's distribution.

`thoughts.noise = "tokens"` (Multiplex Thinking: Tang et al. 2026, arXiv:2601.08808). The K tokens are the action. Each is drawn
independently, so the log-prob of a thought is exactly the sum of the log-probs of its tokens. The thought depends on
nothing but the tokens and the embedding table. With K = 1 a sampled thought is a sampled token, as in text. At temperature 1 the mean
over all draws is the noise-free thought (before a norm, where thoughts have one).

Shapes: B questions, N trajectories, T thoughts, K tokens of a thought, V vocabulary, D hidden size.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from longshot_jax.model.chunked_logits import chunks_of, token_statistics
from longshot_jax.model.llama import Llama
from longshot_jax.model.sharding import constrain_rows
from longshot_jax.thoughts.densities import categorical_entropy, reduce_dimensions

# Probabilities are added up as whole numbers of this many to 1. In float32 the rounding of a sum over a large vocabulary
# would land on tokens without any probability, whose ratios no clip expects.
_UNITS = 2**30


@struct.dataclass
class TokenDraws:
    """What the tokens of thoughts are drawn with.

    Attributes:
      noise: Float [B, N, T, K], standard normal, one number a token.
      temperature: Float [], divides the logits.
    """

    noise: Array
    temperature: Array


def draw_tokens(logits: Float[Array, "*batch V"], noise: Float[Array, "*batch K"]) -> Int[Array, "*batch K"]:
    """Tokens from softmax(logits), by the inverse of the cumulative distribution at the quantiles of standard normal noise.

    So the noise of trajectories may be coupled, and the same noise draws the same tokens again. Tokens with a probability
    below 2^-31 are never drawn.
    """
    probabilities = constrain_rows(jax.nn.softmax(logits))  # a sum along the vocabulary needs whole rows
    cumulative = jnp.cumsum(jnp.round(probabilities * _UNITS).astype(jnp.int32), axis=-1)
    total = cumulative[..., -1:]
    places = jnp.minimum((jax.scipy.special.ndtr(noise) * total).astype(jnp.int32), total - 1)

    def search(cumulative: Array, places: Array) -> Array:
        return jnp.searchsorted(cumulative, places, side="right")

    rows, size = cumulative.reshape(-1, cumulative.shape[-1]), noise.shape[-1]
    return jax.vmap(search)(rows, places.reshape(-1, size)).reshape(noise.shape).astype(jnp.int32)


def mean_embedding(backbone: Llama, tokens: Int[Array, "*batch K"]) -> Float[Array, "*batch D"]:
    """Mean of the tokens' input embeddings, in at least float32."""
    embeddings = backbone.embed(tokens)
    return jnp.mean(embeddings, axis=-2, dtype=jnp.promote_types(embeddings.dtype, jnp.float32))


def score_sampled(
    backbone: Llama,
    hidden: Float[Array, "*batch D"],
    tokens: Int[Array, "*batch K"],
    temperature: Float[Array, ""],
    scaling: str,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Log-prob of a thought's tokens, reduced over K by `scaling`, and the entropy of the distribution that each is drawn from.

    Both in nats, from the hidden states that made the thought. Large logits are computed in vocabulary chunks, once for
    all K tokens.
    """
    chunks = chunks_of(tokens[..., 0].size, backbone.config.vocab_size)
    if chunks == 1:
        logits = backbone.logits(hidden) / temperature
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens, axis=-1)
        return reduce_dimensions(log_probs, scaling), categorical_entropy(logits)
    rows, table, first = hidden.reshape(-1, hidden.shape[-1]), backbone.output_table, tokens[..., 0]
    statistics = token_statistics(rows, table, first.reshape(-1), temperature, chunks)
    of_first, entropy = statistics.log_probs.reshape(first.shape), statistics.entropies.reshape(first.shape)
    if tokens.shape[-1] == 1:
        return reduce_dimensions(of_first[..., None], scaling), entropy

    # The tokens of a thought share the normaliser: their log-probs differ as their logits do. One token of all thoughts
    # at a time, as K rows of the head for each would be more than the hidden states.
    def difference(others: Array) -> Array:
        rows = (table[others].astype(hidden.dtype), table[first].astype(hidden.dtype))
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        ours, theirs = (jnp.einsum("...d,...d->...", hidden, row, preferred_element_type=wide) for row in rows)
        return (ours - theirs) / temperature

    away = jax.lax.map(difference, jnp.moveaxis(tokens[..., 1:], -1, 0))
    of_others = of_first[..., None] + jnp.moveaxis(away, 0, -1)
    return reduce_dimensions(jnp.concatenate([of_first[..., None], of_others], axis=-1), scaling), entropy
