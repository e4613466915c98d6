"""What the stages of a run share: settings, problems, structure of the model, checkpoints, logs."""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from longshot_jax.config import RunConfig
from longshot_jax.conversion import llama_to_json
from longshot_jax.data.examples import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.errors import Preempted, UserError
from longshot_jax.evaluation.tensorboard import RunWriter, samples_table
from longshot_jax.processes import Preemption
from longshot_jax.training.checkpoint import Checkpoints
from longshot_jax.training.progress import Progress
from longshot_jax.training.setup import Blueprint

_SAMPLES = 8


@dataclass
class Session:
    """One start of a run.

    Attributes:
      run: settings.
      blueprint: structure and shapes of the reasoner.
      layout: of prompts and answers.
      train, validation: problems.
      mesh: of devices.
      checkpoints, writer: of the run folder.
      stream: where progress goes, None for standard error.
      seconds_before: time spent by earlier starts of the run, up to the checkpoint.
      best: highest metric of any checkpoint so far, and its step.
      preemption: whether the run has been told to end.
      finished: for each stage of the run that is done, updates, sequences and seconds.
    """

    run: RunConfig
    blueprint: Blueprint
    layout: Layout
    train: Sequence[Problem]
    validation: Sequence[Problem]
    mesh: Mesh
    checkpoints: Checkpoints
    writer: RunWriter
    stream: Any = None
    seconds_before: float = 0.0
    best: tuple[float, int] | None = None
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    preemption: Preemption = field(default_factory=Preemption)

    @property
    def seconds(self) -> float:
        """Time spent on the run, over all its starts."""
        return self.seconds_before + time.monotonic() - self.started

    def save(
        self, step: int, state: Any, stage: str, progress: Mapping[str, Any], metric: float | None = None
    ) -> None:
        """A checkpoint of the whole run. `progress` is the stage's own part of what is not an array."""
        if metric is not None and (self.best is None or metric > self.best[0]):
            self.best = (metric, step)
        trained = self.run.trainable(stage) == "all"
        host = {
            "config": asdict(self.run),
            "llama": llama_to_json(self.blueprint.llama),
            "llama_path": "trainable.llama" if trained else "frozen.llama",
            "stage": stage,
            "step": step,
            "progress": dict(progress),
            "seconds": self.seconds,
            "best": self.best,
            "finished": self.finished,
        }
        self.checkpoints.save(step, state, host, metric)

    def leave(self, step: int) -> NoReturn:
        """Ends a run that was told to end, once the checkpoint of this step is whole on disk."""
        self.checkpoints.wait()
        raise Preempted(f"the checkpoint of step {step} is written")

    def improves(self, metric: float | None) -> bool:
        """Whether a metric is above that of every checkpoint so far."""
        return metric is not None and (self.best is None or metric > self.best[0])

    def progress(self, name: str, total: int, done: int, unit: str) -> Progress:
        """A progress bar; only the first process shows one."""
        if jax.process_index() == 0:
            return Progress(name, total, done, unit, self.stream)
        return Progress(name, total, done, unit, _Silent())

    def check_skipped(self, in_a_row: Any, allowed: int, key: str) -> None:
        """Ends the run if too many updates in a row were skipped."""
        if int(in_a_row) < allowed:
            return
        last = self.checkpoints.latest_step
        kept = "no checkpoint was written yet" if last is None else f"the checkpoint of step {last} is intact"
        raise UserError(
            f"{int(in_a_row)} updates in a row were skipped because the loss or its gradient was not finite ({key} "
            f"allows fewer than {allowed}); {kept}: lower the learning rate or clip_norm in a new --workdir."
        )

    def log_evaluation(self, step: int, results: Mapping[str, Any], problems: Sequence[Problem]) -> None:
        """Scalars, histograms and sample questions of a short evaluation."""
        scalars = {
            "evaluation/accuracy": results["accuracy"],
            "evaluation/mean_thoughts": results["mean_thoughts"],
        }
        for steps, group in results["by_steps"].items():
            scalars[f"evaluation/accuracy_of_{steps}_steps"] = group["accuracy"]
            scalars[f"evaluation/thoughts_of_{steps}_steps"] = group["mean_thoughts"]
        self.writer.scalars(step, scalars)
        rows = [
            {
                "question": problem.question,
                "expected": problem.answer,
                "decoded": answer,
                "right": "yes" if correct else "no",
                "thoughts": thoughts,
            }
            for problem, answer, correct, thoughts in zip(
                problems, results["answers"], results["correct"], results["thoughts_taken"], strict=True
            )
        ]
        self.writer.histogram(step, "evaluation/thoughts_taken", results["thoughts_taken"])
        self.writer.histogram(step, "evaluation/thought_norms", results["thought_norms"])
        self.writer.text(step, "evaluation/samples", samples_table(rows[:_SAMPLES]))
        if results.get("lens"):
            self.writer.text(step, "evaluation/thoughts", samples_table(results["lens"]))
            self.writer.image(step, "evaluation/stop_probabilities", results["stop_figure"])


class _Silent(io.StringIO):
    """A stream that shows nothing and keeps nothing."""

    def write(self, _: str) -> int:
        return 0


def as_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Scalar metrics as Python numbers."""
    return {name: float(np.asarray(value)) for name, value in metrics.items()}
