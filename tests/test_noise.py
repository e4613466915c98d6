"""Coupled noise: marginals as before, trajectories further apart; and how far apart thoughts are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longshot_jax.thoughts.noise import coupled, diversity, relative_std_of_mean


def drawn(shape=(4000, 5, 2, 3)):
    return jax.random.normal(jax.random.key(0), shape)


@pytest.mark.parametrize("kind", ["antithetic", "orthogonal"])
def test_each_trajectory_keeps_standard_normal_noise(kind):
    noise = np.asarray(jax.jit(coupled, static_argnums=1)(drawn(), kind))
    flat = noise.reshape(4000, -1)
    np.testing.assert_allclose(flat.mean(0), 0, atol=0.07)
    for trajectory in range(5):
        own = noise[:, trajectory].reshape(4000, -1)  # steps and dimensions of one trajectory stay independent
        np.testing.assert_allclose(np.cov(own.T), np.eye(6), atol=0.09)
        np.testing.assert_allclose((own**4).mean(0), 3, atol=0.6)


@pytest.mark.parametrize("kind", ["independent", "antithetic", "orthogonal"])
@pytest.mark.parametrize("trajectories", [1, 4, 5])
def test_the_mean_over_trajectories_has_this_standard_deviation(kind, trajectories):
    mean = np.asarray(coupled(drawn((4000, trajectories, 2, 8)), kind)).mean(1)
    np.testing.assert_allclose(mean.std(), relative_std_of_mean(trajectories, kind), rtol=0.02)


def test_antithetic_pairs_are_mirror_images_and_an_odd_one_is_alone():
    before, noise = drawn((2, 5, 3, 4)), coupled(drawn((2, 5, 3, 4)), "antithetic")
    np.testing.assert_array_equal(noise[:, 1], -before[:, 0])
    np.testing.assert_array_equal(noise[:, 3], -before[:, 2])
    np.testing.assert_array_equal(noise[:, 0::2], before[:, 0::2])


def test_orthogonal_noise_is_orthogonal_in_groups_and_keeps_lengths():
    before, noise = drawn((2, 5, 3, 3)), np.asarray(coupled(drawn((2, 5, 3, 3)), "orthogonal"))
    for group in (slice(0, 3), slice(3, 5)):
        products = np.einsum("bntx,bmtx->btnm", noise[:, group], noise[:, group])
        lengths = np.sum(np.square(before[:, group]), -1).swapaxes(1, 2)
        np.testing.assert_allclose(products, lengths[..., None] * np.eye(lengths.shape[-1]), atol=1e-4)
    np.testing.assert_allclose(noise[:, 0], before[:, 0], atol=1e-5)


def test_diversity_is_the_mean_over_pairs_that_both_think():
    rng = np.random.default_rng(0)
    actions, thought_mask = (
        rng.normal(size=(2, 3, 2, 4)),
        np.array([[[1, 1], [1, 0], [1, 1]], [[1, 0], [0, 0], [0, 0]]], bool),
    )
    found = diversity(jnp.float32(actions), jnp.asarray(thought_mask))
    unit = actions / np.linalg.norm(actions, axis=-1, keepdims=True)
    for b, n in np.ndindex(2, 3):
        pairs = [
            (1 - unit[b, n, t] @ unit[b, m, t]) / 2
            for m in range(3)
            for t in range(2)
            if m != n and thought_mask[b, n, t] and thought_mask[b, m, t]
        ]
        np.testing.assert_allclose(found[b, n], np.mean(pairs) if pairs else 0.0, atol=1e-6)
    same = diversity(jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 2), bool))
    np.testing.assert_allclose(same, 0.0, atol=1e-6)
