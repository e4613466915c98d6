"""Published memory, speed and bandwidth of accelerators."""

from dataclasses import dataclass

from longshot_jax.errors import UserError, shown


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
      memory: bytes by name (80 GB are 80e9 bytes); the real memory is larger, which about covers what the driver takes.
      flops: FLOP/s of dense bfloat16 matrix products with float32 sums.
      bandwidth: memory bandwidth, bytes/s.
      source: publication of the figures.
    """

    memory: float
    flops: float
    bandwidth: float
    source: str


# Published figures "with sparsity" are halved, because all products here are dense.
ACCELERATORS = {
    "a100-40g": Accelerator(40e9, 312e12, 1.555e12, "NVIDIA A100 Tensor Core GPU datasheet, A100 40GB"),
    "a100-80g": Accelerator(80e9, 312e12, 2.039e12, "NVIDIA A100 Tensor Core GPU datasheet, A100 80GB SXM"),
    "h100-80g": Accelerator(80e9, 989.5e12, 3.35e12, "NVIDIA H100 Tensor Core GPU datasheet, H100 SXM"),
    "h200": Accelerator(141e9, 989.5e12, 4.8e12, "NVIDIA H200 Tensor Core GPU datasheet, H200 SXM"),
    "b200": Accelerator(
        180e9, 2.25e15, 8.0e12, "NVIDIA DGX B200 datasheet, an eighth of the system; bf16 is half of fp8"
    ),
}


def accelerator_named(name: str) -> Accelerator:
    """The accelerator called `name`; a UserError lists the known ones."""
    if name not in ACCELERATORS:
        raise UserError(f"--accelerator {shown(name)} is not known: take one of {', '.join(ACCELERATORS)}.")
    return ACCELERATORS[name]
