"""COCONUT's curriculum (Hao et al. 2024, arXiv:2412.06769): text steps give way to thoughts, stage by stage.

A batch is the question, a number of thoughts for each row, and the tokens after them; the loss is the next-token
loss on those tokens. Thoughts run through the same `think` as everywhere else, without noise and differentiated.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.data.examples import Layout, has_thoughts, pad_right
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.thoughts.answer import score_tokens
from longshot_jax.thoughts.navigator import Reasoner, action_size
from longshot_jax.thoughts.rescore import continuation_hidden
from longshot_jax.thoughts.think import StopRule, encode, think, think_given
from longshot_jax.training.settings import CurriculumConfig


@struct.dataclass
class CurriculumBatch:
    """Problems at one stage of the curriculum.

    Attributes:
      prompt: padded on the left; prompt_mask: True on real tokens.
      thought_counts: thoughts of each row.
      tokens: what follows the thoughts; token_mask: True on real tokens; loss_mask: True on those that are
        predicted.
    """

    prompt: Int[Array, "B S"]
    prompt_mask: Bool[Array, "B S"]
    thought_counts: Int[Array, " B"]
    tokens: Int[Array, "B A"]
    token_mask: Bool[Array, "B A"]
    loss_mask: Bool[Array, "B A"]


@struct.dataclass
class TokenSums:
    """Sums over predicted tokens, so that micro-batches and devices add up exactly.

    Attributes:
      loss_sum: negative log-likelihood in nats; count: tokens; correct: tokens that the model ranks first.
    """

    loss_sum: Float[Array, ""]
    count: Float[Array, ""]
    correct: Float[Array, ""]


def replaced_steps(
    stage: int, steps: int, config: CurriculumConfig, rng: np.random.Generator
) -> tuple[int, int]:
    """(steps left out, thoughts put in) for a problem of that many steps at a stage."""
    if config.mode == "cot":
        return 0, 0
    if config.mode == "no_cot":
        return steps, 0
    if rng.random() < config.uniform_prob:
        stage = int(rng.integers(0, steps + 1))
    wanted = min(stage, config.max_latent_stage)
    left_out = steps if stage > config.max_latent_stage else min(stage, steps)
    in_place = wanted if config.pad_latent_to_max else min(wanted, steps)
    return left_out, in_place * config.c_thought if has_thoughts(config.mode) else 0


def curriculum_batch(
    problems: Sequence[Problem],
    stage: int,
    config: CurriculumConfig,
    layout: Layout,
    length: int,
    rng: np.random.Generator,
) -> CurriculumBatch:
    """Lays problems out for a stage; A is `length`, or the layout's bucket of the longest row.

    A problem that does not fit is a UserError.
    """
    prompt, prompt_mask = layout.prompts(problems)
    rows, counts = [], []
    for problem in problems:
        left_out, thoughts = replaced_steps(stage, len(problem.steps), config, rng)
        ids = [token for step in problem.steps[left_out:] for token in layout.step(step)]
        ids += layout.answer(problem)
        ids = [*layout.closing, *ids]
        if len(ids) > length:
            raise UserError(
                f"steps and answer have {len(ids)} tokens but config.data.answer_length is {length}: raise it, or "
                f"remove the question {problem.question[:60]!r}."
            )
        rows.append(ids)
        counts.append(thoughts)
    if layout.bucket:
        length = min(length, -(-max(map(len, rows)) // layout.bucket) * layout.bucket)
    tokens, token_mask = pad_right(rows, length, layout.tokens.pad)
    loss_mask = token_mask & (np.arange(length) >= len(layout.closing))
    thought_counts = np.asarray(counts, np.int32)
    # Arrays of numpy until the batch is placed on the devices.
    return CurriculumBatch(prompt, prompt_mask, thought_counts, tokens, token_mask, loss_mask)  # pyright: ignore[reportArgumentType]


def curriculum_sums(
    reasoner: Reasoner, batch: CurriculumBatch, max_thoughts: int, pause_token: int | None = None
) -> TokenSums:
    """Next-token loss after the thoughts.

    Args:
      reasoner: differentiated through its thoughts.
      batch: at any stage; all stages share one shape.
      max_thoughts: T, at least every row's number of thoughts.
      pause_token: if given, every thought is this token's embedding instead (the `pause` control).
    """
    prompt = encode(reasoner, batch.prompt, batch.prompt_mask)
    counts = batch.thought_counts[:, None]
    shape = (*counts.shape, max_thoughts)
    if pause_token is None:
        noise = jnp.zeros((*shape, action_size(reasoner)))
        thoughts = think(reasoner, prompt, None, StopRule(counts, counts), noise, jnp.zeros(()))
    else:
        embeddings = jnp.broadcast_to(
            reasoner.llama.embed(jnp.asarray(pause_token)), (*shape, prompt.hidden.shape[-1])
        )
        thoughts = think_given(reasoner, prompt, embeddings, counts)
    tokens, mask = batch.tokens[:, None], batch.token_mask[:, None]
    after = continuation_hidden(reasoner, prompt, thoughts, tokens[..., :-1], mask[..., :-1])
    hidden = jnp.concatenate([thoughts.last_hidden[:, :, None], after], axis=2)
    predicted = batch.loss_mask[:, None]
    scores = score_tokens(reasoner, hidden, tokens, predicted, jnp.ones(()))
    return TokenSums(
        loss_sum=-jnp.sum(scores.log_probs),
        count=jnp.sum(predicted, dtype=jnp.float32),
        correct=jnp.sum(scores.is_top & predicted, dtype=jnp.float32),
    )
