"""Bounds of numeric settings, part of their types: `Annotated[float, POSITIVE]`."""

import math
from dataclasses import dataclass

MAX_INT = 2**31 - 1  # integers are int32 on the device


@dataclass(frozen=True)
class Bound:
    """The finite numbers from `low` to `high`; an open end is excluded."""

    low: int | float = -math.inf
    high: int | float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, number: int | float) -> bool:
        if isinstance(number, float) and not math.isfinite(number):
            return False
        high = min(self.high, MAX_INT) if isinstance(number, int) and math.isinf(self.high) else self.high
        above = number > self.low if self.low_open else number >= self.low
        below = number < high if self.high_open else number <= high
        return above and below

    def __str__(self) -> str:
        if math.isfinite(self.high):
            return f"from {self.low} to {'below ' if self.high_open else ''}{self.high}"
        if math.isfinite(self.low):
            return f"{'above' if self.low_open else 'at least'} {self.low}"
        return "a finite number"


COUNT = Bound(1)
NON_NEGATIVE = Bound(0)
POSITIVE = Bound(0, low_open=True)
FINITE = Bound()
FRACTION = Bound(0, 1)
BELOW_ONE = Bound(0, 1, high_open=True)
SEED = Bound(0, 2**32 - 2)  # seeds have 32 bits, and PPO also uses seed + 1
