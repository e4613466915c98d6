"""State shared by the phases of a run."""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

import jax
from jax.sharding import Mesh

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.frozen_source import KEY, FrozenSource, join_frozen, split_frozen
from longshot_jax.checkpoints.saved_reasoner import CODE, DATA, TRAINED_ON
from longshot_jax.config import RunConfig
from longshot_jax.data.layout import Layout
from longshot_jax.data.own import Grade, by_problem
from longshot_jax.data.problems import Problem
from longshot_jax.data.sources import Problems
from longshot_jax.distributed import Preemption
from longshot_jax.errors import Preempted, UserError
from longshot_jax.evaluation.validation import Validation
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.thoughts.reasoner import AbstractReasoner
from longshot_jax.training.progress import Progress
from longshot_jax.training.state import TrainState
from longshot_jax.training.tensorboard import RunWriter, samples_table

RUNAWAY = 10.0  # times the first norm of thoughts


@dataclass
class RunContext:
    """One start of a run.

    Attributes:
      run, abstract: settings; structure and shapes of the reasoner.
      layout, problems: layout of prompts and answers; training and validation problems.
      checkpoints, writer: checkpoints and event file of the run folder.
      stream: output stream of the progress; None is standard error.
      frozen_source: folder of the backbone's weights as they were before all phases, or None; checkpoints do not hold them
        while no phase has trained them.
      grade: of an answer, 0 to 1.
      code, data: fingerprints of the user's code, and of problems that were read.
      trained_on: training problems of this run, and of each earlier run that its parameters started from.
      seconds_before: time spent by earlier starts of the run, up to the checkpoint.
      best: highest metric of all checkpoints, and its step.
      finished: updates, sequences, seconds and accuracy of each finished phase.
    """

    run: RunConfig
    abstract: AbstractReasoner
    layout: Layout
    problems: Problems
    mesh: Mesh
    checkpoints: Checkpoints
    writer: RunWriter
    stream: Any = None
    frozen_source: FrozenSource | None = None
    grade: Grade = by_problem
    code: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    trained_on: Sequence[str] = ()
    seconds_before: float = 0.0
    best: tuple[float, int] | None = None
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    preemption: Preemption = field(default_factory=Preemption)

    @property
    def seconds(self) -> float:
        """Time spent on the run, over all starts."""
        return self.seconds_before + time.monotonic() - self.started

    def save(
        self, step: int, state: TrainState, phase: str, progress: Mapping[str, Any], metric: float | None = None
    ) -> None:
        """Saves a checkpoint of the whole run; `progress` is the metadata of the phase."""
        if metric is not None and self.improves(metric):
            self.best = (metric, step)
        group = "trainable" if self.run.trainable(phase) == "all" else "frozen"
        metadata = {
            "config": asdict(self.run),
            "backbone": asdict(self.abstract.backbone),
            "backbone_path": f"{group}.backbone",
            "phase": phase,
            "step": step,
            "progress": dict(progress),
            "seconds": self.seconds,
            "best": self.best,
            "finished": self.finished,
            CODE: self.code,
            DATA: self.data,
            TRAINED_ON: list(self.trained_on),
        }
        phases = self.run.phases[: self.run.phases.index(phase) + 1]
        if self.frozen_source is not None and all(self.run.trainable(done) != "all" for done in phases):
            metadata[KEY] = self.frozen_source.to_json()
            state = replace(state, frozen=split_frozen(state.frozen)[0])
        self.checkpoints.save(step, state, metadata, metric)

    def restore(self, template: TrainState, step: int) -> TrainState:
        """The whole state of a checkpoint; `template` has its shapes, dtypes and shardings.

        Raises a UserError if the checkpoint is damaged, or the frozen weights that it belongs to are others.
        """
        if self.frozen_source is None:
            return self.checkpoints.restore(template, step)[0]
        held, outside = split_frozen(template.frozen)
        state, metadata = self.checkpoints.restore(replace(template, frozen=held), step)
        shape, workdir = LlamaConfig.from_json(metadata["backbone"]), self.checkpoints.folder.parent
        backbone = self.frozen_source.load(shape, self.run.model.weight_dtype, outside, workdir)
        return replace(state, frozen=join_frozen(state.frozen, backbone))

    def exit_when_saved(self, step: int) -> NoReturn:
        """Raises Preempted once the checkpoint of this step is complete on disk."""
        self.checkpoints.wait()
        raise Preempted(f"the checkpoint of step {step} is written")

    def improves(self, metric: float | None) -> bool:
        """Whether a metric exceeds that of every checkpoint."""
        return metric is not None and (self.best is None or metric > self.best[0])

    def validation(self, max_thoughts: int, *, answer_length: int, steps_written: bool) -> Validation:
        """The evaluation of a phase on the validation problems."""
        given = self.abstract.graphdef, self.mesh, self.run, self.layout, self.problems.validation, self.grade
        return Validation(*given, max_thoughts=max_thoughts, answer_length=answer_length, steps_written=steps_written)

    def progress(self, name: str, total: int, done: int, unit: str) -> Progress:
        """A progress bar; only that of the first process is visible."""
        return Progress(name, total, done, unit, self.stream if jax.process_index() == 0 else io.StringIO())

    def check_skipped(self, in_a_row: Any, allowed: int, key: str) -> None:
        """Raises a UserError if `allowed` or more updates in a row were skipped."""
        if int(in_a_row) < allowed:
            return
        optimizer = f"{key.rpartition('.')[0]}.optimizer"
        raise UserError(
            f"{int(in_a_row)} updates in a row were skipped because the loss or its gradient was not finite ({key} "
            f"allows fewer than {allowed}); {self.kept()}: lower {optimizer}.learning_rate or {optimizer}.clip_norm in a new --workdir."
        )

    def refuse_to_go_on(self, what: str, phase: str) -> NoReturn:
        """Raises a UserError for a run that goes wrong."""
        advice = f"lower config.{phase}.optimizer.learning_rate, or raise warmup_steps, in a new --workdir"
        raise UserError(f"{what}; {self.kept()}: {advice}.")

    def check_thought_norm(self, first: float | None, results: Mapping[str, Any], phase: str) -> float | None:
        """The norm of thoughts at the first evaluation of a phase that has any.

        Args:
          first: the result of the last call; None before the first one.
          results: of a `Validation`.

        Raises a UserError if it has grown beyond `RUNAWAY` times the first one.
        """
        now = results.get("thought_norm")
        if first and now is not None and now > RUNAWAY * first:
            self.refuse_to_go_on(
                f"the norm of thoughts runs away: {now:.3g} times that of token embeddings, and {first:.3g} at the first "
                f"evaluation of {phase!r}",
                phase,
            )
        return now if first is None else first

    def kept(self) -> str:
        """For the sentence of an error: which checkpoint is left."""
        last = self.checkpoints.latest_step
        return "no checkpoint was written yet" if last is None else f"the checkpoint of step {last} is intact"

    def log_evaluation(self, step: int, results: Mapping[str, Any], problems: Sequence[Problem]) -> None:
        """Writes scalars, histograms and samples of a `Validation` to TensorBoard."""
        scalars = {"evaluation/accuracy": results["accuracy"], "evaluation/mean_thoughts": results["mean_thoughts"]}
        for steps, group in results["by_steps"].items():
            scalars[f"evaluation/accuracy_of_{steps}_steps"] = group["accuracy"]
            scalars[f"evaluation/thoughts_of_{steps}_steps"] = group["mean_thoughts"]
        scalars |= {
            f"evaluation/{name}": results[name] for name in ("thought_norm", "thought_cosine") if name in results
        }
        self.writer.scalars(step, scalars)
        for name in ("thoughts_taken", "thought_norms"):
            self.writer.histogram(step, f"evaluation/{name}", results[name])
        columns = (results[name] for name in ("answers", "correct", "thoughts_taken"))
        samples = [
            {
                "question": problem.question,
                "expected": problem.answer,
                "decoded": answer,
                "right": "yes" if correct else "no",
                "thoughts": thoughts,
            }
            for problem, answer, correct, thoughts in zip(problems[:8], *columns, strict=False)
        ]
        self.writer.text(step, "evaluation/samples", samples_table(samples))
        if results.get("lens"):
            self.writer.text(step, "evaluation/thoughts", samples_table(results["lens"]))
        if "stop_figure" in results:
            self.writer.image(step, "evaluation/stop_probabilities", results["stop_figure"])


def as_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Scalar metrics as Python numbers."""
    return {name: float(value) for name, value in metrics.items()}
