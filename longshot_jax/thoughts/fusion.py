"""One of the answers of N finished trajectories, by vote or by value; an answer that reads all is in `thoughts.joint`.

`vote`, `weighted` and `best` run on the host and return the index of a trajectory, so its text, thoughts and value can
be shown.

Shapes: N trajectories of a question.
"""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jaxtyping import Float

AnswerKey = Callable[[str], Hashable | None]
Values = Sequence[float] | Float[np.ndarray, " N"]


def _groups(answers: Sequence[str], values: Values, key: AnswerKey) -> list[list[int]]:
    """Indices of the trajectories by normalised answer; unparsed answers are omitted unless there are no others."""
    if len(answers) == 0 or len(answers) != len(values):
        raise ValueError(f"{len(answers)} answers with {len(values)} values: one value per answer, at least one")
    groups: dict[Hashable, list[int]] = {}
    for index, answer in enumerate(answers):
        groups.setdefault(key(answer), []).append(index)
    if len(groups) > 1:
        groups.pop(None, None)
    return list(groups.values())


def _worths(values: Values) -> list[float]:
    return [float(value) if math.isfinite(value) else -math.inf for value in values]


def vote(answers: Sequence[str], values: Values, key: AnswerKey) -> int:
    """Index of the best trajectory among those with the most frequent answer; ties are broken by the summed value.

    Answers are equal where `key` maps them to the same object. `key` returns None for an answer that cannot be parsed,
    which wins only if none can. Remaining ties go to the earlier trajectory. A non-finite value counts as the lowest.
    Raises ValueError without answers, or if the numbers of answers and values differ.
    """
    groups = _groups(answers, values, key)
    worths = _worths(values)
    # `max` keeps the first of equals, and the groups are in the order of the trajectories.
    winners = max(groups, key=lambda group: (len(group), math.fsum(worths[i] for i in group)))
    return max(winners, key=lambda i: worths[i])


def weighted(answers: Sequence[str], values: Values, key: AnswerKey) -> int:
    """Index of the best trajectory among those whose answer has the largest sum of exp(value); `key` as for `vote`."""
    groups = _groups(answers, values, key)
    worths = _worths(values)
    # The exponential, because values are predicted rewards, may be negative, and one more vote must never count against
    # an answer. Invariant to a constant added to all values, so the largest is subtracted: exp cannot overflow. Where
    # no value is finite, all weigh the same.
    largest = max(worths)
    weights = [math.exp(worth - largest) if math.isfinite(largest) else 1.0 for worth in worths]
    winners = max(groups, key=lambda group: math.fsum(weights[i] for i in group))
    return max(winners, key=lambda i: worths[i])


def best(answers: Sequence[str], values: Values, key: AnswerKey) -> int:
    """Index of the trajectory of highest value, the earlier on a tie; `key` and values that are not finite as for `vote`."""
    worths = _worths(values)
    candidates = sorted(index for group in _groups(answers, values, key) for index in group)
    return max(candidates, key=lambda i: worths[i])


# The fusions that choose one of the trajectories' answers, by name. To add one, add a line here.
CHOOSING: dict[str, Callable[[Sequence[str], Values, AnswerKey], int]] = {
    "vote": vote,
    "weighted": weighted,
    "best": best,
}
