"""The demonstration of the whole method on the generated chains, run by `make demo`.

Each variant is a run of `scripts/train.py` with `configs/tiny.py`, which can be repeated by hand. Two run in parallel:

    cot ─▶ coconut ─▶ ppo, continued
    cot ─▶ pause                        no_cot

`coconut` and `pause` start from `cot`, as COCONUT starts from a model trained on text steps. `ppo` and `continued`
start from `coconut` and train on the same number of sequences, with rewards and with labels respectively.
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from longshot_jax.evaluation.results import write_results
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
    reading_results,
    run_jobs,
    run_logged,
    train_command,
    write_tests,
)
from longshot_jax.files import check_writable, json_with
from longshot_jax.tables import markdown_table

QUESTIONS = 1000
ITERATIONS = 200  # `configs/tiny.py` has 400; half of them shorten the demonstration


def _curriculum(title: str, start: str | None, stages: str, **settings: str) -> Variant:
    overrides = {f"curriculum.{name}": value for name, value in {"stages": stages, **settings}.items()}
    return Variant(title, start, CURRICULUM | overrides)


def variants(iterations: int = ITERATIONS) -> dict[str, Variant]:
    """The variants by name, with `iterations` of PPO.

    `continued` sees as many sequences as PPO trains on (2 epochs of 256 trajectories an iteration, in batches of 64), with
    all steps as thoughts.
    """
    return {
        "no_cot": _curriculum(
            "no CoT: the answer directly",
            None,
            "(0,)",
            mode="no_cot",
            max_steps_per_stage="1500",
            last_stage_loss="0.0",
        ),
        "pause": _curriculum(
            "pause tokens, same curriculum",
            "cot",
            "(1, 2, 3, 4)",
            mode="pause",
            max_steps_per_stage="400",
            last_stage_loss="0.0",
        ),
        "cot": _curriculum("text CoT", None, "(0,)", mode="cot", last_stage_loss="0.03"),
        "coconut": _curriculum("COCONUT curriculum, unfinished", "cot", "(1, 2)"),
        "ppo": Variant("PPO", "coconut", PPO | {"ppo.iterations": str(iterations)}),
        "continued": _curriculum(
            "curriculum continued, PPO's compute",
            "coconut",
            "(4,)",
            max_steps_per_stage=str(8 * iterations),
            last_stage_loss="0.0",
        ),
    }


VARIANTS = variants()


def run_demonstration(folder: Path, seed: int, iterations: int = ITERATIONS) -> None:
    """Trains and evaluates the unfinished variants, prints the table and writes `summary.json` into the folder.

    Raises UserError if the folder cannot be written or holds variants of other settings, or if a variant fails.
    """
    began = time.monotonic()
    check_writable(folder / "summary.json", json_with(*VARIANTS), "--workdir")
    wanted = variants(iterations)
    check_variants(wanted, folder, seed)
    write_tests(folder, QUESTIONS)

    def step(name: str, what: str, command: list[str]) -> None:
        if finished_results(_results_file(folder, name), seed) is not None:
            return
        start = time.monotonic()
        run_logged(command, folder / f"{name}.log")
        now = time.monotonic()
        print(f"[{now - began:4.0f} s] {name}: {what} in {now - start:.0f} s", flush=True)

    jobs = []
    for name, variant in wanted.items():
        training = train_command(wanted, name, folder, seed)
        evaluation = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--workdir", str(folder), "--evaluate", name]
        jobs.append(Job(name, variant.starts_from, partial(step, name, "trained", training)))
        jobs.append(Job((name, "evaluated"), name, partial(step, name, "evaluated", evaluation)))
    jobs.sort(key=lambda job: isinstance(job.name, tuple))  # training first: other variants wait for it
    run_jobs(jobs, workers=2)
    summary = {name: finished_results(_results_file(folder, name), seed) for name in VARIANTS}
    write_results(folder / "summary.json", summary)
    with reading_results(folder):
        shown = table(summary)
    print(f"\n{shown}\n\n{time.monotonic() - began:.0f} s in all; {folder / 'summary.json'} has every figure.")


def evaluate_variant(name: str, folder: Path) -> None:
    """Evaluates a trained variant on every test file and writes its `results.json`, the entry of `summary.json`."""
    samples = 5 if name == "ppo" else 0  # of the others the table shows greedy answers alone
    write_results(_results_file(folder, name), evaluate_run(folder / name, folder, samples=samples))


def table(summary: Mapping[str, Any]) -> str:
    """Markdown table: accuracy in per cent by number of operations, thoughts, and training cost."""
    rows = [["%", *(f"{operations} op." for operations in OPERATIONS), "thoughts", "steps", "sequences", "s"]]

    def row(title: str, entry: Mapping[str, Any], read: Callable[[Any], float | None], *cost: str) -> list[str]:
        values = [read(group) for group in entry["by_steps"].values()]
        return [title, *("" if value is None else f"{100 * value:.1f}" for value in values), *(cost or [""] * 4)]

    def replaced(kind: str) -> Callable[[Any], float | None]:
        """What a control says of a group; without thoughts nothing is replaced."""
        return lambda group: group["controls"].get(kind, None if group["mean_thoughts"] else group["accuracy"])

    for name, variant in VARIANTS.items():
        entry, compute = summary[name], summary[name]["compute"]
        thoughts = " ".join(f"{group['mean_thoughts']:.2g}" for group in entry["by_steps"].values())
        cost = thoughts, f"{compute['gradient_steps']:,}", f"{compute['sequences']:,}", f"{compute['seconds']:.0f}"
        line = row(variant.title, entry, itemgetter("accuracy"), *cost)
        low, high = entry["confidence_interval"]
        line[len(OPERATIONS)] += f" [{100 * low:.1f}, {100 * high:.1f}]"
        rows.append(line)
        if name == "ppo":
            rows.append(row("PPO, one sample", entry, itemgetter("sampled_accuracy")))
            rows.append(row("PPO, vote of 5", entry, itemgetter("vote_accuracy")))
    for name in ("coconut", "ppo"):
        for kind in summary[name]["controls"]:
            title = f"{VARIANTS[name].title.split()[0]}, thoughts: {_CONTROLS.get(kind, kind)}"
            rows.append(row(title, summary[name], replaced(kind)))
    return markdown_table(rows)


_CONTROLS = {"zero": "zeros", "noise": "noise of the same norm", "mean": "batch mean", "swap": "another question's"}


def _results_file(folder: Path, name: str) -> Path:
    return folder / name / "results.json"
