"""What accelerators offer, as their makers publish it."""

from dataclasses import dataclass

from longshot_jax.errors import UserError


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
      memory: bytes, counted as the name counts them (80 GB are 80e9 bytes): the driver's own share is then about
        covered by the difference to what the chip really has.
      flops: dense bfloat16 matrix products with float32 sums, FLOP/s.
      bandwidth: of its memory, bytes/s.
      source: where the figures stand.
    """

    memory: float
    flops: float
    bandwidth: float
    source: str


# Figures "with sparsity" in these tables are halved here: the products of this project are dense.
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
    """The accelerator of that name; a UserError names those there are."""
    if name not in ACCELERATORS:
        raise UserError(f"--accelerator {name!r} is not known: take one of {', '.join(ACCELERATORS)}.")
    return ACCELERATORS[name]
