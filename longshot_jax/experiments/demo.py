"""The whole method on the generated chains, arm by arm: what `make demo` runs.

Every arm is an ordinary run of `scripts/train.py` with `configs/tiny.py`, so that what the demo shows can be repeated
by hand. Two run side by side, one core each, because models this small gain nothing from a second core:

    cot ─▶ coconut ─▶ ppo, continued
    cot ─▶ pause                        no_cot

`coconut` and `pause` start from `cot`, as COCONUT starts from a model trained on text steps. `ppo` and `continued`
start from `coconut`: one goes on with rewards, the other with labels, for the same number of sequences.
"""

import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from longshot_jax.evaluation.results import write_results
from longshot_jax.experiments.variants import (
    OPERATIONS,
    ROOT,
    Arm,
    Job,
    check_arms,
    evaluate_run,
    finished_results,
    run_jobs,
    run_logged,
    train_command,
    write_tests,
)
from longshot_jax.tables import markdown_table

QUESTIONS = 1000

# The continued curriculum sees as many sequences as PPO trains on: 400 iterations x 2 epochs x 256 trajectories, in
# batches of 64. The last stage has all steps as thoughts.
ARMS = {
    "no_cot": Arm(
        "no CoT: the answer directly",
        None,
        {
            "phases": "('curriculum',)",
            "curriculum.mode": "no_cot",
            "curriculum.stages": "(0,)",
            "curriculum.max_steps_per_stage": "1500",
            "curriculum.last_stage_loss": "0.0",
        },
    ),
    "pause": Arm(
        "pause tokens, same curriculum",
        "cot",
        {
            "phases": "('curriculum',)",
            "curriculum.mode": "pause",
            "curriculum.stages": "(1, 2, 3, 4)",
            "curriculum.max_steps_per_stage": "400",
            "curriculum.last_stage_loss": "0.0",
        },
    ),
    "cot": Arm(
        "text CoT",
        None,
        {
            "phases": "('curriculum',)",
            "curriculum.mode": "cot",
            "curriculum.stages": "(0,)",
            "curriculum.last_stage_loss": "0.03",
        },
    ),
    "coconut": Arm(
        "COCONUT curriculum, unfinished", "cot", {"phases": "('curriculum',)", "curriculum.stages": "(1, 2)"}
    ),
    "continued": Arm(
        "curriculum continued, PPO's compute",
        "coconut",
        {
            "phases": "('curriculum',)",
            "curriculum.stages": "(4,)",
            "curriculum.max_steps_per_stage": "3200",
            "curriculum.last_stage_loss": "0.0",
        },
    ),
    "ppo": Arm("PPO", "coconut", {"phases": "('ppo',)"}),
}


def run_demonstration(folder: Path, seed: int) -> None:
    """Trains and evaluates all arms, prints the table and writes `summary.json` into the folder.

    An arm whose results are there already is not run again, so an interrupted demonstration goes on.

    Raises:
      UserError: the folder cannot be written or holds arms of other settings, or an arm failed.
    """
    began = time.monotonic()
    check_arms(ARMS, folder, seed)
    write_tests(folder, QUESTIONS)

    def step(arm: str, what: str, command: list[str]) -> None:
        if finished_results(_results_file(folder, arm), seed) is not None:
            return
        start = time.monotonic()
        run_logged(command, folder / f"{arm}.log")
        now = time.monotonic()
        print(f"[{now - began:4.0f} s] {arm}: {what} in {now - start:.0f} s", flush=True)

    jobs = []
    for arm, details in ARMS.items():
        training, evaluation = train_command(ARMS, arm, folder, seed), _evaluate_command(arm, folder)
        jobs.append(Job(arm, details.starts_from, partial(step, arm, "trained", training)))
        jobs.append(Job((arm, "evaluated"), arm, partial(step, arm, "evaluated", evaluation)))
    jobs.sort(key=lambda job: isinstance(job.name, tuple))  # training first: other arms wait for it
    run_jobs(jobs, workers=2)
    summary = {arm: json.loads(_results_file(folder, arm).read_text()) for arm in ARMS}
    write_results(folder / "summary.json", summary)
    print(f"\n{table(summary)}\n\n{time.monotonic() - began:.0f} s in all; {folder / 'summary.json'} has every figure.")


def evaluate_arm(arm: str, folder: Path) -> None:
    """Evaluates a trained arm on every test file and writes its entry of `summary.json`."""
    write_results(_results_file(folder, arm), evaluate_run(folder / arm, folder))


def table(summary: Mapping[str, Any]) -> str:
    """Accuracy in per cent by number of operations, thoughts, and cost of the training, as Markdown."""
    head = ["%", *(f"{operations} op." for operations in OPERATIONS), "thoughts", "steps", "sequences", "s"]
    rows = [head]

    def row(title: str, entry: Mapping[str, Any], read: Any, cost: bool) -> list[str]:
        groups, compute, spent = entry["by_steps"].values(), entry["compute"], [""] * 4
        if cost:
            thoughts = " ".join(f"{group['mean_thoughts']:.2g}" for group in groups)
            updates, sequences = f"{compute['gradient_steps']:,}", f"{compute['sequences']:,}"
            spent = [thoughts, updates, sequences, f"{compute['seconds']:.0f}"]
        return [title, *(f"{100 * read(group):.1f}" for group in groups), *spent]

    for arm, details in ARMS.items():
        entry = summary[arm]
        line = row(details.title, entry, lambda group: group["accuracy"], True)
        low, high = entry["confidence_interval"]
        line[len(OPERATIONS)] += f" [{100 * low:.1f}, {100 * high:.1f}]"
        rows.append(line)
        if arm == "ppo":
            rows.append(row("PPO, one sample", entry, lambda group: group["sampled_accuracy"], False))
            rows.append(row("PPO, vote of 5", entry, lambda group: group["vote_accuracy"], False))
    for arm in ("coconut", "ppo"):
        for kind in summary[arm]["controls"]:
            title = f"{ARMS[arm].title.split()[0]}, thoughts: {_CONTROLS[kind]}"
            rows.append(row(title, summary[arm], lambda group, kind=kind: group["controls"][kind], False))
    return markdown_table(rows)


_CONTROLS = {"zero": "zeros", "noise": "noise of the same norm", "mean": "batch mean", "swap": "another question's"}


def _results_file(folder: Path, arm: str) -> Path:
    return folder / arm / "results.json"


def _evaluate_command(arm: str, folder: Path) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "demo.py"), "--workdir", str(folder), "--evaluate", arm]
