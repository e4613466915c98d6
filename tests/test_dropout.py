"""Dropout of thoughts in the curriculum: drawn for the batch as a whole, for an update's own key."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import QUICK, ragged_prompts, small_reasoner
from flax import nnx

from longshot_jax.config.curriculum import CurriculumConfig
from longshot_jax.curriculum.batch import CurriculumBatch
from longshot_jax.curriculum.update import curriculum_update
from longshot_jax.thoughts.stopping import StopRule
from longshot_jax.thoughts.think import Teaching, encode, think
from longshot_jax.training.state import start_state

ROWS, STEPS = 4, 2


@pytest.mark.slow
def test_dropout_does_not_depend_on_micro_batches_and_changes_with_every_update():
    graphdef, params = nnx.split(small_reasoner(num_hidden_layers=1))
    prompt, mask = ragged_prompts([3, 6, 1, 4], 6)
    tokens, real = ragged_prompts([4, 4, 4, 4], 4, 1)
    batch = CurriculumBatch(prompt, mask, jnp.array([2, 1, 0, 2]), tokens, real, real)
    descent = optax.sgd(0.1)
    state = start_state(params, nnx.State({}), descent, jax.random.key(3))

    def losses(parts):
        config = CurriculumConfig(max_latent_stage=STEPS, batch_size=4, micro_batch_size=4 // parts, dropout=0.5)
        update = jax.jit(curriculum_update(graphdef, descent, config), compiler_options=QUICK)
        after, first = update(state, batch)
        # The same weights again, under the key that the first update left.
        _, second = update(state.replace(key=after.key), batch)
        return float(first["loss"]), float(second["loss"])

    whole, cut = losses(1), losses(2)
    np.testing.assert_allclose(cut, whole, rtol=1e-5)
    assert abs(whole[0] - whole[1]) > 1e-4


def test_what_is_dropped_of_a_thought_is_zero_and_the_rest_is_scaled():
    reasoner, (prompt, mask) = small_reasoner(), ragged_prompts([3, 6], 6)
    dropout = np.random.default_rng(0).integers(0, 2, (2, 1, STEPS, 8)).astype(np.float32) * 2
    twos = jnp.full((2, 1), STEPS)

    @jax.jit
    def thoughts(dropout):
        noise = jnp.zeros((2, 1, STEPS, 8))
        rule = StopRule(twos, twos)
        encoded, teaching = encode(reasoner, prompt, mask), Teaching(dropout=dropout)
        return think(reasoner, encoded, None, rule, noise, jnp.zeros(()), teaching=teaching)

    found = thoughts(dropout)
    np.testing.assert_allclose(found.embeddings, np.asarray(found.actions) * dropout, rtol=1e-6)
    np.testing.assert_allclose(found.actions[:, :, 0], thoughts(jnp.ones_like(dropout)).actions[:, :, 0], rtol=1e-5)
