"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) with Llama 3.1's frequency scaling."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1/3.2 scaling of the rotary frequencies (`rope_type: llama3` in Hugging Face configs).

    Attributes:
      factor: divides the lowest frequencies (8 for Llama 3.1, 32 for Llama 3.2).
      low_freq_factor: wavelengths above `original_max_position_embeddings / low_freq_factor` are scaled fully.
      high_freq_factor: wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
      original_max_position_embeddings: context length before scaling, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Angular frequency of each pair of dimensions, in radians per token: float32 [C / 2]."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    if scaling is None:
        return frequencies
    wavelengths = 2 * np.pi / frequencies
    context = scaling.original_max_position_embeddings
    # 1 where the wavelength is short (kept), 0 where it is long (divided by the factor), linear between.
    kept = (context / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return ((1 - kept) * frequencies / scaling.factor + kept * frequencies).astype(np.float32)


def rotary_angles(
    positions: Int[Array, "B Q"], frequencies: np.ndarray
) -> tuple[Float[Array, "B Q half"], Float[Array, "B Q half"]]:
    """Cosine and sine of every position's angles, in float32."""
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B Q heads C"], cosine: Float[Array, "B Q half"], sine: Float[Array, "B Q half"]
) -> Float[Array, "B Q heads C"]:
    """Rotates each pair (x[i], x[i + C/2]) by its angle: Hugging Face's half-split convention."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosine, sine = cosine[..., None, :], sine[..., None, :]
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)
