"""Decodes all problems of an evaluation in batches of one shape, and grades the answers."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from longshot_jax.data.grading import extract_answer, same_answer
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.evaluation.decoder import Decoder, Trajectories, full_batches
from longshot_jax.model.sharding import fetch
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Params
from longshot_jax.thoughts.rollout import Temperatures
from longshot_jax.thoughts.stopping import ThoughtRule

UNFINISHED = " <|unfinished|>"


class Batches:
    """Decodes all problems in batches of one shape; results are NumPy arrays without padding rows."""

    def __init__(
        self,
        decoder: Decoder,
        params: Params,
        problems: Sequence[Problem],
        rule: ThoughtRule,
        memory: MemoryBank | None,
        batch_size: int,
        seed: int,
    ):
        self.decoder, self.params, self.problems, self.memory = decoder, params, problems, memory
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
        self, temperatures: Temperatures, num_trajectories: int = 0, ensemble: bool = False, adaptive: bool = False
    ) -> Any:
        """`Trajectories` of all problems: N samples of each, or for N = 0 the greedy trajectory."""
        return self._over(
            lambda rows: self.decoder.decode(
                self.params,
                (self.prompt[rows], self.mask[rows]),
                (self.least[rows], self.most[rows]),
                temperatures,
                indices=rows,
                key=self.key,
                memory=self.memory,
                num_trajectories=num_trajectories,
                ensemble=ensemble,
                adaptive=adaptive,
            )
        )

    def accuracy_from(self, thoughts: np.ndarray, num_thoughts: Int[np.ndarray, "Q N"]) -> float:
        """Accuracy of greedy answers that attend to all given thoughts [Q, N, T, D] of their question."""
        decoded = self._over(
            lambda rows: self.decoder.decode_given(
                self.params, (self.prompt[rows], self.mask[rows]), thoughts[rows], num_thoughts[rows]
            )
        )
        return self.accuracy([texts[0] for texts in answer_texts(decoded.tokens, self.decoder.layout)])

    def accuracy(self, answers: Sequence[str]) -> float:
        """Proportion of right answers."""
        return float(are_correct(answers, self.problems).mean())


def answer_texts(tokens: Int[np.ndarray, "B N A"], layout: Layout) -> list[list[str]]:
    """Texts of the answers of every trajectory, without steps and markers.

    `UNFINISHED` is appended to an answer without an end token, which reached the length limit: it is never right,
    because its continuation is unknown.
    """

    ends = frozenset(layout.tokenizer.ends)

    def text(ids: list[int]) -> str:
        ended = not ends.isdisjoint(ids)
        return extract_answer(layout.answer_text(ids)) + ("" if ended else UNFINISHED)

    return [[text(ids) for ids in row] for row in tokens.tolist()]


def are_correct(answers: Sequence[str], problems: Sequence[Problem]) -> Bool[np.ndarray, " Q"]:
    """Whether each problem's answer is right."""
    pairs = zip(answers, problems, strict=True)
    return np.asarray([same_answer(answer, problem.answer) for answer, problem in pairs], bool)
