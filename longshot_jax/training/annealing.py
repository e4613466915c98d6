"""What anneals over PPO: noise of thoughts, temperatures of stops and answer tokens, each by one schedule of optax."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

Annealing = Literal["linear", "cosine", "constant"]


def anneal(bounds: tuple[float, float], kind: Annealing, iterations: int) -> Float[np.ndarray, " iterations"]:
    """Values of every iteration, float32: the first bound at the first, the second at the last iteration.

    `linear`: a straight line; `cosine`: half a cosine wave, level at both ends (SGDR without restarts,
    arXiv:1608.03983); `constant`: the first bound throughout. Of one iteration alone, the first bound.
    """
    first, last = bounds
    steps = max(iterations - 1, 1)
    if kind == "linear":
        schedule = optax.linear_schedule(first, last, steps)
    elif kind == "cosine":
        # What decays is the distance to the last bound, which may be 0 or above the first.
        distance = optax.cosine_decay_schedule(first - last, steps)
        schedule = lambda count: last + distance(count)  # noqa: E731
    else:
        schedule = optax.constant_schedule(first)
    # One by one: as an array, every number of iterations would be compiled anew.
    value = jax.jit(lambda count: jnp.asarray(schedule(count), jnp.float32))
    return np.asarray([value(count) for count in range(iterations)])
