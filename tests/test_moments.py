"""How moments are stored: bytes, axes, and that they still descend."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from longshot_jax.config.optimizer import OptimizerConfig
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.model.sharding import shardings
from longshot_jax.training.adafactor import kept_axes
from longshot_jax.training.optimizer import make_optimizer

BYTES = {"float32": 8.0, "bfloat16": 6.0, "factored": 2.0}


def moments(kind, weights):
    return jax.eval_shape(make_optimizer(OptimizerConfig(moments=kind), 1).init, weights)


@pytest.mark.parametrize("kind", BYTES)
def test_bytes_of_a_weight(kind):
    """Of Llama-3-8B's shape, without a byte of it."""
    shape = LlamaConfig(128_256, 4096, 14_336, 32, 32, 8, 128)
    weights = nnx.split(nnx.eval_shape(lambda: Llama(shape, nnx.Rngs(0))))[1]
    count = sum(leaf.size for leaf in jax.tree.leaves(weights))
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(moments(kind, weights)))
    assert count > 8e9 and stored / count == pytest.approx(BYTES[kind], rel=0.02)


def test_factored_moments_are_cut_like_their_weights():
    mesh = AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    shape = LlamaConfig(512, 256, 384, 2, 4, 2, 128)
    weights = nnx.split(nnx.eval_shape(lambda: Llama(shape, nnx.Rngs(0))))[1]
    places = shardings(moments("factored", weights), mesh)
    factored = places[1].inner_states["backbone"].inner_state[0]
    found = {
        name: [tuple(jax.tree.leaves(part[name])[0].spec) for part in (factored.v_row["layers"], factored.v_col["layers"])]
        for name in ("query", "down")
    }  # fmt: skip
    # Of query [L, embed, heads, head_dim] one keeps embed, the other head_dim; of down [L, mlp, embed] one each.
    assert sorted(found["query"]) == [(None, "fsdp", "tensor"), (None, "tensor", None)]
    assert sorted(found["down"]) == [(None, "fsdp"), (None, "tensor")]
    assert kept_axes((4, 6), ("a", "b"), (4,)) == ("a",) and kept_axes((4, 6), ("a", "b"), (1,)) == (None,)
    assert kept_axes((4, 6), ("a", "b"), (4, 6)) == ("a", "b")


@pytest.mark.parametrize("kind", BYTES)
def test_they_descend(kind):
    target = jax.random.normal(jax.random.key(0), (130, 140))
    weights = nnx.State({"w": nnx.Param(jnp.zeros((130, 140)), logical_axes=("embed", "mlp"))})
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.0, moments=kind, clip_norm=1e9), 50)

    def loss(weights):
        return jnp.mean(jnp.square(weights["w"][...] - target))

    def step(carry, _):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.jit(lambda w: jax.lax.scan(step, (w, optimizer.init(w)), None, 50))(weights)
    assert float(loss(weights)) < 0.05 and np.isfinite(weights["w"][...]).all()
