"""Decode an answer after each trajectory's thoughts, all rows at once, until every row has ended."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from longshot_jax.model.chunked_logits import chunks_of, token_statistics
from longshot_jax.model.key_values import Context, KeyValues
from longshot_jax.model.sharding import constrain_cache
from longshot_jax.thoughts.densities import categorical_entropy, categorical_log_prob
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.think import EncodedPrompt, Thoughts, extend


@struct.dataclass
class TokenScores:
    """Scores of answer tokens under the policy; zero at positions without a token.

    Attributes:
      log_probs, entropies: Float [B, N, A], in nats, under the sampling temperature.
      values: Float [B, N, A], expected return before each token.
      is_top: Bool [B, N, A], whether the token is the most probable one.
    """

    log_probs: Array
    entropies: Array
    values: Array
    is_top: Array


@struct.dataclass
class Answers:
    """Decoded answers.

    Attributes:
      tokens: Int [B, N, A], an end token is the last real one.
      mask: Bool [B, N, A], True up to and including the end token.
      ended: Bool [B, N], whether an end token was produced within A tokens.
      scores: scores of all tokens.
      context: keys, values [L, B, N, K, I + A, C] and mask [B, N, I + A] of the I opening tokens and the answer without
        its end token.
    """

    tokens: Array
    mask: Array
    ended: Array
    scores: TokenScores
    context: Context


@jax.named_scope("token_scores")
def score_tokens(
    reasoner: Reasoner,
    hidden: Float[Array, "*batch D"],
    tokens: Int[Array, "*batch"],
    mask: Bool[Array, "*batch"],
    temperature: Float[Array, ""],
    logits: Float[Array, "*batch V"] | None = None,
) -> TokenScores:
    """Scores of tokens from the hidden states that predict them, or from `logits`, already divided by the temperature.

    Large logits are computed in vocabulary chunks.
    """
    chunks = chunks_of(tokens.size, reasoner.backbone.config.vocab_size)
    if logits is None and chunks > 1:
        rows, table = hidden.reshape(-1, hidden.shape[-1]), reasoner.backbone.output_table
        found = token_statistics(rows, table, tokens.reshape(-1), temperature, chunks)
        log_probs, entropies, best = (x.reshape(tokens.shape) for x in found)
    else:
        logits = reasoner.backbone.logits(hidden) / temperature if logits is None else logits
        log_probs, entropies = categorical_log_prob(logits, tokens), categorical_entropy(logits)
        best = jnp.argmax(logits, axis=-1)
    return TokenScores(
        log_probs=jnp.where(mask, log_probs, 0.0),
        entropies=jnp.where(mask, entropies, 0.0),
        values=jnp.where(mask, reasoner.navigator.value(hidden), 0.0),
        is_top=mask & (best == tokens),
    )


@jax.named_scope("answer")
def decode_answers(
    reasoner: Reasoner,
    prompt: EncodedPrompt,
    thoughts: Thoughts,
    opening: tuple[int, ...],
    end_tokens: tuple[int, ...],
    length: int,
    temperature: Float[Array, ""],
    keys: Key[Array, "B N"] | None,
    active: Bool[Array, "B N"] | None = None,
) -> Answers:
    """Decodes up to `length` tokens after each trajectory's last thought: sampled, or greedy where `keys` is None.

    Args:
      thoughts: the answer attends to their context.
      opening: forced tokens between thoughts and answer, such as `<|end-latent|>`; not actions.
      end_tokens: each ends an answer; the first fills the places after an end.
      length: A, including the end token.
      temperature: divides the logits, also of the scores and in greedy decoding.
      keys: one per trajectory, so a row's tokens do not depend on the rest of the batch.
      active: trajectories that answer; None is all.
    """
    shape = thoughts.num_thoughts.shape
    config, backbone = reasoner.backbone.config, reasoner.backbone
    capacity = len(opening) + length
    cache_shape = (config.num_hidden_layers, *shape, config.num_key_value_heads, capacity, config.head_dim)
    start = prompt.lengths[:, None] + thoughts.num_thoughts

    def append(tokens, slot, alive, cache, seen):
        """Feeds one token per row; returns the next hidden state, the grown cache and its mask."""
        own = (thoughts.context, Context(cache, seen))
        embeddings = backbone.embed(tokens)[:, :, None]
        hidden, new = extend(reasoner, embeddings, (start + slot)[..., None], alive[..., None], prompt, own)
        cache = KeyValues(
            jax.lax.dynamic_update_slice_in_dim(cache.keys, new.keys, slot, axis=4),
            jax.lax.dynamic_update_slice_in_dim(cache.values, new.values, slot, axis=4),
        )
        return hidden[:, :, 0], cache, jax.lax.dynamic_update_slice_in_dim(seen, alive[..., None], slot, 2)

    empty = constrain_cache(jnp.zeros(cache_shape, backbone.compute_dtype))
    cache, seen = KeyValues(empty, empty), jnp.zeros((*shape, capacity), bool)
    hidden, everyone = thoughts.last_hidden, jnp.ones(shape, bool)
    for slot, token in enumerate(opening):
        hidden, cache, seen = append(jnp.full(shape, token), slot, everyone, cache, seen)

    def choose(logits, index):
        if keys is None:
            return jnp.argmax(logits, axis=-1)
        sample = lambda key, row: jax.random.categorical(jax.random.fold_in(key, index), row)  # noqa: E731
        return jax.vmap(jax.vmap(sample))(keys, logits)

    def unfinished(carry):
        index, *_, alive, _ = carry
        return (index < length) & jnp.any(alive)

    def next_token(carry):
        index, hidden, cache, seen, alive, answers = carry
        logits = backbone.logits(hidden) / temperature
        token = choose(logits, index)
        token = jnp.where(alive, token, end_tokens[0]).astype(jnp.int32)
        scores = score_tokens(reasoner, hidden, token, alive, temperature, logits)

        def put(array, column):
            return jax.lax.dynamic_update_slice_in_dim(array, column[..., None], index, axis=2)

        goes_on = alive
        for end_token in end_tokens:
            goes_on &= token != end_token
        answers = (
            put(answers[0], token),
            put(answers[1], alive),
            answers[2] | (alive & ~goes_on),
            jax.tree.map(put, answers[3], scores),
        )
        hidden, cache, seen = append(token, len(opening) + index, goes_on, cache, seen)
        return index + 1, hidden, cache, seen, goes_on, answers

    blank = jnp.zeros((*shape, length), jnp.float32)
    nothing = jnp.zeros((*shape, length), bool)
    answers = (
        jnp.full((*shape, length), end_tokens[0], jnp.int32),
        nothing,
        jnp.zeros(shape, bool),
        TokenScores(blank, blank, blank, nothing),
    )
    alive = everyone if active is None else active
    start_of_loop = (0, hidden, cache, seen, alive, answers)
    *_, cache, seen, _, answers = jax.lax.while_loop(unfinished, next_token, start_of_loop)
    return Answers(*answers, Context(cache, seen))


def answer_inputs(opening: tuple[int, ...], tokens: Int[Array, "B N A"]) -> Int[Array, "B N I"]:
    """Input tokens that predict an answer: the opening, then all answer tokens but the last."""
    forced = jnp.broadcast_to(jnp.asarray(opening, tokens.dtype), (*tokens.shape[:2], len(opening)))
    return jnp.concatenate([forced, tokens[..., :-1]], axis=-1)


def continue_thoughts(
    reasoner: Reasoner,
    prompt: EncodedPrompt,
    thoughts: Thoughts,
    inputs: Int[Array, "B N I"],
    input_mask: Bool[Array, "B N I"],
) -> tuple[Float[Array, "B N I D"], Context]:
    """Teacher-forced hidden states of tokens that follow the thoughts; keys and values [L, B, N, K, I, C] with their mask."""
    start = (prompt.lengths[:, None] + thoughts.num_thoughts)[..., None]
    positions = start + jnp.maximum(jnp.cumsum(input_mask, axis=-1) - 1, 0)
    embeddings = reasoner.backbone.embed(inputs)
    hidden, cache = extend(reasoner, embeddings, positions, input_mask, prompt, (thoughts.context,))
    return hidden, Context(cache, input_mask)
