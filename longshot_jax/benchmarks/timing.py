"""Interleaved timings of functions on one machine, and functions that reach the machine's peaks."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def interleaved(
    functions: Mapping[str, Callable[[], Any]], repetitions: int, budget: float = 60.0, clock: str = "wall"
) -> dict[str, float]:
    """Median seconds of each function, after one warm-up call.

    The functions take turns, so that other load slows them alike and their ratios hold.

    Args:
      functions: by name; their results are waited for.
      repetitions: number of turns. budget: seconds after which no further turn starts; there is at least one.
      clock: a name in `CLOCKS`. `processor` counts CPU seconds of this process on all cores, without waiting: on one
        core of a busy machine its ratios equal the ratios on an idle one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    end, now = time.perf_counter() + budget, CLOCKS[clock]
    for turn in range(repetitions):
        if turn and time.perf_counter() > end:
            break
        for name, function in functions.items():
            start = now()
            jax.block_until_ready(function())
            seconds[name].append(now() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def fitted_exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Exponent p of a least-squares fit of log seconds = p log size + c; 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def matrix_product(width: int, dtype: jax.typing.DTypeLike) -> tuple[Callable[[], Any], float]:
    """A function without arguments that multiplies square matrices, and its FLOPs."""
    left = jax.random.normal(jax.random.key(0), (width, width), dtype)
    right = jax.random.normal(jax.random.key(1), (width, width), dtype)
    # Several products per call, so that the overhead of the call does not count.
    repeats = max(1, round(4 * (1024 / width) ** 3))

    @jax.jit
    def products(left, right):
        return jax.lax.fori_loop(0, repeats, lambda _, x: x @ right, left)

    return lambda: products(left, right), repeats * 2.0 * width**3


def copy(megabytes: int) -> tuple[Callable[[], Any], float]:
    """A function without arguments that reads and writes `megabytes` each, and the bytes that it moves."""
    source, add_one = jnp.zeros((megabytes * 2**20 // 4,), jnp.float32), jax.jit(lambda x: x + 1)
    return lambda: add_one(source), 2.0 * source.nbytes
