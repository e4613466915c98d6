"""Tests whether thoughts that stand for the tokens of steps hold these steps, on problems whose steps are equations.

For models with a thought for each token of a step (`curriculum.c_thought` 0), as `patching` is for a thought a step:

- *lens*: how often the tokens nearest to the thoughts of a step are the step as written;
- *donor*: the thoughts of a step's result are replaced by those of a donor, another problem whose result of this step has as
  many tokens, and the model thinks on from there until it stops by itself. If these thoughts hold the result, the answer is that
  of the problem's remaining operations on the donor's result (activation patching: Vig et al. 2020, arXiv:2004.12265).

Shapes: Q questions, T thoughts, D hidden size.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.checkpoints.pretrained import Pretrained
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.evaluation.batches import answer_texts
from longshot_jax.evaluation.lens import thought_logits
from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.stopping import StopRule
from longshot_jax.thoughts.think import Teaching, encode, think

_EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


@dataclass(frozen=True)
class StepResult:
    """Both measurements of one step of problems with equally many.

    Attributes:
      operations, step: steps of the problems, and which of them this is, from 1.
      questions: Q, those whose steps are all thought.
      named: proportion of questions in which the tokens nearest to the step's thoughts are the step as written.
      follows_donor, keeps_own: proportions of answers that follow from the donor's result and that remain the question's
        own, among the pairs of question and donor.
      pairs: number of pairs. In each the two answers differ, and the remaining operations have whole results.
    """

    operations: int
    step: int
    questions: int
    named: float
    follows_donor: float
    keeps_own: float
    pairs: int


def answer_from(problem: Problem, step: int, result: int, largest: int) -> int | None:
    """The answer if step `step`, from 0, had this result; None where a number is not whole or not from 0 to `largest`."""
    for equation in problem.steps[step + 1 :]:
        _, kind, operand, _ = _parts(equation)
        number = int(operand)
        if kind == "/":
            if result % number:
                return None
            result //= number
        else:
            result += {"+": number, "-": -number, "*": result * (number - 1)}[kind]
        if not 0 <= result <= largest:
            return None
    return result


def _parts(equation: str) -> tuple[str, ...]:
    found = _EQUATION.fullmatch(equation)
    if found is None:
        raise UserError(f"step {equation!r} is not an equation like 12+7=19: the donor experiment needs such steps.")
    return found.groups()


def result_span(layout: Layout, equation: str) -> tuple[int, int] | None:
    """First and last place + 1 of the result among the tokens of a step; None where it shares a token with what is beside."""
    result = _parts(equation)[3]
    whole, before, after = (layout.step(text) for text in (equation, equation.removesuffix(result), result))
    start = len(before) - len(layout.step(""))
    stop = len(whole) - len(layout.step(""))
    apart = whole[:start] == before[:start] and whole[start:] == after
    return (start, stop) if apart and start < stop else None


def thought_whole(model: Pretrained, problems: Sequence[Problem]) -> list[Problem]:
    """The problems whose steps are all thought: the thoughts of the others do not hold the rest.

    Raises a UserError if the model has no tokenizer, no thought for each token of a step or no trained stop head, the problems
    are not of one length or do not fit the model's prompts, or fewer than two are left.
    """
    layout, k = model.layout, len(problems[0].steps) if problems else 0
    if model.joined:
        raise UserError(
            "the donor experiment follows one trajectory, and this model joins several (config.thoughts.join)."
        )
    if layout is None:
        raise UserError("this model has no tokenizer, so it cannot read problems: put one into its folder.")
    if len(problems) < 2 or any(len(problem.steps) != k for problem in problems):
        raise UserError("the donor experiment needs two or more problems of equally many steps.")
    if model.rule.per_step or not model.rule.stops:
        raise UserError(
            "these problems need a model with a thought for each token of a step (config.curriculum.c_thought 0) and a stop "
            "head that was trained (config.curriculum.guidance.stop)."
        )
    stage = (model.stage_rule or model.rule).stage  # of the checkpoint, which may be earlier than the end of the phase
    if k > stage:
        raise UserError(
            f"the problems have {k} steps, of which this model thinks the first {stage} "
            "(config.curriculum.max_latent_stage, or the stage of an earlier checkpoint): give fewer operations, or a later "
            "checkpoint with --which."
        )
    whole = [p for p in problems if layout.token_thoughts(p.steps, model.max_thoughts)[0] == k]
    if len(whole) < 2:
        raise UserError(
            f"fewer than two of {len(problems)} problems have all their {k} steps in the model's {model.max_thoughts} "
            "thoughts: give shorter ones."
        )
    for problem in whole:
        layout.question(problem)
    return whole


def measure_steps(
    model: Pretrained, problems: Sequence[Problem], largest: int, batch_size: int = 100
) -> list[StepResult]:
    """Both measurements on problems of equally many steps, each an operation on the result of the one before.

    A question's donor is the next in its batch that makes a pair with it.

    Raises a UserError if the steps are no equations, and what `thought_whole` raises.
    """
    whole, layout, k = thought_whole(model, problems), model.layout, len(problems[0].steps)
    assert layout is not None
    named, follows, keeps, pairs = np.zeros(k), np.zeros(k), np.zeros(k), np.zeros(k, int)
    static = model.graphdef, layout.opening, layout.tokenizer.ends, model.answer_length
    for first in range(0, len(whole), batch_size):
        batch = whole[first : first + batch_size]
        steps = [[layout.step(step) for step in problem.steps] for problem in batch]
        lengths = np.asarray([[len(ids) for ids in each] for each in steps])
        starts = np.cumsum(lengths, axis=1) - lengths
        counts = lengths.sum(axis=1)
        prompts = layout.prompts(batch)
        nearest, thoughts = jax.device_get(
            _own_thoughts(model.graphdef, model.max_thoughts, model.params, model.memory, *prompts, counts)
        )
        for step in range(k):
            for row, ids in enumerate(steps):
                place = starts[row, step]
                named[step] += nearest[row, place : place + len(ids[step])].tolist() == ids[step]
            donors = _donors(layout, batch, step, largest)
            given, taught, fewest = (
                np.zeros_like(thoughts),
                np.zeros(thoughts.shape[:2], bool),
                np.zeros(len(batch), int),
            )
            for row, donor, own, theirs, _ in donors:
                # Both spans in the thoughts of their problems.
                here, there = starts[row, step] + np.arange(*own), starts[donor, step] + np.arange(*theirs)
                given[row, here], taught[row, here] = thoughts[donor, there], True
                fewest[row] = here[-1] + 1
            tokens = _answers(*static, model.max_thoughts, model.params, model.memory, *prompts, fewest, given, taught)
            texts = answer_texts(np.asarray(tokens), layout)
            for row, _, _, _, answer in donors:
                pairs[step] += 1
                follows[step] += texts[row][0] == str(answer)
                keeps[step] += texts[row][0] == batch[row].answer
    many = np.maximum(pairs, 1)
    return [
        StepResult(
            k,
            step + 1,
            len(whole),
            named[step] / len(whole),
            follows[step] / many[step],
            keeps[step] / many[step],
            int(pairs[step]),
        )
        for step in range(k)
    ]


def _donors(
    layout: Layout, batch: Sequence[Problem], step: int, largest: int
) -> list[tuple[int, int, tuple[int, int], tuple[int, int], int]]:
    """Rows of a question and of its donor, the spans of both results in the step, and the answer that follows."""
    spans = [result_span(layout, problem.steps[step]) for problem in batch]
    results = [int(_parts(problem.steps[step])[3]) for problem in batch]
    found = []
    for row, span in enumerate(spans):
        if span is None:
            continue
        for donor in ((row + ahead) % len(batch) for ahead in range(1, len(batch))):
            theirs = spans[donor]
            if theirs is None or theirs[1] - theirs[0] != span[1] - span[0]:
                continue
            answer = answer_from(batch[row], step, results[donor], largest)
            if answer is not None and str(answer) != batch[row].answer:
                found.append((row, donor, span, theirs, answer))
                break
    return found


@partial(jax.jit, static_argnums=(0, 1))
def _own_thoughts(
    graphdef: nnx.GraphDef,
    slots: int,
    params: Any,
    memory: Any,
    prompt: Int[Array, "Q S"],
    mask: Bool[Array, "Q S"],
    counts: Int[Array, " Q"],
) -> tuple[Int[Array, "Q T"], Float[Array, "Q T D"]]:
    """The nearest token of every thought, and the thoughts, of which each question has the given number."""
    reasoner = nnx.merge(graphdef, *params)
    still = jnp.zeros((len(prompt), 1, slots, reasoner.action_size))
    rule = StopRule(counts[:, None], counts[:, None])
    encoded = begin_trajectories(reasoner, encode(reasoner, prompt, mask), 1)
    own = think(reasoner, encoded, memory, rule, still, jnp.zeros(()))
    logits = thought_logits(reasoner, own.embeddings, own.hidden[:, :, :-1])
    return jnp.argmax(logits[:, 0], axis=-1), own.embeddings[:, 0].astype(jnp.float32)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _answers(
    graphdef: nnx.GraphDef,
    opening: tuple[int, ...],
    end_tokens: tuple[int, ...],
    length: int,
    slots: int,
    params: Any,
    memory: Any,
    prompt: Int[Array, "Q S"],
    mask: Bool[Array, "Q S"],
    fewest: Int[Array, " Q"],
    given: Float[Array, "Q T D"],
    taught: Bool[Array, "Q T"],
) -> Int[Array, "Q 1 A"]:
    """Greedy answers with the given thoughts where `taught`; after the first `fewest` the stop head decides."""
    reasoner = nnx.merge(graphdef, *params)
    encoded = begin_trajectories(reasoner, encode(reasoner, prompt, mask), 1)
    still = jnp.zeros((len(prompt), 1, slots, reasoner.action_size))
    rule = StopRule(fewest[:, None], jnp.full((len(prompt), 1), slots))
    teaching = Teaching(given[:, None], taught[:, None])
    thoughts = think(reasoner, encoded, memory, rule, still, jnp.zeros(()), teaching=teaching)
    return decode_answers(reasoner, encoded, thoughts, opening, end_tokens, length, jnp.ones(()), None).tokens
