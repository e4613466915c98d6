"""Accuracy of every fusion of N trajectories on the same samples, with controls for `attend` and `mean`.

- `vote`, `weighted`, `best`: choose one of the N sampled answers (`thoughts.fusion`).
- `attend`: a greedy answer that attends to the thoughts of all N (`thoughts.joint.join_trajectories`).
  Control `attend_identical`: the same with N identical copies of the greedy trajectory.
- `mean`: a greedy answer from the thoughts of an ensemble, which are means of N at each step.
  Control `mean_one_path`: from one trajectory sampled with the noise of such a mean, σ/√N; not for thoughts drawn as
  tokens, nor for those that read other trajectories, of which one path has none.
- `vote_adaptive`: a vote among the number of samples that the model's count head chooses for the question.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flax import nnx

from longshot_jax.data.grading import same_answer
from longshot_jax.evaluation.batches import UNFINISHED, Batches, answer_texts
from longshot_jax.thoughts.fusion import CHOOSING
from longshot_jax.thoughts.noise import relative_std_of_mean
from longshot_jax.thoughts.rollout import Temperatures


def choose(kind: str, answers: Sequence[str], values: Sequence[float] | np.ndarray) -> int:
    """Index of the trajectory that a fusion of `CHOOSING` chooses; equal numbers count as one answer."""
    worths = [float(value) for value in values]
    return CHOOSING[kind](answers, worths, lambda answer: _standing(answer, answers))


def distinct(answers: Sequence[str]) -> int:
    """Number of different answers; all empty and unfinished answers count as one."""
    return len({_standing(answer, answers) for answer in answers})


def _standing(answer: str, answers: Sequence[str]) -> str | None:
    """The first answer that is the same by `same_answer`; None for an empty or unfinished one."""
    if answer.endswith(UNFINISHED):
        return None
    return next((other for other in answers if same_answer(answer, other)), None)


def adaptive_vote(batches: Batches, temperatures: Temperatures) -> tuple[float, float]:
    """Accuracy of the vote with the model's own number of trajectories per question, and the mean of that number."""
    decoder = batches.decoder
    samples = batches.run(temperatures, decoder.max_trajectories, adaptive=True, what="samples for vote_adaptive")
    number, texts = samples.active.sum(axis=1), answer_texts(samples.tokens, decoder.layout)
    chosen = [
        answers[choose("vote", answers[:count], values[:count])]
        for answers, values, count in zip(texts, samples.values, number, strict=True)
    ]
    return batches.accuracy(chosen), float(number.mean())


def fusion_accuracies(
    batches: Batches, samples: Any, texts: list[list[str]], greedy: Any, temperatures: Temperatures
) -> dict[str, float]:
    """Accuracy by name of the fusion or control.

    `samples` [Q, N, ...], drawn with `temperatures`, and `greedy` [Q, 1, ...] are the `Trajectories` of all problems;
    `texts` are the answers of the samples.
    """
    accuracies = {}
    for kind in CHOOSING:
        chosen = [answers[choose(kind, answers, values)] for answers, values in zip(texts, samples.values, strict=True)]
        accuracies[kind] = batches.accuracy(chosen)
    number = samples.num_thoughts.shape[1]
    if number < 2 or not batches.decoder.max_thoughts or batches.decoder.layout.mode == "pause":
        return accuracies
    copies = (np.repeat(part, number, axis=1) for part in (greedy.thoughts, greedy.num_thoughts))
    accuracies["attend"] = batches.accuracy_from("attend", samples.thoughts, samples.num_thoughts)
    navigator = nnx.merge(batches.decoder.graphdef, *batches.params).navigator.config
    same = np.zeros(number, np.int32) if navigator.roles else None  # the greedy trajectory has the first role
    accuracies["attend_identical"] = batches.accuracy_from("attend_identical", *copies, roles=same)
    shared = batches.run(temperatures, number, ensemble=True, what="samples for mean")
    accuracies["mean"] = batches.accuracy_from("mean", shared.thoughts[:, :1], shared.num_thoughts[:, :1])
    if navigator.noise == "tokens" or navigator.reads_others:
        return accuracies  # the noise of tokens has no size, and the rollout below has N trajectories to read
    factor = np.float32(relative_std_of_mean(number, batches.decoder.coupling))
    quieter = replace(temperatures, thought_std=temperatures.thought_std * factor)
    # This program is compiled already; only its first trajectory is used.
    path = batches.run(quieter, number, what="samples for mean_one_path")
    accuracies["mean_one_path"] = batches.accuracy_from("mean_one_path", path.thoughts[:, :1], path.num_thoughts[:, :1])
    return accuracies
