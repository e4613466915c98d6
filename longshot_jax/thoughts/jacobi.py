"""Thoughts made in parallel, by Jacobi iterations instead of one after the other (PCCoT, arXiv:2506.18582).

All thoughts start from one embedding. An iteration passes them through the model at once, and every thought becomes
what the state before it makes of the present ones. Thought t is exact after t iterations, so that T iterations give
what thinking in sequence gives; fewer are cheaper where a pass over T positions costs little more than over one.

Shapes: B questions, N trajectories, T thoughts, D hidden size.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from longshot_jax.thoughts.navigator import Reasoner
from longshot_jax.thoughts.think import EncodedPrompt, Thoughts, think_given


def think_in_parallel(
    reasoner: Reasoner,
    prompt: EncodedPrompt,
    counts: Int[Array, "B N"],
    start: Float[Array, " D"],
    steps: int,
    iterations: int,
) -> Thoughts:
    """Noise-free thoughts after so many Jacobi iterations, differentiable through all of them.

    Args:
      reasoner: whose thoughts read neither memory nor earlier actions.
      prompt: encoded questions.
      counts: thoughts of each trajectory.
      start: what stands in every thought slot before the first iteration.
      steps: T.
      iterations: passes that are fed back, at least 1.
    """
    navigator = reasoner.navigator
    embeddings = jnp.broadcast_to(start, (*counts.shape, steps, start.shape[-1]))
    thoughts = think_given(reasoner, prompt, embeddings, counts)
    means = thoughts.means
    for _ in range(iterations):
        before = thoughts.hidden[:, :, :-1]
        means = navigator.action_mean(before, None, None, jnp.arange(steps))
        embeddings = navigator.to_embedding(means, before).astype(embeddings.dtype)
        thoughts = think_given(reasoner, prompt, embeddings, counts)
    return replace(thoughts, means=means, actions=means)
