"""The curriculum stage of a run: supervised updates, stage after stage."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from longshot_jax.data.loader import ProblemStream
from longshot_jax.model.sharding import fetch, place_batch
from longshot_jax.training.ahead import Ahead
from longshot_jax.training.curriculum import CurriculumBatch, curriculum_batch
from longshot_jax.training.curriculum_programs import CurriculumPrograms, max_curriculum_thoughts
from longshot_jax.training.optimizer import restart_schedule
from longshot_jax.training.session import Session, as_numbers
from longshot_jax.training.settings import CurriculumConfig
from longshot_jax.training.short_evaluation import ShortEvaluation, rule_of_stage
from longshot_jax.training.state import TrainState

_DECAY = 0.95  # of the running loss
_WINDOW = 20  # updates that the running loss remembers; before so many it says little


@dataclass
class Position:
    """Where a curriculum stands between two updates; with the arrays, all that its future depends on.

    Attributes:
      stage: index into the configured stages; step: updates done in it.
      batch: number of the next batch.
      running_loss: of this stage, over all updates but the last one, so that the decision to end a stage
        never waits for the device; None before the second update.
      pending: metrics of the last update.
      finished: whether the last stage has ended.
      seconds: spent in the curriculum.
    """

    stage: int = 0
    step: int = 0
    batch: int = 0
    running_loss: float | None = None
    pending: dict[str, Any] | None = None
    finished: bool = False
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    def count_loss(self, loss: float) -> None:
        """The loss of one more update; one that is not finite says nothing."""
        if np.isfinite(loss):
            before = loss if self.running_loss is None else self.running_loss
            self.running_loss = _DECAY * before + (1 - _DECAY) * loss


def steps_per_stage(config: CurriculumConfig, steps_per_epoch: int) -> int:
    """Updates after which a stage ends at the latest."""
    steps = config.epochs_per_stage * steps_per_epoch
    return min(steps, config.max_steps_per_stage) if config.max_steps_per_stage else steps


class CurriculumLoop:
    """Programs and bookkeeping of one start of the curriculum."""

    def __init__(self, session: Session):
        run, self.session, self.config = session.run, session, session.run.curriculum
        config = self.config
        self.stream = ProblemStream(session.train, config.batch_size, run.seed)
        self.limit = steps_per_stage(config, self.stream.steps_per_epoch)
        self.evaluation = ShortEvaluation(
            session,
            max_curriculum_thoughts(config),
            steps_written=True,
            answer_length=session.run.data.answer_length,
        )
        self.ranked = run.stages[-1] == "curriculum"

        self.programs = CurriculumPrograms(
            run, session.blueprint, session.mesh, session.layout.tokens.latent, self.limit
        )

    def make_batch(self, stage: int, number: int) -> CurriculumBatch:
        """Batch `number` as it is shown at a stage: a function of seed, stage and number."""
        rng = np.random.default_rng((self.session.run.seed, stage, number))
        length = self.session.run.data.answer_length
        layout = self.session.layout
        batch = curriculum_batch(self.stream[number], stage, self.config, layout, length, rng, number)
        return place_batch(batch, self.session.mesh)

    def run(self, weights: Any, host: dict[str, Any] | None, first_step: int) -> tuple[Any, int]:
        """Trains to the end of the last stage.

        Args:
          weights: of a new curriculum; given away. host: the checkpoint's JSON part, to go on from it.
          first_step: number of the checkpoint at which the curriculum starts.

        Returns:
          All weights, and the number of the last checkpoint.
        """
        if host is None:
            position = Position()
            state = self.programs.start(weights)
        else:
            position = Position(**host["progress"])
            state, _ = self.session.checkpoints.restore(self.programs.template, host["step"])
        step = first_step if host is None else host["step"]
        before = self.session.seconds - position.seconds
        while not position.finished:
            state, step = self._stage(state, position, step, before)
        return state.weights, step

    def _stage(self, state: TrainState, at: Position, step: int, before: float) -> tuple[TrainState, int]:
        """One stage from where it stands; ends on the first update of the next one, or finished."""
        config, session = self.config, self.session
        stage, is_last = config.stages[at.stage], at.stage == len(config.stages) - 1
        threshold = config.last_stage_loss if is_last else config.stage_loss
        rule = rule_of_stage(session.run, stage, self.evaluation.problems)
        every, save_every = session.run.evaluation.every, session.run.checkpoint.every

        def save(metric: float | None) -> None:
            at.seconds = session.seconds - before
            session.save(step, state, "curriculum", vars(at), metric)

        with (
            Ahead(lambda number: self.make_batch(stage, number), at.batch) as batches,
            session.progress(f"curriculum stage {stage}", self.limit, at.step, "update") as progress,
        ):
            accuracy = None  # after the last update, where it was measured
            while at.step < self.limit and not self._has_learned(at, threshold):
                state, metrics = self.programs.update(state, batches.take())
                self._observe(at, step)
                at.pending = metrics
                at.step, at.batch, step = at.step + 1, at.batch + 1, step + 1
                progress.advance(1, **at.figures)
                accuracy = None
                if every and step % every == 0:
                    accuracy = self._evaluate(state, rule, at, step)
                    progress.advance(0, **at.figures)
                metric = accuracy if self.ranked and is_last else None
                stops = session.preemption.asked()
                if stops or step % save_every == 0 or session.improves(metric):
                    at.pending = as_numbers(fetch(at.pending))
                    save(metric)
                if stops:
                    session.leave(step)
            self._observe(at, step)
            if accuracy is None:
                accuracy = self._evaluate(state, rule, at, step)
            progress.advance(0, **at.figures)
        if not is_last:
            renew = (
                self.programs.fresh_optimizer(state.trainable) if config.reset_optimizer else state.optimizer
            )
            state = replace(state, optimizer=restart_schedule(renew))
            at.stage, at.step, at.running_loss = at.stage + 1, 0, None
            return state, step
        at.finished = True
        step += 1  # a checkpoint of its own, even where one was just written
        at.seconds = session.seconds - before
        session.finished["curriculum"] = {
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
        """Reads the metrics of the update before the one that now runs."""
        if at.pending is None:
            return
        metrics, at.pending = as_numbers(fetch(at.pending)), None
        at.count_loss(metrics["loss"])
        self.session.writer.scalars(
            step,
            {f"curriculum/{name}": value for name, value in metrics.items()}
            | {"curriculum/stage": self.config.stages[at.stage]},
        )
        shown = {"loss": metrics["loss"], "token_accuracy": metrics["token_accuracy"]}
        if metrics["skipped"]:
            shown["skipped"] = int(metrics["skipped"])
        at.figures.update(shown)
        self.session.check_skipped(
            metrics["skipped_in_a_row"], self.config.max_skipped, "config.curriculum.max_skipped"
        )

    def _evaluate(self, state: TrainState, rule: Any, at: Position, step: int) -> float:
        results = self.evaluation((state.trainable, state.frozen), rule)
        at.figures["accuracy"] = results["accuracy"]
        self.session.log_evaluation(step, results, self.evaluation.problems)
        return results["accuracy"]
