"""COCONUT's curriculum (Hao et al. 2024, arXiv:2412.06769): text steps give way to thoughts, stage by stage.

A batch is the question, a number of thoughts for each row, and the tokens after them; the loss is the next-token
loss on those tokens. Thoughts run through the same `think` as everywhere else, without noise and differentiated.
"""

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.data.examples import Layout, has_thoughts, pad_right
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.thoughts.answer import score_tokens
from longshot_jax.thoughts.jacobi import think_in_parallel
from longshot_jax.thoughts.navigator import Reasoner, action_size
from longshot_jax.thoughts.rescore import continuation_hidden
from longshot_jax.thoughts.think import EncodedPrompt, StopRule, Thoughts, encode, think, think_given
from longshot_jax.training.guidance import (
    StepTexts,
    distillation_distance,
    explanation_loss,
    forcing_probability,
    step_embeddings,
    step_texts,
    target_distance,
)
from longshot_jax.training.settings import CurriculumConfig, GuidanceConfig


@struct.dataclass
class CurriculumBatch:
    """Problems at one stage of the curriculum.

    Attributes:
      prompt: padded on the left; prompt_mask: True on real tokens.
      thought_counts: thoughts of each row.
      tokens: what follows the thoughts; token_mask: True on real tokens; loss_mask: True on those that are
        predicted.
      answer_starts: place in `tokens` of the first that spells the answer.
      steps: texts of the steps that thoughts stand for, where they are asked for.
      text: the same problems with all steps written, where thoughts are distilled from them.
      kept: dropout of thoughts, drawn by the update: 0, or one over the share that is kept; None for none.
    """

    prompt: Int[Array, "B S"]
    prompt_mask: Bool[Array, "B S"]
    thought_counts: Int[Array, " B"]
    tokens: Int[Array, "B A"]
    token_mask: Bool[Array, "B A"]
    loss_mask: Bool[Array, "B A"]
    answer_starts: Int[Array, " B"] | None = None
    steps: StepTexts | None = None
    text: Any = None
    kept: Float[Array, "B T D"] | None = None


@struct.dataclass
class TokenSums:
    """Sums over predicted tokens, so that micro-batches and devices add up exactly.

    Attributes:
      loss_sum: negative log-likelihood in nats; count: tokens; correct: tokens that the model ranks first.
      guidance: sums of the parts of `training.guidance` that are on, by name.
    """

    loss_sum: Float[Array, ""]
    count: Float[Array, ""]
    correct: Float[Array, ""]
    guidance: dict[str, Any] = field(default_factory=dict)


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
    update: int = 0,
) -> CurriculumBatch:
    """Lays problems out for a stage; A is `length`, or the layout's bucket of the longest row.

    `update`, counted over the whole curriculum, sets how often thoughts are replaced by their targets.

    A problem that does not fit is a UserError.
    """
    prompt, prompt_mask = layout.prompts(problems)
    replaced = [replaced_steps(stage, len(problem.steps), config, rng) for problem in problems]
    rows, starts = [], []
    for problem, (left_out, _) in zip(problems, replaced, strict=True):
        ids = [token for step in problem.steps[left_out:] for token in layout.step(step)]
        ids += layout.answer(problem)
        ids = [*layout.closing, *ids]
        if len(ids) > length:
            raise UserError(
                f"steps and answer have {len(ids)} tokens but config.data.answer_length is {length}: raise it, or "
                f"remove the question {problem.question[:60]!r}."
            )
        rows.append(ids)
        starts.append(len(ids) - 1 - len(layout.tokens.encode(problem.answer)))
    guidance, steps, text, most = config.guidance, None, None, length
    if layout.bucket:
        length = min(length, -(-max(map(len, rows)) // layout.bucket) * layout.bucket)
    tokens, token_mask = pad_right(rows, length, layout.tokens.pad)
    loss_mask = token_mask & (np.arange(length) >= len(layout.closing))
    if guidance.reads_steps:
        slots, probability = config.c_thought * config.max_latent_stage, forcing_probability(guidance, update)
        steps = step_texts(problems, replaced, config.c_thought, slots, layout, most, probability, rng)
    if guidance.distillation:
        written = replace(config, uniform_prob=0.0, guidance=GuidanceConfig())
        text = curriculum_batch(problems, 0, written, layout, most, rng)
    thought_counts = np.asarray([thoughts for _, thoughts in replaced], np.int32)
    arrays = prompt, prompt_mask, thought_counts, tokens, token_mask, loss_mask, np.asarray(starts, np.int32)
    # Arrays of numpy until the batch is placed on the devices.
    return CurriculumBatch(*arrays, steps, text)  # pyright: ignore[reportArgumentType]


def curriculum_sums(
    reasoner: Reasoner,
    batch: CurriculumBatch,
    max_thoughts: int,
    pause_token: int | None = None,
    guidance: GuidanceConfig | None = None,
    latent_token: int = 0,
) -> TokenSums:
    """Next-token loss after the thoughts, and the parts of the loss that guide them.

    Args:
      reasoner: differentiated through its thoughts.
      batch: at any stage; all stages share one shape.
      max_thoughts: T, at least every row's number of thoughts.
      pause_token: if given, every thought is this token's embedding instead (the `pause` control).
      guidance: its settings; None for none.
      latent_token: whose embedding thoughts start from where they are made in parallel.
    """
    guidance = guidance or GuidanceConfig()
    prompt = encode(reasoner, batch.prompt, batch.prompt_mask)
    counts = batch.thought_counts[:, None]
    shape = (*counts.shape, max_thoughts)
    if pause_token is not None:
        embeddings = jnp.broadcast_to(
            reasoner.llama.embed(jnp.asarray(pause_token)), (*shape, prompt.hidden.shape[-1])
        )
        thoughts = think_given(reasoner, prompt, embeddings, counts)
    elif guidance.jacobi:
        start = reasoner.llama.embed(jnp.asarray(latent_token))
        thoughts = think_in_parallel(reasoner, prompt, counts, start, max_thoughts, guidance.jacobi)
    else:
        teacher = None
        if batch.steps is not None and any(guidance.forcing):
            teacher = batch.steps.forced[:, None], step_embeddings(reasoner, batch.steps)[:, None]
        noise, rule = jnp.zeros((*shape, action_size(reasoner))), StopRule(counts, counts)
        kept = None if batch.kept is None else batch.kept[:, None]
        thoughts = think(reasoner, prompt, None, rule, noise, jnp.zeros(()), teacher=teacher, kept=kept)
    hidden = _hidden_of_tokens(reasoner, prompt, thoughts, batch)
    scores = score_tokens(reasoner, hidden, batch.tokens[:, None], batch.loss_mask[:, None], jnp.ones(()))
    return TokenSums(
        loss_sum=-jnp.sum(scores.log_probs),
        count=jnp.sum(batch.loss_mask, dtype=jnp.float32),
        correct=jnp.sum(scores.is_top & batch.loss_mask[:, None], dtype=jnp.float32),
        guidance=_guidance_sums(reasoner, batch, prompt, thoughts, hidden, guidance),
    )


def _hidden_of_tokens(
    reasoner: Reasoner, prompt: EncodedPrompt, thoughts: Thoughts, batch: CurriculumBatch
) -> Float[Array, "B one A D"]:
    """The hidden states that predict a batch's tokens."""
    tokens, mask = batch.tokens[:, None], batch.token_mask[:, None]
    after = continuation_hidden(reasoner, prompt, thoughts, tokens[..., :-1], mask[..., :-1])
    return jnp.concatenate([thoughts.last_hidden[:, :, None], after], axis=2)


def _guidance_sums(
    reasoner: Reasoner,
    batch: CurriculumBatch,
    prompt: EncodedPrompt,
    thoughts: Thoughts,
    hidden: Float[Array, "B one A D"],
    guidance: GuidanceConfig,
) -> dict[str, Float[Array, ""]]:
    """The parts that are on, by name."""
    parts = {}
    if batch.steps is not None and guidance.target:
        parts["target"] = target_distance(reasoner, thoughts, batch.steps)
    if batch.steps is not None and guidance.explanation:
        parts["explanation"] = explanation_loss(reasoner, thoughts, batch.steps)
    text = batch.text
    if text is not None and batch.answer_starts is not None:
        nothing = jnp.zeros((*batch.thought_counts.shape, 1, 0, hidden.shape[-1]), hidden.dtype)
        unthought = think_given(reasoner, prompt, nothing, text.thought_counts[:, None])
        taught = _hidden_of_tokens(reasoner, prompt, unthought, text)
        said = score_tokens(reasoner, taught, text.tokens[:, None], text.loss_mask[:, None], jnp.ones(()))
        parts["text"] = -jnp.sum(said.log_probs)
        parts["distillation"] = distillation_distance(
            hidden[:, 0], batch.answer_starts, taught[:, 0], text.answer_starts
        )
    return parts
