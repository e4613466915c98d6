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
    parts = run.mesh.fsdp * run.mesh.tensor  # along `data` the weights are whole anyway
    for index, (program, updates) in enumerate(programs):
        setting = "gather" if updates else "decoding_weights"
        if (run.mesh.fsdp if updates else parts) == 1:
            continue
        for value in VALUES[setting]:
            peak, seconds = cost(replace(run, mesh=replace(run.mesh, **{setting: value})), index)
            yield Placement(setting, value, getattr(run.mesh, setting) == value, phase, program, peak, seconds)


def better(placements: Sequence[Placement], budget: float) -> list[tuple[Placement, Placement]]:
    """(what is set, what is better), for each setting of which another value fits and is faster, or alone fits.

    Each is a placement of all programs: with the largest peak, and the sum of seconds. A value fits where every program does.
    """
    found = []
    for setting, values in VALUES.items():
        choices = []
        for value in values:
            rows = [p for p in placements if (p.setting, p.value) == (setting, value)]
            if rows:
                seconds = [p.seconds for p in rows if p.seconds is not None]
                total = sum(seconds) if len(seconds) == len(rows) else None
                choices.append(replace(rows[0], peak=max(p.peak for p in rows), seconds=total))
        now = next((choice for choice in choices if choice.is_set), None)
        fitting = [choice for choice in choices if choice.peak <= budget]
        if now is None or not fitting:
            continue
        best = min(fitting, key=lambda c: c.peak if c.seconds is None else c.seconds)
        faster = best.seconds is not None and now.seconds is not None and best.seconds < now.seconds
        if best is not now and (faster or now.peak > budget):
            found.append((now, best))
    return found
