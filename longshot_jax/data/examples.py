"""Problems as token ids, laid out around the thoughts.

Two layouts (`markers`):

- `coconut`: question `<|start-latent|>` thoughts `<|end-latent|>` remaining steps `### ` answer. The published one.
- `answer`: question thoughts remaining steps `<|end-latent|>` answer. The last position before the thoughts predicts
  the first step, in every stage, which is what lets small models trained from scratch pass from stage to stage.

Without thoughts (`cot`, `no_cot`, `no_thoughts`) COCONUT's layout has no markers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from longshot_jax.data.problems import Problem
from longshot_jax.data.tokens import Tokens
from longshot_jax.errors import UserError

Markers = Literal["coconut", "answer"]
Mode = Literal["coconut", "cot", "no_cot", "no_thoughts", "pause"]

_ANSWER_MARK = "###"


def has_thoughts(mode: Mode) -> bool:
    """Whether a model of this mode has thought slots at all."""
    return mode in ("coconut", "pause")


@dataclass(frozen=True)
class Layout:
    """How problems become token ids.

    Attributes:
      tokens: the tokenizer.
      markers: see the module's docstring.
      mode: of the curriculum.
      prompt_length: most tokens of a prompt, a multiple of `bucket`.
      bucket: prompts of a batch are padded to the next multiple of this, so that a few shapes serve all batches;
        0 pads every batch to `prompt_length`.
      instruction: follows every question on a line of its own; empty for none.
    """

    tokens: Tokens
    markers: Markers
    mode: Mode
    prompt_length: int
    bucket: int = 0
    instruction: str = ""

    @property
    def closing(self) -> tuple[int, ...]:
        """The marker that closes the thoughts and is never predicted; remaining steps or the answer follow it."""
        return (self.tokens.end_latent,) if self.markers == "coconut" and has_thoughts(self.mode) else ()

    @property
    def opening(self) -> tuple[int, ...]:
        """Tokens that are forced between the last thought and a generated answer: no text steps can come between.

        With COCONUT's markers they end in `###`, so that a model that was never taught to answer at once (an instruct
        model, or one that stops before its steps are done) does so, and cannot go on reasoning in text.
        """
        if self.markers == "coconut":
            return (*self.closing, *self.tokens.encode(_ANSWER_MARK)) if self.closing else ()
        return () if self.mode == "cot" else (self.tokens.end_latent,)

    def question(self, problem: Problem) -> list[int]:
        """Ids of the prompt; a UserError if it is longer than S."""
        parts = [problem.question, self.instruction] if self.instruction else [problem.question]
        ids = self.tokens.encode_question("\n".join(parts))
        if self.closing:
            ids = [*ids, self.tokens.start_latent]
        if len(ids) > self.prompt_length:
            raise UserError(
                f"a prompt has {len(ids)} tokens but config.data.prompt_length is {self.prompt_length}: "
                f"raise it, or remove the question {problem.question[:60]!r}."
            )
        return ids

    def step(self, text: str) -> list[int]:
        """Ids of one reasoning step in text."""
        return self.tokens.encode(text + "\n")

    def answer(self, problem: Problem) -> list[int]:
        """Ids of the answer with what introduces it and its end token."""
        if self.markers == "coconut":
            return [*self.tokens.encode(f"{_ANSWER_MARK} {problem.answer}"), self.tokens.end]
        return [self.tokens.end_latent, *self.tokens.encode(problem.answer), self.tokens.end]

    def answer_text(self, ids: Sequence[int]) -> str:
        """Text of a decoded answer, up to the end token; in layout `answer` what follows the last `<|end-latent|>`.

        Other special tokens are spelled out: dropped, they would let `1<|pad|>8` pass for 18.
        """
        ids = [int(i) for i in ids]
        if self.tokens.end in ids:
            ids = ids[: ids.index(self.tokens.end)]
        if self.markers == "answer" and self.tokens.end_latent in ids:
            ids = ids[len(ids) - ids[::-1].index(self.tokens.end_latent) :]
        return self.tokens.decode_literally(ids)

    def prompts(self, problems: Sequence[Problem]) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
        """Left-padded prompts and their mask; S is the bucket of the longest."""
        rows = [self.question(problem) for problem in problems]
        length = self.prompt_length
        if self.bucket:
            length = -(-max(len(row) for row in rows) // self.bucket) * self.bucket
        return pad_left(rows, length, self.tokens.pad)


def pad_left(
    rows: Sequence[Sequence[int]], length: int, pad: int
) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """Rows of ids moved to the right end of a table; the mask is True on real ids."""
    table = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for row, ids in enumerate(rows):
        if ids:
            table[row, -len(ids) :] = ids
            mask[row, -len(ids) :] = True
    return table, mask


def pad_right(
    rows: Sequence[Sequence[int]], length: int, pad: int
) -> tuple[Int[np.ndarray, "B A"], Bool[np.ndarray, "B A"]]:
    """Rows of ids at the left end of a table; the mask is True on real ids."""
    table = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for row, ids in enumerate(rows):
        table[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    return table, mask
