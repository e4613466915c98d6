"""The planner's arithmetic: products counted in the traced functions, and their share of one device."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from tiny_run import tiny

from longshot_jax.config.model import MeshConfig
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.planning.arithmetic import Arithmetic, Product, count
from longshot_jax.planning.compilers import planned_mesh
from longshot_jax.planning.phases import make_phase, share_of_one_device
from longshot_jax.planning.shapes import planned_backbone


def loss(layers, rows=4, length=32):
    """A Llama's loss and gradient, and what they are called with."""
    config = LlamaConfig(64, 32, 96, layers, 4, 2, 8)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0), remat=True)))
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def value(params, tokens):
        backbone = nnx.merge(graphdef, params)
        hidden, _ = backbone(backbone.embed(tokens), jnp.arange(length)[None].repeat(rows, 0), tokens >= 0)
        return jnp.mean(jax.nn.logsumexp(backbone.logits(hidden), axis=-1))

    return jax.grad(value), (params, tokens)


def test_flops_are_those_of_the_unrolled_function():
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    w = jax.ShapeDtypeStruct((16, 16), jnp.float32)

    def looped(x, w):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(jnp.matmul)(x, w), None), x, None, length=5)[0]

    def unrolled(x, w):
        for _ in range(5):
            x = x @ w
        return x

    ours, theirs = count(looped, x, w), jax.jit(unrolled).lower(x, w).compile().cost_analysis()["flops"]
    assert ours.flops == theirs == 5 * 2 * 8 * 16 * 16
    assert ours.bytes == 5 * 4 * (8 * 16 + 16 * 16 + 8 * 16)

    def decoded(x, w):
        return jax.lax.while_loop(lambda x: jnp.any(x > 0), lambda x: x @ w, x)

    assert count(decoded, x, w, loop_trips=7).flops == 7 * 2 * 8 * 16 * 16
    assert count(lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, length=0), x, w, loop_trips=7).flops == 0


def test_flops_of_a_llama_agree_with_the_compiler_and_grow_with_depth():
    gradient, inputs = loss(1)
    ours = count(gradient, *inputs).flops
    theirs = jax.jit(gradient).lower(*inputs).compile().cost_analysis()["flops"]
    # The compiler counts element-wise work too, which is small.
    assert 0.8 * theirs < ours <= theirs
    one, two, five = (count(*(lambda made: (made[0], *made[1]))(loss(depth))).flops for depth in (1, 2, 5))
    assert five - one == 4 * (two - one) > 0


def test_roofline_takes_the_slower_of_arithmetic_and_traffic():
    arithmetic = Arithmetic((Product(100.0, 10.0, 2), Product(10.0, 100.0, 3)))
    assert arithmetic.seconds(1.0, 1.0) == 2 * 100 + 3 * 100
    assert arithmetic.seconds(10.0, 1.0) == 2 * 10 + 3 * 100


def test_the_floor_is_what_an_iteration_did_not_compute():
    x, w = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)

    def layer(x, w):
        return jnp.tanh(x) @ w.T.astype(jnp.bfloat16), None

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (layer(x, w)[0].astype(x.dtype), None), x, w)[0]

    # Weights are read as they are multiplied, activations are computed in the iteration; loops repeat both.
    assert count(layers, x, w).floor() == 5 * 2 * 16 * 16
    decoded = count(
        lambda x, w: jax.lax.while_loop(lambda x: jnp.any(x > 0), lambda x: layers(x, w), layers(x, w)),
        x,
        w,
        loop_trips=7,
    )
    assert decoded.floor(decoding=True) == 7 * 5 * 2 * 16 * 16 == decoded.floor() - 5 * 2 * 16 * 16

    def called(x, w):
        return jax.checkpoint(jax.jit(lambda x: x @ w[0]))(jnp.sin(x)) @ w[1]

    # Through functions that are called; the products' other operands were computed.
    assert count(called, x, w).floor() == 2 * 4 * 16 * 16
    # A matrix of eight bits is read as it is stored.
    stored = jax.ShapeDtypeStruct((16, 16), jnp.int8)
    assert count(lambda x, w: jnp.sin(x) @ w.astype(x.dtype), x, stored).floor() == 16 * 16
    square = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    # A matrix that two products of one iteration need is read once.
    assert count(lambda x, w: jnp.sin(x @ w) @ w.T, x, square).floor() == 4 * (16 * 16 + 8 * 16)


def test_arithmetic_is_counted_whatever_attention_a_gpu_would_run():
    run = tiny(model__compute_dtype="bfloat16", phases=("curriculum",))
    backbone, mesh = planned_backbone(run), planned_mesh("cpu", "", run.mesh)
    whole = make_phase(run, "curriculum", backbone, mesh)
    cudnn = replace(run, model=replace(run.model, attention="cudnn"))
    shares = [share_of_one_device(each, whole, 0, backbone, mesh)[0] for each in (run, cudnn)]
    counts = [count(share.function, *share.arguments).flops for share in shares]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("program", "decoding", "rows", "divided"),
    [(0, "replicated", 1, 1), (0, "tensor", 8, 8), (1, "replicated", 2, 2), (1, "tensor", 2, 2)],
    ids=str,
)
def test_a_rollouts_arithmetic_is_divided_as_its_weights_are_placed(program, decoding, rows, divided):
    """Of eight questions on fsdp 4 x tensor 2: a rollout reads all weights for one, or an eighth of them for all."""
    run = tiny(phases=("ppo",), ppo__questions=8, ppo__minibatches=1)
    backbone = planned_backbone(run)
    whole = make_phase(run, "ppo", backbone, planned_mesh("cpu", "", run.mesh))
    mesh = jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))
    meshed = replace(run, mesh=MeshConfig(fsdp=4, tensor=2, decoding_weights=decoding))
    share, among = share_of_one_device(meshed, whole, program, backbone, mesh)
    rollout = share.arguments[1]
    assert (jax.tree.leaves(rollout)[0].shape[0], among) == (rows, divided)
