"""What a program for a GPU moves, copies and gathers in one call, and where its time would go."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from longshot_jax.planning.hlo import Operation
from longshot_jax.training.accelerators import Accelerator

_STATE = ("state.trainable", "state.frozen")  # arguments of a phase's programs, by the names that JAX gives them

PARTS = ("products", "weights_copied", "other_copies", "other_kernels", "link")


@dataclass(frozen=True)
class Traffic:
    """A compiled program on one device.

    Attributes:
      operations: from `hlo.operations`.
      trips: assumed length of loops that depend on data: tokens of the longest answer.
      floor_bytes: weights, caches and inputs, once in each pass over them (`Arithmetic.floor`).
      token_floor_bytes: the same, for one decoded token; 0 where nothing is decoded.
    """

    operations: tuple[Operation, ...]
    trips: int
    floor_bytes: float
    token_floor_bytes: float

    def _bytes(self, chosen: Callable[[Operation], bool]) -> float:
        return sum(o.bytes * o.times(self.trips) for o in self.operations if chosen(o))

    def _gathered(self, chosen: Callable[[Operation], bool]) -> float:
        gathers = (o for o in self.operations if o.opcode == "all-gather" and chosen(o))
        return sum(o.payload * o.times(self.trips) for o in gathers)

    def seconds(self, device: Accelerator) -> dict[str, float]:
        """An estimate by part: kernels one after another, each at the device's bandwidth or its FLOP/s.

        Communication is not hidden behind kernels, and all of it goes over the link within a node. Starting kernels
        takes no time.
        """
        found: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for o in self.operations:
            times = o.times(self.trips)
            if o.payload:
                found["link"] += times * o.sent / device.link
            else:
                found[_part(o)] += times * max(o.bytes / device.bandwidth, o.flops / device.flops)
        return found

    def floor_seconds(self, device: Accelerator) -> dict[str, float]:
        """Time of all arithmetic, of all memory traffic and of the link, each as if it were alone."""
        return {
            "arithmetic": sum(o.flops * o.times(self.trips) for o in self.operations) / device.flops,
            "memory": self._bytes(lambda o: True) / device.bandwidth,
            "link": sum(o.sent * o.times(self.trips) for o in self.operations) / device.link,
        }

    def as_json(self, device: Accelerator) -> dict[str, Any]:
        """The content of `traffic` in `plan.json`; `scripts/plan.py` explains its keys."""
        collectives, copies = (o for o in self.operations if o.payload), (o for o in self.operations if o.copies)
        return {
            "bytes": self._bytes(lambda o: True),
            "bytes_in_loops": self._bytes(lambda o: bool(o.loops)),
            "floor_bytes": self.floor_bytes,
            "copied_bytes": self._bytes(lambda o: o.copies),
            "copied_weights_bytes": self._bytes(lambda o: o.copies and _of_weights(o)),
            "gathered_bytes": self._gathered(lambda o: True),
            "gathered_in_loops_bytes": self._gathered(lambda o: bool(o.loops)),
            "token_bytes": self._bytes(lambda o: None in o.loops) / self.trips,
            "token_floor_bytes": self.token_floor_bytes,
            "collectives": _summed(collectives, self.trips, lambda o: o.opcode, lambda o: o.payload),
            "copies": _summed(copies, self.trips, lambda o: o.source or "computed", lambda o: o.bytes)[:10],
            "seconds_alone": self.floor_seconds(device),
            "seconds": self.seconds(device),
        }


def _of_weights(operation: Operation) -> bool:
    return operation.source is not None and operation.source.startswith(_STATE)


def _part(operation: Operation) -> str:
    if operation.copies:
        return "weights_copied" if _of_weights(operation) else "other_copies"
    return "products" if operation.flops else "other_kernels"


def _summed(
    operations: Iterable[Operation], trips: int, kind: Callable[[Operation], str], size: Callable[[Operation], float]
) -> list[dict[str, Any]]:
    """Number of executions and bytes, by kind and by the loops around them; the largest first."""
    found: dict[tuple[str, tuple[int | None, ...]], dict[str, Any]] = {}
    for o in operations:
        loops = [trips if length is None else length for length in o.loops]
        row = found.setdefault(
            (kind(o), o.loops), {"kind": kind(o), "loops": loops, "decoding": None in o.loops, "times": 0, "bytes": 0.0}
        )
        row["times"] += o.times(trips)
        row["bytes"] += size(o) * o.times(trips)
    return sorted(found.values(), key=lambda row: -row["bytes"])
