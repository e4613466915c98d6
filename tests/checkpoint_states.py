"""A state with every kind of array that training saves, and what makes two such states the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct


@struct.dataclass
class RunState:
    """A state with every kind of leaf that a run has."""

    params: Any
    model: Any
    optimizer: Any
    reference: Any
    step: jax.Array
    key: jax.Array
    keys: jax.Array
    empty: jax.Array
    name: str = struct.field(pytree_node=False, default="static")


def make_state(seed: int = 0, width: int = 8) -> RunState:
    params = {
        "layers": [jax.random.normal(jax.random.key(seed + i), (width, 4)) for i in range(2)],
        "half": jnp.linspace(-1, 1, 7, dtype=jnp.bfloat16),
        "odd": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45], jnp.float32),
        "mask": jnp.array([True, False, True]),
        "small": jnp.array([-3, 4], jnp.int8),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init({"w": params["layers"][0]})
    return RunState(
        params=params,
        model=nnx.state(nnx.Linear(width, 4, rngs=nnx.Rngs(seed))),
        optimizer=jax.tree.map(lambda leaf: leaf + 1, optimizer),
        reference=None,
        step=jnp.int32(seed),
        key=jax.random.key(seed + 7),
        keys=jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        empty=jnp.zeros((0, 3)),
    )


def bits(tree: Any) -> list[tuple]:
    """Everything that makes two arrays the same array, NaN payloads and signed zeros included."""
    rows = []
    for leaf in jax.tree.leaves(tree):
        words = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        rows.append((str(leaf.dtype), leaf.shape, np.asarray(words).tobytes()))
    return rows


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
