"""The PPO phase of a run: each iteration is a rollout, its rewards and an update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Array

from longshot_jax.data.loader import prefetched, problem_batches
from longshot_jax.data.problems import Problem
from longshot_jax.evaluation.batches import UNFINISHED, answer_texts, grades
from longshot_jax.evaluation.fusion_accuracy import choose
from longshot_jax.model.sharding import fetch, place_batch
from longshot_jax.ppo.rewards import Outcome, answer_rewards, own_rewards, shared_rewards, thought_cost_rewards
from longshot_jax.ppo.update import PPOPrograms
from longshot_jax.thoughts.rollout import Temperatures
from longshot_jax.thoughts.stopping import Lengths, rule_after
from longshot_jax.training.context import RunContext, as_numbers
from longshot_jax.training.schedules import anneal
from longshot_jax.training.state import TrainState
from longshot_jax.training.tensorboard import samples_table
from longshot_jax.training.throughput import Clock, ModelFlops, answer_lengths

_SHOWN = 4  # questions, and trajectories of each, in the table of samples


@dataclass
class Questions:
    """Input of an iteration: problems and, on the devices, prompts [B, S], their mask and lengths [B, N].

    `prompt_tokens` is the number of real tokens of all prompts.
    """

    problems: Sequence[Problem]
    prompt: Array
    mask: Array
    lengths: Lengths
    prompt_tokens: int


class PPOLoop:
    """Runs PPO from its start or from a checkpoint."""

    def __init__(self, context: RunContext):
        run, self.context, self.config = context.run, context, context.run.ppo
        config, layout = self.config, context.layout
        self.problems = problem_batches(context.problems.train, config.questions, run.seed + 1)
        self.evaluation = context.validation(config.max_thoughts, answer_length=run.sampled_length, steps_written=False)
        self.rule, self.own_rewards = rule_after(run, "ppo"), own_rewards(run)
        self.first_norm: float | None = None
        self.annealed = [
            anneal(getattr(config, name), getattr(config, f"{name}_annealing"), config.iterations)
            for name in ("thought_std", "stop_temperature", "token_temperature")
        ]
        self.programs = PPOPrograms(run, context.abstract, context.mesh, layout.opening, layout.tokenizer.ends)
        self.flops = ModelFlops.of(context.abstract, context.mesh, config.trainable)
        self.clock = Clock()
        self.samples: list[dict[str, Any]] = []  # rows of a table of the last rollout

    def make_questions(self, iteration: int, problems: list[Problem]) -> Questions:
        """Input of an iteration; a pure function of seed and iteration."""
        config, run = self.config, self.context.run
        prompt, mask = self.context.layout.prompts(problems)
        shape = (config.questions, config.num_trajectories)
        fewest = np.full(shape, config.min_thoughts, np.int32)
        most = np.full(shape, config.max_thoughts, np.int32)
        count = np.zeros(config.questions, np.int32) if self.programs.shape.adaptive else None
        if iteration < config.target_iterations:
            # Forced numbers, which override the stop head and the count head.
            rng = np.random.default_rng((run.seed, 2, iteration))
            if config.target_thoughts:
                drawn = (config.questions, 1) if config.ensemble else shape  # an ensemble stops as one
                fewest = rng.choice(np.asarray(config.target_thoughts, np.int32), size=drawn)
                fewest = most = np.broadcast_to(fewest, shape)
            if config.target_trajectories:
                count = rng.choice(np.asarray(config.target_trajectories, np.int32), size=config.questions)
        # NumPy arrays, placed by the next line.
        lengths = Lengths(fewest, most, count)  # pyright: ignore[reportArgumentType]
        return Questions(
            problems, *place_batch((prompt, mask, lengths), self.context.mesh), prompt_tokens=int(mask.sum())
        )

    def temperatures(self, iteration: int, thought_std: float | None = None) -> Temperatures:
        """Temperatures of an iteration; `thought_std` is relative to the rms of the thoughts."""
        values = [table[iteration] for table in self.annealed]
        if thought_std is not None:
            values[0] = np.float32(thought_std)
        return Temperatures(*values)  # pyright: ignore[reportArgumentType]  (host scalars, placed by jit)

    def run(self, params: Any, metadata: dict[str, Any] | None, first_step: int) -> tuple[Any, int]:
        """Trains for all iterations; returns all parameters and the step of the last checkpoint.

        Args:
          params: initial parameters of a new PPO phase; donated.
          metadata: metadata of the checkpoint to continue from; None for a new phase.
          first_step: checkpoint step at which a new phase starts.
        """
        context, config = self.context, self.config
        every, save_every = context.run.evaluation.every_iterations, context.run.checkpoint.every
        if metadata is None:
            done, seconds, offset = 0, 0.0, first_step + 1
            state = self.programs.start(params)
        else:
            progress = metadata["progress"]
            done, seconds, offset = progress["iteration"], progress["seconds"], progress["offset"]
            self.first_norm = progress.get("first_norm")
            state = context.restore(self.programs.template, metadata["step"])
        before = context.seconds - seconds
        questions = self.problems.map_with_index(self.make_questions)
        with (
            prefetched(questions, done) as inputs,
            context.progress("ppo", config.iterations, done, "iteration") as shown,
        ):

            def save(metric: float | None) -> None:
                progress = {"iteration": done, "offset": offset, "seconds": context.seconds - before}
                progress |= {"first_norm": self.first_norm}
                context.save(offset + done, state, "ppo", progress, metric)

            if metadata is None:
                state = self._measure_thoughts(state, self.make_questions(0, cast(list[Problem], self.problems[0])))
                save(self._evaluate(state, offset, shown))
            pending: tuple[int, dict[str, Any]] | None = None
            self.clock.lap()
            while done < config.iterations:
                state, metrics, finished = self._iteration(state, done, offset + done + 1, next(inputs), pending)
                if finished is not None:
                    self._log_update(offset, *finished, shown)
                pending, done = (done, metrics), done + 1
                shown.advance()
                last = done == config.iterations
                measured = last or (every and done % every == 0)
                accuracy = None
                if measured:
                    self._finish_update(metrics)
                    accuracy = self._evaluate(state, offset + done, shown)
                    metrics["time/evaluation"] = self.clock.lap()
                stops = context.preemption.requested()
                if last or stops or done % save_every == 0 or context.improves(accuracy):
                    self._finish_update(metrics)
                    self._log_update(offset, pending[0], as_numbers(fetch(pending[1])), shown)
                    pending = None
                    if last:
                        context.finished["ppo"] = {
                            "updates": int(fetch(state.step)),  # fewer if early_stop_kl ended some
                            "sequences": config.iterations * config.questions * config.num_trajectories,
                            "seconds": context.seconds - before,
                            "accuracy": accuracy,
                        }
                    save(accuracy)
                if stops:
                    context.exit_when_saved(offset + done)
                if pending is None:
                    self.clock.lap()  # a checkpoint is no part of an iteration
        return state.params, offset + done

    def _measure_thoughts(self, state: TrainState, first: Questions) -> TrainState:
        """Sets `thought_rms`, the rms of the first questions' noise-free thoughts."""
        if not self.config.max_thoughts:
            return state

        def measured(lengths: Lengths) -> jax.Array:
            still = self.temperatures(0, thought_std=0.0)
            *_, outcome = self.programs.rollout(state, first.prompt, first.mask, lengths, still, np.int32(0))
            return outcome["thought_rms"]

        rms = measured(first.lengths)
        if not fetch(rms):  # no question has a thought: all are forced to have them
            most = first.lengths.max_thoughts * 0 + self.config.max_thoughts  # placed like the others
            rms = measured(replace(first.lengths, min_thoughts=most, max_thoughts=most))
        return replace(state, thought_rms=jax.device_put(rms, self.programs.placement.thought_rms))

    def _iteration(
        self,
        state: TrainState,
        iteration: int,
        step: int,
        questions: Questions,
        pending: tuple[int, dict[str, Any]] | None,
    ) -> tuple[TrainState, dict[str, Any], tuple[int, dict[str, float]] | None]:
        """One rollout and its update, step `step` of the run.

        The metrics of the previous update are fetched with the outcome: one transfer per iteration.
        """
        config, context = self.config, self.context
        rollout, recorded, outcome = self.programs.rollout(
            state,
            questions.prompt,
            questions.mask,
            questions.lengths,
            self.temperatures(iteration),
            np.int32(iteration),
        )
        if pending:  # the devices have begun the rollout when the host waits for the update before it
            self._finish_update(pending[1])
        ended, previous = fetch((outcome, pending[1] if pending else {}))
        seconds = self.clock.lap()
        texts = answer_texts(ended["tokens"], context.layout)
        outcomes = self._outcomes(ended, questions.problems, texts)
        active = ended.get("active", np.ones(outcomes.correct.shape, bool))
        terms = answer_rewards(outcomes, config.rewards)
        answers = [[text.removesuffix(UNFINISHED) for text in row] for row in texts]
        for name, reward in self.own_rewards.items():
            terms[name] = reward(questions.problems, answers, outcomes, f" in iteration {iteration + 1}")
        terms = {name: term * active for name, term in terms.items()}
        zero = np.zeros(outcomes.correct.shape, np.float32)
        answer_reward = np.asarray(sum(terms.values(), zero), np.float32)
        costs = thought_cost_rewards(outcomes.num_thoughts, config.max_thoughts, config.rewards.thought_cost)
        earned = shared_rewards(answer_reward, costs, active) if config.shared_reward else (answer_reward, costs)
        rewards = place_batch(earned, context.mesh)
        times = {"time/rollout": seconds, "time/rewards": self.clock.lap()}
        state, metrics = self.programs.update(state, rollout, recorded, *rewards)
        total = answer_reward + costs.sum(-1)
        self.context.writer.histogram(step, "rollout/thoughts_taken", outcomes.num_thoughts[active])
        self.context.writer.histogram(step, "reward/distribution", total[active])
        logged = terms | ({"thought_cost": costs.sum(-1)} if config.rewards.thought_cost else {})
        metrics |= {f"reward/{name}": np.mean(term[active]) for name, term in logged.items()}
        metrics |= self._rollout_metrics(outcomes, active, ended, total, iteration) | times
        metrics |= self._rates(ended["tokens"], outcomes.num_thoughts, active, questions.prompt_tokens, seconds)
        self.samples = _samples(questions.problems, texts, outcomes, active, terms, total)
        return state, metrics, (pending[0], as_numbers(previous)) if pending else None

    def _outcomes(self, ended: dict[str, np.ndarray], problems: Sequence[Problem], texts: list[list[str]]) -> Outcome:
        columns = [grades(column, problems, self.context.grade) for column in zip(*texts, strict=True)]
        grade = np.stack(columns, axis=1)
        correct = grade >= 1
        count = ended.get("num_trajectories", np.full(len(problems), self.config.num_trajectories, np.int32))
        voted = None
        if self.config.rewards.vote_correct:
            chosen = [
                choose("vote", row[:number], values[:number])
                for row, values, number in zip(texts, ended["values"], count, strict=True)
            ]
            voted = np.asarray([row[index] for row, index in zip(correct, chosen, strict=True)], bool)[:, None]
        return Outcome(
            correct,
            ended["ended"],
            ended["num_thoughts"],
            ended["natural_stop"],
            count[:, None],
            voted,
            ended.get("diversity"),
            grade if self.context.run.data.grader else None,
        )

    def _rollout_metrics(
        self, outcomes: Outcome, active: np.ndarray, ended: dict[str, np.ndarray], total: np.ndarray, iteration: int
    ) -> dict[str, Any]:
        """Scalar metrics of the active trajectories."""
        thoughts, correct = outcomes.num_thoughts[active], outcomes.correct[active]
        metrics: dict[str, Any] = {
            "reward/total": np.mean(total[active]),
            "reward/std": np.std(total[active]),
            "rollout/accuracy": np.mean(correct),
            "rollout/thoughts": np.mean(thoughts),
            "rollout/natural_stops": np.mean(outcomes.natural_stop[active]),
            "rollout/ended": np.mean(outcomes.ended[active]),
            "rollout/thought_rms": ended["thought_rms"],
        }
        if "thought_std" in ended:
            metrics["rollout/thought_std"] = ended["thought_std"]
        if self.config.num_trajectories > 1:
            spread = np.ptp(np.where(active, total, total[:, :1]), axis=1)  # the first trajectory always exists
            metrics["reward/equal_questions"] = np.mean(spread < 1e-6)
        if self.programs.shape.adaptive:
            metrics["rollout/trajectories"] = np.mean(outcomes.num_trajectories)
        for count in np.unique(thoughts):
            metrics[f"rollout/accuracy_with_{count}_thoughts"] = np.mean(correct[thoughts == count])
        metrics |= {f"temperature/{name}": value for name, value in vars(self.temperatures(iteration)).items()}
        return metrics

    def _rates(
        self, tokens: np.ndarray, num_thoughts: np.ndarray, active: np.ndarray, prompt_tokens: int, seconds: float
    ) -> dict[str, float]:
        """Sampled tokens and thoughts per second of the rollout, and the FLOPs of the whole iteration, for utilisation."""
        lengths = answer_lengths(tokens, self.context.layout.tokenizer.ends)
        # Of a joined answer every row holds the same tokens.
        answers = int(lengths[:, 0].sum() if self.context.run.thoughts.joined else lengths[active].sum())
        thoughts, config = int(num_thoughts[active].sum()), self.config
        kind = self.context.run.thoughts
        # A mean over the vocabulary costs as much as the logits that weigh it; drawn tokens need the logits alone.
        tables = 0 if kind.feedback != "vocabulary" else 1 if kind.noise == "tokens" else 2
        forward = self.flops.forward(prompt_tokens + thoughts + answers, answers + tables * thoughts)
        rates = {"speed/tokens_per_second": answers / seconds, "speed/thoughts_per_second": thoughts / seconds}
        if self.flops.peak:
            rates["speed/flops_utilisation"] = forward * (1 + self.flops.passes * config.epochs) / self.flops.peak
        return rates

    def _finish_update(self, metrics: dict[str, Any]) -> None:
        """Waits for an update and completes its times; the utilisation has been FLOPs over the peak till then."""
        if "time/update" in metrics:
            return
        jax.block_until_ready(metrics)
        metrics["time/update"] = self.clock.lap()
        if "speed/flops_utilisation" in metrics:
            metrics["speed/flops_utilisation"] /= sum(
                metrics[f"time/{part}"] for part in ("rollout", "rewards", "update")
            )

    def _log_update(self, offset: int, iteration: int, metrics: dict[str, float], shown: Any) -> None:
        """Logs the scalars of an iteration and checks for skipped updates."""
        step = offset + iteration + 1
        own = ("reward/", "rollout/", "temperature/", "time/", "speed/")
        named = {name if name.startswith(own) else f"ppo/{name}": value for name, value in metrics.items()}
        self.context.writer.scalars(step, named)
        figures = {
            "reward": metrics["reward/total"],
            "accuracy": metrics["rollout/accuracy"],
            "thoughts": metrics["rollout/thoughts"],
        }
        if metrics["skipped"]:
            figures["skipped"] = int(metrics["skipped"])
        shown.advance(0, **figures)
        self.context.check_skipped(metrics["skipped_in_a_row"], self.config.max_skipped, "config.ppo.max_skipped")

    def _evaluate(self, state: TrainState, step: int, shown: Any) -> float:
        results = self.evaluation((state.trainable, state.frozen), self.rule, state.memory)
        self.context.log_evaluation(step, results, self.evaluation.problems)
        if self.samples:
            self.context.writer.text(step, "rollout/samples", samples_table(self.samples))
        self.first_norm = self.context.check_thought_norm(self.first_norm, results, "ppo")
        shown.advance(0, validation=results["accuracy"], validation_thoughts=results["mean_thoughts"])
        return results["accuracy"]


def _samples(
    problems: Sequence[Problem],
    texts: Sequence[Sequence[str]],
    outcomes: Outcome,
    active: np.ndarray,
    terms: Mapping[str, np.ndarray],
    total: np.ndarray,
) -> list[dict[str, Any]]:
    """Rows of a table of the first trajectories of the first questions, with what each has earned for what."""
    places = [(row, column) for row in range(min(_SHOWN, len(texts))) for column in range(min(_SHOWN, len(texts[row])))]
    return [
        {
            "question": problems[row].question if column == 0 else "",
            "expected": problems[row].answer if column == 0 else "",
            "sampled": texts[row][column],
            "right": "yes" if outcomes.correct[row, column] else "no",
            "thoughts": outcomes.num_thoughts[row, column],
            "reward": f"{total[row, column]:+.3f}",
            **{name: f"{term[row, column]:+.3f}" for name, term in terms.items()},
        }
        for row, column in places
        if active[row, column]
    ]
