"""Accuracy of a model on a file of problems, with its uncertainty and its controls: the content of `results.json`.

Answers are always decoded from the thoughts, and every number is over all problems given. Nothing depends on the
batch size: samples are seeded by the problem's number, and the rows that fill up the last batch are dropped.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from longshot_jax.data.answers import extract_answer, same_answer
from longshot_jax.data.examples import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.evaluation.controls import replaced_thoughts
from longshot_jax.evaluation.decoding import (
    Decoder,
    ThoughtRule,
    Trajectories,
    Weights,
    full_batches,
    make_temperatures,
)
from longshot_jax.evaluation.intervals import wilson_interval
from longshot_jax.model.sharding import fetch
from longshot_jax.thoughts.fusion import vote
from longshot_jax.thoughts.memory import MemoryBank
from longshot_jax.thoughts.rollout import Temperatures

CONTROLS = ("zero", "noise", "mean", "swap")


def evaluate(
    decoder: Decoder,
    weights: Weights,
    problems: Sequence[Problem],
    rule: ThoughtRule,
    *,
    temperatures: Temperatures | None = None,
    memory: MemoryBank | None = None,
    num_trajectories: int = 5,
    batch_size: int = 128,
    seed: int = 0,
    controls: bool = True,
) -> dict[str, Any]:
    """What `results.json` holds, all but `config`.

    Args:
      decoder: keep it between calls: it holds the compiled programs.
      weights: parts of the reasoner's state.
      problems: at least one.
      rule: number of thoughts.
      temperatures: of the samples; by default noise-free thoughts and temperature 1.
      memory: the bank to read.
      num_trajectories: N of the sampled accuracy, the vote and the ensemble; 0 leaves all three out.
      batch_size: questions decoded at once.
      seed: of samples and of the noise control.
      controls: whether to run them; a model without thoughts has none.

    Returns:
      `accuracy`, `count`, `confidence_interval` (95 %, Wilson), `mean_thoughts`: of the greedy trajectory.
      `sampled_accuracy` (mean over the N samples), `vote_accuracy`, and `mean_accuracy` for N > 1: the ensemble's,
      whose trajectories are fed the mean of their N thoughts.
      `by_steps`: by the problems' number of steps. `controls`: accuracy by kind.
      `correct`: 0 or 1 for each problem; `answers`: the greedy answers' texts.
    """
    problems = [problems[index] for index in range(len(problems))]
    batches = _Batches(decoder, weights, problems, rule, memory, batch_size, seed)
    temperatures = make_temperatures() if temperatures is None else temperatures
    thinks = decoder.max_thoughts > 0

    greedy = batches.run(temperatures)
    answers = [texts[0] for texts in answer_texts(greedy.tokens, decoder.layout)]
    correct = _correct(answers, problems)
    thoughts = greedy.counts[:, 0]
    low, high = wilson_interval(int(correct.sum()), len(correct))
    results: dict[str, Any] = {
        "accuracy": float(correct.mean()),
        "count": len(correct),
        "confidence_interval": [low, high],
    }
    if num_trajectories:
        results |= _sampled(batches, temperatures, num_trajectories)
    if num_trajectories > 1 and thinks and decoder.layout.mode != "pause":
        shared = batches.run(temperatures, num_trajectories, together=True)
        results["mean_accuracy"] = batches.accuracy_from(shared.thoughts[:, 0], shared.counts[:, 0])
    results["mean_thoughts"] = float(thoughts.mean())
    results["by_steps"] = _by_steps(problems, correct, thoughts)
    results["controls"] = {}
    if controls and thinks and thoughts.any():
        for kind in CONTROLS:
            replaced = replaced_thoughts(kind, greedy.thoughts[:, 0], thoughts, seed)
            if replaced is not None:
                results["controls"][kind] = batches.accuracy_from(replaced, thoughts)
    results["correct"] = correct.astype(int).tolist()
    results["answers"] = answers
    return results


class _Batches:
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

    def run(self, temperatures: Temperatures, num_trajectories: int = 0, together: bool = False) -> Any:
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
            )
        )

    def accuracy_from(self, thoughts: np.ndarray, counts: Int[np.ndarray, " Q"]) -> float:
        """Accuracy of greedy answers from given thoughts [Q, T, D]."""
        decoded = self._over(
            lambda rows: self.decoder.decode_given(
                self.weights, (self.prompt[rows], self.mask[rows]), thoughts[rows], counts[rows]
            )
        )
        texts = answer_texts(decoded.tokens, self.decoder.layout)
        return float(_correct([text[0] for text in texts], self.problems).mean())


def answer_texts(tokens: Int[np.ndarray, "B N A"], layout: Layout) -> list[list[str]]:
    """The answers' texts, without steps and markers, of every trajectory."""
    return [[extract_answer(layout.answer_text(ids)) for ids in row] for row in tokens.tolist()]


def vote_of(answers: Sequence[str], values: Sequence[float] | np.ndarray) -> int:
    """Index of the trajectory that the majority's answer comes from; ties by value."""

    def key(answer: str) -> str | None:
        # `same_answer` says which answers are one; the first of them stands for all. It never accepts an empty one.
        return next((other for other in answers if same_answer(answer, other)), None)

    return vote(answers, [float(value) for value in values], key)


def _correct(answers: Sequence[str], problems: Sequence[Problem]) -> Bool[np.ndarray, " Q"]:
    pairs = zip(answers, problems, strict=True)
    return np.asarray([same_answer(answer, problem.answer) for answer, problem in pairs], bool)


def _sampled(batches: _Batches, temperatures: Temperatures, num_trajectories: int) -> dict[str, float]:
    samples = batches.run(temperatures, num_trajectories)
    texts = answer_texts(samples.tokens, batches.decoder.layout)
    columns = [_correct(column, batches.problems) for column in zip(*texts, strict=True)]
    chosen = [
        answers[vote_of(answers, values)] for answers, values in zip(texts, samples.values, strict=True)
    ]
    return {
        "sampled_accuracy": float(np.mean(columns)),
        "vote_accuracy": float(_correct(chosen, batches.problems).mean()),
    }


def _by_steps(
    problems: Sequence[Problem], correct: Bool[np.ndarray, " Q"], thoughts: Int[np.ndarray, " Q"]
) -> dict[str, Any]:
    """Accuracy and mean thoughts by number of steps; problems without written steps are left out."""
    steps = np.asarray([len(problem.steps) for problem in problems])
    return {
        str(number): {
            "accuracy": float(correct[steps == number].mean()),
            "mean_thoughts": float(thoughts[steps == number].mean()),
            "count": count,
        }
        for number, count in sorted(Counter(steps.tolist()).items())
        if number
    }
