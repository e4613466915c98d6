"""Batches of COCONUT's curriculum (Hao et al. 2024, arXiv:2412.06769): questions, thoughts and the tokens after them.

Shapes: B problems, S prompt length, T thought slots, W tokens of a step, A tokens after the thoughts, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from longshot_jax.config.curriculum import CurriculumConfig, GuidanceConfig, VariationalConfig, has_thoughts
from longshot_jax.data.equation_graph import parallel_steps
from longshot_jax.data.grouping import Shape, choose_shapes, smallest_shape
from longshot_jax.data.layout import Layout, padded
from longshot_jax.data.problems import Problem, evenly_spaced
from longshot_jax.errors import UserError

_SAMPLED = 1_024  # problems of which lengths are looked at


@struct.dataclass
class StepTexts:
    """The steps that thoughts replace.

    Attributes:
      tokens: tokens of each thought's step. mask: True on real tokens; all False for a thought without a step.
      forced: True where the step's mean embedding is fed back instead of the thought.
    """

    tokens: Int[Array, "B T W"]
    mask: Bool[Array, "B T W"]
    forced: Bool[Array, "B T"]


def forcing_probability(config: GuidanceConfig, update: int) -> float:
    """Probability of feeding back a step's embedding at an update, counted from 0: linear, then constant."""
    return float(np.interp(update, (0, max(config.forcing_updates, 1)), config.forcing))


def hidden_share(config: CurriculumConfig, update: int) -> float:
    """Share of problems without remaining steps whose answer does not see the question, at an update counted from 0."""
    last = config.question_hidden_updates
    return config.question_hidden * (max(1 - update / last, 0.0) if last else 1.0)


def step_texts(
    problems: Sequence[Problem],
    replaced: Sequence[tuple[int, int]],
    per_step: int,
    slots: int,
    layout: Layout,
    length: int,
    probability: float,
    rng: np.random.Generator,
    padding: "Padding | None" = None,
) -> StepTexts:
    """Texts of the steps that thoughts replace; `replaced` has (steps left out, thoughts put in) of each problem.

    With 0 thoughts `per_step` each thought has a token of the steps, in their order.

    W is `length`, or that of `padding` where it suffices. Raises a UserError if a step has more than `length` tokens.
    """
    rows: list[list[int]] = []
    for problem, (left_out, thoughts) in zip(problems, replaced, strict=True):
        steps = [layout.step(text) for text in problem.steps[:left_out]]
        if per_step:
            parts = [step for step in steps for _ in range(per_step)]
        else:
            parts = [[token] for step in steps for token in step]
        own = parts[:thoughts]
        rows += own + [[]] * (slots - len(own))
    longest = max(map(len, rows), default=0)
    if longest > length:
        raise UserError(
            f"a step has {longest} tokens but config.data.answer_length is {length}: raise it, or set "
            "config.curriculum.guidance to its defaults."
        )
    if not per_step:
        length = 1
    elif padding is not None and longest <= padding.step_length:
        length = padding.step_length
    tokens, mask = padded(rows, length, layout.tokenizer.pad)
    shape = len(problems), slots, length
    mask = mask.reshape(shape)
    forced = (rng.random(shape[:2]) < probability) & mask.any(axis=-1)
    # NumPy arrays until the batch is placed on the devices.
    return StepTexts(tokens.reshape(shape), mask, forced)  # pyright: ignore[reportArgumentType]


@struct.dataclass
class CurriculumBatch:
    """Problems at one stage of the curriculum.

    Attributes:
      prompt: tokens of the question, padded on the left. prompt_mask: True on real tokens.
      num_thoughts: number of thoughts.
      tokens: tokens after the thoughts. token_mask: True on real tokens. loss_mask: True on predicted tokens.
      answer_starts: index in `tokens` of the first token of the answer.
      steps: texts of the replaced steps, if guidance reads them.
      text: CurriculumBatch of the same problems with all steps written, if thoughts are distilled from it.
      hidden: True where the tokens do not see the question, only the thoughts; None: nowhere.
      noise_seeds: of the noise of each problem's thoughts, if they are sampled.
      roles: role of each problem's one trajectory; None without roles.
      dropout_mask: factors drawn by the update: 0 or 1 / (1 - dropout); None without dropout.
    """

    prompt: Int[Array, "B S"]
    prompt_mask: Bool[Array, "B S"]
    num_thoughts: Int[Array, " B"]
    tokens: Int[Array, "B A"]
    token_mask: Bool[Array, "B A"]
    loss_mask: Bool[Array, "B A"]
    answer_starts: Int[Array, " B"] | None = None
    steps: StepTexts | None = None
    text: Any = None
    hidden: Bool[Array, " B"] | None = None
    noise_seeds: UInt32[Array, " B"] | None = None
    roles: Int[Array, " B"] | None = None
    dropout_mask: Float[Array, "B T D"] | None = None

    @property
    def loss_count(self) -> Float[Array, ""]:
        """Number of predicted tokens."""
        return jnp.sum(self.loss_mask, dtype=jnp.float32)

    @property
    def real_positions(self) -> Bool[Array, "B P"]:
        """Every position of tokens, False on padding."""
        return jnp.concatenate([self.prompt_mask, self.token_mask], axis=1)


def replaced_steps(
    stage: int, steps: Sequence[str], config: CurriculumConfig, layout: Layout, rng: np.random.Generator
) -> tuple[int, int]:
    """(steps left out, thoughts put in) at a stage, for a problem with these steps."""
    if config.mode == "cot":
        return 0, 0
    if config.mode == "no_cot":
        return len(steps), 0
    if rng.random() < config.uniform_prob:
        stage = int(rng.integers(0, len(steps) + 1))
    wanted = min(stage, config.max_latent_stage)
    left_out = len(steps) if stage > config.max_latent_stage else min(stage, len(steps))
    if config.c_thought:
        thoughts = (wanted if config.pad_latent_to_max else min(wanted, len(steps))) * config.c_thought
    else:
        fitting, thoughts = layout.token_thoughts(steps[:wanted], config.thought_slots)
        left_out = left_out if stage > config.max_latent_stage else fitting
    return left_out, thoughts if has_thoughts(config.mode) else 0


def thoughtless_problems(problems: Sequence[Problem], config: CurriculumConfig) -> str:
    """What must be said of problems without steps among others; "" if there are none, or if they have thoughts too.

    Of many problems evenly spaced ones are looked at.
    """
    if not has_thoughts(config.mode) or config.pad_latent_to_max or config.guidance.stop:
        return ""
    sample = evenly_spaced(problems, _SAMPLED)
    without = sum(not (problem.steps or problem.threads) for problem in sample)
    if without in (0, len(sample)):
        return ""
    return (
        f"{without} of {len(sample)} training problems have no steps, so they are trained without thoughts, while an "
        "evaluation gives such a problem all of its stage: leave them out, or train the stop head, which then decides "
        "(config.curriculum.guidance.stop)"
    )


def unfitting_steps(problems: Sequence[Problem], config: CurriculumConfig, layout: Layout, joined: int) -> str:
    """What must be said of problems with more tokens in their steps than thoughts are allowed; "" if all fit.

    Each thread of a problem counts for itself where answers are `joined`. Of many problems evenly spaced ones are looked at.
    """
    if config.c_thought or not has_thoughts(config.mode):
        return ""
    sample = evenly_spaced(problems, _SAMPLED)
    threads = [parallel_steps(problem, joined).threads if joined else (problem.steps,) for problem in sample]
    needed = [max(sum(len(layout.step(step)) for step in steps) for steps in each) for each in threads]
    longer = sum(number > config.thought_slots for number in needed)
    if not longer:
        return ""
    return (
        f"the steps of {longer} of {len(sample)} training problems have more tokens than config.curriculum.thought_slots "
        f"{config.thought_slots}, at most {max(needed)}: their last steps stay written, and are missing where the answer "
        "follows at once"
    )


@dataclass(frozen=True)
class Padding:
    """What batches are padded to, chosen once for a run, so that at most `len(shapes)` of them are compiled.

    Attributes:
      shapes: shapes (S, A), smallest first; the last holds every problem.
      step_length: W, tokens of the longest step; a batch with a longer one has A.
    """

    shapes: tuple[Shape, ...]
    step_length: int


def choose_padding(
    problems: Sequence[Problem], number: int, config: CurriculumConfig, layout: Layout, length: int
) -> Padding:
    """At most `number` shapes for the problems of all stages, from the lengths of evenly spaced ones."""
    sample = evenly_spaced(problems, _SAMPLED)
    rng = np.random.default_rng(0)
    drawn = [
        (problem, replaced_steps(stage, problem.steps, config, layout, rng))
        for stage in sorted(set(config.stages))
        for problem in sample
    ]
    lengths = [padded_lengths(problem, replaced, config, layout) for problem, replaced in drawn]
    shapes = choose_shapes(lengths, number, (layout.prompt_length, length))
    if not config.c_thought:
        return Padding(shapes, 1)
    longest = max((len(layout.step(step)) for problem in sample for step in problem.steps), default=1)
    return Padding(shapes, min(-(-longest // 8) * 8, length))


def padded_lengths(problem: Problem, replaced: tuple[int, int], config: CurriculumConfig, layout: Layout) -> Shape:
    """Tokens of the prompt, and of what follows the thoughts; of the whole text where thoughts are distilled from it."""
    left_out = 0 if config.guidance.distillation else replaced[0]
    return len(layout.question(problem)), len(layout.written(problem, left_out))


def curriculum_batch(
    problems: Sequence[Problem],
    stage: int,
    config: CurriculumConfig,
    layout: Layout,
    length: int,
    rng: np.random.Generator,
    update: int = 0,
    replaced: Sequence[tuple[int, int]] | None = None,
    padding: Padding | None = None,
) -> CurriculumBatch:
    """Batch of `problems` at a stage; A is `length`, or the longest row rounded up to the layout's bucket.

    `update`, counted over the whole curriculum, sets the share of hidden questions and the probability of forcing.
    `replaced` is what `replaced_steps` drew for each problem, if it was drawn before. With `padding`, (S, A) is one of its
    shapes. An over-long problem is a UserError.
    """
    if replaced is None:
        replaced = [replaced_steps(stage, problem.steps, config, layout, rng) for problem in problems]
    rows, starts = [], []
    for problem, (left_out, _) in zip(problems, replaced, strict=True):
        ids = layout.written(problem, left_out)
        if len(ids) > length:
            raise UserError(
                f"steps and answer have {len(ids)} tokens but config.data.answer_length is {length}: raise it, or "
                f"remove the question {problem.question[:60]!r}."
            )
        rows.append(ids)
        answer = layout.answer(problem)
        starts.append(len(ids) - len(answer) + layout.answer_start(answer))
    guidance, steps, text, most, width = config.guidance, None, None, length, 0
    if padding is not None:
        needs = [padded_lengths(*each, config, layout) for each in zip(problems, replaced, strict=True)]
        width, length = smallest_shape(padding.shapes, (max(need[0] for need in needs), max(need[1] for need in needs)))
    elif layout.bucket:
        length = min(length, -(-max(map(len, rows)) // layout.bucket) * layout.bucket)
    prompt, prompt_mask = layout.prompts(problems, width)
    tokens, token_mask = padded(rows, length, layout.tokenizer.pad)
    loss_mask = token_mask & (np.arange(length) >= len(layout.closing))
    if guidance.reads_steps:
        slots, probability = config.max_thoughts, forcing_probability(guidance, update)
        steps = step_texts(problems, replaced, config.c_thought, slots, layout, most, probability, rng, padding)
    if guidance.distillation:
        plain = {"guidance": GuidanceConfig(), "variational": VariationalConfig()}
        written = replace(config, uniform_prob=0.0, question_hidden=0.0, **plain)
        text = curriculum_batch(problems, 0, written, layout, most, rng, padding=padding)
    num_thoughts = np.asarray([thoughts for _, thoughts in replaced], np.int32)
    arrays = prompt, prompt_mask, num_thoughts, tokens, token_mask, loss_mask, np.asarray(starts, np.int32)
    # Remaining steps need the question's numbers, and a question without thoughts has nothing else to answer from. None
    # where there is no share, which compiles to less.
    hidden = None
    if config.question_hidden:
        whole = [left_out == len(problem.steps) for problem, (left_out, _) in zip(problems, replaced, strict=True)]
        hidden = (rng.random(len(problems)) < hidden_share(config, update)) & (num_thoughts > 0) & np.array(whole)
    seeds = rng.integers(2**32, size=len(problems), dtype=np.uint32) if config.variational.kl else None
    # NumPy arrays until the batch is placed on the devices.
    return CurriculumBatch(*arrays, steps, text, hidden, seeds)  # pyright: ignore[reportArgumentType]
