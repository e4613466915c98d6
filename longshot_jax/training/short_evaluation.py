"""Accuracy on some validation questions while a run is under way: greedy, decoded from the thoughts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from longshot_jax.config import RunConfig
from longshot_jax.data.examples import Layout, has_thoughts
from longshot_jax.data.problems import Problem
from longshot_jax.evaluation.accuracy import evaluate
from longshot_jax.evaluation.decoding import Decoder, ThoughtRule, Weights
from longshot_jax.evaluation.lens import Lens, lens_rows, stop_figure
from longshot_jax.model.sharding import batch_parts
from longshot_jax.thoughts.memory import MemoryBank
from longshot_jax.training.session import Session

_SHOWN = 8  # questions whose thoughts are read


@dataclass(frozen=True)
class _StepsWritten(Layout):
    """The layout of a model that may still write steps between its thoughts and its answer."""

    @property
    def opening(self) -> tuple[int, ...]:
        return self.closing


class ShortEvaluation:
    """Compiled once, called again and again; `problems` are those that every call measures.

    Args:
      session: of the run.
      max_thoughts: T.
      steps_written: whether the model may write steps before the answer, as in the curriculum.
      answer_length: A.
    """

    def __init__(self, session: Session, max_thoughts: int, steps_written: bool, answer_length: int):
        settings, layout = session.run.evaluation, session.layout
        count = min(settings.questions, len(session.validation))
        places = [number * len(session.validation) // count for number in range(count)]
        self.problems: list[Problem] = [session.validation[place] for place in places]
        # The devices share the questions of a batch; rows that make it up to a multiple are not counted.
        parts = batch_parts(session.mesh)
        self._batch_size = -(-min(settings.batch_size, count) // parts) * parts
        if steps_written:
            layout = _StepsWritten(**vars(layout))
        self._lens = Lens(session.blueprint.graph, layout.tokens)
        graph = session.blueprint.graph
        self._decoder = Decoder(graph, layout, max_thoughts, answer_length, mesh=session.mesh)

    def __call__(
        self, weights: Weights, rule: ThoughtRule, memory: MemoryBank | None = None
    ) -> Mapping[str, Any]:
        """Results of `evaluate`, without samples and controls.

        `thoughts_taken` has each question's number of thoughts, and `thought_norms` the norm of every thought. Where there
        are thoughts, `lens` has rows of a table of the first questions' thoughts and `stop_figure` a
        picture of many questions' stop probabilities.
        """
        seen: dict[str, Any] = {}

        def watch(greedy: Any) -> None:
            counts = greedy.counts[:, 0]
            norms = np.linalg.norm(greedy.thoughts[:, 0].astype(np.float32), axis=-1)
            seen["thoughts_taken"] = counts
            seen["thought_norms"] = norms[np.arange(norms.shape[1]) < counts[:, None]]
            if not self._decoder.max_thoughts:
                return
            few = self.problems[:_SHOWN]
            shown = jax.tree.map(lambda x: x[:_SHOWN], greedy)
            readings = self._lens(weights, self._decoder.layout.prompts(few), shown, memory)
            seen["lens"] = lens_rows([problem.question for problem in few], readings)
            seen["stop_figure"] = stop_figure(greedy.stop_probabilities[:, 0], greedy.counts[:, 0])

        results = evaluate(
            self._decoder,
            weights,
            self.problems,
            rule,
            memory=memory,
            num_trajectories=0,
            batch_size=self._batch_size,
            controls=False,
            watch=watch,
        )
        return results | seen


def rule_of_stage(run: RunConfig, stage: int, problems: Sequence[Problem]) -> ThoughtRule:
    """The number of thoughts at a stage of the curriculum."""
    curriculum = run.curriculum
    if not has_thoughts(curriculum.mode):
        return ThoughtRule("fixed", 0)
    most = min(stage, curriculum.max_latent_stage) * curriculum.c_thought
    by_steps = not curriculum.pad_latent_to_max and all(problem.steps for problem in problems)
    return ThoughtRule("steps" if by_steps else "fixed", most, per_step=curriculum.c_thought)
