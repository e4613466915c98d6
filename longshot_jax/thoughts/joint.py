"""One answer per question, decoded over the thoughts of all its trajectories (`thoughts.join`, and fusion `attend`).

The keys and values of all thoughts become one context without being recomputed. Thoughts keep their rotary positions,
so thoughts of one step share a position, and the answer starts where the longest trajectory ends (LongShot's `attend`;
trained, as in ParaThinker: Wen et al. 2025, arXiv:2509.04475).

N identical trajectories are not equivalent to one: thoughts get N times the attention before normalisation. This alone
can change an answer, so an evaluation also reports the answer over N identical copies.

The answer is one action sequence of the question. In arrays that have a row for each trajectory it stands in the first
one; in the others its tokens are repeated and masked.

Shapes: B questions, N trajectories per question, I opening tokens, A answer tokens, D hidden size.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from longshot_jax.model.key_values import Context, KeyValues
from longshot_jax.thoughts.answer import Answers, TokenScores, continue_thoughts, decode_answers, score_tokens
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.think import EncodedPrompt, Thoughts


def join_trajectories(
    prompt: EncodedPrompt, thoughts: Thoughts, texts: Context | None = None
) -> tuple[EncodedPrompt, Thoughts]:
    """One trajectory [B, 1] for N, whose context is all that the N have read and written since the question.

    Args:
      texts: keys, values [L, B, N, K, W, C] and mask [B, N, W] of what trajectories have written after their thoughts.

    Returns:
      A prompt and thoughts without a thought of their own: what continues them starts where the longest trajectory
      ends. Its hidden state, that of the last thought of the trajectory with most thoughts, predicts the first token
      where no opening is forced.
    """
    written = 0 if texts is None else jnp.sum(texts.mask, axis=-1)
    start = prompt.lengths + jnp.max(thoughts.num_thoughts + written, axis=1)
    longest = jnp.argmax(thoughts.num_thoughts, axis=1)[:, None]
    last = jnp.take_along_axis(thoughts.last_hidden, longest[..., None], axis=1)[:, :, None]
    parts = [] if prompt.roles is None else [prompt.roles.context]
    parts += [thoughts.context] if texts is None else [thoughts.context, texts]
    none = jnp.zeros((len(longest), 1), jnp.int32)
    empty = {name: getattr(thoughts, name)[:, :1, :0] for name in ("actions", "means", "embeddings", "thought_mask")}
    first = {name: getattr(thoughts, name)[:, :1, :1] for name in ("stop_logits", "stops", "is_action")}
    return replace(prompt, lengths=start, roles=None), Thoughts(
        **empty, **first, hidden=last, context=_side_by_side(parts), num_thoughts=none
    )


def _side_by_side(parts: list[Context]) -> Context:
    """Keys and values [L, B, N, K, P, C] of several parts as one context [L, B, 1, K, sum of N · P, C]."""

    def rows(array: Array) -> Array:
        depth, batch, many, groups, slots, size = array.shape
        return array.swapaxes(2, 3).reshape(depth, batch, 1, groups, many * slots, size)

    caches = [KeyValues(rows(part.cache.keys), rows(part.cache.values)) for part in parts]
    joined = jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=4), *caches)
    masks = [part.mask.reshape(len(part.mask), 1, -1) for part in parts]
    return Context(joined, jnp.concatenate(masks, axis=-1))


def decode_jointly(
    reasoner: Reasoner,
    prompt: EncodedPrompt,
    thoughts: Thoughts,
    opening: tuple[int, ...],
    end_tokens: tuple[int, ...],
    length: int,
    temperature: Float[Array, ""],
    keys: Key[Array, "B N"] | None,
    *,
    text_end: int | None = None,
    active: Bool[Array, "B N"] | None = None,
) -> Answers:
    """The question's answer as arrays of N rows, its `context` that of the one answer; arguments of `decode_answers`.

    With `text_end` each of the `active` trajectories first writes a text of its own, at most `length` tokens up to that
    token, which the answer reads too.
    """
    shape = thoughts.num_thoughts.shape
    texts = None
    if text_end is not None:
        texts = decode_answers(reasoner, prompt, thoughts, (), (text_end,), length, temperature, keys, active).context
    one = join_trajectories(prompt, thoughts, texts)
    first = None if keys is None else keys[:, :1]
    if first is not None and texts is not None:  # the first trajectory's text has used the numbers up to `length`
        first = jax.vmap(jax.random.fold_in, (0, None))(first[:, 0], length)[:, None]
    answers = decode_answers(reasoner, *one, opening, end_tokens, length, temperature, first)
    return Answers(
        tokens=jnp.broadcast_to(answers.tokens, (*shape, length)),
        mask=in_first_row(answers.mask, shape[1]),
        ended=jnp.broadcast_to(answers.ended, shape),
        scores=jax.tree.map(lambda x: in_first_row(x, shape[1]), answers.scores),
        context=answers.context,
    )


def in_first_row(array: Array, trajectories: int) -> Array:
    """[B, 1, A] as the first of N rows; the others are zeros."""
    return jnp.pad(array, ((0, 0), (0, trajectories - 1), (0, 0)))


def score_joint_answer(
    reasoner: Reasoner,
    prompt: EncodedPrompt,
    thoughts: Thoughts,
    inputs: Int[Array, "B N I"],
    input_mask: Bool[Array, "B N I"],
    tokens: Int[Array, "B N A"],
    token_mask: Bool[Array, "B N A"],
    temperature: Float[Array, ""],
) -> TokenScores:
    """Scores of a recorded answer, whose tokens are in the first row; the last A inputs or fewer predict them."""
    one = join_trajectories(prompt, thoughts)
    hidden, _ = continue_thoughts(reasoner, *one, inputs[:, :1], input_mask[:, :1])
    hidden = jnp.concatenate([one[1].last_hidden[:, :, None], hidden], axis=2)[:, :, -tokens.shape[-1] :]
    scores = score_tokens(reasoner, hidden, tokens[:, :1], token_mask[:, :1], temperature)
    return jax.tree.map(lambda x: in_first_row(x, tokens.shape[1]), scores)
