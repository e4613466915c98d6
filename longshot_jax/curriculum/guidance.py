"""Additional losses on the thoughts of a curriculum, all off by default.

- *Target*: cosine distance of a thought to the mean embedding of the step that it replaces. Scheduled sampling feeds
  this embedding back instead of the thought, with an annealed probability (Bengio et al. 2015, arXiv:1506.03099).
- *Distillation*: distance of the hidden state before the answer to that of the same model after the written steps, on
  which it is trained too (CODI: Shen et al. 2025, arXiv:2502.21074; CODI matches all layers, this the last).
- *Explanation*: loss of decoding each step from its thought alone, without the question (SIM-CoT: Wei et al. 2025,
  arXiv:2509.20317; SIM-CoT decodes with a second model, this with the model itself).
- *Stop*: cross-entropy of the stop head's decisions, given the number of thoughts.

Thoughts computed in parallel (PCCoT) are in `thoughts.jacobi`. Each loss is a sum, so micro-batches add up;
`guidance_counts` has the divisors.

Shapes: B problems, T thought slots, W tokens of a step, A tokens after the thoughts, D hidden size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.config.curriculum import GuidanceConfig
from longshot_jax.curriculum.batch import StepTexts
from longshot_jax.thoughts.answer import score_tokens
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.think import Teaching, Thoughts


def thought_losses(
    reasoner: Reasoner,
    thoughts: Thoughts,
    steps: StepTexts | None,
    guidance: GuidanceConfig,
    active: Array | bool = True,
) -> dict[str, Float[Array, ""]]:
    """Losses on thoughts that are on, by name; `steps` are in rows of all trajectories [B · N, T, W]."""
    parts = {}
    if steps is not None and guidance.target:
        parts["target"] = target_distance(reasoner, thoughts, steps)
    if steps is not None and guidance.explanation:
        parts["explanation"] = explanation_loss(reasoner, thoughts, steps)
    if guidance.stop:
        active = jnp.broadcast_to(active, thoughts.num_thoughts.shape)
        parts["stop"] = stop_loss(reasoner, thoughts.hidden, thoughts.num_thoughts, active)
    return parts


def step_teaching(
    reasoner: Reasoner, steps: StepTexts | None, guidance: GuidanceConfig, shape: tuple[int, ...]
) -> Teaching:
    """Step embeddings that are fed back instead of thoughts; `shape` is (B, N)."""
    if steps is None or not any(guidance.forcing):
        return Teaching()
    embeddings = step_embeddings(reasoner, steps)
    return Teaching(embeddings.reshape(*shape, *embeddings.shape[1:]), steps.forced.reshape(*shape, -1))


def step_embeddings(reasoner: Reasoner, steps: StepTexts) -> Float[Array, "B T D"]:
    """Mean embedding of each step's tokens; zeros for a thought without a step."""
    real = steps.mask[..., None]
    total = jnp.sum(jnp.where(real, reasoner.backbone.embed(steps.tokens), 0.0), axis=2)
    return total / jnp.maximum(jnp.sum(real, axis=2), 1).astype(total.dtype)


def target_distance(reasoner: Reasoner, thoughts: Thoughts, steps: StepTexts) -> Float[Array, ""]:
    """Sum over thoughts with a step of 1 - cosine(thought, mean embedding of the step), the latter without gradient.

    Compares the model's own thought, also where the step's embedding was fed back.
    """
    target = jax.lax.stop_gradient(step_embeddings(reasoner, steps))
    own = reasoner.navigator.to_embedding(thoughts.means, thoughts.hidden[:, :, :-1]).reshape(target.shape)

    def unit(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)

    distance = 1 - jnp.sum(unit(own) * unit(target), axis=-1)
    return jnp.sum(distance, where=jnp.any(steps.mask, axis=-1))


def explanation_loss(reasoner: Reasoner, thoughts: Thoughts, steps: StepTexts) -> Float[Array, ""]:
    """Negative log-likelihood of each step's tokens given its thought alone, in nats, summed over tokens."""
    batch, slots, length = steps.tokens.shape
    # The model's own thought, also where a step's embedding was fed back.
    own = reasoner.navigator.to_embedding(thoughts.actions, thoughts.hidden[:, :, :-1])
    own = jnp.where(steps.forced.reshape(own.shape[:-1])[..., None], own, thoughts.embeddings)
    thought = own.reshape(batch * slots, 1, -1)
    tokens = steps.tokens.reshape(batch * slots, length)
    mask = steps.mask.reshape(batch * slots, length)
    inputs = jnp.concatenate([thought, reasoner.backbone.embed(tokens[:, :-1])], axis=1)
    seen = jnp.concatenate([jnp.ones((batch * slots, 1), bool), mask[:, :-1]], axis=1)
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    hidden, _ = reasoner.backbone(inputs, positions, seen)
    return -jnp.sum(score_tokens(reasoner, hidden, tokens, mask, jnp.ones(())).log_probs)


def stop_loss(
    reasoner: Reasoner, hidden: Float[Array, "B N T1 D"], num_thoughts: Int[Array, "B N"], active: Bool[Array, "B N"]
) -> Float[Array, ""]:
    """Negative log-likelihood of going on before the last thought and stopping after it, in nats, summed.

    `hidden` are h_0 ... h_T; trajectories that are not `active` have no decisions.
    """
    logits, step = reasoner.navigator.stop_logit(hidden), jnp.arange(hidden.shape[2])
    log_probs = jax.nn.log_sigmoid(jnp.where(step == num_thoughts[..., None], logits, -logits))
    return -jnp.sum(log_probs, where=(step <= num_thoughts[..., None]) & active[..., None])


def distillation_distance(
    student: Float[Array, "B A D"],
    student_start: Int[Array, " B"],
    teacher: Float[Array, "B A D"],
    teacher_start: Int[Array, " B"],
) -> Float[Array, ""]:
    """Mean absolute difference of the hidden states that predict the answer's first token, summed over problems.

    Hidden state a predicts token a; `start` is the index of the first token. The teacher has no gradient.
    """

    def before_answer(hidden: Array, start: Array) -> Array:
        return jnp.take_along_axis(hidden, start[:, None, None], axis=1)[:, 0].astype(jnp.float32)

    target = jax.lax.stop_gradient(before_answer(teacher, teacher_start))
    return jnp.sum(jnp.mean(jnp.abs(before_answer(student, student_start) - target), axis=-1))


def guidance_weights(config: GuidanceConfig) -> dict[str, float]:
    """Weights of the losses that are on; `text`, the loss on the written steps of a distillation, has weight 1."""
    weights = {"target": config.target, "explanation": config.explanation, "distillation": config.distillation}
    weights["stop"] = config.stop
    weights["text"] = float(config.distillation > 0)
    return {name: weight for name, weight in weights.items() if weight}


def guidance_counts(batch: Any) -> dict[str, Float[Array, ""]]:
    """Divisor of each loss over a whole batch: decisions, thoughts with a step, their tokens, problems, tokens of the text.

    `batch` is a `CurriculumBatch`, or a `ParallelBatch`, which has no text.
    """
    thinking = getattr(batch, "active", True)  # of a ParallelBatch some trajectories are not
    counts = {"stop": jnp.sum(jnp.where(thinking, batch.num_thoughts + 1, 0), dtype=jnp.float32)}
    if batch.steps is not None:
        mask = batch.steps.mask
        counts["target"] = jnp.sum(jnp.any(mask, axis=-1), dtype=jnp.float32)
        counts["explanation"] = jnp.sum(mask, dtype=jnp.float32)
    if getattr(batch, "text", None) is not None:
        counts["distillation"] = jnp.asarray(batch.prompt.shape[0], jnp.float32)
        counts["text"] = jnp.sum(batch.text.loss_mask, dtype=jnp.float32)
    return {name: jnp.maximum(count, 1.0) for name, count in counts.items()}
