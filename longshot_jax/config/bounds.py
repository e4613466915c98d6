"""Bounds of numeric settings, part of their types: `Annotated[float, POSITIVE]`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

MAX_INT = 2**31 - 1  # integers are int32 on the device
MAX_FLOAT = (2 - 2**-23) * 2.0**127  # numbers are float32 there


@dataclass(frozen=True)
class Bound:
    """The numbers from `low` to `high` that the device holds, as int32 or float32; an open end is excluded."""

    low: int | float = -math.inf
    high: int | float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, number: int | float) -> bool:
        above = number > self.low if self.low_open else number >= self.low
        below = number < self.high if self.high_open else number <= self.high
        return above and below and not self.beyond_device(number)

    def beyond_device(self, number: int | float) -> str:
        """Why a number that the bound leaves open is none on the device; empty if it is one."""
        if isinstance(number, float) and not abs(number) <= MAX_FLOAT:  # nan compares as false
            return "a finite number" if not math.isfinite(number) else f"at most {MAX_FLOAT:.3g} in size"
        if isinstance(number, int) and math.isinf(self.high) and number > MAX_INT:
            return f"at most {MAX_INT}"
        return ""

    def explain(self, numbers: Iterable[int | float]) -> str:
        """The condition that the first number outside breaks, to follow "must be"."""
        outside = next((number for number in numbers if number not in self), 0)
        return self.beyond_device(outside) or str(self)

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
# Sums of rewards, and squares of these, are finite in float32.
REWARD, COST = Bound(-1_000_000, 1_000_000), Bound(0, 1_000_000)
AT_LEAST_HALF = Bound(0.5, 1)
SEED = Bound(0, 2**32 - 2)  # seeds have 32 bits, and PPO also uses seed + 1
