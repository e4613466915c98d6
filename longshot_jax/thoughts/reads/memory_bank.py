"""Memory bank: a ring of remembered positions of the reasoning space, read while thinking, written afterwards.

The bank is a constant of one rollout and all its epochs: gradients flow through the query, never into the bank. All
shapes are fixed, and everything runs under jit.

Shapes: M memory slots, R reasoning dimension, K candidates of one write, B questions, N trajectories, T thoughts.
"""

from typing import ClassVar, no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

# Scores at or below this count as zero: dividing by smaller sums would amplify rounding errors in the gradient.
_SMALLEST_SCORE = 1e-6
# Scores held at once in a search of the bank: 64 MB.
_MOST_SCORES = 2**24


@no_type_check  # JAX rebuilds it with leaves that are not arrays: shardings, shapes, None.
@struct.dataclass
class MemoryBank:
    """Remembered positions and their values. Slots from `filled` on are empty and hold zeros.

    Attributes:
      positions: points of the reasoning space.
      values: reward that a trajectory through the position earned, or was expected to earn.
      ages: number of writes since the entry was stored; zero for the newest entries and for empty slots.
      filled: number of slots in use.
      next_slot: slot of the next entry; once the ring is full, that of the oldest entry.
    """

    positions: Float[Array, "M R"]
    values: Float[Array, " M"]
    ages: Int[Array, " M"]
    filled: Int[Array, ""]
    next_slot: Int[Array, ""]

    # Logical axes of the fields; a large bank is sharded along its slots.
    logical_axes: ClassVar[dict[str, tuple[str | None, ...]]] = {
        "positions": ("slots", None),
        "values": ("slots",),
        "ages": ("slots",),
        "filled": (),
        "next_slot": (),
    }


def empty_bank(slots: int, dim: int) -> MemoryBank:
    """A bank of `slots` empty slots for positions of size `dim`."""
    return MemoryBank(
        positions=jnp.zeros((slots, dim)),
        values=jnp.zeros(slots),
        ages=jnp.zeros(slots, jnp.int32),
        filled=jnp.zeros((), jnp.int32),
        next_slot=jnp.zeros((), jnp.int32),
    )


def unit(x: Float[Array, "*batch R"]) -> Float[Array, "*batch R"]:
    """Vectors of length 1 in the directions of `x`."""
    # Added under the root, so that the gradient at a zero vector is finite and not NaN.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def nearest_entries(
    bank: MemoryBank, state: Float[Array, "*batch R"], top: int
) -> tuple[Int[Array, "*batch K"], Bool[Array, "*batch K"]]:
    """Slots of the `top` entries of largest cosine × value for each state, and whether there is such an entry.

    Only positive scores count: an entry of value ≤ 0 must not be recommended to states that point away from it (two
    negatives make a positive score). No gradient; deterministic (ties: lower slot first). Costs O(M R) per state. If
    the scores of all states would be large, the states along the last axis (steps) are searched one after the other.
    """
    positions, values, state = jax.lax.stop_gradient((bank.positions, bank.values, state))
    query = unit(state.astype(jnp.promote_types(state.dtype, jnp.float32)))
    keys, slots = unit(positions), values.shape[0]
    usable = (jnp.arange(slots) < bank.filled) & (values > 0)

    def search(query):
        # Full precision, because the order of the entries hangs on small differences.
        score = jnp.matmul(query, keys.T, precision=jax.lax.Precision.HIGHEST) * values
        score = jnp.where(usable & (score > _SMALLEST_SCORE), score, 0.0)
        score, slot = jax.lax.top_k(score, min(top, slots))
        return slot, score > 0

    if state.ndim < 3 or state[..., 0].size * slots <= _MOST_SCORES:
        return search(query)
    found = jax.lax.map(search, jnp.moveaxis(query, -2, 0))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2), found)


def entries_read(
    bank: MemoryBank, state: Float[Array, "*batch R"], top: int, recorded: Int[Array, "*batch S"] | None = None
) -> tuple[Int[Array, "*batch K"], Bool[Array, "*batch K"]]:
    """The first `top` of the recorded slots, or the `nearest_entries` if nothing is recorded.

    Where two entries score alike, a state that was rounded differently finds the other one. A rollout therefore records
    what its thoughts read, slots in the order of their scores and -1 where there was no entry, and rescoring reads that.
    """
    if recorded is None:
        return nearest_entries(bank, state, top)
    return jnp.maximum(recorded[..., :top], 0), recorded[..., :top] >= 0


def read_bank(
    bank: MemoryBank, state: Float[Array, "*batch R"], top: int, recorded: Int[Array, "*batch S"] | None = None
) -> tuple[Float[Array, "*batch R"], Bool[Array, "*batch"]]:
    """Mean of the `entries_read`, weighted by cosine × value, and whether there are any; zeros if there are none.

    The weights are scores over their sum rather than a softmax, so an entry's influence fades to zero with its score
    instead of ending at a jump. Computed in float32, differentiable in `state`. The gradient costs O(K R): only the
    entries found are scored again.
    """
    slot, found = entries_read(bank, state, top, recorded)
    positions, values = jax.lax.stop_gradient((bank.positions[slot], bank.values[slot]))
    query = state.astype(jnp.promote_types(state.dtype, jnp.float32))
    exact = jax.lax.Precision.HIGHEST
    cosine = jnp.einsum("...r,...kr->...k", unit(query), unit(positions), precision=exact)
    # Scored again, an entry at the threshold may fall a rounding error below it.
    score = cosine * values
    score = jnp.where(found & (score > 0.5 * _SMALLEST_SCORE), score, 0.0)
    total = jnp.sum(score, axis=-1)
    has_read = total > 0
    weight = score / jnp.where(has_read, total, 1.0)[..., None]
    read = jnp.einsum("...k,...kr->...r", weight, positions, precision=exact)
    return read.astype(state.dtype), has_read


def fuse(
    state: Float[Array, "*batch R"], read: Float[Array, "*batch R"], has_read: Bool[Array, "*batch"]
) -> Float[Array, "*batch R"]:
    """Mean of the state and what was read; the state itself where nothing was read."""
    return jnp.where(has_read[..., None], 0.5 * (state + read), state)


def write_bank(
    bank: MemoryBank, positions: Float[Array, "K R"], values: Float[Array, " K"], keep: Bool[Array, " K"]
) -> MemoryBank:
    """Stores the kept candidates in their order, over the oldest entries once the ring is full.

    Every entry ages by one write, even if nothing is kept. Of more than M kept candidates the last M stay, as if they
    had been written one by one.
    """
    slots = bank.values.shape[0]
    order = jnp.cumsum(keep) - 1  # rank of a kept candidate among the kept
    count = jnp.sum(keep, dtype=jnp.int32)
    stays = keep & (order >= count - slots)
    # A write to a slot beyond the ring is dropped. The other slots are distinct, so the scatter's order does not
    # matter.
    slot = jnp.where(stays, (bank.next_slot + order) % slots, slots)
    filled = jnp.minimum(bank.filled + count, slots)

    in_use = jnp.arange(slots) < bank.filled
    return MemoryBank(
        positions=bank.positions.at[slot].set(positions.astype(bank.positions.dtype), mode="drop"),
        values=bank.values.at[slot].set(values.astype(bank.values.dtype), mode="drop"),
        ages=jnp.where(in_use, bank.ages + 1, 0).at[slot].set(0, mode="drop"),
        filled=filled,
        next_slot=(bank.next_slot + count) % slots,
    )


def best_positions(
    positions: Float[Array, "B N T R"], mask: Bool[Array, "B N T"], values: Float[Array, "B N T"], count: int
) -> tuple[Float[Array, "K R"], Float[Array, " K"], Bool[Array, " K"]]:
    """The `count` positions of largest value in a batch, as candidates for `write_bank` (K = `count`).

    Ordered from worst to best: a ring overwrites its oldest entries first, so the best lives longest. Masked or
    non-finite positions are never kept; where fewer than `count` remain, the rest are zeros with `keep` False.
    """
    positions = positions.reshape(-1, positions.shape[-1])
    values = values.reshape(-1)
    usable = mask.reshape(-1) & jnp.isfinite(values) & jnp.all(jnp.isfinite(positions), axis=-1)

    missing = max(count - values.shape[0], 0)
    positions = jnp.pad(positions, ((0, missing), (0, 0)))
    values, usable = jnp.pad(values, (0, missing)), jnp.pad(usable, (0, missing))

    _, best = jax.lax.top_k(jnp.where(usable, values, -jnp.inf), count)
    chosen = best[::-1]
    keep = usable[chosen]
    return jnp.where(keep[:, None], positions[chosen], 0.0), jnp.where(keep, values[chosen], 0.0), keep
