"""Schedules over the iterations of PPO, for the noise of thoughts and the temperatures of stops and answer tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from longshot_jax.config.ppo import Annealing


def anneal(bounds: tuple[float, float], kind: Annealing, iterations: int) -> Float[np.ndarray, " iterations"]:
    """The value at every iteration: the first bound at the first iteration, the second at the last.

    `cosine` is half a cosine wave, level at both ends (SGDR without restarts, arXiv:1608.03983); `constant` is always
    the first bound, as is a single iteration.
    """
    first, last = bounds
    steps = max(iterations - 1, 1)
    if kind == "linear":
        schedule = optax.linear_schedule(first, last, steps)
    elif kind == "cosine":
        # Decay the distance to the last bound, which may be 0 or above the first.
        distance = optax.cosine_decay_schedule(first - last, steps)
        schedule = lambda count: last + distance(count)  # noqa: E731
    else:
        schedule = optax.constant_schedule(first)
    # One by one: an array would compile again for every number of iterations.
    value = jax.jit(lambda count: jnp.asarray(schedule(count), jnp.float32))
    return np.asarray([value(count) for count in range(iterations)])
