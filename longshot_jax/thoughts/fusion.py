"""From N trajectories to one: choosing among finished answers, and averaging while thinking.

`vote`, `weighted` and `best` choose a finished trajectory on the host, for inference and evaluation. Each returns
the index of a trajectory, so that its text, thoughts and value can be shown. `mean_of_trajectories` and `majority`
fuse inside a step: the same thought for all, the same stop for all.

Shapes: B questions, N trajectories per question, X size of a thought.
"""

import math
from collections.abc import Callable, Hashable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

AnswerKey = Callable[[str], Hashable | None]
Values = Sequence[float] | Float[np.ndarray, " N"]


def _groups(answers: Sequence[str], values: Values, key: AnswerKey) -> list[list[int]]:
    """Indices of the trajectories by normalised answer, unparsed answers left out unless there are no others."""
    if len(answers) == 0 or len(answers) != len(values):
        raise ValueError(
            f"{len(answers)} answers with {len(values)} values: one value per answer, at least one"
        )
    groups: dict[Hashable, list[int]] = {}
    for index, answer in enumerate(answers):
        groups.setdefault(key(answer), []).append(index)
    if len(groups) > 1:
        groups.pop(None, None)
    return list(groups.values())


def _worths(values: Values) -> list[float]:
    return [float(value) if math.isfinite(value) else -math.inf for value in values]


def vote(answers: Sequence[str], values: Values, key: AnswerKey) -> int:
    """Index of the best trajectory among those with the most frequent answer; ties by the summed value.

    Answers are the same where ``key`` maps them to the same thing; ``key`` returns None for an answer that cannot
    be parsed, which wins only where none can. Among equals the earlier trajectory wins. A value that is not
    finite counts as the lowest. Raises ValueError without answers, or with another number of values.
    """
    groups = _groups(answers, values, key)
    worths = _worths(values)
    # `max` keeps the first of equals, and the groups are in the order of the trajectories.
    winners = max(groups, key=lambda group: (len(group), math.fsum(worths[i] for i in group)))
    return max(winners, key=lambda i: worths[i])


def weighted(answers: Sequence[str], values: Values, key: AnswerKey) -> int:
    """Index of the best trajectory among those whose answer has the largest weight; ``key`` as for `vote`.

    A trajectory weighs exp(value): values are predicted rewards and may be negative, and one more vote must never
    count against an answer. Adding a constant to all values changes nothing.
    """
    groups = _groups(answers, values, key)
    worths = _worths(values)
    # The largest is taken out so that exp cannot overflow; where no value is finite, all weigh the same.
    largest = max(worths)
    weights = [math.exp(worth - largest) if math.isfinite(largest) else 1.0 for worth in worths]
    winners = max(groups, key=lambda group: math.fsum(weights[i] for i in group))
    return max(winners, key=lambda i: worths[i])


def best(values: Values) -> int:
    """Index of the trajectory of highest value; the earlier of equals. NaN and infinities count as the lowest."""
    if len(values) == 0:
        raise ValueError("no values: choosing the best needs at least one trajectory")
    worths = _worths(values)
    return max(range(len(worths)), key=lambda i: worths[i])


def mean_of_trajectories(thoughts: Float[Array, "B N X"], mask: Bool[Array, "B N"]) -> Float[Array, "B X"]:
    """Mean thought of each question's live trajectories (zeros where none is live), summed in float32."""
    live = jnp.sum(mask, axis=1, dtype=jnp.float32)
    dtype = jnp.promote_types(thoughts.dtype, jnp.float32)
    total = jnp.sum(thoughts, axis=1, where=mask[..., None], dtype=dtype)
    return (total / jnp.maximum(live, 1.0)[:, None]).astype(thoughts.dtype)


def majority(votes: Bool[Array, "B N"], mask: Bool[Array, "B N"]) -> Bool[Array, " B"]:
    """Whether more than half of a question's live trajectories vote yes; a tie is a no."""
    return 2 * jnp.sum(votes & mask, axis=1) > jnp.sum(mask, axis=1)
