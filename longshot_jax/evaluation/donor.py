"""Do thoughts carry the intermediate results? The lens against the written steps, and thoughts given to another question.

Two measurements on chains of operations (`data.chains`) with as many thoughts as operations:

- *lens*: how often the token nearest to thought t is the result of operation t;
- *donor*: thought t of one question is replaced by that of another, the donor, of equally many operations; the model
  thinks on from there and answers. If thought t is the intermediate result, the answer is what the question's
  remaining operations make of the *donor's* result (activation patching: Vig et al. 2020, arXiv:2004.12265).

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

from longshot_jax.data.chains import apply_operation
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.evaluation.batches import answer_texts
from longshot_jax.pretrained import Pretrained
from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.rollout import action_size
from longshot_jax.thoughts.think import StopRule, encode, think

_STATEMENT = re.compile(r"([a-n])=([a-n]?)([+*]?\d)")


@dataclass(frozen=True)
class DonorResult:
    """What was measured on chains of one length.

    Attributes:
      operations: k. questions: Q.
      lens: share of questions for each thought in which its nearest token is the result of its operation.
      follows_donor: for each replaced thought, share of answers that follow from the donor's result.
      keeps_own: share of answers that stayed the question's own. Both over `compared` pairs in which they differ.
      compared: pairs for each thought.
    """

    operations: int
    questions: int
    lens: tuple[float, ...]
    follows_donor: tuple[float, ...]
    keeps_own: tuple[float, ...]
    compared: tuple[int, ...]


def operations_of(problem: Problem) -> list[str]:
    """The operations of a chain in their order, such as `+4`, `*7`; a UserError for another kind of question."""
    statements = {name: (source, last) for name, source, last in _STATEMENT.findall(problem.question)}
    asked = re.search(r"([a-n])\?$", problem.question)
    if asked is None or asked[1] not in statements:
        raise UserError(
            f"{problem.question[:60]!r} is no chain of operations: the donor experiment reads chains."
        )
    operations, name = [], asked[1]
    while statements[name][0]:
        name, operation = statements[name]
        operations.append(operation)
    return operations[::-1]


def measure_donors(model: Pretrained, problems: Sequence[Problem], batch_size: int = 250) -> DonorResult:
    """Both measurements on chains of equally many operations; the donor of a question is the next one of its batch.

    Raises:
      UserError: the model has no tokenizer or no slots for so many thoughts, the problems are no chains or not of one
        length, or there are fewer than two.
    """
    layout, k = model.layout, len(problems[0].steps) if problems else 0
    if layout is None:
        raise UserError("this model has no tokenizer, so it reads no chains: put one into its folder.")
    if len(problems) < 2 or any(len(problem.steps) != k for problem in problems):
        raise UserError("the donor experiment needs two or more chains of equally many operations.")
    if k > model.max_thoughts:
        raise UserError(
            f"the chains have {k} operations, but the model at most {model.max_thoughts} thoughts."
        )
    operations = [operations_of(problem) for problem in problems]
    expected = np.asarray([[layout.step(step)[0] for step in problem.steps] for problem in problems])
    shape = model.graph, layout.opening, layout.tokens.end, model.answer_length, k

    read, follows, keeps, compared = np.zeros(k), np.zeros(k), np.zeros(k), np.zeros(k, int)
    count = len(problems)
    batches = min(-(-count // batch_size), count // 2)  # each of two questions or more
    for rows in np.array_split(np.arange(count), batches):
        start, size = int(rows[0]), len(rows)
        prompts = layout.prompts([problems[row] for row in rows])
        nearest, tokens = jax.device_get(swapped_answers(*shape, model.weights, model.memory, *prompts))
        read += (nearest == expected[start : start + size]).sum(axis=0)
        for thought in range(k):
            texts = [answers[0] for answers in answer_texts(tokens[thought], layout)]
            for place, text in enumerate(texts):
                own, donor = problems[start + place], problems[start + (place - 1) % size]
                result = int(donor.steps[thought])
                for operation in operations[start + place][thought + 1 :]:
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
    graph: nnx.GraphDef,
    opening: tuple[int, ...],
    end_token: int,
    length: int,
    steps: int,
    weights: Any,
    memory: Any,
    prompt: Int[Array, "Q S"],
    mask: Array,
) -> tuple[Int[Array, "Q T"], Int[Array, "T Q 1 A"]]:
    """Nearest token of every thought, and the answers with each thought in turn taken from the row before."""
    reasoner = nnx.merge(graph, *weights)
    encoded = encode(reasoner, prompt, mask)
    counts = jnp.full((prompt.shape[0], 1), steps)
    rule = StopRule(counts, counts)
    still = jnp.zeros((prompt.shape[0], 1, steps, action_size(reasoner)))
    own = think(reasoner, encoded, memory, rule, still, jnp.zeros(()))
    nearest = jnp.argmax(reasoner.llama.logits(own.embeddings[:, 0]), axis=-1)

    def answers(thought: Int[Array, ""]) -> Int[Array, "Q 1 A"]:
        # With a standard deviation of 1 the noise is what is added to a thought. Up to this one, thoughts are the
        # question's own, so that this noise turns it into the donor's; the later ones follow from that.
        added: Float[Array, "Q N T X"] = jnp.roll(own.actions, 1, axis=0) - own.actions
        noise = jnp.where((jnp.arange(steps) == thought)[:, None], added, 0.0)
        thoughts = think(reasoner, encoded, memory, rule, noise, jnp.ones(()))
        return decode_answers(
            reasoner, encoded, thoughts, opening, end_token, length, jnp.ones(()), None
        ).tokens

    return nearest, jax.lax.map(answers, jnp.arange(steps))
