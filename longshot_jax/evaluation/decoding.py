"""From questions to decoded answers for evaluation and inference: compiled once for a batch shape, always from thoughts.

`Decoder` holds what a compiled program is made of (structure, layout, lengths); weights, bounds on the number of
thoughts and temperatures are arguments, so that one program serves a whole run and every file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from longshot_jax.config import RunConfig
from longshot_jax.data.examples import Layout, has_thoughts
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.model.activations import on_mesh
from longshot_jax.model.sharding import place_batch
from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.coupling import Coupling
from longshot_jax.thoughts.joining import join_trajectories
from longshot_jax.thoughts.memory import MemoryBank
from longshot_jax.thoughts.navigator import Reasoner
from longshot_jax.thoughts.rollout import Lengths, Temperatures, sample_rollout
from longshot_jax.thoughts.think import encode, think_given

Weights = tuple[
    nnx.State[Any, Any], ...
]  # parts that `nnx.merge(graph, *weights)` joins, such as (trainable, frozen)


@dataclass(frozen=True)
class ThoughtRule:
    """How many thoughts a question gets.

    Attributes:
      kind: `own`: the stop head decides between `least` and `most`. `steps`: as many as the problem has steps, times
        `per_step`, at most `most`; what COCONUT's evaluation does. `fixed`: always `most`.
      least, most, per_step: thoughts.
    """

    kind: Literal["own", "steps", "fixed"]
    most: int
    least: int = 0
    per_step: int = 1

    def bounds(self, problems: Sequence[Problem]) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        """Least and most thoughts of each problem; a UserError for `steps` without written steps."""
        if self.kind != "steps":
            least = self.least if self.kind == "own" else self.most
            return np.full(len(problems), least, np.int32), np.full(len(problems), self.most, np.int32)
        for problem in problems:
            if not problem.steps:
                raise UserError(
                    f"the question {problem.question[:60]!r} comes without steps, so their number cannot set the "
                    "number of thoughts: give that number, or let the model stop by itself."
                )
        steps = [min(len(problem.steps) * self.per_step, self.most) for problem in problems]
        return np.asarray(steps, np.int32), np.asarray(steps, np.int32)


def rule_after(run: RunConfig, stage: str) -> ThoughtRule:
    """The number of thoughts that a run's model was trained for: `stage` is `curriculum` or `ppo`."""
    curriculum = run.curriculum
    if stage == "ppo":
        return ThoughtRule("own", run.ppo.max_steps, run.ppo.min_steps)
    if not has_thoughts(curriculum.mode):
        return ThoughtRule("fixed", 0)
    most = curriculum.c_thought * curriculum.max_latent_stage
    kind = "fixed" if curriculum.pad_latent_to_max else "steps"
    return ThoughtRule(kind, most, per_step=curriculum.c_thought)


def make_temperatures(std: float = 0.0, stop: float = 1.0, token: float = 1.0) -> Temperatures:
    """Temperatures as float32 arrays; `std` is in units of the action: σ times the thoughts' rms."""
    return Temperatures(*(jnp.asarray(value, jnp.float32) for value in (std, stop, token)))


@struct.dataclass
class Trajectories:
    """Decoded trajectories.

    Attributes:
      tokens: Int [B, N, A]; the end token is the last real one. ended: Bool [B, N].
      counts: Int [B, N], thoughts taken.
      values: Float [B, N], expected return after the last thought.
      stop_probabilities: Float [B, N, T + 1], at h_0 ... h_T.
      thoughts: Float [B, N, T, D], what was fed back.
      exists: Bool [B, N], where the model chose the number of trajectories; None where all N exist.
    """

    tokens: Array
    ended: Array
    counts: Array
    values: Array
    stop_probabilities: Array
    thoughts: Array
    exists: Array | None = None


@dataclass(frozen=True)
class Decoder:
    """Compiled decoding.

    Attributes:
      graph: structure of the `Reasoner`.
      layout: of prompts and answers.
      max_thoughts: T.
      answer_length: A, including the end token; written steps count too where the model writes them.
      max_trajectories: most that the model's complexity head chooses; 0 where it has none.
      coupling: of the noise of a question's samples.
      mesh: that the weights lie on; its devices share the questions, whose number they must divide. None is one
        device.
    """

    graph: nnx.GraphDef
    layout: Layout
    max_thoughts: int
    answer_length: int
    max_trajectories: int = 0
    coupling: Coupling = "independent"
    mesh: Mesh | None = None

    def decode(
        self,
        weights: Weights,
        prompts: tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]],
        bounds: tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]],
        temperatures: Temperatures,
        *,
        indices: Int[np.ndarray, " B"],
        key: Key[Array, ""],
        memory: MemoryBank | None = None,
        num_trajectories: int = 0,
        together: bool = False,
        adaptive: bool = False,
    ) -> Trajectories:
        """N sampled trajectories of each question, or the greedy one for `num_trajectories` 0.

        Args:
          weights: parts of the reasoner's state.
          prompts: left-padded ids and mask.
          bounds: least and most thoughts of each question, at most T; in `pause` mode the most are taken.
          temperatures: of the samples; the greedy trajectory has no noise.
          indices: the questions' numbers: with `key` they seed the samples, whatever the batch around them.
          key: of all randomness.
          memory: read while thinking.
          together: the ensemble: trajectories are fed their mean thought and stop by majority.
          adaptive: the complexity head says how many of the N exist.
        """
        least, most = (np.minimum(bound, self.max_thoughts) for bound in bounds)
        static = num_trajectories, together, adaptive
        inputs = self._placed((*prompts, least, most, indices))
        return self._decode(weights, memory, *inputs, temperatures, key, *static)

    def decode_given(
        self,
        weights: Weights,
        prompts: tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]],
        thoughts: Float[Array, "B N T D"] | Float[np.ndarray, "B N T D"],
        counts: Int[Array, "B N"] | Int[np.ndarray, "B N"],
    ) -> Trajectories:
        """One greedy answer for each question, attending to all of its N trajectories of given thoughts."""
        return self._decode_given(weights, *self._placed((*prompts, thoughts, counts)))

    def _placed(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs if self.mesh is None else place_batch(inputs, self.mesh)

    @cached_property
    def _decode(self) -> Any:
        @partial(jax.jit, static_argnums=(9, 10, 11))
        @partial(on_mesh, self.mesh)
        def decode(
            weights,
            memory,
            prompt,
            mask,
            least,
            most,
            indices,
            temperatures,
            key,
            trajectories,
            together,
            adaptive,
        ):
            reasoner = nnx.merge(self.graph, *weights)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
            greedy, copies = not trajectories, max(trajectories, 1)
            if self.layout.mode == "pause":
                pause = reasoner.llama.embed(jnp.asarray(self.layout.tokens.latent))
                shape = (prompt.shape[0], copies, self.max_thoughts, pause.shape[-1])
                counts = jnp.broadcast_to(most[:, None], shape[:2])
                token_keys = None if greedy else jax.vmap(lambda k: jax.random.split(k, copies))(keys)
                thoughts = jnp.broadcast_to(pause, shape)
                return self._from_thoughts(
                    reasoner, prompt, mask, thoughts, counts, temperatures.token, token_keys
                )
            rollout, scores = sample_rollout(
                reasoner,
                prompt,
                mask,
                memory,
                Lengths(least[:, None], most[:, None]),
                temperatures,
                keys,
                num_trajectories=copies,
                max_thoughts=self.max_thoughts,
                answer_length=self.answer_length,
                opening=self.layout.opening,
                end_token=self.layout.tokens.end,
                scaling="summed",
                together=together,
                greedy=greedy,
                coupling=self.coupling,
                adaptive=adaptive,
            )
            last = rollout.counts[..., None]
            return Trajectories(
                tokens=rollout.tokens,
                ended=rollout.ended,
                counts=rollout.counts,
                values=jnp.take_along_axis(scores.thoughts.values, last, axis=-1)[..., 0],
                stop_probabilities=jax.nn.sigmoid(scores.thoughts.stop_logits),
                thoughts=rollout.embeddings,
                exists=rollout.exists,
            )

        return decode

    @cached_property
    def _decode_given(self) -> Any:
        @jax.jit
        @partial(on_mesh, self.mesh)
        def decode(weights, prompt, mask, thoughts, counts):
            reasoner = nnx.merge(self.graph, *weights)
            return self._from_thoughts(
                reasoner, prompt, mask, thoughts, counts, jnp.ones(()), None, join=True
            )

        return decode

    def _from_thoughts(
        self, reasoner: Reasoner, prompt, mask, embeddings, counts, temperature, keys, join=False
    ) -> Trajectories:
        encoded = encode(reasoner, prompt, mask)
        embeddings = embeddings.astype(reasoner.llama.compute_dtype)
        thoughts = think_given(reasoner, encoded, embeddings, counts)
        thoughts = join_trajectories(thoughts) if join else thoughts
        end = self.layout.tokens.end
        answers = decode_answers(
            reasoner, encoded, thoughts, self.layout.opening, end, self.answer_length, temperature, keys
        )
        return Trajectories(
            tokens=answers.tokens,
            ended=answers.ended,
            counts=thoughts.counts,
            values=reasoner.navigator.value(thoughts.last_hidden),
            stop_probabilities=jax.nn.sigmoid(reasoner.navigator.stop_logit(thoughts.hidden)),
            thoughts=thoughts.embeddings,
        )


def full_batches(count: int, size: int) -> Iterator[tuple[Int[np.ndarray, " B"], int]]:
    """Row numbers in batches of one size, and how many of each are real: the last batch repeats the last row."""
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1).astype(np.int32), min(size, count - start)
