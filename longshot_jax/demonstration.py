"""The whole method on the generated chains, arm by arm: what `make demo` runs.

Every arm is an ordinary run of `scripts/train.py` with `configs/tiny.py`, so that what the demo shows can be repeated
by hand. Two lanes run side by side, one core each, because models this small gain nothing from a second core:

    cot ─▶ coconut ─▶ ppo
    no_cot ─▶ pause (from cot) ─▶ continued (from coconut)

`coconut` and `pause` start from `cot`, as COCONUT starts from a model trained on text steps. `ppo` and `continued`
start from `coconut`: one goes on with rewards, the other with labels, for the same number of sequences.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longshot_jax.data.chains import write_chains
from longshot_jax.data.problems import load_problems
from longshot_jax.errors import UserError
from longshot_jax.evaluation.results import write_results
from longshot_jax.training.checkpoint import Checkpoints
from longshot_jax.training.workdir import read_config

OPERATIONS = (1, 2, 3, 4)
QUESTIONS = 1000
_TEST_SEED = 20_000  # the same test questions whatever the seed of training
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
      title: in the table.
      starts_from: the arm whose weights it starts from, or None.
      overrides: of `configs/tiny.py`.
    """

    title: str
    starts_from: str | None
    overrides: Mapping[str, str] = field(default_factory=dict)


# The continued curriculum sees as many sequences as PPO trains on: 400 iterations x 2 epochs x 256 trajectories, in
# batches of 64. The last stage has all steps as thoughts.
ARMS = {
    "no_cot": Arm(
        "no CoT: the answer directly",
        None,
        {
            "stages": "('curriculum',)",
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
            "stages": "('curriculum',)",
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
            "stages": "('curriculum',)",
            "curriculum.mode": "cot",
            "curriculum.stages": "(0,)",
            "curriculum.last_stage_loss": "0.03",
        },
    ),
    "coconut": Arm(
        "COCONUT curriculum, unfinished",
        "cot",
        {"stages": "('curriculum',)", "curriculum.stages": "(1, 2)"},
    ),
    "continued": Arm(
        "curriculum continued, PPO's compute",
        "coconut",
        {
            "stages": "('curriculum',)",
            "curriculum.stages": "(4,)",
            "curriculum.max_steps_per_stage": "3200",
            "curriculum.last_stage_loss": "0.0",
        },
    ),
    "ppo": Arm("PPO", "coconut", {"stages": "('ppo',)"}),
}
_LANES = (("cot", "coconut", "ppo"), ("no_cot", "pause", "continued"))


def train_command(arm: str, folder: Path, seed: int) -> list[str]:
    """The command that trains an arm; anyone can run it by hand."""
    settings = {"seed": str(seed), **ARMS[arm].overrides}
    if ARMS[arm].starts_from:
        settings["initialize_from"] = str(folder / str(ARMS[arm].starts_from))
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    script, config = str(_ROOT / "scripts" / "train.py"), str(_ROOT / "configs" / "tiny.py")
    return [sys.executable, script, "--config", config, "--workdir", str(folder / arm), *overrides]


def run_demonstration(folder: Path, seed: int) -> None:
    """Trains and evaluates all arms, prints the table and writes `summary.json` into the folder.

    An arm whose results are there already is not run again, so an interrupted demonstration goes on.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    for operations in OPERATIONS:
        write_chains(_test_file(folder, operations), operations, QUESTIONS, _TEST_SEED + operations)
    trained = {arm: threading.Event() for arm in ARMS}
    failures: list[str] = []

    def lane(arms: Sequence[str]) -> None:
        for arm in arms:
            needed = ARMS[arm].starts_from
            while needed and not trained[needed].wait(1.0):
                if failures:
                    return
            for what, command in (
                ("trained", train_command(arm, folder, seed)),
                ("evaluated", _evaluate_command(arm, folder)),
            ):
                start = time.monotonic()
                if not _finished(arm, folder, seed) and not _run(command, folder / f"{arm}.log"):
                    failures.append(arm)
                    return
                trained[arm].set()
                now = time.monotonic()
                print(f"[{now - began:4.0f} s] {arm}: {what} in {now - start:.0f} s", flush=True)

    threads = [threading.Thread(target=lane, args=(arms,)) for arms in _LANES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise UserError(f"arm {failures[0]} failed: its output is in {folder / failures[0]}.log.")
    summary = {arm: json.loads(_results_file(folder, arm).read_text()) for arm in ARMS}
    write_results(folder / "summary.json", summary)
    print(
        f"\n{table(summary)}\n\n{time.monotonic() - began:.0f} s in all; {folder / 'summary.json'} has every figure."
    )


def evaluate_arm(arm: str, folder: Path) -> None:
    """Evaluates a trained arm on every test file and writes its entry of `summary.json`."""
    from longshot_jax import LongShot

    model = LongShot.from_pretrained(folder / arm)
    by_operations = {}
    for operations in OPERATIONS:
        problems = load_problems(str(_test_file(folder, operations)))
        by_operations[operations] = model.evaluate(problems, batch_size=500)
    entry = by_operations[OPERATIONS[-1]]
    kept = ("accuracy", "mean_thoughts", "sampled_accuracy", "vote_accuracy", "controls")
    entry["by_steps"] = {
        str(operations): {name: results[name] for name in kept}
        for operations, results in by_operations.items()
    }
    with Checkpoints.reader(folder / arm) as checkpoints:
        (finished,) = checkpoints.host("latest")["finished"].values()
    config = read_config(folder / arm)
    passes = config["ppo"]["epochs"] if arm == "ppo" else 1
    entry["compute"] = {
        "gradient_steps": finished["updates"],
        "sequences": finished["sequences"] * passes,
        "seconds": finished["seconds"],
    }
    entry["config"] |= {"data": str(_test_file(folder, OPERATIONS[-1])), "training_seed": config["seed"]}
    write_results(_results_file(folder, arm), entry)


def table(summary: Mapping[str, Any]) -> str:
    """Accuracy in per cent by number of operations, thoughts spent, and what the training cost, as Markdown."""
    head = ["%", *(f"{operations} op." for operations in OPERATIONS), "thoughts", "steps", "sequences", "s"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]

    def row(title: str, entry: Mapping[str, Any], read: Any, cost: bool) -> list[str]:
        groups = entry["by_steps"].values()
        thoughts = " ".join(f"{group['mean_thoughts']:.2g}" for group in groups) if cost else ""
        compute = entry["compute"]
        spent = [f"{compute['gradient_steps']:,}", f"{compute['sequences']:,}", f"{compute['seconds']:.0f}"]
        return [
            title,
            *(f"{100 * read(group):.1f}" for group in groups),
            thoughts,
            *(spent if cost else [""] * 3),
        ]

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
    widths = [max(len(line[column]) for line in rows) for column in range(len(head))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in rows
    )


_CONTROLS = {
    "zero": "zeros",
    "noise": "noise of the same norm",
    "mean": "batch mean",
    "swap": "another question's",
}


def _test_file(folder: Path, operations: int) -> Path:
    return folder / f"test_{operations}.json"


def _results_file(folder: Path, arm: str) -> Path:
    return folder / arm / "results.json"


def _evaluate_command(arm: str, folder: Path) -> list[str]:
    return [sys.executable, str(_ROOT / "scripts" / "demo.py"), "--workdir", str(folder), "--evaluate", arm]


def _finished(arm: str, folder: Path, seed: int) -> bool:
    path = _results_file(folder, arm)
    return path.exists() and json.loads(path.read_text())["config"]["training_seed"] == seed


def _run(command: Sequence[str], log: Path) -> bool:
    """Runs a command with one thread of arithmetic, its output appended to a log file; whether it succeeded."""
    single = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {single}".strip(),
        # Two lanes may share one accelerator.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    with log.open("a") as output:
        print("$", " ".join(command), file=output, flush=True)
        return subprocess.run(command, stdout=output, stderr=output, env=environment).returncode == 0
