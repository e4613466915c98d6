"""Number of trajectories of a question: an action taken once, at h_0.

A count head maps the last hidden state of the prompt to a categorical over 2 ... N, or 1 ... N with a joined answer. Arrays always have room for N
trajectories; the masks of trajectories beyond the drawn number are False everywhere.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from longshot_jax.thoughts.densities import categorical_entropy, categorical_log_prob
from longshot_jax.thoughts.navigator import Navigator


@struct.dataclass
class CountScores:
    """Scores of the numbers of trajectories, Float [B], in nats; zero where the numbers were forced."""

    log_prob: Array
    entropy: Array


def draw_count(
    navigator: Navigator, hidden: Float[Array, "B D"], forced: Int[Array, " B"] | None, keys: Key[Array, " B"] | None
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """The number of trajectories of each question, by the count head, and whether it was an action.

    Args:
      hidden: h_0.
      forced: given numbers; 0 lets the head choose, None lets it choose for all questions.
      keys: one per question; None takes the likeliest number.
    """
    logits = navigator.count_logits(hidden)
    if keys is None:
        index = jnp.argmax(logits, axis=-1)
    else:
        index = jax.vmap(jax.random.categorical)(keys, logits)
    number = navigator.config.fewest_trajectories + index.astype(jnp.int32)
    if forced is None:
        return number, jnp.ones(number.shape, bool)
    return jnp.where(forced > 0, forced, number), forced == 0


def score_count(
    navigator: Navigator, hidden: Float[Array, "B D"], number: Int[Array, " B"], is_action: Bool[Array, " B"]
) -> CountScores:
    """Log-prob and entropy of drawn numbers."""
    logits = navigator.count_logits(hidden)
    index = jnp.clip(number - navigator.config.fewest_trajectories, 0, logits.shape[-1] - 1)
    log_prob = categorical_log_prob(logits, index)
    return CountScores(
        log_prob=jnp.where(is_action, log_prob, 0.0), entropy=jnp.where(is_action, categorical_entropy(logits), 0.0)
    )


def active_trajectories(number: Int[Array, " B"], trajectories: int) -> Bool[Array, "B N"]:
    """Mask of the trajectories that exist: the first `number` of N."""
    return jnp.arange(trajectories) < number[:, None]
