"""The PPO stage of a run: roll out, reward, update, iteration after iteration."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from longshot_jax.data.answers import same_answer
from longshot_jax.data.loader import ProblemStream
from longshot_jax.data.problems import Problem
from longshot_jax.evaluation.batches import answer_texts
from longshot_jax.evaluation.decoding import rule_after
from longshot_jax.evaluation.fusions import choose
from longshot_jax.model.sharding import (
    fetch,
    place_batch,
)
from longshot_jax.thoughts.rollout import Lengths, Temperatures
from longshot_jax.training.ahead import Ahead
from longshot_jax.training.annealing import anneal
from longshot_jax.training.ppo_programs import PPOPrograms
from longshot_jax.training.rewards import Outcome, answer_rewards, shared_rewards, thought_cost_rewards
from longshot_jax.training.session import Session, as_numbers
from longshot_jax.training.short_evaluation import ShortEvaluation
from longshot_jax.training.state import TrainState


@dataclass
class Questions:
    """The input of one iteration: its problems, and on the devices prompts [B, S], their mask and lengths [B, N]."""

    problems: Sequence[Problem]
    prompt: Array
    mask: Array
    lengths: Lengths


class PPOLoop:
    """Programs and bookkeeping of one start of PPO."""

    def __init__(self, session: Session):
        run, self.session, self.config = session.run, session, session.run.ppo
        config, layout = self.config, session.layout
        self.stream = ProblemStream(session.train, config.questions, run.seed + 1)
        length = config.answer_length or run.data.answer_length
        self.evaluation = ShortEvaluation(
            session, config.max_steps, steps_written=False, answer_length=length
        )
        self.rule = rule_after(run, "ppo")
        self.annealed = (
            anneal(config.noise, config.noise_annealing, config.iterations),
            anneal(config.stop_temperature, config.stop_annealing, config.iterations),
            anneal(config.token_temperature, config.token_annealing, config.iterations),
        )
        self.programs = PPOPrograms(run, session.blueprint, session.mesh, layout.opening, layout.tokens.end)

    def make_questions(self, iteration: int) -> Questions:
        """Input of an iteration: a function of seed and iteration."""
        config, run = self.config, self.session.run
        problems = self.stream[iteration]
        prompt, mask = self.session.layout.prompts(problems)
        shape = (config.questions, config.num_trajectories)
        least = np.full(shape, config.min_steps, np.int32)
        most = np.full(shape, config.max_steps, np.int32)
        number = np.zeros(config.questions, np.int32) if self.programs.adaptive else None
        if iteration < config.target_iterations:
            # Forced: as many as drawn, whatever stop head and complexity head say.
            rng = np.random.default_rng((run.seed, 2, iteration))
            if config.target_steps:
                least = most = rng.choice(np.asarray(config.target_steps, np.int32), size=shape)
            if config.target_trajectories:
                number = rng.choice(np.asarray(config.target_trajectories, np.int32), size=config.questions)
        # Still on the host: the line after places them.
        lengths = Lengths(least, most, number)  # pyright: ignore[reportArgumentType]
        return Questions(problems, *place_batch((prompt, mask, lengths), self.session.mesh))

    def temperatures(self, iteration: int, noise: float | None = None) -> Temperatures:
        """Those of an iteration; `std` is still relative to the thoughts' rms."""
        values = [table[iteration] for table in self.annealed]
        if noise is not None:
            values[0] = np.float32(noise)
        return Temperatures(*values)  # pyright: ignore[reportArgumentType]  (host scalars, placed by jit)

    def run(self, weights: Any, host: dict[str, Any] | None, first_step: int) -> tuple[Any, int]:
        """Trains for all iterations.

        Args:
          weights: that PPO starts from; given away. host: the checkpoint's JSON part, to go on from it.
          first_step: number of the checkpoint at which PPO starts.

        Returns:
          All weights, and the number of the last checkpoint.
        """
        session, config = self.session, self.config
        every, save_every = session.run.evaluation.every_iterations, session.run.checkpoint.every
        if host is None:
            done, seconds, offset = 0, 0.0, first_step + 1
            state = self.programs.start(weights)
        else:
            progress = host["progress"]
            done, seconds, offset = progress["iteration"], progress["seconds"], progress["offset"]
            state, _ = session.checkpoints.restore(self.programs.template, host["step"])
        before = session.seconds - seconds
        with (
            Ahead(self.make_questions, done) as inputs,
            session.progress("ppo", config.iterations, done, "iteration") as shown,
        ):

            def save(metric: float | None) -> None:
                progress = {"iteration": done, "offset": offset, "seconds": session.seconds - before}
                session.save(offset + done, state, "ppo", progress, metric)

            if host is None:
                state = self._measure_thoughts(state, self.make_questions(0))
                save(self._evaluate(state, offset, shown))
            pending: tuple[int, dict[str, Array]] | None = None
            while done < config.iterations:
                state, metrics, finished = self._iteration(
                    state, done, offset + done + 1, inputs.take(), pending
                )
                if finished is not None:
                    self._log_update(offset, *finished, shown)
                pending, done = (done, metrics), done + 1
                shown.advance()
                last = done == config.iterations
                measured = last or (every and done % every == 0)
                accuracy = self._evaluate(state, offset + done, shown) if measured else None
                stops = session.preemption.asked()
                if last or stops or done % save_every == 0 or session.improves(accuracy):
                    self._log_update(offset, pending[0], as_numbers(fetch(pending[1])), shown)
                    pending = None
                    if last:
                        session.finished["ppo"] = {
                            "updates": int(fetch(state.step)),  # fewer where a KL bound ended some early
                            "sequences": config.iterations * config.questions * config.num_trajectories,
                            "seconds": session.seconds - before,
                            "accuracy": accuracy,
                        }
                    save(accuracy)
                if stops:
                    session.leave(offset + done)
        return state.weights, offset + done

    def _measure_thoughts(self, state: TrainState, first: Questions) -> TrainState:
        """The rms of the first questions' noise-free thoughts, which σ is relative to."""
        if not self.config.max_steps:
            return state
        still = self.temperatures(0, noise=0.0)
        *_, outcome = self.programs.rollout(
            state, first.prompt, first.mask, first.lengths, still, np.int32(0)
        )
        place = self.programs.placement.thought_rms
        return replace(state, thought_rms=jax.device_put(outcome["thought_rms"], place))

    def _iteration(
        self,
        state: TrainState,
        iteration: int,
        step: int,
        questions: Questions,
        pending: tuple[int, dict[str, Array]] | None,
    ) -> tuple[TrainState, dict[str, Array], tuple[int, dict[str, float]] | None]:
        """One rollout with its update, the `step`-th of the run.

        The metrics of the previous update travel with the rollout's outcome: one transfer an iteration.
        """
        config, session = self.config, self.session
        rollout, recorded, outcome = self.programs.rollout(
            state,
            questions.prompt,
            questions.mask,
            questions.lengths,
            self.temperatures(iteration),
            np.int32(iteration),
        )
        ended, previous = fetch((outcome, pending[1] if pending else {}))
        outcomes = self._outcomes(ended, questions.problems)
        exists = ended.get("exists", np.ones(outcomes.correct.shape, bool))
        terms = {name: term * exists for name, term in answer_rewards(outcomes, config.rewards).items()}
        zero = np.zeros(outcomes.correct.shape, np.float32)
        answer_reward = np.asarray(sum(terms.values(), zero), np.float32)
        costs = thought_cost_rewards(outcomes.thoughts, config.max_steps, config.rewards.thought_cost)
        earned = (
            shared_rewards(answer_reward, costs, exists) if config.shared_reward else (answer_reward, costs)
        )
        rewards = place_batch(earned, session.mesh)
        state, metrics = self.programs.update(state, rollout, recorded, *rewards)
        total = answer_reward + costs.sum(-1)
        self.session.writer.histogram(step, "rollout/thoughts_taken", outcomes.thoughts[exists])
        self.session.writer.histogram(step, "reward/distribution", total[exists])
        metrics |= {
            f"reward/{name}": np.mean(term[exists])
            for name, term in (terms | {"thought_cost": costs.sum(-1)}).items()
        }
        metrics |= self._rollout_metrics(outcomes, exists, ended, total, iteration)
        return state, metrics, (pending[0], as_numbers(previous)) if pending else None

    def _outcomes(self, ended: dict[str, np.ndarray], problems: Sequence[Problem]) -> Outcome:
        texts = answer_texts(ended["tokens"], self.session.layout)
        correct = [
            [same_answer(text, problem.answer) for text in row]
            for row, problem in zip(texts, problems, strict=True)
        ]
        number = ended.get("number", np.full(len(problems), self.config.num_trajectories, np.int32))
        voted = None
        if self.config.rewards.vote_correct:
            chosen = [
                choose("vote", row[:count], values[:count])
                for row, values, count in zip(texts, ended["values"], number, strict=True)
            ]
            voted = np.asarray([row[index] for row, index in zip(correct, chosen, strict=True)], bool)[
                :, None
            ]
        return Outcome(
            np.asarray(correct, bool),
            ended["ended"],
            ended["thoughts"],
            ended["natural_stop"],
            number[:, None],
            voted,
            ended.get("diversity"),
        )

    def _rollout_metrics(
        self,
        outcomes: Outcome,
        exists: np.ndarray,
        ended: dict[str, np.ndarray],
        total: np.ndarray,
        iteration: int,
    ) -> dict[str, Any]:
        """How the sampled trajectories did, as scalars: those that exist."""
        thoughts, correct = outcomes.thoughts[exists], outcomes.correct[exists]
        metrics: dict[str, Any] = {
            "reward/total": np.mean(total[exists]),
            "rollout/accuracy": np.mean(correct),
            "rollout/thoughts": np.mean(thoughts),
            "rollout/natural_stops": np.mean(outcomes.natural_stop[exists]),
            "rollout/ended": np.mean(outcomes.ended[exists]),
            "rollout/thought_rms": ended["thought_rms"],
        }
        if self.programs.adaptive:
            metrics["rollout/trajectories"] = np.mean(outcomes.trajectories)
        for count in np.unique(thoughts):
            metrics[f"rollout/accuracy_with_{count}_thoughts"] = np.mean(correct[thoughts == count])
        names = ("std", "stop", "token")
        values = self.temperatures(iteration)
        metrics |= {f"temperature/{name}": getattr(values, name) for name in names}
        return metrics

    def _log_update(self, offset: int, iteration: int, metrics: dict[str, float], shown: Any) -> None:
        """Scalars of an iteration, and the guard against non-finite updates."""
        step = offset + iteration + 1
        own = ("reward/", "rollout/", "temperature/")
        named = {name if name.startswith(own) else f"ppo/{name}": value for name, value in metrics.items()}
        self.session.writer.scalars(step, named)
        figures = {
            "reward": metrics["reward/total"],
            "accuracy": metrics["rollout/accuracy"],
            "thoughts": metrics["rollout/thoughts"],
        }
        if metrics["skipped"]:
            figures["skipped"] = int(metrics["skipped"])
        shown.advance(0, **figures)
        self.session.check_skipped(
            metrics["skipped_in_a_row"], self.config.max_skipped, "config.ppo.max_skipped"
        )

    def _evaluate(self, state: TrainState, step: int, shown: Any) -> float:
        results = self.evaluation((state.trainable, state.frozen), self.rule, state.memory)
        self.session.log_evaluation(step, results, self.evaluation.problems)
        shown.advance(0, validation=results["accuracy"], validation_thoughts=results["mean_thoughts"])
        return results["accuracy"]
