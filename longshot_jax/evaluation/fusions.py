"""What N trajectories are worth together: every fusion on the same samples, each beside the control that unmasks it.

- `vote`, `weighted`, `best`: choose one of the N sampled answers (`thoughts.fusion`).
- `attend`: a greedy answer that attends to the thoughts of all N (`thoughts.joining`). `attend_identical`: the same
  from N copies of the greedy trajectory, which differ in nothing.
- `mean`: a greedy answer from the ensemble's thoughts, the means of N at each step. `mean_one_path`: from one path
  sampled with noise of σ/√N, which is all the noise that such a mean has.
- `vote_adaptive`: of as many sampled answers as the model's complexity head chose for the question.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from longshot_jax.data.answers import same_answer
from longshot_jax.evaluation.batches import UNFINISHED, Batches, answer_texts
from longshot_jax.thoughts.fusion import best, vote, weighted
from longshot_jax.thoughts.rollout import Temperatures

CHOOSING = ("vote", "weighted", "best")


def choose(kind: str, answers: Sequence[str], values: Sequence[float] | np.ndarray) -> int:
    """Index of the trajectory that a fusion of `CHOOSING` takes; equal numbers are one answer."""
    worths = [float(value) for value in values]
    if kind == "best":
        return best(worths)
    return {"vote": vote, "weighted": weighted}[kind](
        answers, worths, lambda answer: _standing(answer, answers)
    )


def distinct(answers: Sequence[str]) -> int:
    """Number of different answers; those that say nothing are together one more."""
    return len({_standing(answer, answers) for answer in answers})


def _standing(answer: str, answers: Sequence[str]) -> str | None:
    # `same_answer` says which answers are one; the first of them stands for all. It never accepts an empty one, and what
    # was cut off is none.
    if answer.endswith(UNFINISHED):
        return None
    return next((other for other in answers if same_answer(answer, other)), None)


def adaptive_vote(batches: Batches, temperatures: Temperatures) -> tuple[float, float]:
    """Accuracy of the vote where the model chooses how many trajectories a question gets, and their mean number."""
    decoder = batches.decoder
    samples = batches.run(temperatures, decoder.max_trajectories, adaptive=True)
    number, texts = samples.exists.sum(axis=1), answer_texts(samples.tokens, decoder.layout)
    chosen = [
        answers[choose("vote", answers[:count], values[:count])]
        for answers, values, count in zip(texts, samples.values, number, strict=True)
    ]
    return batches.accuracy(chosen), float(number.mean())


def fusion_accuracies(
    batches: Batches, samples: Any, texts: list[list[str]], greedy: Any, temperatures: Temperatures
) -> dict[str, float]:
    """Accuracy by name of the fusion or control.

    Args:
      batches: of the problems.
      samples: `Trajectories` [Q, N, ...] of every problem; texts: their answers.
      greedy: `Trajectories` [Q, 1, ...].
      temperatures: that sampled.
    """
    accuracies = {}
    for kind in CHOOSING:
        chosen = [
            answers[choose(kind, answers, values)]
            for answers, values in zip(texts, samples.values, strict=True)
        ]
        accuracies[kind] = batches.accuracy(chosen)
    number = samples.counts.shape[1]
    if number < 2 or not batches.decoder.max_thoughts or batches.decoder.layout.mode == "pause":
        return accuracies
    copies = (np.repeat(part, number, axis=1) for part in (greedy.thoughts, greedy.counts))
    accuracies["attend"] = batches.accuracy_from_all(samples.thoughts, samples.counts)
    accuracies["attend_identical"] = batches.accuracy_from_all(*copies)
    shared = batches.run(temperatures, number, together=True)
    accuracies["mean"] = batches.accuracy_from(shared.thoughts[:, 0], shared.counts[:, 0])
    quieter = replace(temperatures, std=temperatures.std / np.float32(number**0.5))
    # The program that samples N is there already; one of its paths is enough.
    path = batches.run(quieter, number)
    accuracies["mean_one_path"] = batches.accuracy_from(path.thoughts[:, 0], path.counts[:, 0])
    return accuracies
