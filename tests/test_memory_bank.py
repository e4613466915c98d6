"""The memory bank against a Python list that does the same slowly."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_jax.thoughts.reads.memory_bank import MemoryBank, best_positions, empty_bank, fuse, read_bank, write_bank

write = jax.jit(write_bank)
read = jax.jit(read_bank, static_argnums=2)
best = jax.jit(best_positions, static_argnums=3)


def bank_of(positions, values, slots=None) -> MemoryBank:
    positions, values = jnp.float32(positions), jnp.float32(values)
    bank = empty_bank(slots or len(values), positions.shape[1])
    return write_bank(bank, positions, values, jnp.ones(len(values), bool))


def test_an_empty_bank_reads_as_nothing_and_leaves_the_state_alone():
    state = jnp.array([[1.0, -2.0], [0.0, 0.0]])
    got, has_read = read(empty_bank(4, 2), state, 3)
    np.testing.assert_array_equal(got, np.zeros((2, 2)))
    assert not np.asarray(has_read).any()
    np.testing.assert_array_equal(fuse(state, got, has_read), state)


def read_by_loop(bank: MemoryBank, state: np.ndarray, top: int):
    scores = []
    for slot in range(int(bank.filled)):
        position, value = np.float64(bank.positions[slot]), float(bank.values[slot])
        cosine = position @ state / (np.linalg.norm(position) * np.linalg.norm(state))
        if value > 0 and cosine * value > 1e-6:
            scores.append((cosine * value, slot))
    chosen = sorted(scores, reverse=True)[:top]
    if not chosen:
        return np.zeros_like(state), False
    weights = np.array([score for score, _ in chosen])
    positions = np.stack([np.float64(bank.positions[slot]) for _, slot in chosen])
    return weights @ positions / weights.sum(), True


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_reading_matches_the_loop(stored, seed):
    rng = np.random.default_rng(seed)
    positions, values = rng.normal(size=(8, 5)), rng.normal(0.5, 1.0, size=8)
    bank = write(empty_bank(8, 5), jnp.float32(positions), jnp.float32(values), jnp.arange(8) < stored)
    state = rng.normal(size=(2, 3, 5))
    got, has_read = read(bank, jnp.float32(state), 3)
    for place in np.ndindex(2, 3):
        expected, found = read_by_loop(bank, state[place], 3)
        np.testing.assert_allclose(got[place], expected, atol=1e-4)
        assert bool(has_read[place]) == found


def test_only_the_top_are_read_and_weighted_by_their_scores():
    bank = bank_of([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-5.0, 0.0]], [0.5, 1.0, 1.0, 9.0])
    state = jnp.array([1.0, 0.0])  # cosines 1, 0, 0.707, -1
    got, has_read = read(bank, state, 1)
    assert bool(has_read)
    np.testing.assert_allclose(got, [1.0, 1.0], rtol=1e-6)  # score 0.707 beats 0.5
    got, _ = read(bank, state, 4)
    weights = np.array([0.5, np.sqrt(0.5)])
    np.testing.assert_allclose(got, weights @ [[2.0, 0.0], [1.0, 1.0]] / weights.sum(), rtol=1e-5)


def test_entries_that_were_no_good_are_never_read():
    """Two negatives must not make a recommendation: a bad entry is silent even for the opposite state."""
    bank = bank_of([[1.0, 0.0], [0.0, 1.0]], [-1.0, 0.0])
    for state in ([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]):
        got, has_read = read(bank, jnp.array(state), 2)
        assert not bool(has_read) and not np.asarray(got).any()


def test_stale_contents_of_empty_slots_are_never_read():
    bank = bank_of([[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0]).replace(filled=jnp.int32(1))
    _, has_read = read(bank, jnp.array([0.0, 1.0]), 2)
    assert not bool(has_read)


def test_reading_is_differentiable_in_the_state_alone():
    rng = np.random.default_rng(0)
    bank = bank_of(rng.normal(size=(6, 4)), rng.uniform(0.5, 1.5, size=6))
    state = jnp.float32(rng.normal(size=4))

    def total(x, b=bank):
        got, has_read = read_bank(b, x, 3)
        return jnp.sum(jnp.sin(fuse(x, got, has_read)))

    gradient = jax.grad(total)(state)
    step = 1e-2
    numeric = [float(total(state + step * e) - total(state - step * e)) / (2 * step) for e in np.eye(4, dtype="f4")]
    np.testing.assert_allclose(gradient, numeric, atol=2e-3)
    assert np.isfinite(jax.grad(total)(jnp.zeros(4))).all()
    to_bank = jax.grad(lambda p: total(state, bank.replace(positions=p)))(bank.positions)
    assert not np.asarray(to_bank).any()


def test_fuse_is_half_and_half():
    state, got = jnp.array([[2.0, 0.0], [2.0, 0.0]]), jnp.array([[0.0, 4.0], [0.0, 4.0]])
    np.testing.assert_array_equal(fuse(state, got, jnp.array([True, False])), [[1.0, 2.0], [2.0, 0.0]])


writes = st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(writes)
def test_ring_order_wrap_around_and_ages(keeps):
    """Five slots, seven candidates a write: after any writes the ring holds the latest five kept, in their slots."""
    bank, slots = empty_bank(5, 1), [None] * 5
    next_slot = stored = 0
    for number, keep in enumerate(keeps):
        values = np.arange(7.0) + 10 * number + 1
        bank = write(bank, jnp.float32(values[:, None]), jnp.float32(values), jnp.array(keep))
        slots = [(value, age + 1) for value, age in slots[:stored]] + slots[stored:]
        for value, kept in zip(values, keep, strict=True):
            if kept:
                slots[next_slot] = (value, 0)
                next_slot, stored = (next_slot + 1) % 5, min(stored + 1, 5)
    expected = [entry or (0.0, 0) for entry in slots]
    np.testing.assert_array_equal(bank.values, [value for value, _ in expected])
    np.testing.assert_array_equal(bank.positions[:, 0], bank.values)
    np.testing.assert_array_equal(bank.ages, [age for _, age in expected])
    assert (int(bank.filled), int(bank.next_slot)) == (stored, next_slot)
    assert bank.ages.dtype == jnp.int32


def test_writing_and_reading_never_recompile():
    bank, before = empty_bank(5, 1), write._cache_size()
    for count in range(8):
        bank = write(bank, jnp.ones((7, 1)), jnp.ones(7), jnp.arange(7) < count)
    assert write._cache_size() - before <= 1


def test_best_positions_are_chosen_from_the_real_ones_worst_first():
    values = jnp.array([[[0.1, 0.9, 5.0], [0.4, jnp.nan, 0.7]]])
    mask = jnp.array([[[True, True, False], [True, True, True]]])
    positions = jnp.stack([values, -values], axis=-1)
    chosen, worth, keep = best(positions, mask, values, 3)
    np.testing.assert_allclose(worth, [0.4, 0.7, 0.9])
    np.testing.assert_allclose(chosen, [[0.4, -0.4], [0.7, -0.7], [0.9, -0.9]])
    assert np.asarray(keep).all()


def test_best_positions_fill_up_with_nothing():
    positions, values = jnp.ones((1, 1, 2, 3)), jnp.array([[[1.0, 2.0]]])
    mask = jnp.array([[[True, False]]])
    for count in (2, 5):
        chosen, worth, keep = best(positions, mask, values, count)
        assert chosen.shape == (count, 3) and int(keep.sum()) == 1
        bank = write_bank(empty_bank(4, 3), chosen, worth, keep)
        assert int(bank.filled) == 1 and float(bank.values[0]) == 1.0


def test_a_bank_survives_tree_transformations():
    bank = empty_bank(3, 2)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), bank)
    assert isinstance(shapes, MemoryBank)
    _, stacked = jax.lax.scan(lambda b, _: (b, b), bank, None, length=2)
    assert stacked.positions.shape == (2, 3, 2)
