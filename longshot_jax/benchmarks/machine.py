"""What is measured and on what: the shape and options of a benchmark, the machine's names and its peaks."""

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from longshot_jax.benchmarks import torch_coconut
from longshot_jax.benchmarks.timing import copy, interleaved, matrix_product
from longshot_jax.config import RunConfig
from longshot_jax.model.llama import LlamaConfig

Figures = dict[str, Any]
WIDE = 1024  # width at which a CPU's update is compared with its peak; smaller products reach it on no machine
_GPU_WIDTH = 8192  # of the products whose speed is a GPU's peak


@dataclass(frozen=True)
class Bench:
    """The shape and options that all measurements share; parameters are random.

    Attributes:
      run, backbone: the shape.
      repetitions, seconds, clock: turns, time budget and clock of a timing, see `timing.interleaved`.
      generated: questions per batch of greedy answers. long_prompt: prompt length for comparing N = 5 with N = 1.
      growth: factors of a size along a curve. depths: two numbers of layers whose compilation times are compared.
      copied: MB of the array that measures the copy bandwidth, far above any cache (126 MB on a B200).
    """

    run: RunConfig
    backbone: LlamaConfig
    repetitions: int = 7
    seconds: float = 60.0
    clock: str = "wall"
    generated: int = 64
    long_prompt: int = 256
    growth: tuple[int, ...] = (1, 2, 4, 8)
    depths: tuple[int, int] = (4, 32)
    copied: int = 1024

    def times(self, functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """Median seconds by name, interleaved."""
        return interleaved(functions, self.repetitions, self.seconds, self.clock)

    def baseline(self, thoughts: int, answer: int) -> torch_coconut.TorchCoconut | None:
        """The published scheme at this shape; None unless on a CPU with PyTorch installed."""
        if jax.default_backend() != "cpu" or not torch_coconut.installed():
            return None
        return torch_coconut.TorchCoconut(self.backbone, self.run.data.prompt_length, thoughts, answer)


def processor_name() -> str:
    """The name of this machine's CPU; `platform.processor` is empty on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())


def driver_version() -> str:
    """Version of the NVIDIA driver, or `unknown`."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        answer = []
    return answer[0] if answer else "unknown"


def machine(bench: Bench) -> Figures:
    """What measures, with which versions and options; `device` is the name of the GPU, or of the CPU without one."""
    device = jax.devices()[0]
    computes = {"device": processor_name()}
    if device.platform != "cpu":
        computes = {"device": device.device_kind, "driver": driver_version(), "processor": processor_name()}
    return {
        **computes,
        "platform": device.platform,
        "platform_version": " ".join(device.client.platform_version.split()),
        "cores": usable_cores(),
        "jax": jax.__version__,
        "repetitions": bench.repetitions,
        "clock": bench.clock,
        "compute_dtype": bench.run.model.compute_dtype,
        "attention": bench.run.model.attention,
    }


def usable_cores() -> int:
    """Processor cores that this process may use: fewer than the machine's under taskset or a scheduler."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peaks(bench: Bench) -> Figures:
    """Peaks of this machine: matrix products and a copy, each measured for at least 20 ms.

    A CPU multiplies at the model's width and at 1,024; a GPU at 8,192, which shows its peak whatever the model.
    """
    dtype = jnp.dtype(bench.run.model.compute_dtype)
    on_cpu = jax.default_backend() == "cpu"
    width = bench.backbone.hidden_size if on_cpu else _GPU_WIDTH
    own, own_flops = matrix_product(width, dtype)
    copying, moved = copy(bench.copied)
    functions, wide_flops = {"own": own, "copy": copying}, own_flops
    if on_cpu:
        functions["wide"], wide_flops = matrix_product(WIDE, dtype)
    seconds = bench.times(functions)
    return {
        "matrix_width": width,
        "matrix_flops_per_second": own_flops / seconds["own"],
        "wide_matrix_flops_per_second": wide_flops / seconds["wide" if on_cpu else "own"],
        "copy_bytes_per_second": moved / seconds["copy"],
    }
