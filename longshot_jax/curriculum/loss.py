"""The supervised loss of the curriculum: next-token loss after differentiated thoughts, guidance and the bound's KL.

Thoughts are noise-free, or sampled (`curriculum.variational`).
"""

from dataclasses import field, replace
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from longshot_jax.config.curriculum import GuidanceConfig, VariationalConfig
from longshot_jax.curriculum.batch import CurriculumBatch
from longshot_jax.curriculum.guidance import distillation_distance, step_teaching, thought_losses
from longshot_jax.curriculum.variational import summary_of_answer, thought_noise, variational_sums
from longshot_jax.thoughts.answer import continue_thoughts, score_tokens
from longshot_jax.thoughts.jacobi import think_in_parallel
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.stopping import StopRule
from longshot_jax.thoughts.think import EncodedPrompt, Thoughts, encode, think, think_given


@struct.dataclass
class TokenSums:
    """Sums over predicted tokens, which add up over micro-batches and devices.

    Attributes:
      loss_sum: negative log-likelihood in nats. count: tokens. correct: tokens with the largest logit.
      guidance: sums of the losses of `curriculum.guidance` that are on, by name.
      variational: sums of `variational.variational_sums`, if thoughts are sampled.
    """

    loss_sum: Float[Array, ""]
    count: Float[Array, ""]
    correct: Float[Array, ""]
    guidance: dict[str, Any] = field(default_factory=dict)
    variational: dict[str, Any] = field(default_factory=dict)


def curriculum_sums(
    reasoner: Reasoner,
    batch: CurriculumBatch,
    max_thoughts: int,
    pause_token: int | None = None,
    guidance: GuidanceConfig | None = None,
    latent_token: int = 0,
    variational: VariationalConfig | None = None,
    thought_std: Array | float = 0.0,
) -> TokenSums:
    """Next-token loss after the thoughts, and the guidance losses.

    Args:
      reasoner: differentiated through its thoughts.
      batch: problems at any stage.
      max_thoughts: T, at least every row's number of thoughts.
      pause_token: if given, its embedding replaces every thought (the `pause` control).
      guidance: settings of the guidance; None is all off.
      latent_token: its embedding initializes thoughts that are computed in parallel.
      variational: settings of sampled thoughts; None is none. Their noise comes from the batch's seeds.
      thought_std: standard deviation of their prior before its learned factor, in units of the action.
    """
    guidance = guidance or GuidanceConfig()
    roles = None if batch.roles is None else batch.roles[:, None]
    prompt = begin_trajectories(reasoner, encode(reasoner, batch.prompt, batch.prompt_mask), 1, roles=roles)
    num_thoughts = batch.num_thoughts[:, None]
    shape, bound = (*num_thoughts.shape, max_thoughts), {}
    if pause_token is not None:
        thoughts = think_pauses(reasoner, prompt, pause_token, num_thoughts, max_thoughts)
    elif guidance.jacobi:
        start = reasoner.backbone.embed(jnp.asarray(latent_token))
        thoughts = think_in_parallel(reasoner, prompt, num_thoughts, start, max_thoughts, guidance.jacobi)
    else:
        noise, rule = jnp.zeros((*shape, reasoner.action_size)), StopRule(num_thoughts, num_thoughts)
        std, summary = jnp.zeros(()), None
        if variational is not None and batch.noise_seeds is not None:
            std = jnp.asarray(thought_std)
            noise = thought_noise(batch.noise_seeds, max_thoughts, reasoner.action_size)
            summary = summary_of_answer(reasoner, prompt, batch.tokens, batch.token_mask)
        dropout = None if batch.dropout_mask is None else batch.dropout_mask[:, None]
        teaching = replace(step_teaching(reasoner, batch.steps, guidance, num_thoughts.shape), dropout=dropout)
        thoughts = think(reasoner, prompt, None, rule, noise, std, teaching=teaching, summary=summary)
        if variational is not None and summary is not None:
            bound = variational_sums(reasoner, thoughts, summary, std, variational)
    hidden = _hidden_of_tokens(reasoner, prompt, thoughts, batch)
    scores = score_tokens(reasoner, hidden, batch.tokens[:, None], batch.loss_mask[:, None], jnp.ones(()))
    return TokenSums(
        loss_sum=-jnp.sum(scores.log_probs),
        count=jnp.sum(batch.loss_mask, dtype=jnp.float32),
        correct=jnp.sum(scores.is_top & batch.loss_mask[:, None], dtype=jnp.float32),
        guidance=thought_losses(reasoner, thoughts, batch.steps, guidance)
        | _distillation_sums(reasoner, batch, prompt, hidden),
        variational=bound,
    )


def _hidden_of_tokens(
    reasoner: Reasoner, prompt: EncodedPrompt, thoughts: Thoughts, batch: CurriculumBatch
) -> Float[Array, "B one A D"]:
    """Hidden states that predict the tokens of a batch; where the question is hidden, only the thoughts saw it."""
    if batch.hidden is not None:
        prompt = prompt.without_question(batch.hidden)
    tokens, mask = batch.tokens[:, None], batch.token_mask[:, None]
    after, _ = continue_thoughts(reasoner, prompt, thoughts, tokens[..., :-1], mask[..., :-1])
    return jnp.concatenate([thoughts.last_hidden[:, :, None], after], axis=2)


def _distillation_sums(
    reasoner: Reasoner, batch: CurriculumBatch, prompt: EncodedPrompt, hidden: Float[Array, "B one A D"]
) -> dict[str, Float[Array, ""]]:
    """Losses of the written steps and of the distance to them, by name; none without distillation."""
    text = batch.text
    if text is None or batch.answer_starts is None:
        return {}
    nothing = jnp.zeros((*batch.num_thoughts.shape, 1, 0, hidden.shape[-1]), hidden.dtype)
    unthought = think_given(reasoner, prompt, nothing, text.num_thoughts[:, None])
    taught = _hidden_of_tokens(reasoner, prompt, unthought, text)
    said = score_tokens(reasoner, taught, text.tokens[:, None], text.loss_mask[:, None], jnp.ones(()))
    distance = distillation_distance(hidden[:, 0], batch.answer_starts, taught[:, 0], text.answer_starts)
    return {"text": -jnp.sum(said.log_probs), "distillation": distance}


def think_pauses(
    reasoner: Reasoner, prompt: EncodedPrompt, token: int, num_thoughts: Int[Array, "B N"], slots: int
) -> Thoughts:
    """The embedding of a token in place of every thought."""
    pause = reasoner.backbone.embed(jnp.asarray(token))
    embeddings = jnp.broadcast_to(pause, (*num_thoughts.shape, slots, len(pause)))
    return think_given(reasoner, prompt, embeddings, num_thoughts)
