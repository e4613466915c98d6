"""Decodes all problems of an evaluation in batches of few shapes, and grades the answers."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from longshot_jax.data.grading import extract_answer
from longshot_jax.data.grouping import choose_shapes, smallest_shape
from longshot_jax.data.layout import Layout
from longshot_jax.data.own import Grade, by_problem
from longshot_jax.data.problems import Problem
from longshot_jax.evaluation.decoder import Decoder, Trajectories, full_batches
from longshot_jax.model.sharding import fetch
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Params
from longshot_jax.thoughts.rollout import Temperatures
from longshot_jax.thoughts.stopping import ThoughtRule

# Called before a pass over the problems and after each of its batches: name of the pass, problems decoded, all problems.
Decoded = Callable[[str, int, int], None]
Prompts = tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]
_SHAPES = 4  # lengths of prompts, each compiled once
UNFINISHED = " <|unfinished|>"
GREEDY = "greedy answers"  # name of the first pass for `Decoded`


class Batches:
    """Decodes all problems in batches; results are NumPy arrays in their order, without padding rows.

    Prompts that are padded by a bucket are grouped by length, in at most `_SHAPES` shapes.
    """

    def __init__(
        self,
        decoder: Decoder,
        params: Params,
        problems: Sequence[Problem],
        rule: ThoughtRule,
        memory: MemoryBank | None,
        batch_size: int,
        seed: int,
        grade: Grade = by_problem,
        decoded: Decoded | None = None,
    ):
        self.decoded = decoded
        self.decoder, self.params, self.problems, self.memory = decoder, params, problems, memory
        self.grade = grade
        self.key = jax.random.key(seed)
        self.prompt, self.mask = decoder.layout.prompts(problems)
        # Grouped by length where prompts are padded by a bucket; otherwise all have one.
        lengths = self.mask.sum(axis=1) if decoder.layout.bucket else np.full(len(problems), self.mask.shape[1])
        self.order = np.argsort(lengths, kind="stable").astype(np.int32)
        longest = [(int(lengths[self.order[rows]].max()), 0) for rows, _ in full_batches(len(problems), batch_size)]
        largest = self.mask.shape[1], 0
        shapes = choose_shapes(longest, _SHAPES, largest, decoder.layout.bucket or 1)
        self.lengths = [smallest_shape(shapes, length)[0] for length in longest]
        self.least, self.most = rule.bounds(problems, decoder.layout, decoder.joined)
        self.counts = rule.counts(problems, decoder.joined)
        self.batch_size = batch_size

    def _over(self, what: str, decode: Callable[[Int[np.ndarray, " B"], Prompts], Trajectories]) -> Any:
        """What `decode` gives for the rows of each batch and their prompts, in the order of the problems."""
        parts, done = [], 0
        decoded = self.decoded or (lambda what, done, total: None)
        decoded(what, done, len(self.problems))
        for (rows, real), length in zip(full_batches(len(self.problems), self.batch_size), self.lengths, strict=True):
            rows = self.order[rows]
            part = fetch(decode(rows, (self.prompt[rows, -length:], self.mask[rows, -length:])))
            parts.append(jax.tree.map(lambda x, real=real: np.asarray(x[:real]), part))
            done += real
            decoded(what, done, len(self.problems))
        places = np.argsort(self.order)
        return jax.tree.map(lambda *xs: np.concatenate(xs)[places], *parts)

    def run(
        self,
        temperatures: Temperatures,
        num_trajectories: int = 0,
        ensemble: bool = False,
        adaptive: bool = False,
        what: str = "",
    ) -> Any:
        """`Trajectories` of all problems: N samples of each, or for N = 0 the greedy trajectory.

        With a joined answer the count head, if there is one, chooses where the rule does not give the numbers. `what` names
        the pass for `Decoded`.
        """
        adaptive = adaptive or bool(self.decoder.joined and self.decoder.max_trajectories and self.counts is None)
        return self._over(
            what or (f"{num_trajectories} samples" if num_trajectories else GREEDY),
            lambda rows, prompts: self.decoder.decode(
                self.params,
                prompts,
                (self.least[rows], self.most[rows]),
                temperatures,
                indices=rows,
                key=self.key,
                memory=self.memory,
                num_trajectories=num_trajectories,
                ensemble=ensemble,
                adaptive=adaptive,
                counts=None if self.counts is None else self.counts[rows],
            ),
        )

    def accuracy_from(
        self,
        what: str,
        thoughts: np.ndarray,
        num_thoughts: Int[np.ndarray, "Q N"],
        roles: Int[np.ndarray, " N"] | None = None,
        *,
        question_hidden: bool = False,
    ) -> float:
        """Accuracy of greedy answers that attend to all given thoughts [Q, N, T, D] of their question.

        `what` names the pass for `Decoded`.
        """
        decoded = self._over(
            what,
            lambda rows, prompts: self.decoder.decode_given(
                self.params,
                prompts,
                thoughts[rows],
                num_thoughts[rows],
                counts=None if self.counts is None else self.counts[rows],
                roles=None if roles is None else np.tile(roles, (len(rows), 1)),
                question_hidden=question_hidden,
            ),
        )
        return self.accuracy([texts[0] for texts in answer_texts(decoded.tokens, self.decoder.layout)])

    def accuracy(self, answers: Sequence[str]) -> float:
        """Proportion of right answers."""
        return float(are_correct(answers, self.problems, self.grade).mean())


def answer_texts(tokens: Int[np.ndarray, "B N A"], layout: Layout, whole: bool = False) -> list[list[str]]:
    """Texts of the answers of every trajectory, without steps and markers, or the `whole` texts.

    `UNFINISHED` is appended to an answer without an end token, which reached the length limit: it is never right,
    because its continuation is unknown.
    """

    ends = frozenset(layout.tokenizer.ends)

    def text(ids: list[int]) -> str:
        ended = not ends.isdisjoint(ids)
        told = layout.answer_text(ids)
        return (told.strip() if whole else extract_answer(told)) + ("" if ended else UNFINISHED)

    return [[text(ids) for ids in row] for row in tokens.tolist()]


def grades(answers: Sequence[str], problems: Sequence[Problem], grade: Grade) -> Float[np.ndarray, " Q"]:
    """The grade, 0 to 1, of each problem's answer; an unfinished one has 0."""
    pairs = zip(answers, problems, strict=True)
    return np.asarray([0 if told.endswith(UNFINISHED) else grade(problem, told) for told, problem in pairs], np.float32)


def are_correct(answers: Sequence[str], problems: Sequence[Problem], grade: Grade) -> Bool[np.ndarray, " Q"]:
    """Whether each problem's answer is right: its grade is 1."""
    return grades(answers, problems, grade) >= 1
