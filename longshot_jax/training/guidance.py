"""What may guide the thoughts of a curriculum beside the loss on the tokens after them; each part is off by default.

- *Targets with scheduled sampling*: a thought is drawn to the mean embedding of the step that it replaces, and with a
  probability that anneals to nothing that embedding is fed back in its place (scheduled sampling: Bengio et al. 2015,
  arXiv:1506.03099).
- *Distillation*: the hidden state before the answer is drawn to that of the same model after the written steps, which
  it learns beside (CODI: Shen et al. 2025, arXiv:2502.21074; there all layers are matched, here the last).
- *Explanation*: each step must be readable from its thought alone, by a decoder that sees nothing else (SIM-CoT: Wei et
  al. 2025, arXiv:2509.20317; there a second model decodes, here the model itself, without the question).

Thoughts made in parallel (PCCoT) are `thoughts.jacobi`.

Every part is a sum over a batch, so that micro-batches add up; `guidance_counts` says what each is divided by.

Shapes: B problems, T thought slots, W tokens of a step, A tokens after the thoughts, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.data.examples import Layout, pad_right
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.thoughts.answer import score_tokens
from longshot_jax.thoughts.navigator import Reasoner
from longshot_jax.thoughts.think import Thoughts
from longshot_jax.training.settings import GuidanceConfig


@struct.dataclass
class StepTexts:
    """The steps that thoughts stand for.

    Attributes:
      tokens: of each thought's step; mask: True on real tokens, nowhere for a thought without a step.
      forced: thoughts in whose place the step's mean embedding is fed back.
    """

    tokens: Int[Array, "B T W"]
    mask: Bool[Array, "B T W"]
    forced: Bool[Array, "B T"]


def forcing_probability(config: GuidanceConfig, update: int) -> float:
    """Of feeding back a target, at an update of the curriculum, counted from 0: linear, then constant."""
    first, last = config.forcing
    return first + (last - first) * min(update / max(config.forcing_updates, 1), 1.0)


def step_texts(
    problems: Sequence[Problem],
    replaced: Sequence[tuple[int, int]],
    per_step: int,
    slots: int,
    layout: Layout,
    length: int,
    probability: float,
    rng: np.random.Generator,
) -> StepTexts:
    """The texts of the steps that were left out, for the thoughts put in: `replaced` has both numbers of each problem.

    A step longer than `length` (W) is a UserError.
    """
    rows: list[list[int]] = []
    for problem, (left_out, thoughts) in zip(problems, replaced, strict=True):
        steps = [layout.step(text) for text in problem.steps[:left_out]]
        own = [steps[slot // per_step] if slot // per_step < left_out else [] for slot in range(thoughts)]
        rows += own + [[]] * (slots - thoughts)
    longest = max(map(len, rows), default=0)
    if longest > length:
        raise UserError(
            f"a step has {longest} tokens but config.data.answer_length is {length}: raise it, or set "
            "config.curriculum.guidance to its defaults."
        )
    tokens, mask = pad_right(rows, length, layout.tokens.pad)
    shape = len(problems), slots, length
    mask = mask.reshape(shape)
    forced = (rng.random(shape[:2]) < probability) & mask.any(axis=-1)
    # Arrays of numpy until the batch is placed on the devices.
    return StepTexts(tokens.reshape(shape), mask, forced)  # pyright: ignore[reportArgumentType]


def step_embeddings(reasoner: Reasoner, steps: StepTexts) -> Float[Array, "B T D"]:
    """Mean embedding of each step's tokens; zeros where there is no step."""
    real = steps.mask[..., None]
    total = jnp.sum(jnp.where(real, reasoner.llama.embed(steps.tokens), 0.0), axis=2)
    return total / jnp.maximum(jnp.sum(real, axis=2), 1).astype(total.dtype)


def target_distance(reasoner: Reasoner, thoughts: Thoughts, steps: StepTexts) -> Float[Array, ""]:
    """Sum over thoughts with a step of 1 - cosine to its mean embedding, which is a constant here.

    What is compared is the thought that the model made, also where another was fed back.
    """
    own = reasoner.navigator.to_embedding(thoughts.means, thoughts.hidden[:, :, :-1])[:, 0]
    target = jax.lax.stop_gradient(step_embeddings(reasoner, steps))

    def unit(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)

    distance = 1 - jnp.sum(unit(own) * unit(target), axis=-1)
    return jnp.sum(distance, where=jnp.any(steps.mask, axis=-1))


def explanation_loss(reasoner: Reasoner, thoughts: Thoughts, steps: StepTexts) -> Float[Array, ""]:
    """Negative log-likelihood, in nats, of each step's tokens given its thought alone, summed over tokens."""
    batch, slots, length = steps.tokens.shape
    thought = thoughts.embeddings[:, 0].reshape(batch * slots, 1, -1)
    tokens = steps.tokens.reshape(batch * slots, length)
    mask = steps.mask.reshape(batch * slots, length)
    inputs = jnp.concatenate([thought, reasoner.llama.embed(tokens[:, :-1])], axis=1)
    seen = jnp.concatenate([jnp.ones((batch * slots, 1), bool), mask[:, :-1]], axis=1)
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    hidden, _ = reasoner.llama(inputs, positions, seen)
    return -jnp.sum(score_tokens(reasoner, hidden, tokens, mask, jnp.ones(())).log_probs)


def distillation_distance(
    student: Float[Array, "B A D"],
    student_start: Int[Array, " B"],
    teacher: Float[Array, "B A D"],
    teacher_start: Int[Array, " B"],
) -> Float[Array, ""]:
    """Sum over problems of the mean absolute difference of the hidden states that predict the answer's first token.

    Hidden state a predicts token a, and `start` is that token's place. No gradient flows into the teacher.
    """

    def before_answer(hidden: Array, start: Array) -> Array:
        return jnp.take_along_axis(hidden, start[:, None, None], axis=1)[:, 0].astype(jnp.float32)

    target = jax.lax.stop_gradient(before_answer(teacher, teacher_start))
    return jnp.sum(jnp.mean(jnp.abs(before_answer(student, student_start) - target), axis=-1))


def guidance_weights(config: GuidanceConfig) -> dict[str, float]:
    """Weight of each part of the loss that is on; the written steps of a distillation weigh as much as the thoughts'."""
    weights = {
        "target": config.target,
        "explanation": config.explanation,
        "distillation": config.distillation,
    }
    weights["text"] = float(config.distillation > 0)
    return {name: weight for name, weight in weights.items() if weight}


def guidance_counts(batch: Any) -> dict[str, Float[Array, ""]]:
    """What each part is divided by, of a whole batch: thoughts with a step, their tokens, problems, text tokens."""
    counts = {}
    if batch.steps is not None:
        mask = batch.steps.mask
        counts["target"] = jnp.sum(jnp.any(mask, axis=-1), dtype=jnp.float32)
        counts["explanation"] = jnp.sum(mask, dtype=jnp.float32)
    if batch.text is not None:
        counts["distillation"] = jnp.asarray(batch.prompt.shape[0], jnp.float32)
        counts["text"] = jnp.sum(batch.text.loss_mask, dtype=jnp.float32)
    return {name: jnp.maximum(count, 1.0) for name, count in counts.items()}
