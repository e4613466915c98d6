"""Interleaved timings of functions on one machine, and functions that reach the machine's peaks."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LEAST_SECONDS = 0.02  # of one measurement of a peak
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


def lasting(make: Callable[[int], Callable[[], Any]], least: float = LEAST_SECONDS) -> tuple[Callable[[], Any], int]:
    """A function that takes at least `least` seconds of wall clock, and the number of repeats that this takes.

    `make(repeats)` gives the function. Starting a kernel takes a GPU microseconds, and its clock needs milliseconds to
    settle: a shorter call measures these.
    """
    repeats = 1
    while True:
        call = make(repeats)
        jax.block_until_ready(call())
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds = time.perf_counter() - start
        if seconds >= least:
            return call, repeats
        # Half as much again as a proportional guess, and at most 64 times as many, because a first call is not exact.
        repeats = max(repeats + 1, min(int(1.5 * repeats * least / max(seconds, 1e-9)), 64 * repeats))


def matrix_product(width: int, dtype: jax.typing.DTypeLike) -> tuple[Callable[[], Any], float]:
    """A function without arguments that multiplies square matrices for `LEAST_SECONDS`, and its FLOPs."""
    left = jax.random.normal(jax.random.key(0), (width, width), dtype)
    # Products keep the size of their factors: a GPU multiplies zeros, infinities and NaN faster than random numbers.
    right = (jax.random.normal(jax.random.key(1), (width, width)) * width**-0.5).astype(dtype)

    def make(repeats: int) -> Callable[[], Any]:
        # In one program, so that the overhead of calls does not count.
        products = jax.jit(lambda left, right: jax.lax.fori_loop(0, repeats, lambda _, x: x @ right, left))
        return lambda: products(left, right)

    call, repeats = lasting(make)
    return call, repeats * 2.0 * width**3


def copy(megabytes: int) -> tuple[Callable[[], Any], float]:
    """A function without arguments that reads and writes an array for `LEAST_SECONDS`, and the bytes that it moves.

    The array must be far larger than any cache. It is overwritten in place, so that nothing is allocated. The calls are
    separate ones, which wait in the device's queue: a compiler could join the turns of a loop.
    """
    held, add_one = [jnp.zeros((megabytes * 2**20 // 4,), jnp.float32)], jax.jit(lambda x: x + 1, donate_argnums=0)

    def make(repeats: int) -> Callable[[], Any]:
        def call() -> Any:
            for _ in range(repeats):
                held[0] = add_one(held[0])
            return held[0]

        return call

    size = held[0].nbytes
    call, repeats = lasting(make)
    return call, repeats * 2.0 * size
