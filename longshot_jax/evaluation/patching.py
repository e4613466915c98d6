"""Tests whether thoughts hold intermediate results: the lens against the written steps, and activation patching.

Two measurements on chains of operations (`data.chains`) with as many thoughts as operations:

- *lens*: how often the token nearest to thought t is the result of operation t;
- *donor*: thought t of a question is replaced by that of a donor, another question with the same number of operations,
  and the model continues from there. If thought t is the intermediate result, the answer is the result of the
  question's remaining operations on the donor's result (activation patching: Vig et al. 2020, arXiv:2004.12265).

Shapes: Q questions, T thoughts, X size of a thought's action.
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
from jaxtyping import Array, Float, Int

from longshot_jax.checkpoints.pretrained import Pretrained
from longshot_jax.data.chains import apply_operation
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.evaluation.batches import answer_texts
from longshot_jax.evaluation.lens import thought_logits
from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.stopping import StopRule
from longshot_jax.thoughts.think import encode, think

_STATEMENT = re.compile(r"([a-n])=([a-n]?)([+*]?\d)")


@dataclass(frozen=True)
class DonorResult:
    """Both measurements on chains of one length.

    Attributes:
      operations, questions: k and Q.
      lens: for each thought, proportion of questions whose nearest token is the result of its operation.
      follows_donor, keeps_own: for each replaced thought, proportions of answers that follow from the donor's result
        and that remain the question's own, among the pairs in which these two differ.
      compared: number of such pairs for each thought.
    """

    operations: int
    questions: int
    lens: tuple[float, ...]
    follows_donor: tuple[float, ...]
    keeps_own: tuple[float, ...]
    compared: tuple[int, ...]


def operations_of(problem: Problem) -> list[str]:
    """The operations of a chain in order, such as `+4`, `*7`; a UserError if the question is not a chain."""
    statements = {name: (source, last) for name, source, last in _STATEMENT.findall(problem.question)}
    asked_name = re.search(r"([a-n])\?$", problem.question)
    if asked_name is None or asked_name[1] not in statements:
        raise UserError(f"{problem.question[:60]!r} is not a chain of operations: the donor experiment needs chains.")
    operations, name = [], asked_name[1]
    while statements[name][0]:
        name, operation = statements[name]
        operations.append(operation)
    return operations[::-1]


def trained_to(model: Pretrained, longest: int) -> str:
    """What to say above the table of chains of up to `longest` operations, some of whose thoughts the stage does not train, or ""."""
    rule = model.stage_rule  # the limits of `model.rule` are those of the end of the phase
    if rule is None:
        return ""
    most = rule.max_thoughts if rule.per_step else min(rule.max_thoughts, rule.stage)
    if longest <= most:
        return ""
    return (
        f"the checkpoint is of stage {model.source['stage']}, which trains the first {most} thoughts; later ones are trained "
        "only where problems have a random stage (config.curriculum.uniform_prob)"
    )


def check_donors(model: Pretrained, problems: Sequence[Problem]) -> None:
    """Raises a UserError unless `measure_donors` can measure the model on these problems.

    The model needs a tokenizer and at least as many thoughts as the chains have operations; the problems are chains of one
    length that fit the model's prompts, two or more.
    """
    layout, k = model.layout, len(problems[0].steps) if problems else 0
    if model.joined:
        raise UserError(
            "the donor experiment follows one trajectory, and this model joins several (config.thoughts.join)."
        )
    if layout is None:
        raise UserError("this model has no tokenizer, so it cannot read chains: put one into its folder.")
    if len(problems) < 2 or any(len(problem.steps) != k for problem in problems):
        raise UserError("the donor experiment needs two or more chains of equally many operations.")
    if model.rule.max_thoughts and (model.source["mode"] != "coconut" or model.rule.per_step > 1):
        raise UserError(
            "the donor experiment compares the thought of each step, and this model has others (config.curriculum.mode "
            f"{model.source['mode']}, c_thought {model.rule.per_step}): give a model of mode coconut with c_thought 1."
        )
    if model.rule.per_step == 0 and any(len(layout.step(step)) > 1 for problem in problems for step in problem.steps):
        raise UserError(
            "the donor experiment compares the thought of each step, and this model has one for each token of a step "
            "(config.curriculum.c_thought 0): give chains whose steps are one token."
        )
    if k > model.max_thoughts:
        raise UserError(f"the chains have {k} operations, but the model at most {model.max_thoughts} thoughts.")
    for problem in problems:
        operations_of(problem)
        layout.question(problem)


def measure_donors(model: Pretrained, problems: Sequence[Problem], batch_size: int = 250) -> DonorResult:
    """Both measurements on chains of equally many operations; the donor of a question is the previous one in its batch.

    Raises what `check_donors` raises.
    """
    check_donors(model, problems)
    layout, k = model.layout, len(problems[0].steps)
    assert layout is not None
    operations = [operations_of(problem) for problem in problems]
    expected = np.asarray([[layout.step(step)[0] for step in problem.steps] for problem in problems])
    shape = model.graphdef, layout.opening, layout.tokenizer.ends, model.answer_length, k

    read, follows, keeps, compared = np.zeros(k), np.zeros(k), np.zeros(k), np.zeros(k, int)
    count = len(problems)
    batches = min(-(-count // batch_size), count // 2)  # at least two questions in each
    for rows in np.array_split(np.arange(count), batches):
        batch = [problems[row] for row in rows]
        nearest, tokens = jax.device_get(swapped_answers(*shape, model.params, model.memory, *layout.prompts(batch)))
        read += (nearest == expected[rows]).sum(axis=0)
        for thought in range(k):
            for place, (text,) in enumerate(answer_texts(tokens[thought], layout)):
                own, result = batch[place], int(batch[place - 1].steps[thought])
                for operation in operations[rows[place]][thought + 1 :]:
                    result = apply_operation(operation, result)
                if str(result) != own.answer:
                    compared[thought] += 1
                    follows[thought] += text == str(result)
                    keeps[thought] += text == own.answer
    pairs = np.maximum(compared, 1)
    return DonorResult(
        operations=k,
        questions=count,
        lens=tuple((read / count).tolist()),
        follows_donor=tuple((follows / pairs).tolist()),
        keeps_own=tuple((keeps / pairs).tolist()),
        compared=tuple(compared.tolist()),
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def swapped_answers(
    graphdef: nnx.GraphDef,
    opening: tuple[int, ...],
    end_tokens: tuple[int, ...],
    length: int,
    steps: int,
    params: Any,
    memory: Any,
    prompt: Int[Array, "Q S"],
    mask: Array,
) -> tuple[Int[Array, "Q T"], Int[Array, "T Q 1 A"]]:
    """Nearest token of every thought, and the answers after each thought in turn is replaced by the previous row's."""
    reasoner = nnx.merge(graphdef, *params)
    encoded = begin_trajectories(reasoner, encode(reasoner, prompt, mask), 1)
    num_thoughts = jnp.full((prompt.shape[0], 1), steps)
    rule = StopRule(num_thoughts, num_thoughts)
    still = jnp.zeros((prompt.shape[0], 1, steps, reasoner.action_size))
    own = think(reasoner, encoded, memory, rule, still, jnp.zeros(()))
    factor = reasoner.navigator.noise_std(own.hidden[:, :, :-1], 1.0)[..., None]
    nearest = jnp.argmax(thought_logits(reasoner, own.embeddings, own.hidden[:, :, :-1])[:, 0], axis=-1)

    def answers(thought: Int[Array, ""]) -> Int[Array, "Q 1 A"]:
        # With thought_std 1 the noise, times its factor, is added to the thought's mean. Earlier thoughts are unchanged, so this noise
        # makes the thought equal to the donor's, and the later ones follow from it.
        added: Float[Array, "Q N T X"] = (jnp.roll(own.actions, 1, axis=0) - own.actions) / factor
        noise = jnp.where((jnp.arange(steps) == thought)[:, None], added, 0.0)
        thoughts = think(reasoner, encoded, memory, rule, noise, jnp.ones(()))
        return decode_answers(reasoner, encoded, thoughts, opening, end_tokens, length, jnp.ones(()), None).tokens

    return nearest, jax.lax.map(answers, jnp.arange(steps))
