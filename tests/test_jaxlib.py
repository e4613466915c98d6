"""The installed jaxlib computes right numbers on this machine's CPU: 0.10.2 does not (jax issue 39103)."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
matrix = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
rows = np.random.default_rng(1).normal(size=(40_000, 3)).astype(np.float32)
squares = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
expected = np.sum((rows @ matrix.T) ** 2, axis=1)
np.testing.assert_allclose(squares, expected, rtol=1e-4)
"""


def test_fused_reductions_are_right():
    """In a process of its own, with the compiler's optimizations and flags, which the other tests change."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
