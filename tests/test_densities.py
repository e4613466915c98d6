"""Densities against NumPy formulas in float64, and their behaviour at the extremes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longshot_jax.thoughts.densities import (
    bernoulli_entropy,
    bernoulli_log_prob,
    categorical_entropy,
    categorical_log_prob,
    gaussian_kl,
    gaussian_log_prob,
)


def reduced(per_dimension: np.ndarray, scaling: str) -> np.ndarray:
    size = per_dimension.shape[-1]
    divisor = {"summed": 1.0, "averaged": size, "scaled": math.sqrt(size)}[scaling]
    return per_dimension.sum(-1) / divisor


@pytest.mark.parametrize("scaling", ["summed", "averaged", "scaled"])
def test_gaussian_log_prob_and_kl_match_the_formulas(scaling):
    rng = np.random.default_rng(0)
    action, mean, other = rng.normal(size=(3, 4, 5, 7))
    std = 0.3
    expected = reduced(-0.5 * ((action - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi)), scaling)
    got = gaussian_log_prob(jnp.float32(action), jnp.float32(mean), std, scaling)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    got = gaussian_kl(jnp.float32(mean), std, jnp.float32(other), std, scaling)
    np.testing.assert_allclose(got, reduced((mean - other) ** 2 / (2 * std**2), scaling), rtol=1e-5)
    wider = 1.7 * std
    expected = np.log(wider / std) + (std**2 + (mean - other) ** 2) / (2 * wider**2) - 0.5
    got = gaussian_kl(jnp.float32(mean), std, jnp.float32(other), wider, scaling)
    np.testing.assert_allclose(got, reduced(expected, scaling), rtol=1e-5)


def test_gaussian_kl_of_nearly_equal_stds_is_precise():
    mean, std = jnp.zeros(4), 0.2 * (1 + 1e-3)
    got = gaussian_kl(mean, std, mean, 0.2, "summed")
    np.testing.assert_allclose(got, 4 * (np.log(0.2 / std) + (std / 0.2) ** 2 / 2 - 0.5), rtol=1e-3)
    assert gaussian_kl(mean, 0.3, mean, 0.3, "summed") == 0.0


def test_gaussian_density_integrates_to_one():
    x = jnp.linspace(-6.0, 6.0, 4001)[:, None]
    density = jnp.exp(gaussian_log_prob(x, jnp.full_like(x, 0.7), 0.5, "summed"))
    assert float(jnp.sum(density) * 12.0 / 4000) == pytest.approx(1.0, abs=1e-4)


def test_one_std_per_thought_broadcasts():
    rng = np.random.default_rng(1)
    action, mean = jnp.float32(rng.normal(size=(2, 3, 4)))
    std = jnp.array([0.2, 0.5, 1.0])
    got = gaussian_log_prob(action, mean, std, "summed")
    expected = [gaussian_log_prob(action[i], mean[i], std[i], "summed") for i in range(3)]
    np.testing.assert_allclose(got, np.array(expected), rtol=1e-6)


def test_gaussian_log_prob_of_bfloat16_is_float32():
    x = jnp.ones((2, 8), jnp.bfloat16)
    assert gaussian_log_prob(x, x, 0.1, "summed").dtype == jnp.float32


def test_gaussian_score_is_the_textbook_gradient():
    action, mean = jnp.array([0.3, -1.0]), jnp.array([0.1, 0.4])
    gradient = jax.grad(lambda m: gaussian_log_prob(action, m, 0.5, "summed"))(mean)
    np.testing.assert_allclose(gradient, (action - mean) / 0.25, rtol=1e-6)


def test_unknown_scaling_is_refused():
    with pytest.raises(ValueError, match="'sum'"):
        gaussian_log_prob(jnp.ones((1, 2)), jnp.ones((1, 2)), 0.1, "sum")


def test_bernoulli_matches_probabilities():
    logit = np.linspace(-8, 8, 33)
    p = 1 / (1 + np.exp(-logit))
    x = jnp.float32(logit)
    np.testing.assert_allclose(bernoulli_log_prob(x, jnp.ones(33, bool)), np.log(p), rtol=1e-5)
    np.testing.assert_allclose(bernoulli_log_prob(x, jnp.zeros(33, bool)), np.log(1 - p), rtol=1e-5)
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(bernoulli_entropy(x), entropy, rtol=1e-5)


@pytest.mark.parametrize("logit", [0.0, 30.0, -30.0, 1e3, -1e3, 1e30, -1e30])
def test_bernoulli_is_finite_with_finite_gradients_at_extremes(logit):
    def everything(x):
        yes, no = (bernoulli_log_prob(x, jnp.array(decision)) for decision in (True, False))
        return jnp.stack([yes, no, bernoulli_entropy(x)])

    x = jnp.float32(logit)
    assert np.isfinite(everything(x)).all()
    assert np.isfinite(jax.jacobian(everything)(x)).all()
    if abs(logit) >= 1e3:
        np.testing.assert_array_equal(everything(x)[:2], np.float32([min(logit, 0), min(-logit, 0)]))
        assert everything(x)[2] == 0.0


def test_categorical_matches_softmax_and_is_shift_invariant():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(3, 4, 11)) * 3
    token = rng.integers(0, 11, size=(3, 4))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(log_p, token[..., None], -1)[..., 0]
    for shift in (0.0, 100.0):
        x = jnp.float32(logits + shift)
        np.testing.assert_allclose(categorical_log_prob(x, jnp.asarray(token)), expected, atol=2e-5)
        np.testing.assert_allclose(categorical_entropy(x), -(np.exp(log_p) * log_p).sum(-1), atol=2e-5)


def test_categorical_survives_forbidden_tokens_and_bfloat16():
    logits = jnp.array([[1.0, 2.0, -jnp.inf, 0.5]])
    allowed = logits[:, jnp.array([0, 1, 3])]
    np.testing.assert_allclose(categorical_entropy(logits), categorical_entropy(allowed), rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: categorical_entropy(x).sum())(logits)).all()
    assert categorical_log_prob(logits, jnp.array([1])) == categorical_log_prob(allowed, jnp.array([1]))
    half = jnp.ones((2, 5), jnp.bfloat16)
    assert categorical_log_prob(half, jnp.array([0, 1])).dtype == jnp.float32
    np.testing.assert_allclose(categorical_entropy(half), math.log(5), rtol=1e-6)
