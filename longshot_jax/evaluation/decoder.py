"""Decodes answers to questions, for evaluation and inference; compiled once per batch shape.

`Decoder` holds everything that a compiled program depends on (structure, layout, lengths). Parameters, bounds on the
number of thoughts and temperatures are arguments, so that one program serves a whole run and every file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from longshot_jax.config.model import Decoding
from longshot_jax.config.thoughts import Coupling
from longshot_jax.data.layout import Layout
from longshot_jax.model.decoding import decoding_jit
from longshot_jax.model.sharding import place_batch
from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.joint import decode_jointly, join_trajectories
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Params, decoding_reasoner
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.rollout import RolloutShape, Temperatures, at_last_thought, sample_rollout
from longshot_jax.thoughts.stopping import Lengths, active_trajectories
from longshot_jax.thoughts.think import encode, think_given


@struct.dataclass
class Trajectories:
    """Decoded trajectories.

    Attributes:
      tokens: Int [B, N, A], up to and including the end token.
      ended: Bool [B, N], whether there is an end token.
      num_thoughts: Int [B, N].
      values: Float [B, N], expected return after the last thought.
      stop_probabilities: Float [B, N, T + 1], at h_0 ... h_T.
      thoughts: Float [B, N, T, D], embeddings that were fed back.
      active: Bool [B, N], trajectories that exist, if the model chose their number; None if all N exist.
      noise: Float [B, N, T, X], of the actions, times the thoughts' standard deviation before a learned factor; None where
        thoughts do not read earlier actions.
    """

    tokens: Array
    ended: Array
    num_thoughts: Array
    values: Array
    stop_probabilities: Array
    thoughts: Array
    active: Array | None = None
    noise: Array | None = None


@dataclass(frozen=True)
class Decoder:
    """Compiled decoding.

    Attributes:
      max_thoughts: T.
      answer_length: A, including the end token and any written steps.
      max_trajectories: largest number of trajectories that the count head chooses; 0 without a count head.
      coupling: coupling of the noise of a question's trajectories.
      joined: N, trajectories of each answer of a model with `thoughts.join`, which always have N rows; 0 without.
      mesh: mesh of the parameters; its devices share the questions, whose number they must divide. None is one device.
      decoding: the copy of the parameters from which it decodes.
    """

    graphdef: nnx.GraphDef
    layout: Layout
    max_thoughts: int
    answer_length: int
    max_trajectories: int = 0
    coupling: Coupling = "independent"
    joined: int = 0
    mesh: Mesh | None = None
    decoding: Decoding = "replicated"

    def decode(
        self,
        params: Params,
        prompts: tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]],
        bounds: tuple[Int[np.ndarray, "B ..."], Int[np.ndarray, "B ..."]],
        temperatures: Temperatures,
        *,
        indices: Int[np.ndarray, " B"],
        key: Key[Array, ""],
        memory: MemoryBank | None = None,
        num_trajectories: int = 0,
        ensemble: bool = False,
        adaptive: bool = False,
        counts: Int[np.ndarray, " B"] | None = None,
    ) -> Trajectories:
        """N sampled trajectories of each question, or the greedy one for `num_trajectories` 0; a joined answer has N.

        Args:
          prompts: left-padded ids, and their mask.
          bounds: fewest and most thoughts of each question, [B] or [B, N], clipped to T; `pause` mode takes the most.
          temperatures: temperatures of the samples; the greedy trajectory has no noise.
          indices: indices of the questions, which seed their samples together with `key`, independently of the batch.
          ensemble: all trajectories are fed their mean thought and stop by majority.
          adaptive: the count head chooses how many of the N trajectories exist.
          counts: how many exist, given for each question; None is all, or the count head's choice.
        """
        fewest, most = (np.minimum(bound, self.max_thoughts) for bound in bounds)
        fewest, most = (bound if bound.ndim == 2 else bound[:, None] for bound in (fewest, most))
        inputs = self._placed((*prompts, fewest, most, counts, indices))
        return self._decode(params, memory, inputs, temperatures, key, num_trajectories, ensemble, adaptive)

    def decode_given(
        self,
        params: Params,
        prompts: tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]],
        thoughts: Float[Array, "B N T D"] | Float[np.ndarray, "B N T D"],
        num_thoughts: Int[Array, "B N"] | Int[np.ndarray, "B N"],
        counts: Int[np.ndarray, " B"] | None = None,
        roles: Int[np.ndarray, "B N"] | None = None,
        question_hidden: bool = False,
    ) -> Trajectories:
        """One greedy answer per question, which attends to all N trajectories of its given thoughts.

        `counts` is as for `decode`; `roles` are those of the trajectories, None is each one's own. With
        `question_hidden` the answer sees the thoughts alone, as with `config.curriculum.question_hidden`.
        """
        hidden = np.full(len(prompts[0]), question_hidden)
        return self._decode_given(params, *self._placed((*prompts, thoughts, num_thoughts, counts, roles, hidden)))

    @property
    def opening(self) -> tuple[int, ...]:
        return self.layout.joint_opening if self.joined else self.layout.opening

    def _placed(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs if self.mesh is None else place_batch(inputs, self.mesh)

    @cached_property
    def _decode(self) -> Any:
        def decode(params, memory, inputs, temperatures, key, trajectories, ensemble, adaptive):
            prompt, mask, fewest, most, counts, indices = inputs
            reasoner = decoding_reasoner(self.graphdef, *params)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
            greedy, copies = not trajectories, self.joined or max(trajectories, 1)
            if self.layout.mode == "pause":
                pause = reasoner.backbone.embed(jnp.asarray(self.layout.tokenizer.latent))
                thoughts = jnp.broadcast_to(pause, (len(prompt), copies, self.max_thoughts, len(pause)))
                number = jnp.broadcast_to(most, (len(prompt), copies))
                token_keys = None if greedy else jax.vmap(lambda k: jax.random.split(k, copies))(keys)
                sampling = temperatures.token, token_keys
                return self._from_thoughts(reasoner, (prompt, mask), thoughts, number, sampling, counts)
            shape = RolloutShape(
                copies,
                self.max_thoughts,
                self.answer_length,
                self.opening,
                self.layout.tokenizer.ends,
                ensemble=ensemble,
                coupling=self.coupling,
                adaptive=adaptive,
                text_end=self.layout.text_end,
            )
            lengths = Lengths(fewest, most, counts)
            rollout, scores = sample_rollout(reasoner, prompt, mask, memory, lengths, temperatures, keys, shape, greedy)
            return Trajectories(
                tokens=rollout.tokens,
                ended=rollout.ended,
                num_thoughts=rollout.num_thoughts,
                values=at_last_thought(scores.thoughts.values, rollout.num_thoughts),
                stop_probabilities=jax.nn.sigmoid(scores.thoughts.stop_logits),
                thoughts=rollout.embeddings,
                active=rollout.active,
                noise=rollout.noise * rollout.thought_std if reasoner.navigator.config.reads_history else None,
            )

        return decoding_jit(decode, self.mesh, self.decoding, static_argnums=(5, 6, 7))

    @cached_property
    def _decode_given(self) -> Any:
        def decode(params, prompt, mask, thoughts, num_thoughts, counts, roles, hidden):
            reasoner = decoding_reasoner(self.graphdef, *params)
            given = thoughts, num_thoughts, (jnp.ones(()), None), counts, roles, hidden
            return self._from_thoughts(reasoner, (prompt, mask), *given, join=True)

        return decoding_jit(decode, self.mesh, self.decoding)

    def _from_thoughts(
        self, reasoner, prompts, embeddings, num_thoughts, sampling, counts, roles=None, hidden=None, join=False
    ) -> Trajectories:
        """`sampling` is the temperature and keys of tokens; the others are as for `decode` and `decode_given`."""
        shape = num_thoughts.shape
        active = None if counts is None else active_trajectories(counts, shape[1])
        if active is not None:  # a joined answer would read thoughts of trajectories that do not exist
            num_thoughts = jnp.where(active, num_thoughts, 0)
        encoded = begin_trajectories(reasoner, encode(reasoner, *prompts), shape[1], active, roles)
        embeddings = embeddings.astype(reasoner.backbone.compute_dtype)
        thoughts = think_given(reasoner, encoded, embeddings, num_thoughts)
        if hidden is not None:
            encoded = encoded.without_question(hidden)
        decoding = self.opening, self.layout.tokenizer.ends, self.answer_length, *sampling
        if self.joined:
            joint = {"text_end": self.layout.text_end, "active": active}
            answers = decode_jointly(reasoner, encoded, thoughts, *decoding, **joint)
        else:
            continued = join_trajectories(encoded, thoughts) if join else (encoded, thoughts)
            answers = decode_answers(reasoner, *continued, *decoding)
        return Trajectories(
            tokens=answers.tokens,
            ended=answers.ended,
            num_thoughts=thoughts.num_thoughts,
            values=reasoner.navigator.value(thoughts.last_hidden),
            stop_probabilities=jax.nn.sigmoid(reasoner.navigator.stop_logit(thoughts.hidden)),
            thoughts=thoughts.embeddings,
            active=active,
        )


def full_batches(count: int, size: int) -> Iterator[tuple[Int[np.ndarray, " B"], int]]:
    """Row indices in batches of one size, and the number of real rows of each; the last batch repeats the last row."""
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1).astype(np.int32), min(size, count - start)
