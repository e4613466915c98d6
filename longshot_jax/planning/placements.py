"""Where a mesh may keep the weights while they are used: each placement compiled, for its memory and its estimated time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from longshot_jax.config import RunConfig
from longshot_jax.config.model import Decoding, Gather

# Setting of `config.mesh` -> its values. Rollouts decode, updates gather.
VALUES: dict[str, tuple[Any, ...]] = {"decoding_weights": get_args(Decoding), "gather": get_args(Gather)}


@dataclass(frozen=True)
class Placement:
    """One value of a setting of the mesh, and what a program costs with it.

    Attributes:
      setting, value: such as `decoding_weights` and `tensor`. is_set: whether the run has it.
      phase, program: names, such as `ppo` and `rollout`.
      peak: bytes on one device.
      seconds: estimate of one call on the planned accelerator; None from the CPU's compiler.
    """

    setting: str
    value: str
    is_set: bool
    phase: str
    program: str
    peak: int
    seconds: float | None


def compiled_placements(
    run: RunConfig,
    phase: str,
    programs: Sequence[tuple[str, bool]],
    cost: Callable[[RunConfig, int], tuple[int, float | None]],
) -> Iterator[Placement]:
    """Every placement of every program of a phase that several devices allow.

    Args:
      programs: name of each program, and whether it updates the weights.
      cost: (run, index of the program) -> (bytes on one device at the peak, seconds or None); compiles.
    """
    devices = run.mesh.data * run.mesh.fsdp * run.mesh.tensor
    for index, (program, updates) in enumerate(programs):
        setting = "gather" if updates else "decoding_weights"
        if (run.mesh.fsdp if updates else devices) == 1:
            continue
        for value in VALUES[setting]:
            peak, seconds = cost(replace(run, mesh=replace(run.mesh, **{setting: value})), index)
            yield Placement(setting, value, getattr(run.mesh, setting) == value, phase, program, peak, seconds)


def better(placements: Sequence[Placement], budget: float) -> list[tuple[Placement, Placement]]:
    """(what is set, what is better), for each program where another placement fits and is faster, or alone fits."""
    found = []
    for now in (placement for placement in placements if placement.is_set):
        same = [p for p in placements if (p.phase, p.program) == (now.phase, now.program) and p.peak <= budget]
        best = min(same, key=lambda p: p.peak if p.seconds is None else p.seconds, default=now)
        faster = best.seconds is not None and now.seconds is not None and best.seconds < now.seconds
        if best is not now and (faster or now.peak > budget):
            found.append((now, best))
    return found
