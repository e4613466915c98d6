"""The curriculum of a joined answer: each thread of a problem in a trajectory of its own, one answer that reads all.

Stage s replaces the first s steps of every thread by thoughts of its trajectory. What is left of a thread is written by
that trajectory, up to `<|end-latent|>`; no trajectory sees another one. The answer follows, over the question, all
thoughts and all texts, after the steps that need several threads (`data.equation_graph`).

Shapes: B problems, N trajectories, S prompt length, T thought slots, W tokens of a text or of a step, A tokens of an answer.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.config.curriculum import CurriculumConfig, GuidanceConfig, VariationalConfig
from longshot_jax.curriculum.batch import CurriculumBatch, StepTexts, forcing_probability, replaced_steps, step_texts
from longshot_jax.curriculum.guidance import step_teaching, thought_losses
from longshot_jax.curriculum.loss import TokenSums, curriculum_sums, think_pauses
from longshot_jax.data.equation_graph import parallel_steps
from longshot_jax.data.layout import Layout, padded
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.model.key_values import Context
from longshot_jax.thoughts.answer import TokenScores, continue_thoughts, score_tokens
from longshot_jax.thoughts.joint import join_trajectories
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.stopping import StopRule
from longshot_jax.thoughts.think import EncodedPrompt, Thoughts, encode, think


@struct.dataclass
class ParallelBatch:
    """Problems at one stage of the curriculum, their threads in N trajectories.

    Attributes:
      prompt: tokens of the question, padded on the left. prompt_mask: True on real tokens.
      num_thoughts: number of thoughts of each trajectory. active: trajectories that have a thread.
      texts: what each trajectory writes after its thoughts, predicted: the rest of its thread and `<|end-latent|>`.
      answers: joint steps and the joined answer after an opening marker, which is not predicted.
      steps: texts of the replaced steps, those of all trajectories of a problem in its row [B, N · T, W], if guidance reads them.
    """

    prompt: Int[Array, "B S"]
    prompt_mask: Bool[Array, "B S"]
    num_thoughts: Int[Array, "B N"]
    active: Bool[Array, "B N"]
    texts: Int[Array, "B N W"]
    text_mask: Bool[Array, "B N W"]
    answers: Int[Array, "B A"]
    answer_mask: Bool[Array, "B A"]
    steps: StepTexts | None = None

    @property
    def loss_count(self) -> Float[Array, ""]:
        """Number of predicted tokens."""
        return jnp.sum(self.text_mask, dtype=jnp.float32) + jnp.sum(self.answer_mask[:, 1:], dtype=jnp.float32)

    @property
    def real_positions(self) -> Bool[Array, "B P"]:
        """Every position of tokens, False on padding."""
        texts = self.text_mask.reshape(len(self.text_mask), -1)
        return jnp.concatenate([self.prompt_mask, texts, self.answer_mask], axis=1)


def parallel_batch(
    problems: Sequence[Problem],
    stage: int,
    config: CurriculumConfig,
    layout: Layout,
    length: int,
    trajectories: int,
    rng: np.random.Generator,
    update: int = 0,
) -> ParallelBatch:
    """Batch of `problems` at a stage; arguments as for `curriculum_batch`, A is `length`.

    Raises a UserError for a problem with more threads than `trajectories`, or if a text or answer has more than `length`
    tokens.
    """
    prompt, prompt_mask = layout.prompts(problems)
    texts, replaced = [], np.zeros((len(problems), trajectories, 2), np.int32)
    fixed, rows = replace(config, uniform_prob=0.0), []
    for number, problem in enumerate(problems):
        threads = parallel_steps(problem, trajectories).threads
        rows += [replace(problem, steps=steps) for steps in (*threads, *((),) * (trajectories - len(threads)))]
        shown = stage
        if rng.random() < config.uniform_prob:
            shown = int(rng.integers(0, max(map(len, threads)) + 1))
        for n, steps in enumerate(threads):
            replaced[number, n] = left_out, _ = replaced_steps(shown, steps, fixed, layout, rng)
            texts.append(
                [*(token for step in steps[left_out:] for token in layout.step(step)), layout.tokenizer.end_latent]
            )
        texts += [[]] * (trajectories - len(threads))
    # A phase of its own mode, such as `text`, decides whether joint steps are written, not the run's.
    phase = replace(layout, mode=config.mode)
    answers = [phase.answer(problem, trajectories) for problem in problems]
    lengths = []
    for longest in (max(map(len, texts)), max(map(len, answers))):
        if longest > length:
            raise UserError(
                f"the steps of a thread, or the answer, have {longest} tokens but config.data.answer_length is {length}: "
                "raise it."
            )
        lengths.append(min(length, -(-longest // layout.bucket) * layout.bucket) if layout.bucket else length)
    shape = (len(problems), trajectories, lengths[0])
    text_rows, text_mask = (part.reshape(shape) for part in padded(texts, lengths[0], layout.tokenizer.pad))
    steps, guidance = None, config.guidance
    if guidance.reads_steps:
        probability, in_rows = (
            forcing_probability(guidance, update),
            [(int(out), int(put)) for out, put in replaced.reshape(-1, 2)],
        )
        steps = step_texts(rows, in_rows, config.c_thought, config.max_thoughts, layout, length, probability, rng)
        # A row a problem, as all that micro-batches cut.
        steps = jax.tree.map(lambda x: x.reshape(len(problems), -1, *x.shape[2:]), steps)
    arrays = prompt, prompt_mask, replaced[..., 1], text_mask.any(axis=-1), text_rows, text_mask
    answer_rows = padded(answers, lengths[1], layout.tokenizer.pad)
    # NumPy arrays until the batch is placed on the devices.
    return ParallelBatch(*arrays, *answer_rows, steps)  # pyright: ignore[reportArgumentType]


def parallel_sums(
    reasoner: Reasoner,
    batch: ParallelBatch,
    max_thoughts: int,
    pause_token: int | None = None,
    guidance: GuidanceConfig | None = None,
) -> TokenSums:
    """Next-token loss of the texts and of the joined answers; arguments as for `curriculum_sums`."""
    guidance = guidance or GuidanceConfig()
    trajectories = batch.num_thoughts.shape[1]
    prompt = encode(reasoner, batch.prompt, batch.prompt_mask)
    prompt = begin_trajectories(reasoner, prompt, trajectories, batch.active)
    steps = jax.tree.map(lambda x: x.reshape(batch.num_thoughts.size, -1, *x.shape[2:]), batch.steps)
    if pause_token is not None:
        thoughts = think_pauses(reasoner, prompt, pause_token, batch.num_thoughts, max_thoughts)
    else:
        noise = jnp.zeros((*batch.num_thoughts.shape, max_thoughts, reasoner.action_size))
        rule = StopRule(batch.num_thoughts, batch.num_thoughts, active=batch.active)
        teaching = step_teaching(reasoner, steps, guidance, batch.num_thoughts.shape)
        thoughts = think(reasoner, prompt, None, rule, noise, jnp.zeros(()), teaching=teaching)
    scores, texts = _text_scores(reasoner, prompt, thoughts, batch)
    answer = _answer_scores(reasoner, prompt, thoughts, texts, batch)
    parts = thought_losses(reasoner, thoughts, steps, guidance, batch.active)
    right = jnp.sum(scores.is_top, dtype=jnp.float32) + jnp.sum(answer.is_top, dtype=jnp.float32)
    return TokenSums(-jnp.sum(scores.log_probs) - jnp.sum(answer.log_probs), batch.loss_count, right, parts)


def sums_of(
    reasoner: Reasoner,
    batch: CurriculumBatch | ParallelBatch,
    max_thoughts: int,
    pause_token: int | None = None,
    guidance: GuidanceConfig | None = None,
    latent_token: int = 0,
    variational: VariationalConfig | None = None,
    thought_std: Array | float = 0.0,
) -> TokenSums:
    """`curriculum_sums` or `parallel_sums`, as the batch is."""
    if isinstance(batch, ParallelBatch):
        return parallel_sums(reasoner, batch, max_thoughts, pause_token, guidance)
    return curriculum_sums(reasoner, batch, max_thoughts, pause_token, guidance, latent_token, variational, thought_std)


def _text_scores(
    reasoner: Reasoner, prompt: EncodedPrompt, thoughts: Thoughts, batch: ParallelBatch
) -> tuple[TokenScores, Context]:
    """Scores of the texts, and their keys and values without the last token, which the answer does not read."""
    hidden, texts = continue_thoughts(reasoner, prompt, thoughts, batch.texts[..., :-1], batch.text_mask[..., 1:])
    hidden = jnp.concatenate([thoughts.last_hidden[:, :, None], hidden], axis=2)
    return score_tokens(reasoner, hidden, batch.texts, batch.text_mask, jnp.ones(())), texts


def _answer_scores(
    reasoner: Reasoner, prompt: EncodedPrompt, thoughts: Thoughts, texts: Context, batch: ParallelBatch
) -> TokenScores:
    """Scores of the joined answers after their opening marker."""
    tokens, mask = batch.answers[:, None], batch.answer_mask[:, None]
    one = join_trajectories(prompt, thoughts, texts)
    hidden, _ = continue_thoughts(reasoner, *one, tokens[..., :-1], mask[..., :-1])
    return score_tokens(reasoner, hidden, tokens[..., 1:], mask[..., 1:], jnp.ones(()))
