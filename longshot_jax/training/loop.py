"""A whole run: the configured stages one after the other, each resumable, in one run folder.

    runs/x/config.json     the settings              runs/x/checkpoints/   the state, newest and best
    runs/x/tokenizer/      the tokenizer             runs/x/tensorboard/   what TensorBoard shows

Killed anywhere and started again with the same command, a run goes on from its newest checkpoint and ends with the
same parameters: every batch, every random number and every decision is a function of the settings and of what the
checkpoint holds.
"""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jax.experimental import multihost_utils

from longshot_jax.config import RunConfig, parse_config
from longshot_jax.errors import UserError
from longshot_jax.evaluation.tensorboard import RunWriter
from longshot_jax.model.sharding import make_mesh
from longshot_jax.processes import first_alone
from longshot_jax.training.checkpoint import Checkpoints
from longshot_jax.training.curriculum_loop import CurriculumLoop
from longshot_jax.training.ppo_loop import PPOLoop
from longshot_jax.training.problem_sources import (
    build_layout,
    build_tokens,
    check_problems,
    store_tokens,
    train_and_validation_problems,
)
from longshot_jax.training.progress import summary
from longshot_jax.training.session import Session
from longshot_jax.training.setup import build_reasoner, draw, model_folder
from longshot_jax.training.workdir import check_same_config, prepare_workdir, write_config

# What changes neither weights nor the meaning of a checkpoint: a run may go on with other values.
_FREE = ("evaluation", "checkpoint", "mesh")
_BEST = "final/best_accuracy"
_LOOPS = {"curriculum": CurriculumLoop, "ppo": PPOLoop}


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
      workdir: its folder.
      best_step, best_accuracy: of the checkpoint that evaluation uses, on the short evaluation's questions; None
        where none was measured.
      stages: for each stage, its number of `updates`, the `sequences` they read, `seconds`, and `accuracy` at its end.
      seconds: of the whole run, over all its starts.
    """

    workdir: Path
    best_step: int | None
    best_accuracy: float | None
    stages: dict[str, dict[str, float]]
    seconds: float


def train(run: RunConfig, workdir: str | Path, stream: Any = None) -> RunResult:
    """Runs, or goes on with, all stages of a run, and prints a summary.

    Args:
      run: settings.
      workdir: the run folder; made where missing.
      stream: text stream of progress and summary, standard error by default.

    Raises:
      UserError: anything the user can mend, as a rule before training starts.
      Preempted: the process was told to end (SIGTERM); the state is saved.
    """
    workdir = Path(workdir)
    mesh = make_mesh(run.mesh)
    folder = model_folder(run)
    problems, validation = train_and_validation_problems(run)
    with ExitStack() as stack:
        lock = first_alone(lambda: prepare_workdir(workdir))
        if lock is not None:
            stack.enter_context(lock)
        host = _newest(workdir)
        if host is not None:
            _check_config(run, workdir, host)
        tokens = build_tokens(run, workdir, problems, folder, resumed=host is not None)
        layout = build_layout(run, tokens)
        problems = check_problems(run, layout, problems, run.data.train)
        validation = check_problems(run, layout, validation, run.data.validation or run.data.train)
        blueprint = draw(run, tokens, mesh, folder)
        # Only now, so that what is refused leaves nothing that a later start would take up.
        first_alone(lambda: write_config(workdir, asdict(run)))
        if host is None:
            first_alone(lambda: store_tokens(tokens, workdir))
        checkpoints = stack.enter_context(
            Checkpoints(workdir, run.checkpoint.keep_last, run.checkpoint.keep_best)
        )
        writer = stack.enter_context(RunWriter(workdir / "tensorboard", host["step"] if host else None))
        writer.hyperparameters(asdict(run), [*map(_final_accuracy, run.stages), _BEST])
        session = Session(run, blueprint, layout, problems, validation, mesh, checkpoints, writer, stream)
        stack.enter_context(session.preemption)
        if host is not None:
            session.seconds_before, session.finished = host["seconds"], host["finished"]
            session.best = tuple(host["best"]) if host["best"] else None
        first = 0 if host is None else run.stages.index(host["stage"])
        # Every stage's settings are checked before the first one trains.
        loops = [_LOOPS[stage](session) for stage in run.stages[first:]]
        weights = build_reasoner(run, blueprint, folder) if host is None else None
        step = 0
        while loops:
            weights, step = loops.pop(0).run(weights, host, step)
            host = None
        checkpoints.wait()
        result = RunResult(
            workdir,
            checkpoints.best_step,
            session.best[0] if session.best else None,
            session.finished,
            session.seconds,
        )
        _report(session, result, stream)
    return result


def _newest(workdir: Path) -> dict[str, Any] | None:
    """The JSON part of the folder's newest whole checkpoint, which the run goes on from; None for a new run."""
    host = None
    if (workdir / "checkpoints").is_dir():
        with Checkpoints.reader(workdir) as checkpoints:
            host = None if checkpoints.latest_step is None else checkpoints.host()
    # Before the first process makes that folder, every other one has looked.
    multihost_utils.sync_global_devices("run folder read")
    return host


def _check_config(run: RunConfig, workdir: Path, host: dict[str, Any]) -> None:
    """A checkpoint goes on only with the settings that made it; those that came since have their defaults."""
    if "config" not in host:
        raise UserError(
            f"{workdir} holds converted weights, not a run: name it as config.initialize_from, and choose another "
            "--workdir."
        )
    check_same_config(workdir, asdict(parse_config(host["config"])), asdict(run), _FREE)


def _final_accuracy(stage: str) -> str:
    return f"final/{stage}_accuracy"


def _report(session: Session, result: RunResult, stream: Any) -> None:
    """The table that ends a run, and its results for TensorBoard's comparison of runs."""
    rows: dict[str, Any] = {name: dict(figures) for name, figures in result.stages.items()}
    metrics = {_final_accuracy(name): figures["accuracy"] for name, figures in result.stages.items()}
    if result.best_accuracy is not None:
        rows["best checkpoint"] = {"accuracy": result.best_accuracy, "step": result.best_step}
        metrics[_BEST] = result.best_accuracy
    session.writer.results(metrics)
    with session.progress("run", 0, 0, "update") as shown:
        shown.note(summary(rows))
        shown.note(f"{result.workdir}: {result.seconds:.0f} s in all")
