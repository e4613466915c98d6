"""Greedy accuracy on validation questions during training, decoded from the thoughts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from longshot_jax.config import RunConfig
from longshot_jax.data.layout import Layout
from longshot_jax.data.own import Grade
from longshot_jax.data.problems import Problem, evenly_spaced
from longshot_jax.evaluation.accuracy import evaluate
from longshot_jax.evaluation.decoder import Decoder
from longshot_jax.evaluation.lens import Lens, lens_rows, stop_figure
from longshot_jax.model.sharding import batch_parts, fetch
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Params
from longshot_jax.thoughts.stopping import ThoughtRule

_SHOWN = 8  # questions in the table of the lens


class Validation:
    """Evaluates `config.evaluation.questions` evenly spaced validation problems, with programs that are compiled once.

    `max_thoughts` is T, `answer_length` is A. If `steps_written`, the model may write steps before the answer, as in
    the curriculum; of a joined answer each trajectory writes its own.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        mesh: Mesh,
        run: RunConfig,
        layout: Layout,
        problems: Sequence[Problem],
        grade: Grade,
        *,
        max_thoughts: int,
        answer_length: int,
        steps_written: bool,
    ):
        settings, thoughts = run.evaluation, run.thoughts
        self.problems = evenly_spaced(problems, settings.questions)
        count = len(self.problems)
        # Batches are divided among the devices; padding rows are not counted.
        parts = batch_parts(mesh)
        self._batch_size = -(-min(settings.batch_size, count) // parts) * parts
        layout = replace(layout, steps_written=steps_written)
        self._lens = Lens(graphdef, layout.tokenizer)
        self._graphdef, self._grade = graphdef, grade
        self._decoder = Decoder(
            graphdef,
            layout,
            max_thoughts,
            answer_length,
            thoughts.max_trajectories,
            joined=thoughts.joined,
            mesh=mesh,
            decoding=run.mesh.decoding_weights,
        )

    def __call__(
        self, params: Params, rule: ThoughtRule, memory: MemoryBank | None = None, few: int = 0
    ) -> Mapping[str, Any]:
        """Results of `evaluate` without samples and controls, and more about the greedy trajectories.

        `thoughts_taken` holds the number of thoughts of each question (`thoughts` of `evaluate`), `thought_norms` the norm
        of every thought of every trajectory. If there are thoughts, `thought_norm` is their mean norm in units of the
        embeddings', `thought_cosine` the mean cosine of successive ones, `lens` holds the rows of a table of the first
        questions' thoughts, and, where the stop head was trained, `stop_figure` an image of the stop probabilities of every
        trajectory. With `few`, only the results of `evaluate` on at most that many questions.
        """
        problems = self.problems[:: -(-len(self.problems) // few)] if few else self.problems
        watched: list[Any] = []
        results = evaluate(
            self._decoder,
            params,
            problems,
            rule,
            memory=memory,
            num_trajectories=0,
            batch_size=self._batch_size,
            controls=False,
            watch=watched.append,
            grade=self._grade,
        )
        if few:
            return results
        (greedy,) = watched
        # Trajectories that do not exist have no thoughts.
        num_thoughts, thoughts = greedy.num_thoughts, greedy.thoughts.astype(np.float32)
        norms = np.linalg.norm(thoughts, axis=-1)
        taken = np.arange(norms.shape[-1]) < num_thoughts[..., None]
        results["thoughts_taken"] = np.asarray(results["thoughts"])
        results["thought_norms"] = norms[taken]
        if taken.any():
            results["thought_norm"] = float(norms[taken].mean() / fetch(self._embedding_norm(params)))
        if taken[..., 1:].any():
            products = np.sum(thoughts[..., 1:, :] * thoughts[..., :-1, :], axis=-1)
            cosines = products / np.maximum(norms[..., 1:] * norms[..., :-1], 1e-12)
            results["thought_cosine"] = float(cosines[taken[..., 1:]].mean())
        if self._decoder.max_thoughts:
            first = self.problems[:_SHOWN]
            shown = jax.tree.map(lambda x: x[:_SHOWN], greedy)
            readings = self._lens(params, self._decoder.layout.prompts(first), shown, memory)
            results["lens"] = lens_rows([problem.question for problem in first], readings, rule.stops)
        if self._decoder.max_thoughts and rule.stops:
            exists = np.ones(num_thoughts.shape, bool) if greedy.active is None else greedy.active
            results["stop_figure"] = stop_figure(greedy.stop_probabilities[exists], num_thoughts[exists])
        return results

    @cached_property
    def _embedding_norm(self) -> Any:
        @jax.jit
        def norm(params):
            table = nnx.merge(self._graphdef, *params).backbone.embedding[...].astype(jnp.float32)
            return jnp.mean(jnp.linalg.norm(table, axis=-1))

        return norm
