"""Published memory, speed and bandwidth of accelerators, and what XLA's GPU compiler must know of them."""

from dataclasses import dataclass

from longshot_jax.errors import UserError, shown


@dataclass(frozen=True)
class Chip:
    """What XLA's GPU compiler asks of a card that is not there.

    Attributes:
      capability: CUDA compute capability, (major, minor).
      cores: streaming multiprocessors. lanes: float32 units of each.
      shared_memory: bytes of each core; the most that one block may have is 1 KB less.
      l2: bytes of the level-2 cache. clock: GHz at most. memory: bytes as the driver counts them.
    """

    capability: tuple[int, int]
    cores: int
    lanes: int
    shared_memory: int
    l2: int
    clock: float
    memory: int


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
      memory: bytes by name (80 GB are 80e9 bytes); the real memory is larger, which about covers what the driver takes.
      flops: FLOP/s of dense bfloat16 matrix products with float32 sums.
      bandwidth: memory bandwidth, bytes/s.
      link: bytes/s that one device sends to, and receives from, its neighbours in an all-gather over NVLink. Stated, not
        measured: seven ninths of the published speed of one direction.
      chip: for the GPU compiler.
      source: publication of memory, FLOP/s and bandwidth.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float
    chip: Chip
    source: str

    def target(self) -> str:
        """The card as a `GpuTargetConfigProto` in text form, for `jax.experimental.topologies`."""
        chip, (major, minor) = self.chip, self.chip.capability
        accelerated = "ACCELERATED_FEATURES" if major >= 9 else "NONE"  # the "a" of sm_90a
        return f"""
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {accelerated} }}
              core_count: {chip.cores} fpus_per_core: {chip.lanes} clock_rate_ghz: {chip.clock}
              shared_memory_per_block: 49152 shared_memory_per_core: {chip.shared_memory}
              shared_memory_per_block_optin: {chip.shared_memory - 1024} l2_cache_size: {chip.l2}
              device_memory_size: {chip.memory} memory_bandwidth: {self.bandwidth:.0f}
              threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            """


# Published figures "with sparsity" are halved, because all products here are dense. Links: NVLink 3, 4 and 5 carry 300,
# 450 and 900 GB/s in each direction. Chips: openxla/xla, xla/backends/gpu/target_config/specs, files a100_sxm_40,
# a100_sxm_80, h100_sxm, h200 and b200.
ACCELERATORS = {
    "a100-40g": Accelerator(
        40e9,
        312e12,
        1.555e12,
        233e9,
        Chip((8, 0), 108, 64, 167_936, 41_943_040, 1.41, 42_331_013_120),
        "NVIDIA A100 Tensor Core GPU datasheet, A100 40GB",
    ),
    "a100-80g": Accelerator(
        80e9,
        312e12,
        2.039e12,
        233e9,
        Chip((8, 0), 108, 64, 167_936, 41_943_040, 1.41, 85_100_068_864),
        "NVIDIA A100 Tensor Core GPU datasheet, A100 80GB SXM",
    ),
    "h100-80g": Accelerator(
        80e9,
        989.5e12,
        3.35e12,
        350e9,
        Chip((9, 0), 132, 128, 233_472, 52_428_800, 1.98, 84_942_979_072),
        "NVIDIA H100 Tensor Core GPU datasheet, H100 SXM",
    ),
    "h200": Accelerator(
        141e9,
        989.5e12,
        4.8e12,
        350e9,
        Chip((9, 0), 132, 128, 233_472, 52_428_800, 1.98, 151_397_597_184),
        "NVIDIA H200 Tensor Core GPU datasheet, H200 SXM",
    ),
    "b200": Accelerator(
        180e9,
        2.25e15,
        8.0e12,
        700e9,
        Chip((10, 0), 148, 128, 233_472, 132_644_864, 1.965, 191_514_411_008),
        "NVIDIA DGX B200 datasheet, an eighth of the system; bf16 is half of fp8",
    ),
}


def accelerator_named(name: str) -> Accelerator:
    """The accelerator called `name`; a UserError lists the known ones."""
    if name not in ACCELERATORS:
        raise UserError(f"--accelerator {shown(name)} is not known: take one of {', '.join(ACCELERATORS)}.")
    return ACCELERATORS[name]


def peak_flops(device_kind: str) -> float | None:
    """Published FLOP/s of a device by JAX's name for it; None where it is unknown, as for a part or a slower variant."""
    words = device_kind.upper().replace("-", " ").split()
    if not {"PCIE", "NVL", "MIG"}.isdisjoint(words):
        return None
    return next((known.flops for name, known in ACCELERATORS.items() if name.split("-")[0].upper() in words), None)
