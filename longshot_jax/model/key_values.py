"""Keys and values of earlier positions, which every backbone returns and reads."""

from flax import struct
from jaxtyping import Array, Bool, Float


@struct.dataclass
class KeyValues:
    """Rotated keys and values of some positions, for every layer; [L, B, N, K, P, C] for N trajectories."""

    keys: Float[Array, "L B K P C"]
    values: Float[Array, "L B K P C"]


@struct.dataclass
class Context:
    """Earlier positions that a forward pass reads; `mask` is False on padding and after a trajectory's stop."""

    cache: KeyValues
    mask: Bool[Array, "B P"]
