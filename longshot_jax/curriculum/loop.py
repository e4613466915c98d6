"""The supervised phases of a run, `text` and `curriculum`: updates, stage by stage."""

from dataclasses import dataclass, field, replace
from typing import Any

import grain
import numpy as np

from longshot_jax.curriculum.batch import choose_padding, curriculum_batch, padded_lengths, replaced_steps
from longshot_jax.curriculum.parallel import parallel_batch
from longshot_jax.curriculum.stability import StageEnd, diverges
from longshot_jax.curriculum.update import Batch, CurriculumPrograms
from longshot_jax.curriculum.variational import STDS
from longshot_jax.data.grouping import grouped_batches
from longshot_jax.data.loader import batches_per_epoch, prefetched, problem_batches, problem_stream
from longshot_jax.data.problems import Problem
from longshot_jax.model.sharding import fetch, place_batch
from longshot_jax.thoughts.stopping import rule_of_stage
from longshot_jax.training.context import RunContext, as_numbers
from longshot_jax.training.optimizer import restart_schedule
from longshot_jax.training.state import TrainState

_DECAY = 0.95  # of the running loss
_WINDOW = 20  # updates that the running loss averages over; before that it ends no stage


@dataclass
class Position:
    """Position of a curriculum between two updates; it continues from this and the arrays of the checkpoint.

    Attributes:
      stage: index into the configured stages. step: updates done in the stage.
      batch: index of the next batch.
      running_loss: moving average of the stage's loss without the last update, so the decision to end a stage does not
        wait for the device; None before the second update.
      pending: metrics of the last update.
      finished: whether the last stage has ended.
      lowest_loss: lowest running loss of the stage after its first `_WINDOW` updates.
      first_norm: norm of thoughts at the first evaluation that had any.
      seconds: time spent in the curriculum.
      figures: shown beside the progress bar.
    """

    stage: int = 0
    step: int = 0
    batch: int = 0
    running_loss: float | None = None
    pending: dict[str, Any] | None = None
    finished: bool = False
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    lowest_loss: float | None = None
    first_norm: float | None = None

    def count_loss(self, loss: float) -> None:
        """Adds the loss of an update to the running loss, unless it is not finite."""
        if np.isfinite(loss):
            before = loss if self.running_loss is None else self.running_loss
            self.running_loss = _DECAY * before + (1 - _DECAY) * loss
            if self.step > _WINDOW:
                self.lowest_loss = min(self.running_loss, self.lowest_loss or self.running_loss)


class CurriculumLoop:
    """Runs a supervised phase, `text` or `curriculum`, from its start or from a checkpoint."""

    def __init__(self, context: RunContext, phase: str = "curriculum"):
        run, self.context, self.phase = context.run, context, phase
        config = self.config = run.supervised(phase)
        train = context.problems.train
        self.padding = None
        if run.data.batch_shapes:
            settings = config, context.layout, run.data.answer_length
            self.padding = choose_padding(train, run.data.batch_shapes, *settings)
        steps = config.epochs_per_stage * batches_per_epoch(train, config.batch_size)
        most = config.max_steps_per_stage
        self.limit = min(steps, most or steps)  # updates of a stage
        passes, updates = ("epochs", "max_steps") if phase == "text" else ("epochs_per_stage", "max_steps_per_stage")
        self.limited_by = f"{updates} {most:,}" if 0 < most < steps else f"{passes} {config.epochs_per_stage}"
        self.evaluation = context.validation(
            config.max_thoughts, answer_length=run.data.answer_length, steps_written=True
        )
        self.measure_end = StageEnd(context, phase, self.evaluation)
        self.ranked = run.phases[-1] == phase
        self.programs = CurriculumPrograms(
            run, context.abstract, context.mesh, context.layout.tokenizer.latent, self.limit, phase
        )

    def make_batch(self, stage: int, number: int, problems: list[Problem], replaced: Any = None) -> Batch:
        """Batch `number` at a stage; a pure function of seed, stage and number."""
        run, layout = self.context.run, self.context.layout
        rng = np.random.default_rng((run.seed, stage, number))
        given = problems, stage, self.config, layout, run.data.answer_length
        joined = run.thoughts.joined
        if joined:
            batch = parallel_batch(*given, joined, rng, number)
        else:
            batch = curriculum_batch(*given, rng, number, replaced, self.padding)
            if run.thoughts.roles:  # each of them learns to think
                roles = rng.integers(run.thoughts.roles, size=len(problems), dtype=np.int32)
                batch = replace(batch, roles=roles)
        return place_batch(batch, self.context.mesh)

    def batches(self, stage: int) -> grain.MapDataset[Batch]:
        """The batches of a stage, in random order or grouped by the lengths that problems have at this stage."""
        run, config, layout, train = self.context.run, self.config, self.context.layout, self.context.problems.train
        if self.padding is None or run.thoughts.joined:
            batches = problem_batches(train, config.batch_size, run.seed)
            return batches.map_with_index(lambda number, problems: self.make_batch(stage, number, problems))

        def drawn(place: int, problem: Problem) -> tuple[Problem, tuple[int, int]]:
            rng = np.random.default_rng((run.seed, stage, place))
            return problem, replaced_steps(stage, problem.steps, config, layout, rng)

        groups = grouped_batches(
            problem_stream(train, run.seed).map_with_index(drawn),
            config.batch_size,
            len(train),
            lambda item: padded_lengths(*item, config, layout),
            self.padding.shapes,
            run.seed,
        )
        return groups.map_with_index(
            lambda number, items: self.make_batch(stage, number, *map(list, zip(*items, strict=True)))
        )

    def run(self, params: Any, metadata: dict[str, Any] | None, first_step: int) -> tuple[Any, int]:
        """Trains to the end of the last stage; returns all parameters and the step of the last checkpoint.

        Args:
          params: initial parameters of a new curriculum; donated.
          metadata: metadata of the checkpoint to continue from; None for a new curriculum.
          first_step: checkpoint step at which a new curriculum starts.
        """
        if metadata is None:
            position = Position()
            state = self.programs.start(params)
        else:
            position = Position(**metadata["progress"])
            state = self.context.restore(self.programs.template, metadata["step"])
        step = first_step if metadata is None else metadata["step"]
        before = self.context.seconds - position.seconds
        while not position.finished:
            state, step = self._stage(state, position, step, before)
        return state.params, step

    def _stage(self, state: TrainState, at: Position, step: int, before: float) -> tuple[TrainState, int]:
        """Runs the rest of a stage; leaves `at` at the start of the next stage, or finished."""
        config, context = self.config, self.context
        stage, is_last = config.stages[at.stage], at.stage == len(config.stages) - 1
        threshold = config.last_stage_loss if is_last else config.stage_loss
        rule = rule_of_stage(config, stage)
        every, save_every = context.run.evaluation.every, context.run.checkpoint.every

        def save(metric: float | None) -> None:
            at.seconds = context.seconds - before
            context.save(step, state, self.phase, vars(at), metric)

        title = "text" if self.phase == "text" else f"curriculum stage {stage}"
        with (
            prefetched(self.batches(stage), at.batch) as batches,
            context.progress(title, self.limit, at.step, "update") as progress,
        ):
            accuracy = None  # None unless measured after the last update
            while at.step < self.limit and not self._has_learned(at, threshold):
                state, metrics = self.programs.update(state, next(batches))
                self._observe(at, step)
                at.pending = metrics
                at.step, at.batch, step = at.step + 1, at.batch + 1, step + 1
                progress.advance(1, **at.figures)
                accuracy = None
                if every and step % every == 0:
                    accuracy = self._evaluate(state, rule, at, step)
                    progress.advance(0, **at.figures)
                metric = accuracy if self.ranked and is_last else None
                stops = context.preemption.requested()
                if stops or step % save_every == 0 or context.improves(metric):
                    at.pending = as_numbers(fetch(at.pending))
                    save(metric)
                if stops:
                    context.exit_when_saved(step)
            self._observe(at, step)
            if accuracy is None:
                accuracy = self._evaluate(state, rule, at, step)
            progress.advance(0, **at.figures)
            figures = self.measure_end((state.trainable, state.frozen), at.stage)
            context.writer.scalars(step, {f"stability/{name}": value for name, value in figures.items()})
            reason = (
                f"its limit, {self.limited_by}" if at.step >= self.limit else f"with a running loss below {threshold}"
            )
            shown = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in figures.items()]
            progress.note(", ".join([f"{title} ends after {at.step:,} updates, {reason}", *shown]))
        if not is_last:
            renew = self.programs.fresh_optimizer(state.trainable) if config.reset_optimizer else state.optimizer
            state = replace(state, optimizer=restart_schedule(renew))
            at.stage, at.step, at.running_loss = at.stage + 1, 0, None
            at.lowest_loss = None
            return state, step
        at.finished = True
        step += 1  # a separate checkpoint, even if one was just written
        at.seconds = context.seconds - before
        context.finished[self.phase] = {
            "updates": at.batch,
            "sequences": at.batch * config.batch_size,
            "seconds": at.seconds,
            "accuracy": accuracy,
        }
        save(accuracy if self.ranked else None)
        return state, step

    @staticmethod
    def _has_learned(at: Position, threshold: float) -> bool:
        return at.step > _WINDOW and at.running_loss is not None and at.running_loss < threshold

    def _observe(self, at: Position, step: int) -> None:
        """Logs the metrics of the previous update, while the current one runs on the device."""
        if at.pending is None:
            return
        metrics, at.pending = as_numbers(fetch(at.pending)), None
        at.count_loss(metrics["loss"])
        if diverges(at.running_loss, at.lowest_loss):
            self.context.refuse_to_go_on(
                f"the loss of stage {self.config.stages[at.stage]} diverges: {at.running_loss:.3g} nats per token on "
                f"average, after {at.lowest_loss:.3g}",
                self.phase,
            )
        without = () if metrics["thoughts"] else STDS  # no thought has a standard deviation
        self.context.writer.scalars(
            step,
            {f"{self.phase}/{name}": value for name, value in metrics.items() if name not in without}
            | {f"{self.phase}/stage": self.config.stages[at.stage]},
        )
        shown = {"loss": metrics["loss"], "token_accuracy": metrics["token_accuracy"]}
        if metrics["skipped"]:
            shown["skipped"] = int(metrics["skipped"])
        at.figures.update(shown)
        self.context.check_skipped(
            metrics["skipped_in_a_row"], self.config.max_skipped, f"config.{self.phase}.max_skipped"
        )

    def _evaluate(self, state: TrainState, rule: Any, at: Position, step: int) -> float:
        results = self.evaluation((state.trainable, state.frozen), rule)
        at.figures["accuracy"] = results["accuracy"]
        self.context.log_evaluation(step, results, self.evaluation.problems)
        at.first_norm = self.context.check_thought_norm(at.first_norm, results, self.phase)
        return results["accuracy"]
