"""Problems as token ids around the thoughts, in one of two layouts (`markers`).

- `coconut`, as published: question `<|start-latent|>` thoughts `<|end-latent|>` remaining steps `### ` answer. Modes
  without thoughts (`cot`, `no_cot`, `no_thoughts`) have no markers.
- `answer`: question thoughts remaining steps `<|end-latent|>` answer. The last position before the thoughts predicts
  the first step in every stage, which lets small models trained from scratch pass from stage to stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
from jaxtyping import Bool, Int

from longshot_jax.config.curriculum import Mode, has_thoughts
from longshot_jax.config.run import Markers
from longshot_jax.data.equation_graph import parallel_steps
from longshot_jax.data.problems import Problem
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError

_ANSWER_MARK = "###"


class TooLong(UserError):
    """A prompt, or steps and an answer (`what`), with more tokens than there is room for: `needed`."""

    def __init__(self, sentence: str, what: str, needed: int):
        super().__init__(sentence)
        self.what, self.needed = what, needed


@dataclass(frozen=True)
class Layout:
    """Conversion of problems to token ids.

    Attributes:
      tokenizer, mode: the run's tokenizer and curriculum mode. markers: the layout, see the module's docstring.
      prompt_length: largest number of tokens of a prompt, a multiple of `bucket`.
      bucket: each batch of prompts is padded to the next multiple of this, which bounds the number of compiled shapes;
        0 pads to `prompt_length`.
      instruction: a line after every question; may be empty.
      steps_written: whether the model may write steps between its thoughts and its answer, as in the supervised phases.
      limit: what sets `prompt_length`, for errors.
    """

    tokenizer: Tokenizer
    markers: Markers
    mode: Mode
    prompt_length: int
    bucket: int = 0
    instruction: str = ""
    steps_written: bool = False
    limit: str = "config.data.prompt_length"

    @property
    def closing(self) -> tuple[int, ...]:
        """The marker after the thoughts, which is never predicted; remaining steps or the answer follow."""
        return (self.tokenizer.end_latent,) if self.markers == "coconut" and has_thoughts(self.mode) else ()

    @property
    def opening(self) -> tuple[int, ...]:
        """Tokens forced between the last thought and a generated answer, so that no text steps are generated.

        With COCONUT's markers they end in `###`; otherwise an instruct model, or one that stops before its steps are
        done, would reason in text. Where steps may be written, only what stands before them is forced.
        """
        if self.steps_written:
            return self.closing
        if self.markers == "coconut":
            return (*self.closing, *self.tokenizer.encode(_ANSWER_MARK)) if self.closing else ()
        return () if self.mode == "cot" else (self.tokenizer.end_latent,)

    @property
    def joint_opening(self) -> tuple[int, ...]:
        """`opening` of a joined answer; where steps may be written, each trajectory writes its own before it."""
        return replace(self, steps_written=False).opening

    @property
    def text_end(self) -> int | None:
        """The token that ends the steps that a trajectory of a joined answer writes; None where it writes none."""
        return self.tokenizer.end_latent if self.steps_written else None

    def question(self, problem: Problem) -> list[int]:
        """Ids of the prompt; a UserError if there are more than `prompt_length`."""
        parts = [problem.question, self.instruction] if self.instruction else [problem.question]
        ids = self.tokenizer.encode_question("\n".join(parts))
        if self.closing:
            ids = [*ids, self.tokenizer.start_latent]
        if len(ids) > self.prompt_length:
            raise TooLong(
                f"a prompt has {len(ids)} tokens but {self.limit} is {self.prompt_length}: "
                f"{'raise it, or ' * self.limit.startswith('config.')}shorten or remove the question {problem.question[:60]!r}.",
                "prompt",
                len(ids),
            )
        return ids

    def step(self, text: str) -> list[int]:
        """Ids of one reasoning step in text."""
        return self.tokenizer.encode(text + "\n")

    def token_thoughts(self, steps: Sequence[str], most: int) -> tuple[int, int]:
        """How many steps, from the first, fit whole into `most` thoughts of one token each, and their thoughts."""
        fitting, thoughts = 0, 0
        for text in steps:
            longer = thoughts + len(self.step(text))
            if longer > most:
                break
            fitting, thoughts = fitting + 1, longer
        return fitting, thoughts

    def answer(self, problem: Problem, joined: int = 0) -> list[int]:
        """Ids of the answer between its introducing marker and the end token.

        `joined` is the number of trajectories of a joined answer, 0 for any other. A joined answer begins with the problem's
        joint steps, except in mode `no_cot`, for which the layout of a phase has the phase's mode.
        """
        if self.markers == "coconut":
            return [*self.tokenizer.encode(f"{_ANSWER_MARK} {problem.answer}"), self.tokenizer.end]
        marker, joint = self.tokenizer.end_latent, ()
        if joined and self.mode != "no_cot":
            joint = parallel_steps(problem, joined).joint
        steps = [*(token for step in joint for token in self.step(step)), marker] if joint else []
        return [marker, *steps, *self.tokenizer.encode(problem.answer), self.tokenizer.end]

    def answer_start(self, answer: Sequence[int]) -> int:
        """Index in the ids of `answer`, of no joint steps, of the first token with a part of the answer's text."""
        if self.markers != "coconut":
            return 1
        # The space before the answer is a token of its own, or the beginning of the answer's first one.
        with_space = self.tokenizer.encode(f"{_ANSWER_MARK} ")
        apart = answer[: len(with_space)] == with_space
        return len(with_space if apart else self.tokenizer.encode(_ANSWER_MARK))

    def answer_text(self, ids: Sequence[int]) -> str:
        """Text of a decoded answer up to its first end token; in layout `answer` only after the last `<|end-latent|>`.

        Other special tokens are spelled out: without them `1<|pad|>8` would be graded as 18.
        """
        ids = list(takewhile(lambda id: id not in self.tokenizer.ends, map(int, ids)))
        if self.markers == "answer" and self.tokenizer.end_latent in ids:
            ids = ids[len(ids) - ids[::-1].index(self.tokenizer.end_latent) :]
        return self.tokenizer.decode_literally(ids)

    def written(self, problem: Problem, left_out: int) -> list[int]:
        """Ids after the thoughts that replace the first `left_out` steps: marker, remaining steps, answer."""
        steps = [token for step in problem.steps[left_out:] for token in self.step(step)]
        return [*self.closing, *steps, *self.answer(problem)]

    def prompts(
        self, problems: Sequence[Problem], length: int = 0
    ) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
        """Left-padded prompts and their mask; S is `length`, or 0 for what the longest prompt determines."""
        rows = [self.question(problem) for problem in problems]
        if not length and self.bucket:
            length = -(-max(len(row) for row in rows) // self.bucket) * self.bucket
        length = length or self.prompt_length
        return padded(rows, length, self.tokenizer.pad, left=True)


def padded(
    rows: Sequence[Sequence[int]], length: int, pad: int, left: bool = False
) -> tuple[Int[np.ndarray, "B P"], Bool[np.ndarray, "B P"]]:
    """Ids with padding after them, or before them (`left`), and a mask that is True on real ids."""
    real, places = np.reshape([len(ids) for ids in rows], (-1, 1)), np.arange(length)
    mask = places >= length - real if left else places < real
    table = np.full(mask.shape, pad, np.int32)
    table[mask] = [id for ids in rows for id in ids]
    return table, mask
