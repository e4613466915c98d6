"""Batches of problems in an order that is a pure function of the seed.

Shuffled epochs are concatenated and cut into batches of one size, so a batch may have problems of two epochs. Batch i
depends only on (seed, i), so a run resumes from the integer i.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import grain

from longshot_jax.data.problems import Problem
from longshot_jax.data.redraw import RedrawnProblems
from longshot_jax.errors import UserError

T = TypeVar("T")


def _order(problems: Sequence[Problem], seed: int) -> grain.MapDataset[int]:
    """Places in `problems`, endlessly: shuffled epochs. UserError for no problems or a seed outside 0 to 2**32 - 1."""
    if not len(problems):
        raise UserError("there are no problems to read: give data with at least one")
    if not 0 <= seed < 2**32:
        raise UserError(f"the data's seed must be from 0 to 2**32 - 1, not {seed}")
    return grain.MapDataset.range(len(problems)).shuffle(seed).repeat()


def problem_stream(problems: Sequence[Problem], seed: int) -> grain.MapDataset[Problem]:
    """The endless stream of shuffled epochs, with new numbers where `problems` draws them.

    Raises UserError if there are no problems or the seed is outside 0 to 2**32 - 1.
    """
    stream = _order(problems, seed).map(lambda place: problems[place])
    return stream.map_with_index(problems.redrawn) if isinstance(problems, RedrawnProblems) else stream


def problem_batches(problems: Sequence[Problem], batch_size: int, seed: int) -> grain.MapDataset[list[Problem]]:
    """An endless stream: `batches[i]` is batch i. Each epoch has every problem once, in an order of its own.

    Raises UserError if there are no problems, the batch size is below 1, or the seed is outside 0 to 2**32 - 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    if isinstance(problems, RedrawnProblems):
        return problem_stream(problems, seed).batch(batch_size, batch_fn=list)
    # A batch of places is looked up at once: grain spends more on a source's element than a chain takes to generate.
    places = _order(problems, seed).batch(batch_size, batch_fn=list)
    return places.map(lambda batch: [problems[place] for place in batch])


def batches_per_epoch(problems: Sequence[Problem], batch_size: int) -> int:
    """The number of batches that covers every problem at least once; grouped by length, some come twice and a few per cent not at all."""
    return -(-len(problems) // batch_size)


@contextmanager
def prefetched(items: grain.MapDataset[T], first: int) -> Iterator[Iterator[T]]:
    """An iterator over `items[first]`, `items[first + 1]`, ..., computed in a background thread with a buffer of
    two."""
    if first < 0:
        raise IndexError(f"items are counted from 0: there is no item {first}")
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    iterator: Any = iter(items[first:].to_iter_dataset(options))
    try:
        yield iterator
    finally:
        iterator.close()
