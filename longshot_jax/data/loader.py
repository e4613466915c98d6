"""Batches of problems, in an order that is a pure function of the seed.

The stream is one shuffled epoch after the other, cut into batches of one size. Batch i is a function of (seed, i)
alone: a run resumes by remembering the integer i. An epoch's remainder is not lost and no batch is short: the batch
at the border of two epochs holds the last problems of one and the first of the next, so shapes never change.
"""

from collections.abc import Iterator, Sequence
from typing import SupportsIndex, cast

import grain

from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError


class ProblemStream:
    """An endless stream of batches: `stream[i]` is global batch i, or this host's slice of it.

    problems: any sequence; each of its items occurs exactly once in each epoch, shuffled anew in each.
    batch_size: problems in a global batch, over all hosts.
    shard: (this host, number of hosts); the hosts' slices, in order, are the global batch.

    Reading starts no threads or processes. Errors: UserError for no problems, a seed outside 0 to 2**32 - 1, a batch
    size below 1, or one that the hosts do not divide.
    """

    def __init__(
        self, problems: Sequence[Problem], batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)
    ):
        if not len(problems):
            raise UserError("there are no problems to read: give data with at least one")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        if not 0 <= seed < 2**32:
            raise UserError(f"the data's seed must be from 0 to 2**32 - 1, not {seed}")
        host, hosts = shard
        if not 0 <= host < hosts:
            raise UserError(f"shard must be (host, hosts) with host from 0 to hosts - 1, not {shard}")
        if batch_size % hosts:
            raise UserError(
                f"batch_size {batch_size} is not divisible by {hosts} hosts: choose a multiple of it"
            )
        self.batch_size = batch_size
        self.size = len(problems)
        self._local_size = batch_size // hosts
        self._offset = host * self._local_size
        self._problems = grain.MapDataset.source(problems).shuffle(seed).repeat()  # type: ignore[arg-type]

    @property
    def steps_per_epoch(self) -> int:
        """Batches after which every problem was seen at least once: the size over the batch size, rounded up."""
        return -(-self.size // self.batch_size)

    def __getitem__(self, index: SupportsIndex) -> list[Problem]:
        """This host's part of global batch `index`, batch_size / hosts problems."""
        number = index.__index__()
        if number < 0:
            raise IndexError(f"batches are counted from 0, there is no batch {number}")
        first = number * self.batch_size + self._offset
        places = range(first, first + self._local_size)
        return [cast(Problem, self._problems[place]) for place in places]  # None only after a filter

    def batches(self, start: int = 0) -> Iterator[tuple[int, list[Problem]]]:
        """(i, stream[i]) for i = start, start + 1, ... without end."""
        number = start
        while True:
            yield number, self[number]
            number += 1
