"""Batches: pure in their number, whole epochs, exact resume, rows for several hosts, made ahead in order."""

from collections import Counter
from itertools import islice

import pytest
from child_process import run_script

from longshot_jax.data.chains import ChainProblems
from longshot_jax.data.loader import batches_per_epoch, prefetched, problem_batches
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError


def numbered(count):
    return [Problem(f"question {number}", (), str(number)) for number in range(count)]


def flat(batches):
    return [problem.answer for batch in batches for problem in batch]


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (12, 4), (3, 8), (1, 1), (1, 4), (7, 7)])
def test_every_epoch_holds_every_problem_once(count, batch_size):
    """Also where batches straddle epochs: nothing is lost, doubled or short."""
    stream = problem_batches(numbered(count), batch_size, seed=3)
    epochs = 4
    batches = [stream[number] for number in range(-(-epochs * count // batch_size))]
    assert {len(batch) for batch in batches} == {batch_size}
    order = flat(batches)
    for epoch in range(epochs):
        assert Counter(order[epoch * count : (epoch + 1) * count]) == Counter(str(n) for n in range(count))
    steps = batches_per_epoch(numbered(count), batch_size)
    assert steps == -(-count // batch_size)
    seen = flat(stream[number] for number in range(steps))
    assert len(set(seen)) == count


def test_epochs_are_shuffled_differently_and_by_the_seed():
    stream = problem_batches(numbered(50), 50, seed=3)
    orders = {tuple(flat([stream[number]])) for number in range(4)}
    assert len(orders) == 4 and tuple(str(n) for n in range(50)) not in orders
    assert flat([problem_batches(numbered(50), 50, seed=4)[0]]) != flat([stream[0]])


def test_resume_is_an_integer():
    problems = ChainProblems(0, 37)

    def from_batch(first, count):
        numbered_batches = problem_batches(problems, 8, seed=1).map_with_index(lambda number, batch: (number, batch))
        with prefetched(numbered_batches, first) as batches:
            return list(islice(batches, count))

    through, resumed = from_batch(0, 12), from_batch(7, 5)
    assert resumed == through[7:]
    assert [number for number, _ in through] == list(range(12))
    stream = problem_batches(problems, 8, seed=1)
    assert [stream[number] for number in (9, 2, 9)] == [through[9][1], through[2][1], through[9][1]]


def test_the_hosts_rows_are_the_global_batch():
    """Every host makes the whole batch and keeps the rows of its devices, which stand in their order."""
    done = run_script(
        """
        import jax, numpy as np
        from longshot_jax.config.model import MeshConfig
        from longshot_jax.data.loader import batches_per_epoch, problem_batches
        from longshot_jax.data.problems import Problem
        from longshot_jax.model.sharding import make_mesh, place_batch

        jax.config.update("jax_num_cpu_devices", 4)
        problems = [Problem(f"question {number}", (), str(number)) for number in range(10)]
        stream, other = (problem_batches(problems, 4, seed=2) for _ in range(2))
        assert batches_per_epoch(problems, 4) == 3
        for hosts in (1, 2, 4):
            mesh = make_mesh(MeshConfig(data=hosts))
            for number in range(12):
                whole = np.array([int(problem.answer) for problem in stream[number]])
                assert [int(problem.answer) for problem in other[number]] == whole.tolist()
                parts = [np.asarray(part.data) for part in place_batch(whole, mesh).addressable_shards]
                assert len(parts) == hosts and {len(part) for part in parts} == {4 // hosts}
                assert np.concatenate(parts).tolist() == whole.tolist()
        print("all rows")
        """
    )
    assert "all rows" in done.stdout, done.stderr


def test_far_batches_and_lazy_sources():
    asked = []

    class Watched(ChainProblems):
        def __getitem__(self, index):
            asked.append(int(index))
            return super().__getitem__(index)

    stream = problem_batches(Watched(0, 10**9), 4, seed=0)
    assert len(asked) < 9  # the checker of annotations looks at items of every sequence
    asked.clear()
    assert len(stream[10**8]) == 4 and len(asked) == 4  # nothing is made before it is asked for


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"problems": []}, "no problems"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
    ],
)
def test_bad_settings(arguments, named):
    with pytest.raises(UserError, match=named):
        problem_batches(**{"problems": numbered(5), "batch_size": 4, "seed": 0, **arguments})


def test_no_batch_before_the_first():
    with pytest.raises(IndexError), prefetched(problem_batches(numbered(5), 4, seed=0), -1):
        pass


def test_batches_made_ahead_come_in_order_and_errors_surface():
    def make(number, _):
        if number == 5:
            raise UserError("number five")
        return number

    with prefetched(problem_batches(numbered(5), 4, seed=0).map_with_index(make), 3) as ahead:
        assert [next(ahead), next(ahead)] == [3, 4]
        with pytest.raises(UserError, match="number five"):
            next(ahead)


def test_only_a_few_batches_are_made_ahead():
    made = []

    def make(number, _):
        made.append(number)
        return number

    with prefetched(problem_batches(numbered(5), 4, seed=0).map_with_index(make), 0) as ahead:
        taken = [next(ahead) for _ in range(6)]
    assert taken == list(range(6)) and made[:6] == taken and 6 <= len(made) <= 6 + 4
