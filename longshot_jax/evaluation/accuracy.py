"""Accuracy of a model on a file of problems, with its uncertainty and its controls: the content of `results.json`.

Answers are always decoded from the thoughts, and every number is over all problems given. Nothing depends on the
batch size: samples are seeded by the problem's number, and the rows that fill up the last batch are dropped.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from longshot_jax.data.problems import Problem
from longshot_jax.evaluation.batches import Batches, answer_texts, are_correct
from longshot_jax.evaluation.controls import replaced_thoughts
from longshot_jax.evaluation.decoding import Decoder, ThoughtRule, Weights, make_temperatures
from longshot_jax.evaluation.fusions import adaptive_vote, distinct, fusion_accuracies
from longshot_jax.evaluation.intervals import wilson_interval
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
    watch: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """What `results.json` holds, all but `config`.

    Args:
      decoder: keep it between calls: it holds the compiled programs.
      weights: parts of the reasoner's state.
      problems: at least one.
      rule: number of thoughts.
      temperatures: of the samples; by default noise-free thoughts and temperature 1.
      memory: the bank to read.
      num_trajectories: N of the samples and of every fusion; 0 leaves all of it out.
      batch_size: questions decoded at once.
      seed: of samples and of the noise control.
      controls: whether to run them; a model without thoughts has none.
      watch: called once with the greedy `Trajectories` of all problems, N = 1, as NumPy arrays.

    Returns:
      `accuracy`, `count`, `confidence_interval` (95 %, Wilson), `mean_thoughts`: of the greedy trajectory.
      `sampled_accuracy` (mean over the N samples), `fusion`: accuracy by kind of fusion and by control (see
      `evaluation.fusions`), of which `vote_accuracy` and `mean_accuracy` (for N > 1) are the vote and the ensemble.
      `any_accuracy`: at least one of the N samples is right, which no choice among them can pass (pass@N);
      `distinct_answers`: different answers among the N, on average.
      `mean_trajectories`: where the model chooses their number, of the fusion `vote_adaptive`.
      `by_steps`: by the problems' number of steps. `controls`: accuracy by kind.
      `correct`: 0 or 1 for each problem; `answers`: the greedy answers' texts (see `answer_texts`).
    """
    problems = [problems[index] for index in range(len(problems))]
    batches = Batches(decoder, weights, problems, rule, memory, batch_size, seed)
    temperatures = make_temperatures() if temperatures is None else temperatures
    thinks = decoder.max_thoughts > 0

    greedy = batches.run(temperatures)
    if watch is not None:
        watch(greedy)
    answers = [texts[0] for texts in answer_texts(greedy.tokens, decoder.layout)]
    correct = are_correct(answers, problems)
    thoughts = greedy.counts[:, 0]
    low, high = wilson_interval(int(correct.sum()), len(correct))
    results: dict[str, Any] = {
        "accuracy": float(correct.mean()),
        "count": len(correct),
        "confidence_interval": [low, high],
    }
    if num_trajectories:
        samples = batches.run(temperatures, num_trajectories)
        texts = answer_texts(samples.tokens, decoder.layout)
        right = np.stack([are_correct(column, problems) for column in zip(*texts, strict=True)], axis=1)
        results["sampled_accuracy"] = float(right.mean())
        results["any_accuracy"] = float(right.any(axis=1).mean())
        results["distinct_answers"] = float(np.mean([distinct(answers) for answers in texts]))
        results["fusion"] = fusion_accuracies(batches, samples, texts, greedy, temperatures)
        results |= {
            f"{kind}_accuracy": results["fusion"][kind]
            for kind in ("vote", "mean")
            if kind in results["fusion"]
        }
    if num_trajectories and decoder.max_trajectories:
        accuracy, number = adaptive_vote(batches, temperatures)
        results["fusion"]["vote_adaptive"], results["mean_trajectories"] = accuracy, number
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
    results["thoughts"] = thoughts.tolist()
    return results


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
