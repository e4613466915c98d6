"""The largest batch that fits, by compiling."""

from collections.abc import Callable
from pathlib import Path

from longshot_jax.config import RunConfig
from longshot_jax.data.reasoning_gym import PREFIX
from longshot_jax.data.sources import GENERATORS, read_problems
from longshot_jax.errors import UserError

_TRIES = 10
_RESOLUTION = 100  # the answer may be a hundredth too small: each try compiles for up to a minute


def largest_that_fits(
    peak: Callable[[int], float], budget: float, first: int, step: int, most: int | None = None
) -> int:
    """The largest multiple of `step` that was tried and whose `peak` is within `budget`, to a hundredth; 0 if none.

    Each guess lies on the straight line through two tries: the largest batch that fits and the smallest that does not, or
    the two smallest while none fits. Where memory is nearly linear in the batch, a few compilations find the last multiple of `step` that fits, and
    where it is not, `_TRIES` bounds them.

    Args:
      peak: bytes on one device for a batch; compiles.
      first: the first batch to try, a multiple of `step`.
      most: the largest batch to try, unless `first` is larger; None: no limit.
    """
    tried: dict[int, float] = {}
    fits, too_large, guess = 0, None, max(first // step, 1)
    limit = None if most is None else max(most // step, guess)
    for _ in range(_TRIES):
        tried[guess] = float(peak(guess * step))
        if tried[guess] <= budget:
            fits = max(fits, guess)
        else:
            too_large = min(guess, too_large or guess)
        if fits == limit or (too_large is not None and too_large - fits <= max(fits // _RESOLUTION, 1)):
            break
        guess = _next(tried, budget, fits, too_large)
        guess = guess if limit is None else min(guess, limit)
    return fits * step


def most_problems(run: RunConfig) -> int | None:
    """The most problems that a batch may have: those to train on; None if only their download or code would tell."""
    data = run.data
    if data.train in GENERATORS or data.train.startswith(PREFIX):
        return data.generated_train
    try:
        return len(read_problems(run).train) if Path(data.train).is_file() else None
    except UserError:  # training will say it; the memory does not depend on them
        return None


def _next(tried: dict[int, float], budget: float, fits: int, too_large: int | None) -> int:
    if too_large is None:
        below, above = sorted(tried)[-2:] if len(tried) > 1 else (fits, fits)
    else:
        below, above = (fits, too_large) if fits else (too_large, min(set(tried) - {too_large}, default=too_large))
    rise = tried[above] - tried[below]
    if rise > 0:
        guess = int(below + (budget - tried[below]) * (above - below) / rise)
    else:  # one try so far, or memory that does not grow with the batch
        guess = 2 * fits if too_large is None else (fits + too_large) // 2
    if too_large is None:
        return min(max(guess, fits + 1), 16 * fits)
    return min(max(guess, fits + 1), too_large - 1)
