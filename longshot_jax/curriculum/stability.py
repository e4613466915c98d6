"""What goes wrong when pretrained models learn to think, measured in every run, and stopped where it cannot be undone.

Reported are divergence between stages, thoughts whose norm runs away, and forgetting of text. Evaluations measure the norm of
thoughts relative to token embeddings and the cosine of successive thoughts; the end of a stage also the perplexity of written
steps and answers that were held out, and the accuracy of every earlier stage.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from longshot_jax.curriculum.batch import curriculum_batch
from longshot_jax.curriculum.parallel import parallel_batch, sums_of
from longshot_jax.errors import UserError
from longshot_jax.evaluation.validation import Validation
from longshot_jax.model.sharding import fetch, place_batch
from longshot_jax.thoughts.reasoner import Params
from longshot_jax.thoughts.stopping import rule_of_stage
from longshot_jax.training.context import RunContext

_FEW = 64  # validation questions of an earlier stage
_DIVERGED = 2.0  # nats per token above the lowest running loss of the stage: a model that guesses evenly is near that


def diverges(running: float | None, lowest: float | None) -> bool:
    """Whether the running loss of a stage has left the lowest that it had, both in nats per token."""
    return running is not None and lowest is not None and running > lowest + _DIVERGED


class StageEnd:
    """Measurements at the end of each stage of a supervised phase, with programs that are compiled once."""

    def __init__(self, context: RunContext, phase: str, evaluation: Validation):
        self.context, self.evaluation, self.config = context, evaluation, context.run.supervised(phase)
        self._first = (0,) if phase == "curriculum" and "text" in context.run.phases else ()

    def __call__(self, params: Params, place: int) -> Mapping[str, float]:
        """Figures at the end of the stage at index `place`, by name; none where no text is written."""
        if self.config.mode == "no_cot":
            return {}
        stages = *self._first, *self.config.stages
        now = self.config.stages[place]
        earlier = sorted({stage for stage in stages[: place + len(self._first)] if stage != now})
        found: dict[str, float] = {}
        # Before the run only the steps that some stage writes were checked for their length.
        with suppress(UserError):
            found["text_perplexity"] = self._perplexity(params)
        for stage in earlier:
            few = self.evaluation(params, rule_of_stage(self.config, stage), few=_FEW)
            found[f"accuracy_of_stage_{stage}"] = few["accuracy"]
        return found

    def _perplexity(self, params: Params) -> float:
        """Perplexity per token of the written steps and answers of one batch of validation problems.

        Raises UserError if they are longer than `config.data.answer_length`.
        """
        context, written = self.context, self.context.run.text.as_curriculum
        rows = self.config.micro_batch_size or self.config.batch_size
        problems = [self.evaluation.problems[number % len(self.evaluation.problems)] for number in range(rows)]
        length = context.run.data.answer_length
        given = problems, 0, written, context.layout, length
        joined, rng = context.run.thoughts.joined, np.random.default_rng(0)
        batch = parallel_batch(*given, joined, rng) if joined else curriculum_batch(*given, rng)
        loss = fetch(self._loss(params, place_batch(batch, context.mesh)))
        return float(np.exp(np.minimum(loss, 80.0)))

    @cached_property
    def _loss(self) -> Any:
        @jax.jit
        def loss(params, batch):
            sums = sums_of(nnx.merge(self.context.abstract.graphdef, *params), batch, 0)
            return sums.loss_sum / jnp.maximum(sums.count, 1.0)

        return loss
