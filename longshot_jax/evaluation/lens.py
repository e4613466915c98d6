"""The lens: what each thought says, read through the output head, its norm, stop probability, value and memory reads.

A thought is an input embedding, and the head's rows are compared with it as with any last hidden state (the logit
lens, nostalgebraist 2020, applied to continuous thoughts). Where thoughts are raw hidden states (`hidden`, COCONUT's),
what is read is what the model would have written in place of the thought. Where they are decoded or normalised, only
the order of the tokens means something, not their probabilities.

Shapes: B questions, N trajectories, T thoughts, K tokens shown for each.
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

from longshot_jax.data.tokens import Tokens
from longshot_jax.evaluation.decoding import Trajectories, Weights
from longshot_jax.model.sharding import fetch
from longshot_jax.thoughts.memory import MemoryBank, nearest_entries
from longshot_jax.thoughts.navigator import Reasoner
from longshot_jax.thoughts.think import encode, think_given

# Height and width in pixels: 64 questions and seven decisions make a picture that fits a card.
_CELL = (6, 48)


@struct.dataclass
class Readings:
    """What the lens sees; zeros after a trajectory's last thought.

    Attributes:
      tokens: Int [B, N, T, K], nearest first; probabilities: Float [B, N, T, K], of the head's softmax.
      norms: Float [B, N, T], Euclidean.
      values: Float [B, N, T + 1], expected return at h_0 ... h_T, in units of reward.
      slots: Int [B, N, T, M'], entries of the memory bank that each thought read, the strongest first; found: Bool,
        whether there was such an entry; entry_values, entry_ages: what the bank says of them. None without a bank.
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
    """An entry of the memory bank that a thought read.

    Attributes:
      slot: its place in the bank. value: what it earned, in units of reward. age: writes since it was stored.
    """

    slot: int
    value: float
    age: int


@dataclass(frozen=True)
class ThoughtReading:
    """One thought under the lens.

    Attributes:
      nearest: tokens, the nearest first, with their probability under the output head.
      norm: Euclidean norm of what was fed back.
      stop_probability: of answering instead of taking this thought.
      value: expected return before it was taken, in units of reward; 0 before PPO.
      reads: entries of the memory bank that it read, the strongest first.
    """

    nearest: tuple[tuple[str, float], ...]
    norm: float
    stop_probability: float
    value: float
    reads: tuple[MemoryRead, ...] = ()


def read_thoughts(
    reasoner: Reasoner,
    prompt: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    thoughts: Float[Array, "B N T D"],
    counts: Int[Array, "B N"],
    nearest: int,
    memory: MemoryBank | None = None,
) -> Readings:
    """Reads thoughts that were fed back, in one causal pass over them; `nearest` is K, `memory` the bank they read."""
    given = think_given(reasoner, encode(reasoner, prompt, mask), thoughts, counts)
    probabilities, tokens = jax.lax.top_k(jax.nn.softmax(reasoner.llama.logits(thoughts), axis=-1), nearest)
    taken = given.taken
    reached = jnp.arange(taken.shape[-1] + 1) <= counts[..., None]
    norms = jnp.linalg.norm(thoughts.astype(jnp.float32), axis=-1)
    navigator, reads = reasoner.navigator, {}
    if memory is not None and navigator.config.reads_bank:
        # What the bank is asked with: the state before anything is read.
        asking = navigator.state(given.hidden[:, :, :-1], None, None, jnp.arange(taken.shape[-1]))
        top = navigator.config.memory_top or navigator.config.graph_neighbours
        slots, found = nearest_entries(memory, asking, top)
        reads = {"slots": slots, "found": found & taken[..., None]}
        reads |= {"entry_values": memory.values[slots], "entry_ages": memory.ages[slots]}
    return Readings(
        tokens=jnp.where(taken[..., None], tokens, 0),
        probabilities=jnp.where(taken[..., None], probabilities, 0.0),
        norms=jnp.where(taken, norms, 0.0),
        values=jnp.where(reached, reasoner.navigator.value(given.hidden), 0.0),
        **reads,
    )


@dataclass(frozen=True)
class Lens:
    """`read_thoughts`, compiled once for each shape.

    Attributes:
      graph: structure of the `Reasoner`.
      tokens: the tokenizer.
      nearest: K.
    """

    graph: nnx.GraphDef
    tokens: Tokens
    nearest: int = 3

    def __call__(
        self,
        weights: Weights,
        prompts: tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]],
        decoded: Trajectories,
        memory: MemoryBank | None = None,
    ) -> list[list[tuple[ThoughtReading, ...]]]:
        """Of every trajectory of every question its thoughts, in their order."""
        readings = fetch(self._read(weights, memory, *prompts, decoded.thoughts, decoded.counts))
        stops = np.asarray(decoded.stop_probabilities)
        return [
            [
                tuple(self._one(readings, stops, row, column, step) for step in range(count))
                for column, count in enumerate(counts)
            ]
            for row, counts in enumerate(np.asarray(decoded.counts).tolist())
        ]

    @cached_property
    def _read(self) -> Any:
        def read(weights, memory, prompt, mask, thoughts, counts):
            reasoner = nnx.merge(self.graph, *weights)
            nearest = min(self.nearest, self.tokens.vocabulary_size)
            return read_thoughts(reasoner, prompt, mask, thoughts, counts, nearest, memory)

        return jax.jit(read)

    def _one(self, readings: Readings, stops: np.ndarray, row: int, column: int, step: int) -> ThoughtReading:
        place = row, column, step
        pairs = zip(readings.tokens[place].tolist(), readings.probabilities[place].tolist(), strict=True)
        return ThoughtReading(
            nearest=tuple((self.tokens.spell(token), probability) for token, probability in pairs),
            norm=float(readings.norms[place]),
            stop_probability=float(stops[place]),
            value=float(readings.values[place]),
            reads=self._reads(readings, place),
        )

    @staticmethod
    def _reads(readings: Readings, place: tuple[int, int, int]) -> tuple[MemoryRead, ...]:
        if readings.slots is None:
            return ()
        columns = (readings.slots, readings.entry_values, readings.entry_ages, readings.found)
        rows = zip(*(np.asarray(column)[place].tolist() for column in columns), strict=True)
        return tuple(MemoryRead(slot, value, age) for slot, value, age, found in rows if found)


def lens_rows(
    questions: Sequence[str], readings: Sequence[Sequence[tuple[ThoughtReading, ...]]]
) -> list[dict[str, str]]:
    """Rows of a table, one a thought, of each question's first trajectory."""
    return [
        {
            "question": question if number == 1 else "",
            "thought": str(number),
            "nearest tokens": nearest_text(thought),
            "norm": f"{thought.norm:.2f}",
            "stop before it": f"{thought.stop_probability:.2f}",
            "value": f"{thought.value:+.2f}",
            "memory reads": reads_text(thought),
        }
        for question, trajectories in zip(questions, readings, strict=True)
        for number, thought in enumerate(trajectories[0], start=1)
    ]


def nearest_text(thought: ThoughtReading) -> str:
    """Such as `'7' 0.98, '3' 0.01`."""
    return ", ".join(f"{token!r} {probability:.2f}" for token, probability in thought.nearest)


def reads_text(thought: ThoughtReading) -> str:
    """Such as `slot 7 (value +0.80, age 3)`; empty where nothing was read."""
    return ", ".join(f"slot {read.slot} (value {read.value:+.2f}, age {read.age})" for read in thought.reads)


def stop_figure(
    stop_probabilities: Float[np.ndarray, "Q Tplus1"], counts: Int[np.ndarray, " Q"], most: int = 64
) -> np.ndarray:
    """A picture of when trajectories stop: a row for each question, a column for each of h_0 ... h_T.

    Black goes on, white stops; blue was not reached. Rows are sorted by the number of thoughts, of at most `most`
    questions. Returns uint8 [height, width, 3].
    """
    rows = np.argsort(counts[:most], kind="stable")
    grey = np.rint(255 * np.clip(stop_probabilities[rows], 0.0, 1.0)).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=-1)
    picture[np.arange(grey.shape[1]) > counts[rows][:, None]] = (40, 60, 120)
    return np.kron(picture, np.ones((*_CELL, 1), np.uint8))
