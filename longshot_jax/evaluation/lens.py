"""The lens: each thought's nearest tokens under the output head, its norm, stop probability, value and memory reads.

A thought is an input embedding; its logits are computed as for a last hidden state (the logit lens, nostalgebraist
2020, applied to continuous thoughts). For raw hidden states (feedback `hidden`, COCONUT's) they predict the token that
the model would have written in place of the thought. For decoded or normalised thoughts only their order is meaningful.
A thought of feedback `vocabulary` is a mean of token embeddings; its nearest tokens are those with the largest weights,
before noise and a norm, where thoughts have them; a sampled thought of `thoughts.noise` `tokens` may be made of others.

Shapes: B questions, N trajectories, T thoughts, K tokens per thought.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.evaluation.decoder import Trajectories
from longshot_jax.model.sharding import fetch
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Params, Reasoner
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.think import encode, think_given

# Height and width in pixels, so that 64 questions with seven decisions fit an image card of TensorBoard.
_CELL = (6, 48)


@struct.dataclass
class Readings:
    """Readings of thoughts as arrays; zeros after a trajectory's last thought.

    Attributes:
      tokens: Int [B, N, T, K], nearest first.
      probabilities: Float [B, N, T, K], softmax of the head's logits.
      norms: Float [B, N, T], Euclidean.
      values: Float [B, N, T + 1], expected return at h_0 ... h_T, in units of reward.
      slots: Int [B, N, T, M'], entries of the memory bank that each thought reads, strongest first.
      found: Bool [B, N, T, M'], whether there is such an entry.
      entry_values, entry_ages: [B, N, T, M'], values and ages of the entries. The last four are None without a bank.
    """

    tokens: Array
    probabilities: Array
    norms: Array
    values: Array
    slots: Array | None = None
    found: Array | None = None
    entry_values: Array | None = None
    entry_ages: Array | None = None


@dataclass(frozen=True)
class MemoryRead:
    """An entry of the memory bank that a thought read: its index, return in units of reward, and age in writes."""

    slot: int
    value: float
    age: int


@dataclass(frozen=True)
class ThoughtReading:
    """The reading of one thought.

    Attributes:
      nearest: nearest tokens with their probability under the output head, nearest first.
      norm: Euclidean norm of the embedding that was fed back.
      stop_probability: probability of answering instead of taking this thought.
      value: expected return before the thought, in units of reward; 0 before PPO.
      reads: entries of the memory bank that it read, strongest first.
    """

    nearest: tuple[tuple[str, float], ...]
    norm: float
    stop_probability: float
    value: float
    reads: tuple[MemoryRead, ...] = ()


def thought_logits(
    reasoner: Reasoner, thoughts: Float[Array, "*batch D"], hidden: Float[Array, "*batch D"]
) -> Float[Array, "*batch V"]:
    """Logits by which thoughts [..., D] that were made at these hidden states are read."""
    return reasoner.backbone.logits(hidden if reasoner.navigator.config.feedback == "vocabulary" else thoughts)


def read_thoughts(
    reasoner: Reasoner,
    prompt: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    thoughts: Float[Array, "B N T D"],
    num_thoughts: Int[Array, "B N"],
    nearest: int,
    memory: MemoryBank | None = None,
) -> Readings:
    """Reads thoughts that were fed back, in one causal pass; `nearest` is K, `memory` the bank that they read."""
    prompts = begin_trajectories(reasoner, encode(reasoner, prompt, mask), thoughts.shape[1])
    given = think_given(reasoner, prompts, thoughts, num_thoughts)
    logits = thought_logits(reasoner, thoughts, given.hidden[:, :, :-1])
    probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), nearest)
    thought_mask = given.thought_mask
    reached = jnp.arange(thought_mask.shape[-1] + 1) <= num_thoughts[..., None]
    norms = jnp.linalg.norm(thoughts.astype(jnp.float32), axis=-1)
    source, steps = reasoner.thought_source(given.hidden[:, :, :-1]), jnp.arange(thought_mask.shape[-1])
    slots, reads = reasoner.navigator.bank_slots(source, memory, steps), {}
    if memory is not None and slots is not None:
        found, slots = (slots >= 0) & thought_mask[..., None], jnp.maximum(slots, 0)
        reads = {"slots": slots, "found": found, "entry_values": memory.values[slots], "entry_ages": memory.ages[slots]}
    return Readings(
        tokens=jnp.where(thought_mask[..., None], tokens, 0),
        probabilities=jnp.where(thought_mask[..., None], probabilities, 0.0),
        norms=jnp.where(thought_mask, norms, 0.0),
        values=jnp.where(reached, reasoner.navigator.value(given.hidden), 0.0),
        **reads,
    )


@dataclass(frozen=True)
class Lens:
    """`read_thoughts`, compiled once per shape; `nearest` is K."""

    graphdef: nnx.GraphDef
    tokenizer: Tokenizer
    nearest: int = 3

    def __call__(
        self,
        params: Params,
        prompts: tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]],
        decoded: Trajectories,
        memory: MemoryBank | None = None,
    ) -> list[list[tuple[ThoughtReading, ...]]]:
        """Readings of the thoughts of every trajectory of every question, in order."""
        readings = fetch(self._read(params, memory, *prompts, decoded.thoughts, decoded.num_thoughts))
        stops = np.asarray(decoded.stop_probabilities)
        return [
            [
                tuple(self._one(readings, stops, (row, column, step)) for step in range(count))
                for column, count in enumerate(num_thoughts)
            ]
            for row, num_thoughts in enumerate(np.asarray(decoded.num_thoughts).tolist())
        ]

    @cached_property
    def _read(self) -> Any:
        def read(params, memory, prompt, mask, thoughts, num_thoughts):
            reasoner = nnx.merge(self.graphdef, *params)
            nearest = min(self.nearest, self.tokenizer.vocabulary_size)
            return read_thoughts(reasoner, prompt, mask, thoughts, num_thoughts, nearest, memory)

        return jax.jit(read)

    def _one(self, readings: Readings, stops: np.ndarray, place: tuple[int, int, int]) -> ThoughtReading:
        pairs = zip(readings.tokens[place].tolist(), readings.probabilities[place].tolist(), strict=True)
        reads = ()
        if readings.slots is not None:
            columns = (readings.slots, readings.entry_values, readings.entry_ages, readings.found)
            rows = zip(*(np.asarray(column)[place].tolist() for column in columns), strict=True)
            reads = tuple(MemoryRead(slot, value, age) for slot, value, age, found in rows if found)
        return ThoughtReading(
            nearest=tuple((self.tokenizer.spell(token), probability) for token, probability in pairs),
            norm=float(readings.norms[place]),
            stop_probability=float(stops[place]),
            value=float(readings.values[place]),
            reads=reads,
        )


def lens_rows(
    questions: Sequence[str], readings: Sequence[Sequence[tuple[ThoughtReading, ...]]], stops: bool
) -> list[dict[str, str]]:
    """Rows of a table with one thought each, of the first trajectory of each question.

    `stops`: whether the stop head was trained; what another one says is a constant.
    """
    return [
        {
            "question": question if number == 1 else "",
            "thought": str(number),
            "nearest tokens": nearest_text(thought),
            "norm": f"{thought.norm:.2f}",
            **({"stop before it": f"{thought.stop_probability:.2f}"} if stops else {}),
            "value": f"{thought.value:+.2f}",
            "memory reads": reads_text(thought),
        }
        for question, trajectories in zip(questions, readings, strict=True)
        for number, thought in enumerate(trajectories[0], start=1)
    ]


def nearest_text(thought: ThoughtReading) -> str:
    """The nearest tokens as text, such as `'7' 0.98, '3' 0.01`."""
    return ", ".join(f"{token!r} {probability:.2f}" for token, probability in thought.nearest)


def reads_text(thought: ThoughtReading) -> str:
    """The memory reads as text, such as `slot 7 (value +0.80, age 3)`; empty without reads."""
    return ", ".join(f"slot {read.slot} (value {read.value:+.2f}, age {read.age})" for read in thought.reads)


def stop_figure(
    stop_probabilities: Float[np.ndarray, "M Tplus1"], num_thoughts: Int[np.ndarray, " M"], most: int = 64
) -> np.ndarray:
    """An image of stop decisions: a row for each of at most `most` trajectories, a column for each of h_0 ... h_T.

    Black continues, white stops, blue was not reached. Rows are sorted by the number of thoughts. Returns uint8
    [height, width, 3].
    """
    rows = np.argsort(num_thoughts[:most], kind="stable")
    grey = np.rint(255 * np.clip(stop_probabilities[rows], 0.0, 1.0)).astype(np.uint8)
    image = np.repeat(grey[..., None], 3, axis=-1)
    image[np.arange(grey.shape[1]) > num_thoughts[rows][:, None]] = (40, 60, 120)
    return np.kron(image, np.ones((*_CELL, 1), np.uint8))
