"""Variants of an experiment on the generated chains: runs of `scripts/train.py` that can be repeated by hand.

A variant overrides a few settings of `configs/tiny.py` and may start from another variant's parameters. Models this
small gain nothing from a second core, so each run has one thread, and several run in parallel.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.run_folder import config_differences, read_config, read_settings
from longshot_jax.cli import command_parser, parse_command
from longshot_jax.config import RunConfig, parse_config
from longshot_jax.data.chains import write_chains
from longshot_jax.data.problems import load_problems
from longshot_jax.errors import UserError, first_line
from longshot_jax.files import open_no_link, read_json, unwritable

OPERATIONS = (1, 2, 3, 4)
_AGAIN = "remove it, and the same command evaluates again"
_TEST_SEED = 20_000  # test questions do not depend on the training seed
ROOT = Path(__file__).parents[2]
CURRICULUM, PPO = {"phases": "('curriculum',)"}, {"phases": "('ppo',)"}  # overrides for one phase


@dataclass(frozen=True)
class Variant:
    """One way to train: a title for tables, the variant whose parameters it starts from, and overrides by setting."""

    title: str
    starts_from: str | None
    overrides: Mapping[str, str] = field(default_factory=dict)


def train_command(variants: Mapping[str, Variant], name: str, folder: Path, seed: int) -> list[str]:
    """The command that trains a variant in `folder/name`."""
    variant = variants[name]
    settings = {"seed": str(seed), **variant.overrides}
    if variant.starts_from:
        settings["initialize_from"] = str(folder / variant.starts_from)
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    script, config = str(ROOT / "scripts" / "train.py"), str(ROOT / "configs" / "tiny.py")
    return [sys.executable, script, "--config", config, "--workdir", str(folder / name), *overrides]


def check_variants(variants: Mapping[str, Variant], folder: Path, seed: int) -> None:
    """Raises UserError if a finished variant in `folder` was trained with other settings.

    The message names the first one, the differences, and the variants that start from it.
    """
    for name in variants:
        if not (folder / name / "results.json").exists():
            continue
        parser = command_parser(None)
        parser.add_argument("--workdir")
        run, *_ = parse_command(parser, train_command(variants, name, folder, seed)[2:])
        try:
            stored = parse_config(read_config(folder / name))
        except UserError as error:
            raise UserError(
                f"{folder / name} was trained by another version ({first_line(error)}): {_removal(variants, name)}"
            ) from None
        # The start is a variant itself and is checked as one; its path may change.
        differences = config_differences(asdict(stored), asdict(run), ("initialize_from",))
        if differences:
            raise UserError(
                f"{folder / name} was trained with other settings ({', '.join(differences)}): "
                f"{_removal(variants, name)}"
            )


def _removal(variants: Mapping[str, Variant], name: str) -> str:
    stale = [name]
    for other in variants:  # a start precedes the variants that start from it
        if variants[other].starts_from in stale:
            stale.append(other)
    return f"remove {', '.join(stale)} there, or choose another --workdir."


def write_tests(folder: Path, questions: int, distractors: int = 0) -> None:
    """Writes the test files, one per number of operations; a UserError if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}): choose another --workdir.") from None
    for operations in OPERATIONS:
        extra = distractors + OPERATIONS[-1] - operations if distractors else 0
        write_chains(test_file(folder, operations), operations, questions, _TEST_SEED + operations, distractors=extra)


def test_file(folder: Path, operations: int) -> Path:
    """The test file of chains of `operations` operations."""
    return folder / f"test_{operations}.json"


def evaluate_run(
    run: Path, tests: Path, *, samples: int = 5, controls: bool = True, keep: Sequence[str] = ()
) -> dict[str, Any]:
    """Results of a trained variant on chains of four operations, with a summary per number of operations as `by_steps`.

    Args:
      run: folder of the run. tests: folder of the test files.
      samples: per question, for sampled answers and fusions; 0 skips them.
      controls: as for `LongShot.evaluate`.
      keep: names of further results in the summaries.
    """
    from longshot_jax import LongShot

    model = LongShot.from_pretrained(run)
    # A thought per step and no written one, also where the curriculum ended before all stages.
    thoughts = None if model.model.stage_rule is None else "steps"
    by_operations = {}
    for operations in OPERATIONS:
        problems = load_problems(str(test_file(tests, operations)))
        by_operations[operations] = model.evaluate(
            problems, num_trajectories=samples, batch_size=500, controls=controls, thoughts=thoughts
        )
    entry = by_operations[OPERATIONS[-1]]
    sampled = ("sampled_accuracy", "vote_accuracy") if samples else ()
    kept = ("accuracy", "mean_thoughts", *sampled, "controls", *keep)
    entry["by_steps"] = {
        str(operations): {name: results[name] for name in kept} for operations, results in by_operations.items()
    }
    settings = read_settings(run)
    entry["compute"] = compute_of(run, settings)
    entry["config"] |= {"data": str(test_file(tests, OPERATIONS[-1])), "training_seed": settings.seed}
    return entry


def compute_of(run: Path, settings: RunConfig) -> dict[str, float]:
    """Gradient steps, sequences in gradients, and seconds of a run's last phase."""
    with Checkpoints.reader(run) as checkpoints:
        finished = checkpoints.metadata("latest")["finished"]
    phase = list(finished)[-1]
    passes = settings.ppo.epochs if phase == "ppo" else 1
    return {
        "gradient_steps": finished[phase]["updates"],
        "sequences": finished[phase]["sequences"] * passes,
        "seconds": finished[phase]["seconds"],
    }


def run_logged(command: Sequence[str], log: Path) -> None:
    """Runs a command with single-threaded arithmetic and appends its output to `log`; a UserError if it fails."""
    single = "--xla_cpu_multi_thread_eigen=false"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {single}".strip(),
        # Several runs may share an accelerator.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = open(log, "a", opener=open_no_link)
    except OSError as error:
        raise unwritable(log, error, "choose another --workdir") from None
    with output:
        print("$", " ".join(command), file=output, flush=True)
        code = subprocess.run(command, stdout=output, stderr=output, env=environment).returncode
    if code:
        raise UserError(f"a run failed: its output is in {log}.")


@dataclass(frozen=True)
class Job:
    """A part of an experiment: a unique name, the name of a job that must finish first, and a function to call."""

    name: Hashable
    needs: Hashable | None
    run: Callable[[], None]


def run_jobs(jobs: Sequence[Job], workers: int) -> None:
    """Runs jobs in parallel, each after the one that it needs, otherwise in order.

    After an error no further job starts, and the first error is raised again.
    """
    waiting, running, done = list(jobs), {}, set()
    with ThreadPoolExecutor(workers) as pool:
        while waiting or running:
            ready = [job for job in waiting if job.needs is None or job.needs in done]
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                running[pool.submit(job.run)] = job.name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                done.add(running.pop(future))
                future.result()


def finished_results(path: Path, seed: int) -> dict[str, Any] | None:
    """The results in a file; None if it is missing or of another seed; a UserError if it is of another command."""
    if not path.exists():
        return None
    advice = "remove it, or choose another --workdir"
    results = read_json(path, advice=advice)
    config = results.get("config")
    if not isinstance(config, dict) or "training_seed" not in config or "by_steps" not in results:
        raise UserError(f"{path} is not of a variant of this experiment: {advice}.")
    return results if config["training_seed"] == seed else None


@contextmanager
def reading_results(path: Path) -> Iterator[None]:
    """Turns an error of code that reads results from this file or folder into a UserError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        fault = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{path} lacks a figure of an evaluation, or has one of another type ({fault}): {_AGAIN}."
        ) from error
