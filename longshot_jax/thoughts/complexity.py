"""How many trajectories a question gets: an action of its own, taken once at h_0.

A complexity head reads the last hidden state of the prompt and gives a categorical over 2 ... N. Arrays always have
room for N trajectories; those beyond the number that was drawn do not exist, and their masks are False everywhere.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from longshot_jax.thoughts.densities import categorical_entropy, categorical_log_prob
from longshot_jax.thoughts.navigator import Navigator

FEWEST = 2


@struct.dataclass
class NumberScores:
    """What the policy says of the numbers of trajectories; zero where they were forced.

    Attributes:
      log_prob: Float [B]; entropy: Float [B], in nats.
    """

    log_prob: Array
    entropy: Array


def draw_number(
    navigator: Navigator,
    hidden: Float[Array, "B D"],
    forced: Int[Array, " B"] | None,
    keys: Key[Array, " B"] | None,
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """The number of trajectories of each question, and whether it was an action.

    Args:
      navigator: with a complexity head.
      hidden: h_0.
      forced: numbers that are given; 0 leaves the choice to the head. None leaves all.
      keys: one per question; None takes the likeliest number.
    """
    logits = navigator.number_logits(hidden)
    if keys is None:
        index = jnp.argmax(logits, axis=-1)
    else:
        index = jax.vmap(jax.random.categorical)(keys, logits)
    number = FEWEST + index.astype(jnp.int32)
    if forced is None:
        return number, jnp.ones(number.shape, bool)
    return jnp.where(forced > 0, forced, number), forced == 0


def score_number(
    navigator: Navigator, hidden: Float[Array, "B D"], number: Int[Array, " B"], free: Bool[Array, " B"]
) -> NumberScores:
    """Log-prob and entropy of drawn numbers."""
    logits = navigator.number_logits(hidden)
    log_prob = categorical_log_prob(logits, jnp.clip(number - FEWEST, 0, logits.shape[-1] - 1))
    return NumberScores(
        log_prob=jnp.where(free, log_prob, 0.0), entropy=jnp.where(free, categorical_entropy(logits), 0.0)
    )


def existing(number: Int[Array, " B"], trajectories: int) -> Bool[Array, "B N"]:
    """Which of the N trajectories exist: the first ones."""
    return jnp.arange(trajectories) < number[:, None]
