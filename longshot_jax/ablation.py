"""What each part of the method is worth: every part on and off, over several seeds, from the same starts.

For each seed the starts are trained once: `start`, the unfinished curriculum of `configs/tiny.py`, and the same with
the navigator's bottleneck, with distractor statements, and in text. Every other arm is PPO from one of them for the
same number of iterations, or the curriculum continued, and differs from the arm named as its base by one thing. Arms that are the same for all
parts (the vote, the other fusions and their controls) are measured on every arm and shown for the bases.
"""

import json
import math
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from longshot_jax.arms import (
    OPERATIONS,
    Arm,
    evaluate_run,
    finished_results,
    in_lanes,
    run_logged,
    train_command,
    write_tests,
)
from longshot_jax.errors import UserError
from longshot_jax.evaluation.results import write_results

QUESTIONS = 500
_ROOT = Path(__file__).parents[1]
_CURRICULUM = {"stages": "('curriculum',)"}
_LAST_STAGES = _CURRICULUM | {
    "curriculum.stages": "(3, 4)",
    "curriculum.max_steps_per_stage": "100",
    "curriculum.stage_loss": "0.0",
    "curriculum.last_stage_loss": "0.0",
}
_PPO = {"stages": "('ppo',)"}
_CRITIC = {"ppo.baseline": "critic", "ppo.trace": "0.95"}
_SCORE = {"ppo.gradient": "score"}
_BOTTLENECK = {
    "thoughts.feedback": "navigator",
    "thoughts.reasoning_dim": "32",
    "thoughts.normalised": "True",
}
_BANK = {"thoughts.memory_top": "3", "ppo.memory_slots": "512", "ppo.memory_writes": "16"}
_ADAPTIVE = {
    "ppo.shared_reward": "True",
    "thoughts.max_trajectories": "8",
    "ppo.rewards.trajectory_cost": "0.02",
    "ppo.rewards.vote_correct": "1.0",
}
_DISTRACTORS = {"data.distractors": "2", "data.prompt_length": "36"}


@dataclass(frozen=True)
class Part:
    """One arm of the ablation.

    Attributes:
      arm: how it is trained.
      base: the arm that it differs from by one thing; None for a start or a base.
      tests: `chains`, or `distractors`: prompts of one length that do not tell the number of steps.
    """

    arm: Arm
    base: str | None = None
    tests: str = "chains"


def _start(title: str, overrides: Mapping[str, str] | None = None, tests: str = "chains") -> Part:
    return Part(Arm(title, None, _CURRICULUM | dict(overrides or {})), tests=tests)


def _ppo(
    title: str,
    overrides: Mapping[str, str] | None = None,
    base: str | None = "pathwise",
    start: str = "start",
    tests: str = "chains",
) -> Part:
    return Part(Arm(title, start, _PPO | dict(overrides or {})), base, tests)


def _supervised(
    title: str, guidance: Mapping[str, str] | None = None, base: str | None = "supervised"
) -> Part:
    guided = {f"curriculum.guidance.{name}": value for name, value in (guidance or {}).items()}
    return Part(Arm(title, "start", _LAST_STAGES | guided), base)


PARTS: Mapping[str, Part] = {
    "start": _start("curriculum, unfinished: the start"),
    "start_navigator": _start("the same through the navigator's bottleneck, R = 32", _BOTTLENECK),
    "start_distractors": _start("the same with distractors", _DISTRACTORS, "distractors"),
    "start_text": _start(
        "text CoT, unfinished",
        {"curriculum.mode": "cot", "curriculum.stages": "(0,)", "curriculum.last_stage_loss": "0.12"},
    ),
    "pathwise": _ppo("PPO, pathwise, σ 0.2, leave-one-out: the base", base=None),
    # Gradients through a thought.
    "score_summed": _ppo("gradient score, summed", _SCORE | {"ppo.log_prob_scaling": "summed"}),
    "score_averaged": _ppo("gradient score, averaged", _SCORE | {"ppo.log_prob_scaling": "averaged"}),
    "score_scaled": _ppo("gradient score, by 1/√D", _SCORE | {"ppo.log_prob_scaling": "scaled"}),
    "mixture": _ppo("half score, half pathwise", {"ppo.gradient": "mixture"}),
    "none": _ppo("gradient none: thoughts are constants", {"ppo.gradient": "none"}),
    # Noise of thoughts.
    "no_noise": _ppo("no thought noise", {"ppo.noise": "(0.0,0.0)"}),
    "more_noise": _ppo("σ 0.4", {"ppo.noise": "(0.4,0.4)"}),
    "annealed_noise": _ppo("σ 0.4 to 0.1", {"ppo.noise": "(0.4,0.1)"}),
    # Baselines.
    "critic": _ppo("baseline critic (GAE)", _CRITIC),
    "group": _ppo("baseline group mean and deviation", {"ppo.baseline": "group"}),
    # Number of thoughts.
    "fixed_count": _ppo("no stop head: always six thoughts", {"ppo.min_steps": "6"}),
    "no_cost": _ppo("no cost of a thought", {"ppo.rewards.thought_cost": "0.0"}),
    # What a thought reads.
    "bank": _ppo("memory bank, top 3", _BANK),
    "graph_own": _ppo("graph memory of its own actions", {"thoughts.graph": "own"}),
    "graph_bank": _ppo("graph memory with the bank", _BANK | {"thoughts.graph": "own"}),
    "graph_all": _ppo("graph memory of all trajectories", _CRITIC | {"thoughts.graph": "all"}, "critic"),
    "cross_attention": _ppo(
        "cross-trajectory attention", _CRITIC | {"thoughts.cross_attention": "True"}, "critic"
    ),
    "together": _ppo("ensemble: the mean thought for all", _CRITIC | {"ppo.together": "True"}, "critic"),
    # Trajectories that differ, and their number.
    "antithetic": _ppo("mirror images for noise", {"ppo.coupling": "antithetic"}),
    "orthogonal": _ppo("orthogonal noise", {"ppo.coupling": "orthogonal"}),
    "shared_reward": _ppo(
        "every trajectory earns their mean", _CRITIC | {"ppo.shared_reward": "True"}, "critic"
    ),
    "adaptive_trajectories": _ppo(
        "own number of trajectories, a price for each, a reward for the vote",
        _CRITIC | _ADAPTIVE,
        "shared_reward",
    ),
    # The navigator.
    "navigator": _ppo(
        "navigator's bottleneck, R = 32, pathwise", _BOTTLENECK, "pathwise", start="start_navigator"
    ),
    "navigator_score": _ppo(
        "navigator's bottleneck, score summed", _BOTTLENECK | _SCORE, "navigator", start="start_navigator"
    ),
    "navigator_frozen": _ppo(
        "navigator's bottleneck, backbone frozen",
        _BOTTLENECK | {"ppo.trainable": "navigator"},
        "navigator",
        start="start_navigator",
    ),
    # Where the prompt does not tell the number of steps.
    "distractors": _ppo(
        "PPO with distractors, own stops", _DISTRACTORS, None, "start_distractors", "distractors"
    ),
    "distractors_fixed": _ppo(
        "with distractors, always six thoughts",
        _DISTRACTORS | {"ppo.min_steps": "6"},
        "distractors",
        "start_distractors",
        "distractors",
    ),
    # The curriculum goes on with labels, a hundred updates a stage, and is guided.
    "supervised": _supervised("curriculum continued, unguided: the base", base=None),
    "targets": _supervised(
        "thoughts pulled to the steps' embeddings, scheduled sampling",
        {"target": "1.0", "forcing": "(1.0,0.0)", "forcing_updates": "150"},
    ),
    "distillation": _supervised("self-distillation before the answer (CODI)", {"distillation": "1.0"}),
    "explanation": _supervised("each thought read as its step (SIM-CoT)", {"explanation": "1.0"}),
    "jacobi": _supervised("thoughts made at once, three iterations (PCCoT)", {"jacobi": "3"}),
    # Reasoning in text, with the same compute.
    "text": _ppo(
        "PPO on text CoT",
        {"curriculum.mode": "cot", "ppo.max_steps": "0", "ppo.min_steps": "0"},
        "pathwise",
        "start_text",
    ),
}


def chosen_parts(names: Sequence[str]) -> dict[str, Part]:
    """The named parts (all where none is named) with the starts and bases they need, in the order of `PARTS`.

    Raises:
      UserError: an unknown name.
    """
    for name in names:
        if name not in PARTS:
            raise UserError(f"--arms has no arm {name!r}: there are {', '.join(PARTS)}.")
    wanted = set(names or PARTS)
    while True:
        needed = {PARTS[name].arm.starts_from for name in wanted} | {PARTS[name].base for name in wanted}
        more = {name for name in needed if name} - wanted
        if not more:
            return {name: part for name, part in PARTS.items() if name in wanted}
        wanted |= more


def run_ablation(
    folder: Path, output: Path, names: Sequence[str], seeds: int, iterations: int, jobs: int
) -> dict[str, Any]:
    """Trains and evaluates the arms that are not done yet, writes `output` after every one, and returns its content.

    Args:
      folder: of the runs: `folder/seed0/pathwise` and so on; results that are there are not computed again.
      output: JSON, see `collect`.
      names: of the arms; empty for all.
      seeds: runs of each arm, with seeds 0, 1, ...
      iterations: of PPO in every arm.
      jobs: runs side by side, each with one thread.

    Raises:
      UserError: an unknown arm, a folder that cannot be written, results of another length of training, or a failed run.
    """
    parts = chosen_parts(names)
    write_tests(folder / "chains", QUESTIONS)
    write_tests(folder / "distractors", QUESTIONS, distractors=2)
    _check_iterations(folder, iterations)
    arms = {name: _with_iterations(part.arm, iterations) for name, part in parts.items()}
    work: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    trained = {(seed, name): threading.Event() for seed in range(seeds) for name in parts}
    for seed in range(seeds):  # starts come before what starts from them
        for name in sorted(parts, key=lambda name: parts[name].arm.starts_from is not None):
            work.put((seed, name))
    lock = threading.Lock()

    def work_off(failed: threading.Event) -> None:
        while not failed.is_set():
            try:
                seed, name = work.get_nowait()
            except queue.Empty:
                return
            start = arms[name].starts_from
            while start and not trained[seed, start].wait(1.0):
                if failed.is_set():
                    return
            place = folder / f"seed{seed}"
            if finished_results(place / name / "results.json", seed) is None:
                log = place / f"{name}.log"
                tests = ["--tests", str(folder / parts[name].tests)]
                evaluate = [
                    sys.executable,
                    str(_ROOT / "scripts" / "ablate.py"),
                    "--evaluate",
                    str(place / name),
                ]
                for command in (train_command(arms, name, place, seed), [*evaluate, *tests]):
                    if not run_logged(command, log):
                        raise UserError(f"arm {name} failed with seed {seed}: its output is in {log}.")
            trained[seed, name].set()
            with lock:
                write_results(output, collect(folder, parts, seeds, iterations))
                print(f"seed {seed}, {name}: done", flush=True)

    in_lanes([[work_off]] * jobs)
    return collect(folder, parts, seeds, iterations)


def evaluate_part(run: Path, tests: Path) -> None:
    """Evaluates a trained arm and writes `results.json` into its folder."""
    entry = evaluate_run(run, tests, controls=False, keep=("fusion", "thoughts"))
    write_results(run / "results.json", entry)


def collect(folder: Path, parts: Mapping[str, Part], seeds: int, iterations: int) -> dict[str, Any]:
    """What is done so far.

    Returns:
      `{"arms": {name: {"title", "base", "seeds": [...], "accuracy": A, "by_steps": {"1": A, ...}, "thoughts": A,
      "stop_correlation": A, "samples": {name: A}, "fusion": {kind: A}, "difference": A, "compute": {...}}}, "config":
      {...}}`, where A is
      `{"mean", "interval", "values"}` over seeds: a 95 % interval of Student's t. `accuracy` is greedy, on chains of
      four operations; `difference` is that to the base, seed by seed; `stop_correlation` is Spearman's between a
      question's thoughts and its number of operations; `compute` is of one seed, and of the arm's own training.
    """
    done = {
        name: {
            seed: results
            for seed in range(seeds)
            if (results := finished_results(folder / f"seed{seed}" / name / "results.json", seed)) is not None
        }
        for name in parts
    }
    arms = {}
    for name, part in parts.items():
        runs = done[name]
        if not runs:
            continue
        entry: dict[str, Any] = {
            "title": part.arm.title,
            "base": part.base,
            "seeds": list(runs),
            "accuracy": _over_seeds([run["accuracy"] for run in runs.values()]),
            "by_steps": {
                steps: _over_seeds([run["by_steps"][steps]["accuracy"] for run in runs.values()])
                for steps in map(str, OPERATIONS)
            },
            "thoughts": _over_seeds([run["mean_thoughts"] for run in runs.values()]),
            "samples": {
                name: _over_seeds([run[name] for run in runs.values()])
                for name in ("sampled_accuracy", "any_accuracy", "distinct_answers")
            },
            "fusion": {
                kind: _over_seeds([run["fusion"][kind] for run in runs.values()])
                for kind in next(iter(runs.values())).get("fusion", {})
            },
            "compute": next(iter(runs.values()))["compute"],
        }
        correlations = [_stop_correlation(run) for run in runs.values()]
        if None not in correlations:
            entry["stop_correlation"] = _over_seeds([float(value or 0.0) for value in correlations])
        base = done.get(part.base or "", {})
        pairs = [(runs[seed]["accuracy"], base[seed]["accuracy"]) for seed in runs if seed in base]
        if pairs:
            entry["difference"] = _over_seeds([ours - theirs for ours, theirs in pairs])
        arms[name] = entry
    return {"arms": arms, "config": {"seeds": seeds, "iterations": iterations, "questions": QUESTIONS}}


def ablation_table(content: Mapping[str, Any]) -> str:
    """The arms as Markdown: accuracy in per cent on chains of four, difference to the base in points, thoughts.

    The rank correlation is that of a question's thoughts with its number of operations, over all four lengths.
    """
    lines = [
        "| arm | base | greedy, 4 op. | difference | thoughts | rank correlation | seeds | s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in content["arms"].values():
        correlation = entry.get("stop_correlation")
        lines.append(
            f"| {entry['title']} | {entry['base'] or ''} | {_shown(entry['accuracy'])} | "
            f"{_shown(entry.get('difference'), signed=True)} | {entry['thoughts']['mean']:.2f} | "
            f"{'' if correlation is None else format(correlation['mean'], '.2f')} | "
            f"{len(entry['seeds'])} | {entry['compute']['seconds']:.0f} |"
        )
    return "\n".join(lines)


def fusion_table(content: Mapping[str, Any]) -> str:
    """What five samples are worth, for starts and bases: per cent on chains of four, means over seeds."""
    kinds = ("vote", "weighted", "best", "attend", "attend_identical", "mean", "mean_one_path")
    heads = ["arm", "greedy", "one sample", "different answers", "any right", *kinds]
    lines = ["| " + " | ".join(head.replace("_", " ") for head in heads) + " |"]
    lines.append("| --- |" + " ---: |" * (len(heads) - 1))
    for entry in content["arms"].values():
        if entry["base"] is None:
            samples, fusion = entry["samples"], entry["fusion"]
            shares = [entry["accuracy"], samples["sampled_accuracy"], samples["any_accuracy"]]
            shares += [fusion[kind] for kind in kinds if kind in fusion]
            cells = [f"{100 * share['mean']:.1f}" for share in shares]
            cells.insert(2, f"{samples['distinct_answers']['mean']:.2f}")
            lines.append(f"| {' | '.join([entry['title'], *cells, *[''] * (len(heads) - 1 - len(cells))])} |")
    return "\n".join(lines)


def _shown(figure: Mapping[str, Any] | None, signed: bool = False) -> str:
    if figure is None:
        return ""
    form = "{:+.1f}" if signed else "{:.1f}"
    text = form.format(100 * figure["mean"])
    if figure["interval"] is None:
        return text
    low, high = (form.format(100 * end) for end in figure["interval"])
    return f"{text} [{low}, {high}]"


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds with the 95 % interval of Student's t, which one seed does not have."""
    mean, interval = float(np.mean(values)), None
    if len(values) > 1:
        quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
        half = float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))
        interval = [mean - half, mean + half]
    return {"mean": mean, "interval": interval, "values": list(values)}


def _stop_correlation(results: Mapping[str, Any]) -> float | None:
    """Spearman's rank correlation of thoughts and operations over all questions; None where all thoughts are equal."""
    groups = {int(steps): group["thoughts"] for steps, group in results["by_steps"].items()}
    thoughts = np.concatenate([np.asarray(group) for group in groups.values()])
    steps = np.concatenate([np.full(len(group), number) for number, group in groups.items()])
    if np.ptp(thoughts) == 0:
        return None
    found: Any = scipy.stats.spearmanr(thoughts, steps)
    return float(found.statistic)


def _with_iterations(arm: Arm, iterations: int) -> Arm:
    if arm.starts_from is None:
        return arm
    every = {"evaluation.every_iterations": str(max(iterations // 4, 1))}
    return Arm(arm.title, arm.starts_from, {**arm.overrides, "ppo.iterations": str(iterations), **every})


def _check_iterations(folder: Path, iterations: int) -> None:
    """Arms that were trained for another number of iterations cannot stand in the same table."""
    note = folder / "iterations.json"
    if note.exists() and json.loads(note.read_text()) != iterations:
        raise UserError(
            f"{folder} holds arms of {json.loads(note.read_text())} iterations, not {iterations}: choose another --workdir."
        )
    note.write_text(json.dumps(iterations))
