"""A plan: memory and arithmetic of a run on each device, from compiling its real steps without its parameters.

- *State* (parameters, optimizer, reference, memory bank) is exact: shapes, dtypes and shardings of the train state.
- *Gradients* have the size of the trainable parameters, twice that where micro-batches are summed.
- *Caches* are keys and values, from their shapes, cut evenly over the mesh; an update holds one micro-batch.
- *Activations* are the rest of the scratch memory that XLA requests. With the GPU's compiler (`planning.compilers`)
  it is what training will request. The CPU's gives an upper estimate, because a GPU fuses more and copies less, and the
  CPU computes bfloat16 products in float32, so some activations are held twice.
- *Traffic* is read from the program that the GPU's compiler made (`planning.hlo`, `planning.traffic`).
- *FLOPs* are counted from the traced step (`planning.arithmetic`), with answers at their longest. Roofline times
  include the traffic of each optimizer step on parameters and moments, and exclude communication: gathering `fsdp`
  parameters and summing over `tensor`.

A plan fits if a tenth of the memory stays free for libraries, fragmentation and gathered batches.
"""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from longshot_jax.config import RunConfig
from longshot_jax.errors import UserError
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import AXES
from longshot_jax.planning.arithmetic import Arithmetic, count
from longshot_jax.planning.compilers import compiled, planned_mesh
from longshot_jax.planning.hlo import operations
from longshot_jax.planning.phases import (
    Phase,
    Program,
    bytes_on_one_device,
    make_phase,
    share_of_one_device,
    with_sizes,
)
from longshot_jax.planning.placements import Placement, better, compiled_placements
from longshot_jax.planning.search import largest_that_fits, most_problems
from longshot_jax.planning.shapes import planned_backbone
from longshot_jax.planning.traffic import Traffic
from longshot_jax.training.accelerators import ACCELERATORS, accelerator_named

SPARE = 0.1  # fraction of the memory that must stay free


@dataclass(frozen=True)
class ProgramPlan:
    """Cost of one compiled function.

    Attributes:
      memory: bytes on one device at the peak, by kind.
      arithmetic: matrix products of one part of the batch. divided: among how many devices they are divided.
      elementwise_bytes: optimizer traffic on one device.
      traffic: what the program moves, from the GPU's compiler; None from the CPU's.
    """

    name: str
    memory: dict[str, int]
    arithmetic: Arithmetic
    divided: int
    elementwise_bytes: float
    traffic: Traffic | None = None

    @property
    def peak(self) -> int:
        """Bytes on one device."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class PhasePlan:
    """A phase with its programs, and what was found by compiling others.

    Attributes:
      largest, largest_micro_batch: the largest batch that fits, and the micro-batch with which it does where one is set;
        0 if none does, None if not searched.
      placements: of the weights on several devices, with those that are set; empty if not searched.
    """

    phase: Phase
    programs: tuple[ProgramPlan, ...]
    largest: int | None
    placements: tuple[Placement, ...] = ()
    largest_micro_batch: int | None = None

    @property
    def changes(self) -> str:
        """The settings of the largest batch that fits."""
        key, phase = f"{self.phase.batch_key} {self.largest}", self.phase
        if not phase.micro_batch:
            return f"{key} instead of {phase.batch}"
        kept = key if self.largest == phase.batch else f"{key} instead of {phase.batch}"
        return f"{phase.micro_batch_key} {self.largest_micro_batch} instead of {phase.micro_batch} with {kept}"


@dataclass(frozen=True)
class Plan:
    """A run on `devices` accelerators of one kind."""

    run: RunConfig
    devices: int
    accelerator: str
    phases: tuple[PhasePlan, ...]
    compiler: str = "cpu"

    @property
    def peak(self) -> int:
        """Bytes on one device."""
        return max(program.peak for phase in self.phases for program in phase.programs)

    @property
    def budget(self) -> float:
        """Bytes that one device may hold."""
        return (1 - SPARE) * ACCELERATORS[self.accelerator].memory

    @property
    def fits(self) -> bool:
        """Whether every program leaves the spare memory free."""
        return self.peak <= self.budget

    def seconds(self, program: ProgramPlan, accelerator: str) -> float:
        """Roofline time of one call."""
        device, divided = ACCELERATORS[accelerator], program.divided
        products = program.arithmetic.seconds(device.flops * divided, device.bandwidth * divided)
        return products + program.elementwise_bytes / device.bandwidth


def make_plan(
    run: RunConfig,
    devices: int | None,
    accelerator: str,
    *,
    compiler: str = "cpu",
    search: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Compiles the run's steps for devices that need not exist, without parameters; takes minutes for a large model.

    Args:
      run: settings.
      devices: number of devices, by default the product of the mesh; with the CPU's compiler, this many CPU devices
        must exist.
      accelerator: a name in `ACCELERATORS`.
      compiler: `cuda` or `cpu`.
      search: also find the largest batch that fits and compare placements, which compiles everything a few times more.
      note: receives progress messages.

    Raises:
      UserError: unknown accelerator or shape, or a mesh that does not match the devices or divide the model.
    """
    memory = accelerator_named(accelerator).memory
    mesh_size = run.mesh.data * run.mesh.fsdp * run.mesh.tensor
    devices = mesh_size if devices is None else devices
    if not run.phases:
        raise UserError("config.phases is empty: name 'text', 'curriculum', 'ppo' or several of them.")
    if mesh_size < devices:
        shown = " x ".join(f"{axis} {getattr(run.mesh, axis)}" for axis in AXES)
        grown = f" or config.mesh.fsdp {run.mesh.fsdp * devices // mesh_size}" if devices % mesh_size == 0 else ""
        raise UserError(
            f"config.mesh is {shown} = {mesh_size} devices, but --devices is {devices}: "
            f"take --devices {mesh_size}{grown}."
        )
    if mesh_size > devices and compiler != "cpu":  # simulated devices are counted by `make_mesh`
        raise UserError(f"config.mesh has {mesh_size} devices, but --devices is {devices}: take --devices {mesh_size}.")
    mesh, backbone = planned_mesh(compiler, accelerator, run.mesh), planned_backbone(run)
    search_of = _Search(run, compiler, accelerator, backbone, mesh, note)
    planned = []
    for name in run.phases:
        phase = make_phase(run, name, backbone, mesh)
        programs = []
        for place, program in enumerate(phase.programs):
            note(f"compiling {name}: {program.name}")
            part, divided = share_of_one_device(run, phase, place, backbone, mesh)
            arithmetic = count(part.function, *part.arguments, loop_trips=part.loop_trips)
            made = compiled(compiler, program)
            programs.append(
                ProgramPlan(
                    program.name,
                    _memory(program, made, run, backbone),
                    arithmetic,
                    divided,
                    program.updates * _optimizer_traffic(program),
                    _traffic(program, made, arithmetic, divided) if compiler == "cuda" else None,
                )
            )
        found = PhasePlan(phase, tuple(programs), None)
        if search:
            largest, micro = search_of.largest_sizes(found, (1 - SPARE) * memory)
            placements = search_of.placements(found)
            found = replace(found, largest=largest, largest_micro_batch=micro, placements=placements)
        planned.append(found)
    return Plan(run, devices, accelerator, tuple(planned), compiler)


@dataclass(frozen=True)
class _Search:
    """Compiles the phases of a run again, with other settings."""

    run: RunConfig
    compiler: str
    accelerator: str
    backbone: LlamaConfig
    mesh: Mesh
    note: Callable[[str], None]

    def largest_sizes(self, found: PhasePlan, budget: float) -> tuple[int, int | None]:
        """The largest batch of a phase whose programs stay within `budget` bytes on one device, and its micro-batch."""
        phase = found.phase
        known = {(phase.batch, phase.micro_batch): max(program.peak for program in found.programs)}

        def peak(rows: int) -> int:
            sizes = batch, micro = phase.sizes(rows)
            if sizes not in known:
                parts = f" in micro-batches of {micro}" if micro else ""
                self.note(f"compiling {phase.name} with {batch} problems{parts}")
                run = with_sizes(self.run, phase.name, *sizes)
                programs = make_phase(run, phase.name, self.backbone, self.mesh).programs
                known[sizes] = max(self._peak(run, program, compiled(self.compiler, program)) for program in programs)
            return known[sizes]

        rows = largest_that_fits(peak, budget, phase.rows, phase.step, most_problems(self.run))
        batch, micro = phase.sizes(rows) if rows else (0, 0)
        return batch, micro if phase.micro_batch else None

    def placements(self, found: PhasePlan) -> tuple[Placement, ...]:
        """The placements of a phase's weights."""
        phase = found.phase

        def cost(run: RunConfig, index: int) -> tuple[int, float | None]:
            peak, traffic = found.programs[index].peak, found.programs[index].traffic
            if run != self.run:
                self.note(f"compiling {phase.name}: {phase.programs[index].name} with another placement")
                program = make_phase(run, phase.name, self.backbone, self.mesh).programs[index]
                made = compiled(self.compiler, program)
                peak = self._peak(run, program, made)
                traffic = traffic and replace(traffic, operations=operations(made.as_text()))
            return peak, traffic and sum(traffic.seconds(ACCELERATORS[self.accelerator]).values())

        programs = [(program.name, program.updates > 0) for program in phase.programs]
        return tuple(compiled_placements(self.run, phase.name, programs, cost))

    def _peak(self, run: RunConfig, program: Program, made: Any) -> int:
        return sum(_memory(program, made, run, self.backbone).values())


def _traffic(program: Program, made: Any, arithmetic: Arithmetic, divided: int) -> Traffic:
    """Traffic of the compiled program `made`; `arithmetic` is shared evenly by `divided` devices."""
    outside = program.updates * _optimizer_traffic(program) + bytes_on_one_device(program.arguments[1:])
    return Traffic(
        operations(made.as_text()),
        program.loop_trips,
        floor_bytes=arithmetic.floor() / divided + outside,
        token_floor_bytes=arithmetic.floor(decoding=True) / divided / program.loop_trips,
    )


def _memory(program: Program, made: Any, run: RunConfig, backbone: LlamaConfig) -> dict[str, int]:
    """Bytes on one device at the peak of a program, by kind; `made` is the compiled program."""
    state = program.state
    sizes = made.memory_analysis()
    kinds = {
        "weights": bytes_on_one_device((state.trainable, state.frozen)),
        "optimizer": bytes_on_one_device(state.optimizer),
        "reference": bytes_on_one_device(state.reference),
        "memory_bank": bytes_on_one_device(state.memory),
        "gradients": 0,
        "caches": 0,
        "batch": bytes_on_one_device(program.arguments[1:]),
    }
    scratch = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    if program.updates:
        summed = 2 if program.micro_batches > 1 else 1
        kinds["gradients"] = min(summed * bytes_on_one_device(state.trainable), scratch)
    entries = (
        2 * backbone.num_hidden_layers * backbone.num_key_value_heads * backbone.head_dim * program.cache_positions
    )
    cached = entries * jnp.dtype(run.model.compute_dtype).itemsize // run.mesh.tensor
    kinds["caches"] = min(cached, scratch - kinds["gradients"])
    kinds["activations"] = scratch - kinds["gradients"] - kinds["caches"]
    return kinds


def _optimizer_traffic(program: Program) -> float:
    """Bytes of one optimizer step on one device: gradients are read, parameters and moments read and written."""
    return 2.0 * bytes_on_one_device(program.state.optimizer) + 3.0 * bytes_on_one_device(program.state.trainable)


def advice(plan: Plan) -> str:
    """One sentence: that the plan fits, or which change would make it fit."""
    device = f"{plan.budget / 1e9:.1f} GB ({plan.accelerator} less {SPARE:.0%})"
    if plan.fits:
        return f"fits: {plan.peak / 1e9:.1f} GB of {device} on each of {plan.devices} devices."
    verdict = f"does not fit: {plan.peak / 1e9:.1f} GB of {device} on each of {plan.devices} devices"
    placements = [placement for phase in plan.phases for placement in phase.placements]
    needed = {now.setting: best for now, best in better(placements, plan.budget) if now.peak > plan.budget}
    changed = {(p.phase, p.program) for p in placements if p.setting in needed}
    if needed and not _too_large(plan, changed):
        keys = " and ".join(f"config.mesh.{best.setting} {best.value}" for best in needed.values())
        return f"{verdict}; it would with {keys}."
    tight = [each for each in plan.phases if any(program.peak > plan.budget for program in each.programs)]
    if all(each.largest for each in tight):
        return f"{verdict}; {' and '.join(each.changes for each in tight)} would fit."
    fsdp = plan.run.mesh.fsdp
    for factor in (2**power for power in range(1, 11)):
        if all(_shrunk(program.memory, factor) <= plan.budget for s in plan.phases for program in s.programs):
            return (
                f"{verdict}; config.mesh.fsdp {fsdp * factor} instead of {fsdp} would, on {plan.devices * factor} "
                f"devices, with the same number of problems on each device."
            )
    return f"{verdict}; its activations and caches alone do not: take smaller micro-batches, or config.model.remat."


def _too_large(plan: Plan, changed: Collection[tuple[str, str]]) -> bool:
    """Whether a program does not fit whose placement, by phase and program, is not changed."""
    programs = [(phase.phase.name, program) for phase in plan.phases for program in phase.programs]
    return any(program.peak > plan.budget for name, program in programs if (name, program.name) not in changed)


def _shrunk(memory: dict[str, int], factor: int) -> float:
    """Bytes on one device with the state sharded `factor` times further."""
    cut = ("weights", "optimizer", "reference", "gradients")
    return sum(size / factor if kind in cut else size for kind, size in memory.items())


def as_json(plan: Plan) -> dict[str, Any]:
    """The content of `plan.json`; `scripts/plan.py` explains its keys."""
    mesh = {axis: getattr(plan.run.mesh, axis) for axis in AXES}
    state, phases = plan.phases[0].phase.programs[0].state, {}
    for phase in plan.phases:
        programs = {
            program.name.replace(" ", "_"): {
                "memory": program.memory,
                "peak": program.peak,
                "flops": program.arithmetic.flops * plan.devices / program.divided,
                "seconds": {name: plan.seconds(program, name) for name in ACCELERATORS},
                "compiler": plan.compiler if program.traffic else None,
                "traffic": program.traffic and program.traffic.as_json(ACCELERATORS[plan.accelerator]),
            }
            for program in phase.programs
        }
        phases[phase.phase.name] = {
            "programs": programs,
            "batch_key": phase.phase.batch_key.removeprefix("config."),
            "batch": phase.phase.batch,
            "largest_batch": phase.largest,
            "micro_batch_key": phase.phase.micro_batch_key.removeprefix("config.") or None,
            "micro_batch": phase.phase.micro_batch or None,
            "largest_micro_batch": phase.largest_micro_batch,
            "placements": [asdict(placement) for placement in phase.placements],
        }
    return {
        "fits": plan.fits,
        "devices": plan.devices,
        "accelerator": plan.accelerator,
        "mesh": mesh,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves((state.trainable, state.frozen))),
        "peak": plan.peak,
        "budget": plan.budget,
        "phases": phases,
    }
