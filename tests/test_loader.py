"""Batches: pure in their number, whole epochs, exact resume, slices for several hosts."""

from collections import Counter
from itertools import islice

import pytest

from longshot_jax.data.chains import ChainProblems
from longshot_jax.data.loader import ProblemStream
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError


def numbered(count):
    return [Problem(f"question {number}", (), str(number)) for number in range(count)]


def flat(batches):
    return [problem.answer for batch in batches for problem in batch]


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (12, 4), (3, 8), (1, 1), (1, 4), (7, 7)])
def test_every_epoch_holds_every_problem_once(count, batch_size):
    """Also where batches straddle epochs: nothing is lost, doubled or short."""
    stream = ProblemStream(numbered(count), batch_size, seed=3)
    epochs = 4
    batches = [stream[number] for number in range(-(-epochs * count // batch_size))]
    assert {len(batch) for batch in batches} == {batch_size}
    order = flat(batches)
    for epoch in range(epochs):
        assert Counter(order[epoch * count : (epoch + 1) * count]) == Counter(str(n) for n in range(count))
    assert stream.steps_per_epoch == -(-count // batch_size)
    seen = flat(stream[number] for number in range(stream.steps_per_epoch))
    assert len(set(seen)) == count


def test_epochs_are_shuffled_differently_and_by_the_seed():
    stream = ProblemStream(numbered(50), 50, seed=3)
    orders = {tuple(flat([stream[number]])) for number in range(4)}
    assert len(orders) == 4 and tuple(str(n) for n in range(50)) not in orders
    assert flat([ProblemStream(numbered(50), 50, seed=4)[0]]) != flat([stream[0]])


def test_resume_is_an_integer():
    problems = ChainProblems(0, 37)
    through = list(islice(ProblemStream(problems, 8, seed=1).batches(), 12))
    resumed = list(islice(ProblemStream(problems, 8, seed=1).batches(start=7), 5))
    assert resumed == through[7:]
    assert [number for number, _ in through] == list(range(12))
    stream = ProblemStream(problems, 8, seed=1)
    assert [stream[number] for number in (9, 2, 9)] == [through[9][1], through[2][1], through[9][1]]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_hosts_slices_are_the_global_batch(hosts):
    problems = numbered(10)
    whole = ProblemStream(problems, 4, seed=2)
    slices = [ProblemStream(problems, 4, seed=2, shard=(host, hosts)) for host in range(hosts)]
    for number in range(12):
        parts = [stream[number] for stream in slices]
        assert {len(part) for part in parts} == {4 // hosts}
        assert flat(parts) == flat([whole[number]])
    assert {stream.steps_per_epoch for stream in slices} == {3}


def test_far_batches_and_lazy_sources():
    asked = []

    class Watched(ChainProblems):
        def __getitem__(self, index):
            asked.append(int(index))
            return super().__getitem__(index)

    stream = ProblemStream(Watched(0, 10**9), 4, seed=0)
    assert len(stream[10**8]) == 4 and len(asked) == 4  # nothing is made before it is asked for


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"problems": []}, "no problems"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"shard": (2, 2)}, "shard"),
        ({"shard": (0, 3)}, "3 hosts"),
    ],
)
def test_bad_settings(arguments, named):
    with pytest.raises(UserError, match=named):
        ProblemStream(**{"problems": numbered(5), "batch_size": 4, "seed": 0, **arguments})


def test_no_batch_before_the_first():
    with pytest.raises(IndexError):
        ProblemStream(numbered(5), 4, seed=0)[-1]
