"""Thoughts computed in parallel by Jacobi iterations instead of sequentially (PCCoT, arXiv:2506.18582).

All thoughts start from one embedding. Each iteration runs all thoughts through the model in one pass and replaces each
by the thought computed from the preceding hidden state. Thought t is exact after t iterations, so T iterations equal
sequential thinking; fewer are cheaper where a pass over T positions costs little more than over one.

Shapes: B questions, N trajectories, T thoughts, D hidden size.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.think import EncodedPrompt, Thoughts, think_given


def think_in_parallel(
    reasoner: Reasoner,
    prompt: EncodedPrompt,
    num_thoughts: Int[Array, "B N"],
    start: Float[Array, " D"],
    steps: int,
    iterations: int,
) -> Thoughts:
    """Noise-free thoughts after the given number of Jacobi iterations, differentiable through all of them.

    Args:
      reasoner: its thoughts must read neither memory nor earlier actions.
      start: embedding of every thought before the first iteration.
      steps: T.
      iterations: passes whose thoughts are fed back, at least 1.
    """
    navigator = reasoner.navigator
    embeddings = jnp.broadcast_to(start, (*num_thoughts.shape, steps, start.shape[-1]))
    thoughts = think_given(reasoner, prompt, embeddings, num_thoughts)
    means = thoughts.means
    for _ in range(iterations):
        before = thoughts.hidden[:, :, :-1]
        means = navigator.action_mean(reasoner.thought_source(before), None, None, jnp.arange(steps))
        embeddings = navigator.to_embedding(means, before).astype(embeddings.dtype)
        thoughts = think_given(reasoner, prompt, embeddings, num_thoughts)
    return replace(thoughts, means=means, actions=means)
