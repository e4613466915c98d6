"""The public API: load a model, generate answers, evaluate it, compute its logits."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from longshot_jax.checkpoints.checkpoint import Which
from longshot_jax.checkpoints.pretrained import LOST_SIDECAR, Pretrained, load_pretrained
from longshot_jax.config.curriculum import has_thoughts
from longshot_jax.data.layout import Layout
from longshot_jax.data.own import Grade, by_problem, checked_grade
from longshot_jax.data.problems import Problem, checked_problem
from longshot_jax.errors import UserError, shown, whole_argument
from longshot_jax.evaluation.accuracy import evaluate
from longshot_jax.evaluation.batches import UNFINISHED, Decoded, answer_texts
from longshot_jax.evaluation.decoder import Decoder
from longshot_jax.evaluation.fusion_accuracy import choose
from longshot_jax.evaluation.lens import Lens, ThoughtReading
from longshot_jax.thoughts.coconut import fill_thoughts
from longshot_jax.thoughts.fusion import CHOOSING
from longshot_jax.thoughts.stopping import ThoughtRule

_MOST = 2**20  # of thoughts, trajectories, questions of a batch and tokens of an answer


@dataclass(frozen=True)
class Trajectory:
    """Thoughts and answer of one trajectory.

    Attributes:
      finished: whether the answer has its end token, and is not cut off at `answer_length`.
      value: expected return after the last thought, in units of reward; 0 before PPO.
      thoughts, thought_norms: number of thoughts and the Euclidean norm of each.
      stop_probabilities: probability of stopping before each thought and after the last one.
      lens: nearest tokens, norm, stop probability, value and memory reads of each thought (`evaluation.lens`).
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
    """Answer and trajectories of a question.

    Attributes:
      answer: answer of the only trajectory, or of the fusion.
      chosen: index of the trajectory with the answer; None if the fusion decoded it (`attend`, `mean`).
    """

    question: str
    answer: str
    chosen: int | None
    trajectories: tuple[Trajectory, ...]


@dataclass
class LongShot:
    """A language model with continuous thoughts; made by `from_pretrained`.

    Attributes:
      model: structure, parameters, and the settings of its training that generation uses.
      latent_token_id: id of the positions that `logits` fills with thoughts; None fills none.
    """

    model: Pretrained
    latent_token_id: int | None = None
    _decoders: dict[tuple[Layout, int, int], Decoder] = field(default_factory=dict, repr=False)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, latent_token_id: int | None = None, *, which: Which | None = None, dtype: Any = None
    ) -> "LongShot":
        """Loads the run folder or Hugging Face Llama directory `path`.

        Args:
          latent_token_id: id of a thought in `logits`; None is the tokenizer's, if there is a tokenizer.
          which: checkpoint of the run: `best`, `latest` or a step; None is the best, or the latest if there is no best.
          dtype: `float32` or `bfloat16` for a Hugging Face directory, by name, short name (`fp32`, `bf16`) or as a dtype.
            None: that of the exported run's computation; without a run, bfloat16 on an accelerator and float32 on a CPU.
            A run folder has its own.

        Raises:
          UserError: the folder cannot be read, the id has no row in the embedding, or the dtype is another.
        """
        model = load_pretrained(path, which, dtype)
        # In mode `pause` the embedding of the latent token itself replaces the thoughts.
        if latent_token_id is None and model.layout is not None and model.layout.mode != "pause":
            latent_token_id = model.layout.tokenizer.latent
        rows = model.backbone.vocab_size
        if latent_token_id is not None:
            latent_token_id = whole_argument("latent_token_id", latent_token_id, 0, 2**63)
        if latent_token_id is not None and latent_token_id >= rows:
            raise UserError(
                f"latent_token_id {latent_token_id} is not a token of {path}: give one from 0 to {rows - 1}."
            )
        return cls(model, latent_token_id)

    def generate(
        self,
        question: str | Sequence[str],
        num_trajectories: int | str = 1,
        return_all_trajectories: bool = False,
        *,
        thoughts: Literal["own", "fixed"] | int | None = None,
        answer_length: int | None = None,
        seed: int = 0,
        fusion: str = "vote",
    ) -> Any:
        """Answers a question, or a batch of questions; a model that was not trained here answers with its whole text.

        Args:
          question: a text, or a list of texts, which returns a list.
          num_trajectories: 1 decodes greedily, where a joined answer has as many as the model chooses; more are sampled and
            fused, or joined where that is the number of training. `own`: the model chooses the number, if PPO trained it to.
          return_all_trajectories: return a `Generation` instead of the text of the answer.
          thoughts: number of thoughts, `own` (the stop head decides) or `fixed` (the largest of training), after which the answer follows at once. None: the stop head decides where
            PPO or the curriculum trained it; after another curriculum, the largest number of its stage. After a curriculum
            the remaining steps are then written. A model that was not trained here has no thoughts.
          answer_length: largest number of tokens of an answer; None is that of training.
          seed: seed of the samples.
          fusion: `vote` (ties by value), `weighted` (vote weighted by value), `best` (largest value), `attend` (decodes
            an answer that attends to all thoughts) or `mean` (feeds back the mean thought of all trajectories).

        Raises:
          UserError: an argument is of another kind or out of range, a question is empty or too long, there is no tokenizer, or the
            model cannot have thoughts.
        """
        try:
            questions: list[Any] = [question] if isinstance(question, str) else list(question)
        except TypeError:  # no list of any kind
            questions = [question]
        if not all(isinstance(text, str) for text in questions):
            raise UserError(f"the question is {shown(question)}: give a text, or a list of texts.")
        if not all(text.strip() for text in questions):
            raise UserError("the question is empty: ask one.")
        if not (isinstance(num_trajectories, str) and num_trajectories == "own"):
            num_trajectories = whole_argument("num_trajectories", num_trajectories, 1, _MOST, " or 'own'")
        if answer_length is not None:
            answer_length = whole_argument("answer_length", answer_length, 1, _MOST)
        seed = whole_argument("seed", seed, 0, 2**63)
        adaptive = isinstance(num_trajectories, str)
        if adaptive and not self.model.max_trajectories:
            raise UserError(
                "num_trajectories is 'own', but this model does not choose their number: give a number, or train it "
                "with config.thoughts.max_trajectories."
            )
        number: int = self.model.max_trajectories if adaptive else num_trajectories  # pyright: ignore[reportAssignmentType]
        # A greedy joined answer has as many trajectories as the model chooses, as in an evaluation.
        adaptive = adaptive or bool(self.model.joined and self.model.max_trajectories and number == 1)
        if fusion not in (*CHOOSING, "attend", "mean"):
            raise UserError(f"fusion is {shown(fusion)}: it may be {', '.join(CHOOSING)}, attend or mean.")
        if self.model.joined and fusion != "vote":
            raise UserError(
                f"fusion {fusion!r} is of several answers, and this model joins its trajectories: leave it out."
            )
        if self.model.joined and number not in (1, self.model.joined):
            raise UserError(
                f"num_trajectories is {number}, and an answer of this model joins {self.model.joined}: give that number, which "
                "samples them, or 1 for the greedy answer."
            )
        if not questions:
            return []
        rule, steps_written = self._rule(thoughts)
        problems = [Problem(text, (), "?") for text in questions]
        decoder = self._decoder(rule, answer_length, steps_written)
        prompts = decoder.layout.prompts(problems)
        decoded = jax.device_get(
            decoder.decode(
                self.model.params,
                prompts,
                rule.bounds(problems, decoder.layout, decoder.joined),
                self.model.temperatures,
                indices=np.arange(len(problems), dtype=np.int32),
                key=jax.random.key(seed),
                memory=self.model.memory,
                num_trajectories=0 if number == 1 else number,
                ensemble=fusion == "mean",
                adaptive=adaptive,
            )
        )
        anew, whole = None, self.model.source["mode"] == "plain"
        if fusion in ("attend", "mean") and number > 1:
            read = slice(None) if fusion == "attend" else slice(1)  # all trajectories have the mean thoughts
            given = decoded.thoughts[:, read], decoded.num_thoughts[:, read]
            counts = decoded.active.sum(axis=1, dtype=np.int32) if adaptive and fusion == "attend" else None
            joint = jax.device_get(decoder.decode_given(self.model.params, prompts, *given, counts))
            anew = [row[0] for row in answer_texts(joint.tokens, decoder.layout, whole)]
        texts = answer_texts(decoded.tokens, decoder.layout, whole)
        if adaptive:
            texts = [row[: sum(here)] for row, here in zip(texts, decoded.active, strict=True)]
        readings = None
        if return_all_trajectories and decoder.max_thoughts:
            readings = self._lens(self.model.params, prompts, decoded, self.model.memory)
        norms = np.linalg.norm(decoded.thoughts.astype(np.float32), axis=-1)
        generations = []
        for row, answers in enumerate(texts):
            trajectories = tuple(
                _trajectory(decoded, norms, row, column, answer, readings[row][column] if readings else ())
                for column, answer in enumerate(answers)
            )
            if anew is not None:
                chosen, answer = None, anew[row].removesuffix(UNFINISHED)
            else:
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
        grade: Grade = by_problem,
        decoded: Decoded | None = None,
    ) -> dict[str, Any]:
        """Accuracy and, with `controls`, its controls: the content of `results.json`.

        A model that was trained with `config.curriculum.question_hidden` also answers from its thoughts alone.

        Args:
          num_trajectories: N of the sampled accuracy and of every fusion.
          thoughts: a number, `fixed` (the largest of training), `steps` (`c_thought` per step of the problem, or one per
            token of the steps where that is 0), or `own` (the stop head decides), after which the answer follows at once.
            None is as in training: after PPO `own`, after a supervised phase the thoughts of its stage with the remaining steps written, as evaluated there.
          batch_size: questions per batch; does not affect the results.
          seed: seed of the samples.
          grade: gives 1 for a problem and the text of a right answer, and less for a wrong one.
          decoded: called before each pass over the problems and after each of its batches, with the pass's name, the number
            of problems it has decoded, and that of all.

        Raises:
          UserError: an argument is of another kind or out of range, or a problem is too long.
        """
        if not isinstance(problems, Sequence) or not len(problems) or not isinstance(problems[0], Problem):
            raise UserError(f"problems are {shown(problems)}: give at least one, such as those of load_problems(path).")
        problems = [checked_problem(f"problem {place + 1}", problems[place]) for place in range(len(problems))]
        if not callable(grade):
            raise UserError(f"grade is {shown(grade)}: give a function of a problem and the text of an answer.")
        num_trajectories = whole_argument("num_trajectories", num_trajectories, 0, _MOST)
        batch_size, seed = whole_argument("batch_size", batch_size, 1, _MOST), whole_argument("seed", seed, 0, 2**63)
        (rule, steps_written), temperatures = self._rule(thoughts, known_steps=True), self.model.temperatures
        results = evaluate(
            self._decoder(rule, None, steps_written),
            self.model.params,
            problems,
            rule,
            temperatures=temperatures,
            memory=self.model.memory,
            num_trajectories=num_trajectories,
            batch_size=min(batch_size, len(problems)),
            seed=seed,
            controls=controls,
            question_hidden=controls and self.model.question_hidden,
            grade=lambda problem, text: checked_grade("grade", grade(problem, text), f" for {shown(text, 40)}"),
            decoded=decoded,
        )
        results["config"] = {
            "seed": seed,
            "num_trajectories": num_trajectories,
            "sigma": self.model.sigma,
            "thought_std": float(temperatures.thought_std),
            "stop_temperature": float(temperatures.stop),
            "token_temperature": float(temperatures.token),
            "thoughts": vars(rule),
            "thoughts_asked": int(thoughts) if isinstance(thoughts, Integral) else thoughts,
            "steps_written": steps_written,
            **self.model.source,
        }
        return results

    def logits(self, token_ids: Any, attention_mask: Any = None) -> Float[np.ndarray, "B S V"]:
        """Next-token logits of the whole sequence, with thoughts at the positions of the latent token.

        COCONUT's published procedure, exact for any positions: from left to right, each thought is computed from the
        hidden state before it, without noise.

        Args:
          token_ids: Int [B, S].
          attention_mask: [B, S], nonzero on real positions; None is all. Logits of padding, on any side, are undefined.

        Raises:
          UserError: an id has no row in the embedding, the shapes do not fit, or a row starts with a latent token.
        """
        try:
            tokens = np.asarray(token_ids)
            mask = np.ones(tokens.shape, bool) if attention_mask is None else np.asarray(attention_mask) != 0
        except ValueError:  # rows of several lengths
            raise UserError(
                "token_ids and attention_mask must have the shape [B, S]: pad shorter rows, with an attention_mask."
            ) from None
        if tokens.ndim != 2 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
            raise UserError(f"token_ids must be whole numbers of shape [B, S], not {tokens.dtype}{list(tokens.shape)}.")
        if mask.shape != tokens.shape:
            raise UserError(f"attention_mask has shape {list(mask.shape)}, but token_ids {list(tokens.shape)}.")
        rows = self.model.backbone.vocab_size
        unknown = tokens[mask & ((tokens < 0) | (tokens >= rows))]
        if unknown.size:
            raise UserError(f"token id {unknown[0]} is unknown: the model has the ids 0 to {rows - 1}.")
        tokens = np.where(mask, tokens, 0).astype(np.int32)
        latent = mask & (tokens == self.latent_token_id) if self.latent_token_id is not None else np.zeros_like(mask)
        if (latent & (mask.cumsum(axis=1) == 1)).any():
            raise UserError("a row starts with the latent token, but a thought needs a position before it.")
        # By default some accelerators round the factors of float32 products.
        with jax.default_matmul_precision("highest"):
            return np.asarray(self._logits(self.model.params, self.model.memory, tokens, mask, latent))

    @cached_property
    def _logits(self) -> Any:
        @jax.jit
        def logits(params, memory, tokens, mask, latent):
            reasoner = nnx.merge(self.model.graphdef, *params)
            return reasoner.backbone.logits(fill_thoughts(reasoner, tokens, mask, latent, memory)[1])

        return logits

    @cached_property
    def _lens(self) -> Lens:
        return Lens(self.model.graphdef, self._layout().tokenizer)

    def _layout(self) -> Layout:
        if self.model.layout is None:
            raise UserError("this model has no tokenizer, so it reads no text: put one into its folder.")
        return self.model.layout

    def _rule(self, thoughts: Any, known_steps: bool = False) -> tuple[ThoughtRule, bool]:
        """The requested number of thoughts, or that of training, and whether steps may be written after them."""
        trained = self.model.rule
        words = ("own", "steps", "fixed") if known_steps else ("own", "fixed")  # of a question alone no steps are known
        named = isinstance(thoughts, str) and thoughts in words
        if not (thoughts is None or named or isinstance(thoughts, Integral)):
            raise UserError(f"thoughts is {shown(thoughts)}: it must be a whole number, or one of {', '.join(words)}.")
        if thoughts and self.model.lost_sidecar:
            raise UserError(f"{LOST_SIDECAR}, or leave the number of thoughts out.")
        if isinstance(thoughts, Integral):
            thoughts = whole_argument("thoughts", thoughts, 0, _MOST)
            trained_here = self.model.source["mode"] != "plain"
            if thoughts and trained_here and not has_thoughts(self._layout().mode):
                raise UserError(f"a model of mode {self._layout().mode!r} has no thoughts: leave their number out.")
            return ThoughtRule("fixed", thoughts), False
        if thoughts == "own" and not trained.stops:
            raise UserError(
                f"thoughts is 'own', but the stop head of this model was never trained: take {' or '.join(words[1:])} or a "
                "number, or train the head with config.curriculum.guidance.stop or PPO."
            )
        if named:
            return replace(trained, kind=thoughts), False
        if self.model.stage_rule is not None:
            trained = self.model.stage_rule
        # The number of steps of a bare question is unknown.
        bare = "own" if trained.stops else "fixed"
        rule = trained if known_steps or trained.kind != "steps" else replace(trained, kind=bare)
        return rule, self.model.stage_rule is not None

    def _decoder(self, rule: ThoughtRule, answer_length: int | None, steps_written: bool = False) -> Decoder:
        """Caches decoders, to reuse their compiled programs."""
        layout = replace(self._layout(), steps_written=steps_written)
        if rule.max_thoughts and self.model.source["mode"] == "plain":
            layout = replace(layout, mode="coconut")
        slots = max(self.model.max_thoughts, rule.max_thoughts) if rule.max_thoughts else 0
        key = layout, slots, self.model.answer_length if answer_length is None else answer_length
        if key not in self._decoders:
            own = self.model.max_trajectories, self.model.coupling, self.model.joined
            self._decoders[key] = Decoder(self.model.graphdef, *key, *own)
        return self._decoders[key]


def _trajectory(
    decoded: Any, norms: np.ndarray, row: int, column: int, answer: str, lens: tuple[ThoughtReading, ...]
) -> Trajectory:
    count = int(decoded.num_thoughts[row, column])
    return Trajectory(
        answer=answer.removesuffix(UNFINISHED),
        finished=bool(decoded.ended[row, column]),
        value=float(decoded.values[row, column]),
        thoughts=count,
        thought_norms=tuple(norms[row, column, :count].tolist()),
        stop_probabilities=tuple(decoded.stop_probabilities[row, column, : count + 1].tolist()),
        lens=lens,
    )
