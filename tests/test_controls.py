"""The controls replace exactly what they claim to replace."""

import numpy as np
import pytest
from builders import small_reasoner
from flax import nnx

from longshot_jax.evaluation.controls import (
    question_numbers,
    replaced_thoughts,
    replaced_trajectories,
    swap_donors,
    without_reads,
)

COUNTS = np.array([2, 3, 2, 1, 3, 2, 0], np.int32)


@pytest.fixture(scope="module")
def thoughts():
    return np.random.default_rng(0).standard_normal((7, 4, 5)).astype(np.float32)


def replaced(kind, thoughts, counts=COUNTS, seed=0):
    result = replaced_thoughts(kind, thoughts, counts, seed)
    assert result is not None and result.shape == thoughts.shape and result.dtype == thoughts.dtype
    return result


def test_zero(thoughts):
    assert not replaced("zero", thoughts).any()


def test_noise_has_the_norm_of_each_thought_and_nothing_else_of_it(thoughts):
    noise = replaced("noise", thoughts)
    thought_mask = np.arange(4) < COUNTS[:, None]
    norms = np.linalg.norm(thoughts, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(noise, axis=-1)[thought_mask], norms[thought_mask], rtol=1e-5)
    cosine = np.sum(noise * thoughts, -1) / norms / np.maximum(np.linalg.norm(noise, axis=-1), 1e-9)
    assert np.abs(cosine[thought_mask]).max() < 0.99
    np.testing.assert_array_equal(noise, replaced("noise", thoughts))
    assert not np.array_equal(noise, replaced("noise", thoughts, seed=1))


def test_mean_is_over_the_other_questions_that_have_the_slot(thoughts):
    mean = replaced("mean", thoughts)
    np.testing.assert_allclose(mean[3, 0], thoughts[[0, 1, 2, 4, 5], 0].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(mean[0, 1], thoughts[[1, 2, 4, 5], 1].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(mean[1, 2], thoughts[4, 2], rtol=1e-5)  # nothing of its own, with two questions
    copies = question_numbers(["a", "a", "b", "b", "c", "d", "e"])
    found = replaced_thoughts("mean", thoughts, COUNTS, 0, copies)
    assert found is not None
    np.testing.assert_allclose(found[0, 0], thoughts[2:6, 0].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found[1, 2], thoughts[4, 2], rtol=1e-5)


def test_what_lies_in_unused_slots_changes_no_replacement(thoughts):
    thought_mask = (np.arange(4) < COUNTS[:, None])[..., None]
    dirty = np.where(thought_mask, thoughts, 1e6).astype(np.float32)
    for kind in ("noise", "mean", "swap"):
        clean_rows = np.where(thought_mask, replaced(kind, thoughts), 0)
        np.testing.assert_array_equal(np.where(thought_mask, replaced(kind, dirty), 0), clean_rows)


def test_swap_gives_the_thoughts_of_another_question_of_the_same_count(thoughts):
    donors = swap_donors(COUNTS)
    assert donors is not None
    assert (donors[:6] != np.arange(6)).all()
    np.testing.assert_array_equal(COUNTS[donors][[0, 1, 2, 4, 5]], COUNTS[[0, 1, 2, 4, 5]])
    assert len(set(donors[[0, 2, 5]])) == 3  # a ring: nobody gives twice
    assert COUNTS[donors[3]] == 2  # alone with its count: the nearest with more
    swapped = replaced("swap", thoughts)
    np.testing.assert_array_equal(swapped[0, :2], thoughts[donors[0], :2])
    np.testing.assert_array_equal(swapped[4, :3], thoughts[donors[4], :3])


def test_a_donor_with_fewer_thoughts_repeats_its_last(thoughts):
    counts = np.array([1, 3, 0, 0, 0, 0, 0], np.int32)
    swapped = replaced("swap", thoughts, counts)
    np.testing.assert_array_equal(swapped[1, :3], thoughts[[0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(swapped[0, 0], thoughts[1, 0])


def test_one_thinker_cannot_swap(thoughts):
    counts = np.array([2, 0, 0, 0, 0, 0, 0], np.int32)
    assert replaced_thoughts("swap", thoughts, counts, 0) is None
    assert swap_donors(np.zeros(3, np.int32)) is None


@pytest.mark.parametrize(("counts", "kind", "kept"), [
    ([[2, 1], [0, 2], [0, 1]], "swap", 0), ([[1, 2], [2, 0], [1, 0]], "mean", 1), ([[1, 2], [2, 0], [1, 0]], "one_swap", 1),
    ([[2, 1], [0, 2], [0, 1]], "one_swap", None), ([[2, 0], [0, 2], [0, 0]], "swap", None),
])  # fmt: skip
def test_a_trajectory_that_one_question_has_keeps_its_thoughts_beside_others(thoughts, counts, kind, kept):
    both = np.stack([thoughts[:3], thoughts[3:6]], axis=1)
    found = replaced_trajectories(kind, both, np.array(counts), 0)
    assert (found is None) == (kept is None)
    if found is not None:
        np.testing.assert_array_equal(found[:, kept], both[:, kept])
        assert (found[:, 1 - kept] != both[:, 1 - kept]).any()


def test_copies_of_a_question_do_not_give_each_other_their_thoughts():
    """In a file that has each question twice, half of a ring would be neighbours of the same question."""
    counts, questions = np.full(6, 2), question_numbers(["a", "a", "b", "b", "c", "a"])
    donors = swap_donors(counts, questions)
    assert donors is not None and (questions[donors] != questions).all()
    assert donors.tolist() == [4, 4, 1, 1, 3, 4]
    # The copies are alone with their number of thoughts, so they take those of another question.
    assert swap_donors(np.array([3, 3, 1, 2]), question_numbers(["a", "a", "b", "c"])).tolist() == [3, 3, 3, 0]
    assert swap_donors(counts[:2], questions[:2]) is None


def test_no_mean_is_a_questions_own_thought(thoughts):
    counts = np.array([2, 1, 1, 1, 0, 0, 0], np.int32)
    mean = replaced("mean", thoughts, counts)
    np.testing.assert_allclose(mean[0, 0], thoughts[1:4, 0].mean(axis=0), atol=1e-6)
    # Only the first question has a second thought: it is the mean of the others' first ones.
    np.testing.assert_allclose(mean[0, 1], thoughts[1:4, 0].mean(axis=0), atol=1e-6)
    assert replaced_thoughts("mean", thoughts, np.array([2, 0, 0, 0, 0, 0, 0]), 0) is None
    copies = question_numbers(["a", "a", "b", "c", "d", "e", "f"])
    counts = np.array([2, 2, 1, 0, 0, 0, 0], np.int32)
    both = replaced_thoughts("mean", np.repeat(thoughts[:1], 7, axis=0) + copies[:, None, None], counts, 0, copies)
    assert both is not None and np.abs(both[0, 1] - thoughts[0, 1]).max() > 0.1, "of copies alone it would be their own"


def test_reads_that_there_are_become_zeros_and_nothing_else():
    """Other trajectories can be read only where there are others."""
    writers = {("navigator", "graph", "out"), ("navigator", "cross_attention", "out")}
    params = nnx.split(small_reasoner(reads="all"))[1]
    for others in (True, False):
        silent = without_reads((params,), others=others)
        assert silent is not None
        flat = dict(nnx.to_flat_state(params))
        changed = {path for path, value in nnx.to_flat_state(silent[0]) if (value[...] != flat[path][...]).any()}
        assert changed == (writers if others else {("navigator", "graph", "out")})
        assert not any(dict(nnx.to_flat_state(silent[0]))[path][...].any() for path in changed)
    assert without_reads((nnx.split(small_reasoner())[1],), others=True) is None
