"""The public face: load a model, ask it, evaluate it, read its logits."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from longshot_jax.data.examples import Layout, has_thoughts
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.evaluation.accuracy import evaluate
from longshot_jax.evaluation.batches import UNFINISHED, answer_texts
from longshot_jax.evaluation.decoding import Decoder, ThoughtRule
from longshot_jax.evaluation.fusions import CHOOSING, choose
from longshot_jax.evaluation.lens import Lens, ThoughtReading
from longshot_jax.pretrained import Pretrained, load_pretrained
from longshot_jax.thoughts.fill import fill_thoughts
from longshot_jax.training.checkpoint import Which


@dataclass(frozen=True)
class Trajectory:
    """One way to an answer.

    Attributes:
      answer: its text.
      finished: whether the answer has its end token, instead of running into `answer_length`.
      value: expected return after the last thought, in units of reward; 0 before PPO.
      thoughts: number of thoughts taken.
      thought_norms: Euclidean norm of each thought that was fed back.
      stop_probabilities: of stopping before each thought and after the last one.
      lens: each thought's nearest tokens, norm, stop probability, value and memory reads (`evaluation.lens`).
    """

    answer: str
    finished: bool
    value: float
    thoughts: int
    thought_norms: tuple[float, ...]
    stop_probabilities: tuple[float, ...]
    lens: tuple[ThoughtReading, ...]


@dataclass(frozen=True)
class Generation:
    """All trajectories of a question.

    Attributes:
      question: as asked.
      answer: the only trajectory's, or what the fusion made of all.
      chosen: index of the trajectory that it is from; None where it was decoded anew (`attend`, `mean`).
      trajectories: all of them.
    """

    question: str
    answer: str
    chosen: int | None
    trajectories: tuple[Trajectory, ...]


@dataclass
class LongShot:
    """A model that thinks before it answers; made by `from_pretrained`.

    Attributes:
      model: structure, weights and how it was trained to be asked.
      latent_token_id: the id whose positions `logits` fills with thoughts; None fills none.
    """

    model: Pretrained
    latent_token_id: int | None = None
    _decoders: dict[tuple[Layout, int, int], Decoder] = field(default_factory=dict, repr=False)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        latent_token_id: int | None = None,
        *,
        which: Which | None = None,
        dtype: Literal["float32", "bfloat16"] | None = None,
    ) -> "LongShot":
        """Loads a run folder (its best checkpoint, else its newest) or a Hugging Face Llama directory.

        Args:
          path: the folder.
          latent_token_id: stands for a thought in `logits`; by default the tokenizer's. A directory without a
            tokenizer has no other.
          which: another checkpoint of the run: `best`, `latest` or a step.
          dtype: for a Hugging Face directory, float32 by default; a run, exported or not, has its own.

        Raises:
          UserError: the folder cannot be read, or the id has no row in the embedding.
        """
        model = load_pretrained(path, which, dtype)
        # A pause is the latent token's own embedding: there is nothing to fill.
        if latent_token_id is None and model.layout is not None and model.layout.mode != "pause":
            latent_token_id = model.layout.tokens.latent
        if latent_token_id is not None and not 0 <= latent_token_id < model.llama.vocab_size:
            raise UserError(
                f"latent_token_id {latent_token_id} is no token of {path}: give one from 0 to {model.llama.vocab_size - 1}."
            )
        return cls(model, latent_token_id)

    def generate(
        self,
        question: str | Sequence[str],
        num_trajectories: int | Literal["own"] = 1,
        return_all_trajectories: bool = False,
        *,
        thoughts: int | None = None,
        answer_length: int | None = None,
        seed: int = 0,
        fusion: str = "vote",
    ) -> Any:
        """Answers a question, or several in one batch.

        Args:
          question: its text, or a list of texts.
          num_trajectories: 1 is greedy; more are sampled, and `fusion` makes one answer of theirs. `own`: as many
            as the model chooses for the question, where PPO taught it to.
          return_all_trajectories: a `Generation` with every trajectory instead of the answer's text.
          thoughts: take exactly so many. By default the model stops by itself if PPO taught it to, and takes the
            most that its curriculum had if not; a Llama that was not trained here takes none.
          answer_length: most tokens of an answer; by default as in training.
          seed: of the samples.
          fusion: `vote` (ties by value), `weighted` by value, `best` value; `attend`: one more answer that attends
            to the thoughts of all; `mean`: all are fed their mean thought, and the answer is read from that.

        Returns:
          The answer, or the `Generation`; a list of them for a list of questions.

        Raises:
          UserError: a question is empty or too long, there is no tokenizer, or the model cannot have thoughts.
        """
        questions = [question] if isinstance(question, str) else list(question)
        for text in questions:
            if not text.strip():
                raise UserError("the question is empty: ask one.")
        adaptive = num_trajectories == "own"
        if adaptive and not self.model.max_trajectories:
            raise UserError(
                "num_trajectories is 'own', but this model does not choose their number: give a number, or train it "
                "with config.thoughts.max_trajectories."
            )
        number = self.model.max_trajectories if num_trajectories == "own" else num_trajectories
        if number < 1:
            raise UserError(f"num_trajectories is {num_trajectories}: it must be at least 1.")
        if answer_length is not None and answer_length < 1:
            raise UserError(f"answer_length is {answer_length}: it must be at least 1.")
        if fusion not in (*CHOOSING, "attend", "mean"):
            raise UserError(f"fusion is {fusion!r}: it may be {', '.join(CHOOSING)}, attend or mean.")
        if not questions:
            return []
        rule = self._rule(thoughts)
        problems = [Problem(text, (), "?") for text in questions]
        decoder = self._decoder(rule, answer_length)
        prompts = decoder.layout.prompts(problems)
        decoded = jax.device_get(
            decoder.decode(
                self.model.weights,
                prompts,
                rule.bounds(problems),
                self.model.temperatures,
                indices=np.arange(len(problems), dtype=np.int32),
                key=jax.random.key(seed),
                memory=self.model.memory,
                num_trajectories=0 if number == 1 else number,
                together=fusion == "mean",
                adaptive=adaptive,
            )
        )
        anew = None
        if fusion in ("attend", "mean") and number > 1:
            read = slice(None) if fusion == "attend" else slice(1)  # the mean is the same in all
            given = decoded.thoughts[:, read], decoded.counts[:, read]
            joint = jax.device_get(decoder.decode_given(self.model.weights, prompts, *given))
            anew = [row[0] for row in answer_texts(joint.tokens, decoder.layout)]
        texts = answer_texts(decoded.tokens, decoder.layout)
        if adaptive:
            texts = [row[: sum(here)] for row, here in zip(texts, decoded.exists, strict=True)]
        readings = None
        if return_all_trajectories and decoder.max_thoughts:
            readings = self._lens(self.model.weights, prompts, decoded, self.model.memory)
        norms = np.linalg.norm(decoded.thoughts.astype(np.float32), axis=-1)
        generations = []
        for row, answers in enumerate(texts):
            trajectories = tuple(
                _trajectory(decoded, norms, row, column, answer, readings[row][column] if readings else ())
                for column, answer in enumerate(answers)
            )
            if anew is not None:
                answer = anew[row].removesuffix(UNFINISHED)
                generations.append(Generation(questions[row], answer, None, trajectories))
                continue
            chosen = choose(fusion, answers, decoded.values[row][: len(answers)]) if len(answers) > 1 else 0
            answer = trajectories[chosen].answer
            generations.append(Generation(questions[row], answer, chosen, trajectories))
        results = generations if return_all_trajectories else [each.answer for each in generations]
        return results[0] if isinstance(question, str) else results

    def evaluate(
        self,
        problems: Sequence[Problem],
        *,
        num_trajectories: int = 5,
        thoughts: Literal["own", "steps", "fixed"] | int | None = None,
        batch_size: int = 128,
        seed: int = 0,
        controls: bool = True,
    ) -> dict[str, Any]:
        """Accuracy with its controls: `results.json`.

        Args:
          problems: at least one.
          num_trajectories: N of the sampled accuracy and of every fusion.
          thoughts: `own` stopping, as many as there are `steps`, a `fixed` number: the most of training, or that
            many; None is as in training.
          batch_size: questions at once; changes no number.
          seed: of samples.
          controls: whether to run them.
        """
        if not len(problems) or batch_size < 1 or num_trajectories < 0:
            raise UserError(
                f"{len(problems)} problems in batches of {batch_size} with {num_trajectories} trajectories: there must be "
                "at least one problem, a batch_size of 1 and 0 trajectories."
            )
        rule = self._rule(thoughts, known_steps=True)
        results = evaluate(
            self._decoder(rule, None),
            self.model.weights,
            problems,
            rule,
            temperatures=self.model.temperatures,
            memory=self.model.memory,
            num_trajectories=num_trajectories,
            batch_size=min(batch_size, len(problems)),
            seed=seed,
            controls=controls,
        )
        temperatures = self.model.temperatures
        results["config"] = {
            "seed": seed,
            "num_trajectories": num_trajectories,
            "sigma": self.model.sigma,
            "thought_std": float(temperatures.std),
            "stop_temperature": float(temperatures.stop),
            "token_temperature": float(temperatures.token),
            "thoughts": vars(rule),
            **self.model.source,
        }
        return results

    def logits(self, token_ids: Any, attention_mask: Any = None) -> Float[np.ndarray, "B S V"]:
        """Next-token logits of the whole sequence; positions that hold the latent token are filled by thoughts.

        COCONUT's published procedure, exact for latent tokens at any positions: thoughts follow one another from
        left to right, each made of the hidden state before it, without noise.

        Args:
          token_ids: int [B, S]. attention_mask: [B, S], nonzero on real positions, by default everywhere; padding
            may stand on both sides, and its logits mean nothing.

        Raises:
          UserError: an id has no row in the embedding, the shapes do not fit, or a latent token comes first.
        """
        tokens = np.asarray(token_ids)
        if tokens.ndim != 2 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
            raise UserError(
                f"token_ids must be whole numbers of shape [B, S], not {tokens.dtype}{list(tokens.shape)}."
            )
        mask = np.ones(tokens.shape, bool) if attention_mask is None else np.asarray(attention_mask) != 0
        if mask.shape != tokens.shape:
            raise UserError(
                f"attention_mask has shape {list(mask.shape)}, but token_ids {list(tokens.shape)}."
            )
        rows = self.model.llama.vocab_size
        unknown = tokens[mask & ((tokens < 0) | (tokens >= rows))]
        if unknown.size:
            raise UserError(f"token id {unknown[0]} is unknown: the model has the ids 0 to {rows - 1}.")
        tokens = np.where(mask, tokens, 0).astype(np.int32)
        latent = (
            mask & (tokens == self.latent_token_id)
            if self.latent_token_id is not None
            else np.zeros_like(mask)
        )
        if (latent & (mask.cumsum(axis=1) == 1)).any():
            raise UserError("a row starts with the latent token, but a thought needs a position before it.")
        # Some accelerators round the factors of float32 products unless told otherwise.
        with jax.default_matmul_precision("highest"):
            return np.asarray(self._logits(self.model.weights, self.model.memory, tokens, mask, latent))

    @cached_property
    def _logits(self) -> Any:
        @jax.jit
        def logits(weights, memory, tokens, mask, latent):
            reasoner = nnx.merge(self.model.graph, *weights)
            return reasoner.llama.logits(fill_thoughts(reasoner, tokens, mask, latent, memory)[1])

        return logits

    @cached_property
    def _lens(self) -> Lens:
        return Lens(self.model.graph, self._layout().tokens)

    def _layout(self) -> Layout:
        if self.model.layout is None:
            raise UserError("this model has no tokenizer, so it reads no text: put one into its folder.")
        return self.model.layout

    def _rule(self, thoughts: str | int | None, known_steps: bool = False) -> ThoughtRule:
        """The number of thoughts asked for, or that of training."""
        trained = self.model.rule
        if isinstance(thoughts, int):
            if thoughts < 0:
                raise UserError(f"the number of thoughts is {thoughts}: it cannot be negative.")
            trained_here = self.model.source["mode"] != "plain"
            if thoughts and trained_here and not has_thoughts(self._layout().mode):
                raise UserError(
                    f"a model of mode {self._layout().mode!r} has no thoughts: leave their number out."
                )
            return ThoughtRule("fixed", thoughts)
        if thoughts in ("own", "steps", "fixed"):
            return replace(trained, kind=thoughts)
        if thoughts is not None:
            raise UserError(f"thoughts is {thoughts!r}: it must be a number, 'own', 'steps' or 'fixed'.")
        # A question that comes alone does not say how many steps it takes.
        return trained if known_steps or trained.kind != "steps" else replace(trained, kind="fixed")

    def _decoder(self, rule: ThoughtRule, answer_length: int | None) -> Decoder:
        """Kept, so that what was compiled is used again."""
        layout = self._layout()
        if rule.most and self.model.source["mode"] == "plain":
            layout = replace(layout, mode="coconut")
        slots = max(self.model.max_thoughts, rule.most) if rule.most else 0
        key = layout, slots, self.model.answer_length if answer_length is None else answer_length
        if key not in self._decoders:
            self._decoders[key] = Decoder(
                self.model.graph, *key, self.model.max_trajectories, self.model.coupling
            )
        return self._decoders[key]


def _trajectory(
    decoded: Any, norms: np.ndarray, row: int, column: int, answer: str, lens: tuple[ThoughtReading, ...]
) -> Trajectory:
    count = int(decoded.counts[row, column])
    return Trajectory(
        answer=answer.removesuffix(UNFINISHED),
        finished=bool(decoded.ended[row, column]),
        value=float(decoded.values[row, column]),
        thoughts=count,
        thought_norms=tuple(norms[row, column, :count].tolist()),
        stop_probabilities=tuple(decoded.stop_probabilities[row, column, : count + 1].tolist()),
        lens=lens,
    )
