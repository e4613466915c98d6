"""The ablation: each part of the method on and off, over several seeds, from the same starts.

Per seed the starts are trained once: `start`, the unfinished curriculum of `configs/tiny.py`, and the same with the
navigator's bottleneck and in text. Every other variant continues from one of them, with PPO for a fixed number of
iterations or with the curriculum, and differs from its base in one thing. The vote, the other fusions and their
controls are measured on every variant and shown for the bases. Distractors make the task harder: all prompts are
equally long, so the number of steps has to be read.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from longshot_jax.data.chains import NAMES
from longshot_jax.errors import UserError, shown
from longshot_jax.evaluation.results import write_results
from longshot_jax.experiments.ablation_tables import QUESTIONS, Part, collect
from longshot_jax.experiments.variants import (
    CURRICULUM,
    OPERATIONS,
    PPO,
    ROOT,
    Job,
    Variant,
    check_variants,
    evaluate_run,
    finished_results,
    run_jobs,
    run_logged,
    train_command,
    write_tests,
)
from longshot_jax.files import check_writable, json_with, read_json

_LAST_STAGES = CURRICULUM | {
    "curriculum.stages": "(3, 4)",
    "curriculum.max_steps_per_stage": "100",
    "curriculum.stage_loss": "0.0",
    "curriculum.last_stage_loss": "0.0",
}
_CRITIC = {"ppo.baseline": "critic", "ppo.gae_lambda": "0.95"}
_SCORE = {"ppo.gradient": "score"}
_BOTTLENECK = {"thoughts.feedback": "navigator", "thoughts.reasoning_dim": "32", "thoughts.normalised": "True"}
_BANK = {"thoughts.memory_top": "3", "ppo.memory_slots": "512", "ppo.memory_writes": "16"}
_ADAPTIVE = {
    "ppo.shared_reward": "True",
    "thoughts.max_trajectories": "8",
    "ppo.rewards.trajectory_cost": "0.02",
    "ppo.rewards.vote_correct": "1.0",
}
_SETTINGS = "settings.json"
RESULTS = json_with("variants")  # of an earlier call
_PROMPT_LENGTH, _STATEMENT_LENGTH = 26, 5  # tokens of a prompt of configs/tiny.py, and of one more statement


def _start(title: str, overrides: Mapping[str, str] | None = None) -> Part:
    return Part(Variant(title, None, CURRICULUM | dict(overrides or {})))


def _ppo(
    title: str, overrides: Mapping[str, str] | None = None, base: str | None = "pathwise", start: str = "start"
) -> Part:
    return Part(Variant(title, start, PPO | dict(overrides or {})), base)


def _supervised(title: str, guidance: Mapping[str, str] | None = None, base: str | None = "supervised") -> Part:
    guided = {f"curriculum.guidance.{name}": value for name, value in (guidance or {}).items()}
    return Part(Variant(title, "start", _LAST_STAGES | guided), base)


PARTS: Mapping[str, Part] = {
    "start": _start("curriculum, unfinished: the start"),
    "start_navigator": _start("the same through the navigator's bottleneck, R = 32", _BOTTLENECK),
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
    # Thought noise.
    "no_noise": _ppo("no thought noise", {"ppo.thought_std": "(0.0,0.0)"}),
    "more_noise": _ppo("σ 0.4", {"ppo.thought_std": "(0.4,0.4)"}),
    "annealed_noise": _ppo("σ 0.4 to 0.1", {"ppo.thought_std": "(0.4,0.1)"}),
    # Baselines.
    "critic": _ppo("baseline critic (GAE)", _CRITIC),
    "group": _ppo("baseline group mean and deviation", {"ppo.baseline": "group"}),
    # Number of thoughts.
    "fixed_count": _ppo("no stop head: always six thoughts", {"ppo.min_thoughts": "6"}),
    "no_cost": _ppo("no cost of a thought", {"ppo.rewards.thought_cost": "0.0"}),
    # Reads of a thought.
    "bank": _ppo("memory bank, top 3", _BANK),
    # Remembered positions could pull a noisy one back.
    "bank_noise": _ppo("memory bank, top 3, σ 0.4", _BANK | {"ppo.thought_std": "(0.4,0.4)"}, "more_noise"),
    "graph_own": _ppo("graph memory of its own actions", {"thoughts.graph": "own"}),
    "graph_bank": _ppo("graph memory with the bank", _BANK | {"thoughts.graph": "own"}),
    "graph_all": _ppo("graph memory of all trajectories", _CRITIC | {"thoughts.graph": "all"}, "critic"),
    "cross_attention": _ppo("cross-trajectory attention", _CRITIC | {"thoughts.cross_attention": "True"}, "critic"),
    "together": _ppo("ensemble: the mean thought for all", _CRITIC | {"ppo.ensemble": "True"}, "critic"),
    # Diversity and number of trajectories.
    "antithetic": _ppo("mirror images for noise", {"ppo.coupling": "antithetic"}),
    "orthogonal": _ppo("orthogonal noise", {"ppo.coupling": "orthogonal"}),
    "shared_reward": _ppo("every trajectory earns their mean", _CRITIC | {"ppo.shared_reward": "True"}, "critic"),
    "adaptive_trajectories": _ppo(
        "own number of trajectories, a price for each, a reward for the vote", _CRITIC | _ADAPTIVE, "shared_reward"
    ),
    # The navigator.
    "navigator": _ppo("navigator's bottleneck, R = 32, pathwise", _BOTTLENECK, "pathwise", start="start_navigator"),
    "navigator_score": _ppo(
        "navigator's bottleneck, score summed", _BOTTLENECK | _SCORE, "navigator", start="start_navigator"
    ),
    "navigator_frozen": _ppo(
        "navigator's bottleneck, backbone frozen",
        _BOTTLENECK | {"ppo.trainable": "navigator"},
        "navigator",
        start="start_navigator",
    ),
    # The curriculum continued with labels, a hundred updates per stage, with guidance.
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
        {"curriculum.mode": "cot", "ppo.max_thoughts": "0", "ppo.min_thoughts": "0"},
        "pathwise",
        "start_text",
    ),
}


def chosen_parts(names: Sequence[str]) -> dict[str, Part]:
    """The named parts (all if there are no names) with their starts and bases, in order; a UserError if unknown."""
    for name in names:
        if name not in PARTS:
            raise UserError(f"--variants has no variant {shown(name)}: there are {', '.join(PARTS)}.")
    wanted = set(names or PARTS)
    while True:
        needed = {PARTS[name].variant.starts_from for name in wanted} | {PARTS[name].base for name in wanted}
        more = {name for name in needed if name} - wanted
        if not more:
            return {name: part for name, part in PARTS.items() if name in wanted}
        wanted |= more


def run_ablation(
    folder: Path, output: Path, names: Sequence[str], seeds: int, iterations: int, jobs: int, distractors: int = 0
) -> dict[str, Any]:
    """Trains and evaluates the unfinished variants, writes `output` after each, and returns its content.

    Args:
      folder: of the runs, such as `folder/seed0/pathwise`; finished ones are not run again.
      output: JSON file, see `collect`.
      names: variants; empty for all. seeds: number of runs of each, with seeds 0, 1, ...
      iterations: PPO iterations of every variant. jobs: number of parallel runs.
      distractors: irrelevant statements beside the longest chains; 0 for the demonstration's task.

    Raises:
      UserError: an unknown variant, a folder that cannot be written, results of other settings, or a failed run.
    """
    parts = chosen_parts(names)
    most = len(NAMES) - 1 - OPERATIONS[-1]
    if distractors > most:
        raise UserError(
            f"--distractors is {distractors}: beside {OPERATIONS[-1]} operations there are names for {most}."
        )
    settings = {"iterations": iterations, "distractors": distractors}
    variants = {name: _with_settings(part.variant, iterations, distractors) for name, part in parts.items()}
    check_writable(output, RESULTS)
    note = folder / _SETTINGS
    if note.exists() and (found := read_json(note, advice="remove it, or choose another --workdir")) != settings:
        raise UserError(f"{folder} holds variants of {shown(found)}, not of {settings}: choose another --workdir.")
    for seed in range(seeds):
        check_variants(variants, folder / f"seed{seed}", seed)
    tests = folder / "tests"
    write_tests(tests, QUESTIONS, distractors)
    write_results(folder / _SETTINGS, settings)
    lock = threading.Lock()

    def run(seed: int, name: str) -> None:
        place = folder / f"seed{seed}"
        if finished_results(place / name / "results.json", seed) is None:
            script = str(ROOT / "scripts" / "ablate.py")
            print(f"seed {seed}, {name}: begins, its output goes to {place / f'{name}.log'}", flush=True)
            evaluate = [sys.executable, script, "--evaluate", str(place / name), "--tests", str(tests)]
            for command in (train_command(variants, name, place, seed), evaluate):
                run_logged(command, place / f"{name}.log")
        with lock:
            write_results(output, collect(folder, parts, seeds, settings))
            print(f"seed {seed}, {name}: done", flush=True)

    work = []
    for seed in range(seeds):
        for name in sorted(parts, key=lambda name: variants[name].starts_from is not None):
            start = variants[name].starts_from
            work.append(Job((seed, name), (seed, start) if start else None, partial(run, seed, name)))
    run_jobs(work, jobs)
    return collect(folder, parts, seeds, settings)


def evaluate_part(run: Path, tests: Path) -> None:
    """Evaluates a trained variant and writes `results.json` into its folder."""
    write_results(run / "results.json", evaluate_run(run, tests, controls=False, keep=("fusion", "thoughts")))


def _with_settings(variant: Variant, iterations: int, distractors: int) -> Variant:
    common = {}
    if distractors:
        length = _PROMPT_LENGTH + _STATEMENT_LENGTH * distractors
        common = {"data.distractors": str(distractors), "data.prompt_length": str(length)}
    if variant.starts_from is not None:
        common["ppo.iterations"] = str(iterations)
        common["evaluation.every_iterations"] = str(max(iterations // 4, 1))
    return replace(variant, overrides={**variant.overrides, **common})
