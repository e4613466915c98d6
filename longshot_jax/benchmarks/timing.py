"""Times of functions that share a machine, and the peaks of that machine: interleaved, medians, ratios."""

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
    """Median seconds of each function, after one call each that is not counted.

    The functions take turns, so that whatever else the machine does slows them alike and their ratios hold.

    Args:
      functions: by name; what one returns is waited for.
      repetitions: turns.
      budget: seconds after which no further turn starts; at least one is always taken.
      clock: of `CLOCKS`. `processor` counts what this process computes on all its cores, and not what it waits for:
        on one core of a busy machine its ratios are those of an idle one.
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
    """Exponent p of the least-squares fit seconds = c · size^p in logarithms: 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def matrix_product(width: int, dtype: jax.typing.DTypeLike) -> tuple[Callable[[], Any], float]:
    """A square product of that width as a function of nothing, and its FLOPs."""
    left = jax.random.normal(jax.random.key(0), (width, width), dtype)
    right = jax.random.normal(jax.random.key(1), (width, width), dtype)
    # Several in a row, so that the call itself is no part of it.
    repeats = max(1, round(4 * (1024 / width) ** 3))

    @jax.jit
    def products(left, right):
        return jax.lax.fori_loop(0, repeats, lambda _, x: x @ right, left)

    return lambda: products(left, right), repeats * 2.0 * width**3


def copy(megabytes: int) -> tuple[Callable[[], Any], float]:
    """A pass over memory that reads and writes so many megabytes each, and the bytes it moves."""
    source = jnp.zeros((megabytes * 2**20 // 4,), jnp.float32)
    return lambda: _add_one(source), 2.0 * source.nbytes


@jax.jit
def _add_one(x: jax.Array) -> jax.Array:
    return x + 1


def compile_timed(jitted: Any, *args: Any) -> tuple[Any, float]:
    """The compiled program of a jitted function for these arguments, and the seconds that compiling took."""
    lowered = jitted.lower(*args)
    start = time.perf_counter()
    compiled = lowered.compile()
    return compiled, time.perf_counter() - start


def temporary_bytes(compiled: Any) -> int:
    """Memory that a compiled program needs besides its inputs and outputs, as the compiler says; 0 if it does not."""
    analysis = compiled.memory_analysis()
    return 0 if analysis is None else int(analysis.temp_size_in_bytes)
