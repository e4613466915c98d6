"""Accuracy of a model on problems, with its confidence interval and controls: the content of `results.json`.

Answers are always decoded from the thoughts. Results do not depend on the batch size: samples are seeded by the
problem's index, and rows that pad the last batch are dropped.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from longshot_jax.data.own import Grade, by_problem
from longshot_jax.data.problems import Problem
from longshot_jax.evaluation.batches import Batches, Decoded, answer_texts, are_correct
from longshot_jax.evaluation.controls import question_numbers, replaced_trajectories, without_reads
from longshot_jax.evaluation.decoder import Decoder
from longshot_jax.evaluation.fusion_accuracy import adaptive_vote, distinct, fusion_accuracies
from longshot_jax.evaluation.intervals import wilson_interval
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Params
from longshot_jax.thoughts.rollout import Temperatures, make_temperatures
from longshot_jax.thoughts.stopping import ThoughtRule

CONTROLS = ("zero", "noise", "mean", "swap")
# Of a joined answer: what is done to one of its trajectories, or to which is which.
JOINT_CONTROLS = ("one_zero", "one_swap", "identical", "roles_swapped")


def evaluate(
    decoder: Decoder,
    params: Params,
    problems: Sequence[Problem],
    rule: ThoughtRule,
    *,
    temperatures: Temperatures | None = None,
    memory: MemoryBank | None = None,
    num_trajectories: int = 5,
    batch_size: int = 128,
    seed: int = 0,
    controls: bool = True,
    question_hidden: bool = False,
    watch: Callable[[Any], None] | None = None,
    grade: Grade = by_problem,
    decoded: Decoded | None = None,
) -> dict[str, Any]:
    """Evaluates a model; returns the content of `results.json` without `config`.

    Args:
      decoder: holds the compiled programs; reuse it between calls.
      problems: at least one.
      temperatures: temperatures of the samples; by default noise-free thoughts and temperature 1.
      num_trajectories: N, samples per problem and trajectories of every fusion; 0 skips both.
      batch_size: problems decoded at once.
      seed: seed of the samples and of the noise control.
      controls: whether to run the controls (`evaluation.controls`); a model without thoughts has none.
      question_hidden: whether to decode the answers once more from the thoughts alone, for a model that was trained so.
      grade: gives 1 for a right answer.
      decoded: called before each pass over the problems and after its batches, to show progress.
      watch: called once with the greedy `Trajectories` of all problems (N = 1), as NumPy arrays.

    Returns:
      `accuracy`, `count`, `confidence_interval` (95 %, Wilson), `mean_thoughts`: of the greedy trajectories.
      `different_questions`: the interval takes all to be independent, and is too narrow where questions repeat.
      `by_steps`: the same by the problems' number of steps. `controls`: accuracy by control.
      `question_hidden_accuracy`: of answers that see the thoughts but not the question, if asked for.
      `correct` (0 or 1), `answers` (see `answer_texts`), `thoughts` (their number, of the longest trajectory): lists over
      problems. With joined answers also `trajectories`, their numbers, and `mean_trajectories`.
      For N > 0 and answers that are not joined also `sampled_accuracy`: mean over the samples; `any_accuracy`: at least one sample is right (pass@N),
      the upper bound of every choice among them; `distinct_answers`: mean number of different answers; `fusion`:
      accuracy by fusion and fusion control (see `evaluation.fusion_accuracy`), also as `vote_accuracy` and, for an
      ensemble, `mean_accuracy`; with a count head, `mean_trajectories`: mean number of trajectories in `vote_adaptive`.
    """
    problems = [problems[index] for index in range(len(problems))]
    batches = Batches(decoder, params, problems, rule, memory, batch_size, seed, grade, decoded)
    temperatures = make_temperatures() if temperatures is None else temperatures

    greedy = batches.run(temperatures)
    if decoder.joined and greedy.active is not None:
        # What is decoded again has the trajectories that the model chose.
        batches.counts = greedy.active.sum(axis=1, dtype=np.int32)
    if watch is not None:
        watch(greedy)
    answers = [texts[0] for texts in answer_texts(greedy.tokens, decoder.layout)]
    correct = are_correct(answers, problems, grade)
    thoughts = greedy.num_thoughts.max(axis=1)
    low, high = wilson_interval(int(correct.sum()), len(correct))
    results: dict[str, Any] = {
        "accuracy": float(correct.mean()),
        "count": len(correct),
        "different_questions": len({problem.question for problem in problems}),
        "confidence_interval": [low, high],
    }
    if num_trajectories and not decoder.joined:
        samples = batches.run(temperatures, num_trajectories)
        texts = answer_texts(samples.tokens, decoder.layout)
        right = np.stack([are_correct(column, problems, grade) for column in zip(*texts, strict=True)], axis=1)
        results["sampled_accuracy"] = float(right.mean())
        results["any_accuracy"] = float(right.any(axis=1).mean())
        results["distinct_answers"] = float(np.mean([distinct(answers) for answers in texts]))
        fusion = results["fusion"] = fusion_accuracies(batches, samples, texts, greedy, temperatures)
        results |= {f"{kind}_accuracy": fusion[kind] for kind in ("vote", "mean") if kind in fusion}
        if decoder.max_trajectories:
            fusion["vote_adaptive"], results["mean_trajectories"] = adaptive_vote(batches, temperatures)
    if decoder.joined:
        number = np.full(len(problems), decoder.joined) if batches.counts is None else batches.counts
        results |= {"mean_trajectories": float(number.mean()), "trajectories": number.tolist()}
    results["mean_thoughts"] = float(thoughts.mean())
    results["by_steps"] = _by_steps(problems, correct, thoughts)
    if question_hidden and thoughts.any():
        given = greedy.thoughts, greedy.num_thoughts
        results["question_hidden_accuracy"] = batches.accuracy_from(
            "from the thoughts alone", *given, question_hidden=True
        )
    results["controls"] = {}
    if controls and thoughts.any():
        numbers = question_numbers([problem.question for problem in problems])
        for kind in (*CONTROLS, *(JOINT_CONTROLS if decoder.joined > 1 else ())):
            replaced = replaced_trajectories(kind, greedy.thoughts, greedy.num_thoughts, seed, numbers)
            if replaced is not None:
                roles = np.roll(np.arange(decoder.joined), 1) if kind == "roles_swapped" else None
                results["controls"][kind] = batches.accuracy_from(
                    f"thoughts: {kind}", replaced, greedy.num_thoughts, roles
                )
        silent = without_reads(params, others=decoder.joined > 1)
        reads_bank = memory is not None and nnx.merge(decoder.graphdef, *params).navigator.config.reads_bank
        if silent is not None or reads_bank:
            unread = copy(batches)
            unread.params, unread.memory = params if silent is None else silent, None
            texts = answer_texts(unread.run(temperatures, what="reads: none").tokens, decoder.layout)
            results["controls"]["no_reads"] = batches.accuracy([row[0] for row in texts])
    return results | {"correct": correct.astype(int).tolist(), "answers": answers, "thoughts": thoughts.tolist()}


def _by_steps(
    problems: Sequence[Problem], correct: Bool[np.ndarray, " Q"], thoughts: Int[np.ndarray, " Q"]
) -> dict[str, Any]:
    """Accuracy and mean thoughts by number of steps; problems without written steps are excluded."""
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
