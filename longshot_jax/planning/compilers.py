"""Which of XLA's compilers a plan asks: the CPU's, on simulated devices, or the GPU's, for devices that are not there.

The GPU's is the one that training meets: its fusions, copies, layouts, collectives and memory. It needs `jax[cuda12]`
and no GPU, but cannot time kernels: products go to cuBLAS, with default tiles in other kernels. The CPU's comes with JAX.
It plans memory only: it computes bfloat16 products in float32, fuses less, and what it moves says nothing of a GPU.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from longshot_jax.config.model import MeshConfig
from longshot_jax.errors import UserError, first_line
from longshot_jax.model.sharding import AXES, make_mesh
from longshot_jax.training.accelerators import accelerator_named

COMPILERS = ("cuda", "cpu")
NODE = 8  # GPUs that NVLink connects

_OPTIONS = {
    # The machine code is never run; two passes would copy all bfloat16 parameters to float32 before a loop over layers.
    "cpu": {
        "xla_backend_optimization_level": "0",
        "xla_disable_hlo_passes": "while-loop-invariant-code-motion,while-loop-expensive-invariant-code-motion,"
        "constant_folding",
    },
    # Without a device, tiles of Triton's products cannot be chosen, and some do not compile.
    "cuda": {"xla_gpu_enable_triton_gemm": False},
}


def installed() -> bool:
    """Whether XLA's GPU compiler is here."""
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def chosen_compiler(name: str | None, note: Callable[[str], None]) -> str:
    """`name`, or the GPU's where it is installed, else the CPU's, which `note` is told.

    Raises:
      UserError: it is not known, or not installed.
    """
    if name is None:
        name = "cuda" if installed() else "cpu"
        missing = "" if name == "cuda" else "; the GPU's is not installed (make plan-gpu), so traffic is not known"
        note(f"XLA's compiler: {name}{missing}")
    if name not in COMPILERS:
        raise UserError(f"--compiler {name!r} is not known: take one of {', '.join(COMPILERS)}.")
    if name == "cuda" and not installed():
        raise UserError(
            "--compiler cuda: XLA's GPU compiler is not installed here: run `make plan-gpu` and take "
            ".venv-gpu/bin/python, or take --compiler cpu."
        )
    return name


def planned_mesh(compiler: str, accelerator: str, config: MeshConfig) -> Mesh:
    """The mesh of a run, on devices that exist for the compiler only.

    Raises:
      UserError: GPUs of several nodes that are not all used, or a compiler that does not fit this release of JAX.
    """
    if compiler == "cpu":
        return make_mesh(config)
    shape = tuple(getattr(config, axis) for axis in AXES)
    devices = int(np.prod(shape))
    if devices > NODE and devices % NODE:
        below = devices // NODE * NODE
        raise UserError(
            f"config.mesh has {devices} devices, which do not fill nodes of {NODE} GPUs: {below} or {below + NODE} "
            f"would, such as config.mesh {' '.join(f'{axis} {size}' for axis, size in _filled(config, below))}."
        )
    nodes = max(devices // NODE, 1)
    try:
        topology = topologies.get_topology_desc(
            platform="cuda",
            target_config=accelerator_named(accelerator).target(),
            topology=f"1x{nodes}x{devices // nodes}",
        )
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"--compiler cuda does not start with JAX {jax.__version__} ({first_line(error)}): run `make plan-gpu` and "
            "take .venv-gpu/bin/python, or take --compiler cpu."
        ) from None
    return Mesh(np.array(topology.devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _filled(config: MeshConfig, devices: int) -> list[tuple[str, int]]:
    """The mesh with `fsdp`, or else `data`, changed so that it has that many devices."""
    others = config.data * config.tensor
    if devices % others == 0:
        return [("data", config.data), ("fsdp", devices // others), ("tensor", config.tensor)]
    return [("data", 1), ("fsdp", devices), ("tensor", 1)]


def compiled(compiler: str, program: Any) -> Any:
    """A `planning.phases.Program`, compiled."""
    return program.function.lower(*program.arguments).compile(_OPTIONS[compiler])
