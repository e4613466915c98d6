"""All problems of an evaluation in batches of one shape, and which of the decoded answers are right."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from longshot_jax.data.answers import extract_answer, same_answer
from longshot_jax.data.examples import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.evaluation.decoding import Decoder, ThoughtRule, Trajectories, Weights, full_batches
from longshot_jax.model.sharding import fetch
from longshot_jax.thoughts.memory import MemoryBank
from longshot_jax.thoughts.rollout import Temperatures

UNFINISHED = " <|unfinished|>"


class Batches:
    """All problems in batches of one shape; results come back without the padding rows, as NumPy."""

    def __init__(
        self,
        decoder: Decoder,
        weights: Weights,
        problems: Sequence[Problem],
        rule: ThoughtRule,
        memory: MemoryBank | None,
        batch_size: int,
        seed: int,
    ):
        self.decoder, self.weights, self.problems, self.memory = decoder, weights, problems, memory
        self.key = jax.random.key(seed)
        self.prompt, self.mask = decoder.layout.prompts(problems)
        self.least, self.most = rule.bounds(problems)
        self.batch_size = batch_size

    def _over(self, decode: Callable[[Int[np.ndarray, " B"]], Trajectories]) -> Any:
        parts = []
        for rows, real in full_batches(len(self.problems), self.batch_size):
            part = fetch(decode(rows))
            parts.append(jax.tree.map(lambda x, real=real: np.asarray(x[:real]), part))
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    def run(
        self,
        temperatures: Temperatures,
        num_trajectories: int = 0,
        together: bool = False,
        adaptive: bool = False,
    ) -> Any:
        """N samples of every problem, or the greedy trajectory for 0: `Trajectories` of NumPy arrays."""
        return self._over(
            lambda rows: self.decoder.decode(
                self.weights,
                (self.prompt[rows], self.mask[rows]),
                (self.least[rows], self.most[rows]),
                temperatures,
                indices=rows,
                key=self.key,
                memory=self.memory,
                num_trajectories=num_trajectories,
                together=together,
                adaptive=adaptive,
            )
        )

    def accuracy_from(self, thoughts: np.ndarray, counts: Int[np.ndarray, " Q"]) -> float:
        """Accuracy of greedy answers from given thoughts [Q, T, D]."""
        return self.accuracy_from_all(thoughts[:, None], counts[:, None])

    def accuracy_from_all(self, thoughts: np.ndarray, counts: Int[np.ndarray, "Q N"]) -> float:
        """Accuracy of greedy answers that attend to all of a question's given thoughts [Q, N, T, D]."""
        decoded = self._over(
            lambda rows: self.decoder.decode_given(
                self.weights, (self.prompt[rows], self.mask[rows]), thoughts[rows], counts[rows]
            )
        )
        return self.accuracy([texts[0] for texts in answer_texts(decoded.tokens, self.decoder.layout)])

    def accuracy(self, answers: Sequence[str]) -> float:
        """Share of the problems whose answer is right."""
        return float(are_correct(answers, self.problems).mean())


def answer_texts(tokens: Int[np.ndarray, "B N A"], layout: Layout) -> list[list[str]]:
    """The answers' texts, without steps and markers, of every trajectory.

    An answer without its end token ran into the length limit and says so by `UNFINISHED` after its text, so that it is
    never right: nobody knows how it would have gone on.
    """

    def text(ids: list[int]) -> str:
        return extract_answer(layout.answer_text(ids)) + ("" if layout.tokens.end in ids else UNFINISHED)

    return [[text(ids) for ids in row] for row in tokens.tolist()]


def are_correct(answers: Sequence[str], problems: Sequence[Problem]) -> Bool[np.ndarray, " Q"]:
    """Whether each problem's answer is right."""
    pairs = zip(answers, problems, strict=True)
    return np.asarray([same_answer(answer, problem.answer) for answer, problem in pairs], bool)
