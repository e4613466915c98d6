"""Batches of problems of similar lengths, padded to few shapes.

A shape (S, A) is what prompts and the tokens after them are padded to; each is compiled once. A window of the stream, at
most 256 batches, is cut into batches of one shape; what does not fill a batch of its shape is joined with what is left of
others. The order of a window's batches is shuffled. Batch i depends only on the stream, the seed and i, so a run resumes
from the integer i.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import grain
import numpy as np

T = TypeVar("T")
Shape = tuple[int, int]

_WINDOW = 256  # batches
_GRID = 40  # lengths of prompts, and of what follows, among which shapes are chosen


def choose_shapes(lengths: Sequence[Shape], number: int, largest: Shape, multiple: int = 8) -> tuple[Shape, ...]:
    """At most `number` shapes that waste few positions on problems of these lengths (S, A), smallest first.

    Greedily, from `largest`, which holds every problem and is always one of them: each further shape is the one that
    saves most positions. Lengths are multiples of `multiple`, or of a multiple of it that leaves 40 choices of each.
    """
    asked = np.asarray(lengths).reshape(-1, 2)
    steps = [multiple * max(1, -(-most // (multiple * _GRID))) for most in largest]
    rounded = np.minimum(-(-asked // steps) * steps, largest)
    needs, weights = np.unique(rounded, axis=0, return_counts=True)
    choices = np.stack(np.meshgrid(*(np.unique(column) for column in needs.T), indexing="ij"), axis=-1).reshape(-1, 2)
    holds = np.all(choices[:, None] >= needs, axis=-1)
    costs, chosen = np.full(len(needs), sum(largest)), {largest}
    for _ in range(number - 1):
        saved = (np.maximum(costs - choices.sum(axis=-1)[:, None], 0) * holds) @ weights
        best = int(saved.argmax())
        if not saved[best]:
            break
        chosen.add((int(choices[best, 0]), int(choices[best, 1])))
        costs = np.where(holds[best], np.minimum(costs, choices[best].sum()), costs)
    return tuple(sorted(chosen, key=lambda shape: (sum(shape), shape)))


def smallest_shape(shapes: Sequence[Shape], lengths: Shape) -> Shape:
    """The first of `shapes`, smallest first, that holds the lengths; the last holds all."""
    return next((shape for shape in shapes if shape[0] >= lengths[0] and shape[1] >= lengths[1]), shapes[-1])


def grouped_batches(
    items: grain.MapDataset[T],
    batch_size: int,
    epoch: int,
    lengths: Callable[[T], Shape],
    shapes: Sequence[Shape],
    seed: int,
) -> grain.MapDataset[list[T]]:
    """Batches of an endless stream, of which the first `epoch` items are different ones; see the module's docstring."""
    batches = max(1, min(_WINDOW, epoch // batch_size))

    @lru_cache(maxsize=2)
    def window(number: int) -> list[list[T]]:
        groups: dict[Shape, list[T]] = defaultdict(list)
        for place in range(number * batches * batch_size, (number + 1) * batches * batch_size):
            item: Any = items[place]
            groups[smallest_shape(shapes, lengths(item))].append(item)
        left = [item for shape in shapes for item in groups[shape][len(groups[shape]) // batch_size * batch_size :]]
        full = [group[at : at + batch_size] for group in groups.values() for at in range(0, len(group), batch_size)]
        cut = [batch for batch in full if len(batch) == batch_size]
        cut += [left[at : at + batch_size] for at in range(0, len(left), batch_size)]
        return [cut[place] for place in np.random.default_rng((seed, number)).permutation(batches)]

    counted = grain.MapDataset.range(1).repeat()
    return counted.map_with_index(lambda number, _: window(number // batches)[number % batches])
