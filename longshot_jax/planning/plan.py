"""A plan: what a run would hold and compute on each device, from compiling its real steps without its weights.

What the figures rest on:

- *State* (weights, optimizer, reference, memory bank) is exact: shapes, dtypes and shardings of the train state.
- *Gradients* are as large as the trained weights, twice where micro-batches are summed.
- *Caches* are keys and values, exact from their shapes; of an update, those of one micro-batch.
- *Activations* are the rest of the scratch memory that XLA asks for. It is XLA for CPUs that is asked, which does
  bfloat16 products in float32 and so keeps some activations twice. It would also copy whole bfloat16 weights to
  float32 once before a loop over layers; the two passes that do this are switched off (`_COMPILER`), so that the
  copy is of one layer. A GPU fuses more and copies less: the figure is an upper estimate.
- *FLOPs* are counted from the traced step (`planning.arithmetic`), loops as often as they run, answers at their
  longest. Roofline times add, for each optimizer step, the traffic of reading and writing weights and moments. They
  know of no interconnect: gathering `fsdp` weights and summing over `tensor` comes on top where it is not hidden.

A plan fits if a tenth of the memory stays free for what it does not know: libraries, fragments, gathered batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from longshot_jax.config import RunConfig
from longshot_jax.errors import UserError
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import AXES, make_mesh
from longshot_jax.planning.accelerators import ACCELERATORS, accelerator_named
from longshot_jax.planning.arithmetic import Arithmetic, count
from longshot_jax.planning.shapes import planned_llama
from longshot_jax.planning.stages import (
    Program,
    Stage,
    bytes_on_one_device,
    make_stage,
    share_of_one_device,
    with_batch,
)

SPARE = 0.1  # of the memory stays free
_COMPILER = {
    "xla_backend_optimization_level": "0",  # machine code that nobody runs
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion,while-loop-expensive-invariant-code-motion,"
    "constant_folding",
}


@dataclass(frozen=True)
class ProgramPlan:
    """One compiled function.

    Attributes:
      memory: bytes on one device at its peak, by kind.
      arithmetic: of the devices that share no batch, together.
      elementwise_bytes: traffic of the optimizer on one device.
    """

    name: str
    memory: dict[str, int]
    arithmetic: Arithmetic
    elementwise_bytes: float

    @property
    def peak(self) -> int:
        """Bytes on one device."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class StagePlan:
    """A stage: its functions, and the largest batch that fits (0: none; None: not asked)."""

    stage: Stage
    programs: tuple[ProgramPlan, ...]
    largest: int | None


@dataclass(frozen=True)
class Plan:
    """A run on some devices.

    Attributes:
      run: settings. llama: shape of its model.
      devices: number of them; accelerator: name of their kind.
      stages: of the run.
    """

    run: RunConfig
    llama: LlamaConfig
    devices: int
    accelerator: str
    stages: tuple[StagePlan, ...]

    @property
    def peak(self) -> int:
        """Bytes on one device."""
        return max(program.peak for stage in self.stages for program in stage.programs)

    @property
    def budget(self) -> float:
        """Bytes that a device may hold."""
        return (1 - SPARE) * ACCELERATORS[self.accelerator].memory

    @property
    def fits(self) -> bool:
        """Whether every function leaves a tenth of the memory free."""
        return self.peak <= self.budget

    def seconds(self, program: ProgramPlan, accelerator: str) -> float:
        """Roofline time of one call of a function."""
        device, tensor = ACCELERATORS[accelerator], self.run.mesh.tensor
        products = program.arithmetic.seconds(device.flops * tensor, device.bandwidth * tensor)
        return products + program.elementwise_bytes / device.bandwidth


def make_plan(
    run: RunConfig,
    devices: int | None,
    accelerator: str,
    *,
    search: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Compiles the run's steps on simulated devices; minutes for a large model, no memory for its weights.

    Args:
      run: settings.
      devices: that the run is to use, by default the product of its mesh; as many CPU devices must exist.
      accelerator: a name in `ACCELERATORS`.
      search: whether to look for the largest batch that fits, which compiles everything a second time.
      note: told what is being compiled.

    Raises:
      UserError: unknown accelerator or shape; a mesh that is not made for the devices or does not divide the model.
    """
    memory = accelerator_named(accelerator).memory
    mesh_size = run.mesh.data * run.mesh.fsdp * run.mesh.tensor
    devices = mesh_size if devices is None else devices
    if not run.stages:
        raise UserError("config.stages is empty: name 'curriculum', 'ppo' or both.")
    if mesh_size < devices:
        shown = " x ".join(f"{axis} {getattr(run.mesh, axis)}" for axis in AXES)
        grown = (
            f" or config.mesh.fsdp {run.mesh.fsdp * devices // mesh_size}" if devices % mesh_size == 0 else ""
        )
        raise UserError(
            f"config.mesh is {shown} = {mesh_size} devices, but --devices is {devices}: "
            f"take --devices {mesh_size}{grown}."
        )
    mesh, llama = make_mesh(run.mesh), planned_llama(run)
    planned = []
    for name in run.stages:
        stage = make_stage(run, name, llama, mesh)
        alone = share_of_one_device(run, stage, llama, mesh)
        programs = []
        for program, share in zip(stage.programs, alone.programs, strict=True):
            note(f"compiling {name}: {program.name}")
            arithmetic = count(share.function, *share.arguments, loop_trips=share.loop_trips)
            traffic = program.updates * _optimizer_traffic(program)
            programs.append(ProgramPlan(program.name, _memory(program, run, llama), arithmetic, traffic))
        largest = None
        if search:
            note(f"compiling {name} with twice the batch")
            twice = make_stage(with_batch(run, name, 2 * stage.batch), name, llama, mesh)
            peaks = [sum(_memory(program, run, llama).values()) for program in twice.programs]
            largest = _largest(stage, [program.peak for program in programs], peaks, (1 - SPARE) * memory)
        planned.append(StagePlan(stage, tuple(programs), largest))
    return Plan(run, llama, devices, accelerator, tuple(planned))


def _memory(program: Program, run: RunConfig, llama: LlamaConfig) -> dict[str, int]:
    """Bytes on one device at the function's peak, by kind."""
    state = program.state
    compiled = program.function.lower(*program.arguments).compile(_COMPILER)
    sizes = compiled.memory_analysis()
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
        summed = 2 if program.name == "update" and run.ppo.micro_batches > 1 else 1
        kinds["gradients"] = min(summed * bytes_on_one_device(state.trainable), scratch)
    per_position = (
        2
        * llama.num_hidden_layers
        * llama.num_key_value_heads
        * llama.head_dim
        * jnp.dtype(run.model.compute_dtype).itemsize
    )
    cached = program.cache_positions * per_position // run.mesh.tensor
    kinds["caches"] = min(cached, scratch - kinds["gradients"])
    kinds["activations"] = scratch - kinds["gradients"] - kinds["caches"]
    return kinds


def _optimizer_traffic(program: Program) -> float:
    """Bytes of one optimizer step on one device: gradients read, weights and moments read and written."""
    state = program.state
    moments, weights = bytes_on_one_device(state.optimizer), bytes_on_one_device(state.trainable)
    return float(2 * moments + 3 * weights)


def _largest(stage: Stage, peaks: list[int], doubled: list[int], budget: float) -> int:
    """The largest batch whose functions all fit, where memory grows by a straight line."""
    bounds = []
    for once, twice in zip(peaks, doubled, strict=True):
        slope = max((twice - once) / stage.batch, 1.0)
        bounds.append(stage.batch + (budget - once) / slope)
    return max(int(min(bounds) // stage.batch_step) * stage.batch_step, 0)


def advice(plan: Plan) -> str:
    """One sentence: that a plan fits, or what would."""
    device = f"{plan.budget / 1e9:.1f} GB ({plan.accelerator} less {SPARE:.0%})"
    if plan.fits:
        return f"fits: {plan.peak / 1e9:.1f} GB of {device} on each of {plan.devices} devices."
    said = f"does not fit: {plan.peak / 1e9:.1f} GB of {device} on each of {plan.devices} devices"
    for stage in plan.stages:
        if stage.largest and stage.largest < stage.stage.batch:
            return (
                f"{said}; {stage.stage.batch_key} {stage.largest} instead of {stage.stage.batch} would fit."
            )
    fsdp = plan.run.mesh.fsdp
    for factor in (2**power for power in range(1, 11)):
        if all(_shrunk(program.memory, factor) <= plan.budget for s in plan.stages for program in s.programs):
            return (
                f"{said}; config.mesh.fsdp {fsdp * factor} instead of {fsdp} would, on {plan.devices * factor} "
                f"devices, with batches of as many problems on each device."
            )
    return (
        f"{said}; its activations and caches alone do not: take smaller micro-batches, or config.model.remat."
    )


def _shrunk(memory: dict[str, int], factor: int) -> float:
    """Bytes with the state cut into that many more parts."""
    cut = ("weights", "optimizer", "reference", "gradients")
    return sum(size / factor if kind in cut else size for kind, size in memory.items())


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as `plan.json`; `scripts/plan.py` says what each key means."""
    mesh = {axis: getattr(plan.run.mesh, axis) for axis in AXES}
    parts = mesh["data"] * mesh["fsdp"]
    stages = {}
    for stage in plan.stages:
        programs = {
            program.name.replace(" ", "_"): {
                "memory": program.memory,
                "peak": program.peak,
                "flops": program.arithmetic.flops * parts,
                "seconds": {name: plan.seconds(program, name) for name in ACCELERATORS},
            }
            for program in stage.programs
        }
        stages[stage.stage.name] = {
            "programs": programs,
            "batch_key": stage.stage.batch_key.removeprefix("config."),
            "batch": stage.stage.batch,
            "largest_batch": stage.largest,
        }
    return {
        "fits": plan.fits,
        "devices": plan.devices,
        "accelerator": plan.accelerator,
        "mesh": mesh,
        "parameters": _parameters(plan),
        "peak": plan.peak,
        "budget": plan.budget,
        "stages": stages,
    }


def _parameters(plan: Plan) -> int:
    state = plan.stages[0].stage.programs[0].state
    return sum(leaf.size for leaf in jax.tree.leaves((state.trainable, state.frozen)))
