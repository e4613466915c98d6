"""Interventions on single thoughts: the answers that follow when one thought of a trajectory is another vector.

Earlier thoughts are kept; the later ones follow from the replaced one without noise, as many as there were (activation
patching: Vig et al. 2020, arXiv:2004.12265). Trajectories that read one another or have one joined answer are changed
one at a time, while the others keep all their thoughts. A thought that reads earlier actions (`thoughts.graph`,
`thoughts.cross_attention`) still reads those that were taken.

Shapes: Q questions, N trajectories, T thoughts, D hidden size, A answer tokens, E interventions.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from longshot_jax.evaluation.decoder import Decoder, Trajectories
from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.joint import decode_jointly
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Params
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.stopping import StopRule
from longshot_jax.thoughts.think import Teaching, encode, think


@dataclass(frozen=True)
class Interventions:
    """`answers`, compiled once per shape, for the models of a `Decoder`."""

    decoder: Decoder

    def answers(
        self,
        params: Params,
        prompts: tuple[Int[np.ndarray, "Q S"], Bool[np.ndarray, "Q S"]],
        decoded: Trajectories,
        replacement: Float[np.ndarray, "Q N T D"],
        memory: MemoryBank | None = None,
    ) -> Int[np.ndarray, "Q N T A"]:
        """Tokens of the greedy answer after thought t of trajectory n alone is `replacement` [n, t].

        A trajectory's own thoughts as the replacement give what the others are compared with: its answer without noise in
        later thoughts and tokens. Places of thoughts that were not taken hold no meaning.
        """
        many, steps = decoded.thoughts.shape[1:3]
        config = nnx.merge(self.decoder.graphdef, *params).navigator.config
        alone = bool(self.decoder.joined) or config.reads_others
        columns = np.repeat(np.eye(many, dtype=bool) if alone else np.ones((1, many), bool), steps, axis=0)
        at = np.tile(np.arange(steps), len(columns) // steps)
        own = decoded.thoughts, decoded.num_thoughts, decoded.active, decoded.noise
        tokens = jax.device_get(self._answers(params, memory, *prompts, *own, replacement, columns, at))
        if not alone:
            return np.moveaxis(tokens, 0, 2)
        tokens = tokens.reshape(many, steps, *tokens.shape[1:])
        return np.stack([np.moveaxis(tokens[n, :, :, n], 0, 1) for n in range(many)], axis=1)

    @cached_property
    def _answers(self) -> Any:
        decoder, layout = self.decoder, self.decoder.layout

        def answers(params, memory, prompt, mask, own, num_thoughts, active, noise, replacement, columns, at):
            reasoner = nnx.merge(decoder.graphdef, *params)
            shape, steps = num_thoughts.shape, jnp.arange(own.shape[2])
            prompts = begin_trajectories(reasoner, encode(reasoner, prompt, mask), shape[1], active)
            rule = StopRule(num_thoughts, num_thoughts)
            if noise is None:
                noise = jnp.zeros((*shape, len(steps), reasoner.action_size))
            written = decoder.opening, layout.tokenizer.ends, decoder.answer_length, jnp.ones(()), None

            def one(intervention):
                column, step = intervention
                changed = column[:, None] & (steps == step)
                given = jnp.broadcast_to(~column[:, None] | (steps <= step), own.shape[:3])
                taught = Teaching(jnp.where(changed[..., None], replacement, own), given)
                # Actions that are read were sampled with this noise; those after the replaced thought have none.
                sampled = jnp.where(given[..., None], noise, 0.0)
                thoughts = think(reasoner, prompts, memory, rule, sampled, jnp.ones(()), teaching=taught)
                if decoder.joined:
                    decoded = decode_jointly(
                        reasoner, prompts, thoughts, *written, text_end=layout.text_end, active=active
                    )
                else:
                    decoded = decode_answers(reasoner, prompts, thoughts, *written)
                return decoded.tokens

            return jax.lax.map(one, (columns, at))

        return jax.jit(answers)
