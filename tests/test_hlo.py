"""What a compiled program moves, computes and gathers: small programs whose true figures are known."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from longshot_jax.planning.hlo import Operation, operations

F32 = 4
WIDTH = 256  # wide enough that counters of loops, which are left out here, do not matter


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def compiled(function, *arguments, **options):
    """The operations of a program, without those that move a few numbers."""
    text = jax.jit(function, **options).lower(*arguments).compile().as_text()
    return [o for o in operations(text) if o.bytes > 64]


def total(found, trips=1, copies=False):
    return sum(o.bytes * o.times(trips) for o in found if o.copies or not copies)


def test_a_loop_over_layers_reads_each_layer_once():
    layers, rows = 5, 8

    def stack(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    found = compiled(stack, shape(rows, WIDTH), shape(layers, WIDTH, WIDTH))
    (product,) = (o for o in found if o.flops)
    assert product.loops == (layers,) and product.flops == 2 * rows * WIDTH * WIDTH
    assert product.bytes == F32 * (WIDTH * WIDTH + 2 * rows * WIDTH)
    (layer,) = (o for o in found if o.copies and o.source == "w")
    assert layer.loops == (layers,) and layer.bytes == pytest.approx(2 * F32 * WIDTH * WIDTH, abs=16)
    # Without its loop, one stack would be read five times by each of five slices.
    assert total(found) < 3.2 * F32 * layers * WIDTH * WIDTH


def test_loops_multiply_and_data_decides_the_length_of_some():
    def nested(x, w):
        def inner(x, _):
            return jnp.tanh(x @ w), None

        def outer(x):
            return jax.lax.scan(inner, x, length=3)[0]

        return jax.lax.while_loop(lambda x: jnp.any(x > 0), outer, x)

    (product,) = (o for o in compiled(nested, shape(8, WIDTH), shape(WIDTH, WIDTH)) if o.flops)
    assert product.loops == (None, 3) and product.times(trips=7) == 21
    assert product.source == "w"  # it never changes in the loop


def test_an_append_writes_the_new_part_alone():
    def append(cache, row):
        def step(carry, index):
            cache, row = carry
            row = jnp.sin(row)
            return (jax.lax.dynamic_update_slice(cache, row[None], (index, 0)), row), None

        return jax.lax.scan(step, (cache, row), jnp.arange(6))[0][0]

    found = compiled(append, shape(1000, WIDTH), shape(WIDTH), donate_argnums=0)
    (written,) = (o for o in found if "dynamic-update-slice" in o.name or o.opcode == "dynamic-update-slice")
    assert written.loops == (6,) and written.bytes == pytest.approx(2 * F32 * WIDTH, abs=16)
    # Copies of the row are all that is left; not one of them is of the cache.
    assert total(found) < 6 * 7 * F32 * WIDTH


def test_rows_gathered_from_a_table_are_what_is_read():
    def embed(table, tokens):
        return jnp.tanh(table[tokens])

    found = compiled(embed, shape(10_000, WIDTH), shape(7, dtype=jnp.int32))
    assert total(found) < 6 * F32 * 7 * WIDTH


def test_copies_compute_nothing():
    def joined(a, b):
        return jnp.concatenate([a.T, b]).astype(jnp.bfloat16)

    found = compiled(joined, shape(WIDTH, 2 * WIDTH), shape(WIDTH, WIDTH))
    assert found and all(o.copies for o in found)
    # Three squares are read in float32 and written in bfloat16, in one pass or in two.
    assert 3 * WIDTH * WIDTH * (4 + 2) <= total(found) <= 3 * WIDTH * WIDTH * (4 + 4 + 4 + 2)
    assert found[0].source == "a"  # the larger one

    added = compiled(lambda a, b: a.T + b, shape(WIDTH, WIDTH), shape(WIDTH, WIDTH))
    assert not any(o.copies for o in added)
    filled = compiled(lambda a: jnp.zeros((WIDTH, WIDTH)) + a[0], shape(1))
    assert not any(o.copies for o in filled) and total(filled) >= F32 * WIDTH * WIDTH


def test_of_two_branches_the_longer_one_counts():
    def chosen(flag, x, w):
        return jax.lax.cond(flag, lambda x: jax.lax.fori_loop(0, 4, lambda _, x: x @ w, x), lambda x: x @ w, x)

    found = compiled(chosen, shape(dtype=jnp.bool_), shape(8, WIDTH), shape(WIDTH, WIDTH))
    assert sum(o.flops * o.times(1) for o in found) == 4 * 2 * 8 * WIDTH * WIDTH

    def repeated(flag, x, w):
        return jax.lax.cond(flag, lambda x: jax.lax.fori_loop(0, 4, lambda _, x: x @ w, x), lambda x: x @ w @ w, x)

    found = compiled(repeated, shape(dtype=jnp.bool_), shape(8, WIDTH), shape(WIDTH, WIDTH))
    assert sum(o.flops * o.times(1) for o in found) == 4 * 2 * 8 * WIDTH * WIDTH


def test_a_permutation_sends_all_that_it_holds():
    sent = Operation("p", "collective-permute", 0.0, 0.0, (), True, None, devices=2, payload=8.0)
    assert sent.sent == 8.0 and replace(sent, opcode="all-gather").sent == 4.0


SHARDED = """
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from longshot_jax.planning.hlo import operations
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
shape = lambda sizes, *axes: jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=place(*axes))
def gathered(x, w):
    def layer(x, w):
        return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, place())), None
    return jax.lax.scan(layer, x, w)[0]
for function, arguments in (
    (gathered, (shape((8, 256), "a"), shape((5, 256, 256), None, "a"))),
    (lambda x, w: x @ w, (shape((8, 256), None, ("a", "b")), shape((256, 256), ("a", "b")))),
):
    found = operations(jax.jit(function, out_shardings=place()).lower(*arguments).compile().as_text())
    for o in found:
        if o.payload and o.loops or "reduce" in o.opcode:
            print(o.opcode, o.loops, o.devices, int(o.payload), int(o.sent), o.source)
"""


def test_collectives_on_simulated_devices():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    weights, rows = F32 * WIDTH * WIDTH, F32 * 8 * WIDTH
    assert done.stdout.splitlines() == [
        f"all-gather (5,) 2 {weights} {weights // 2} w",
        f"all-reduce () 4 {rows} {2 * rows * 3 // 4} None",
    ]


# In the form of XLA's GPU compiler: asynchronous collectives, cuBLAS with its workspace, a product fused with its slice.
GPU = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%sliced (p0: bf16[4,64,128], p1: bf16[8,64], p2: s32[]) -> (bf16[8,128], s8[1024]) {
  %p0 = bf16[4,64,128]{2,1,0} parameter(0)
  %p1 = bf16[8,64]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %slice.1 = bf16[1,64,128]{2,1,0} dynamic-slice(%p0, %p2, %zero, %zero), dynamic_slice_sizes={1,64,128}
  %bitcast.1 = bf16[64,128]{1,0} bitcast(%slice.1)
  %gemm.1 = (bf16[8,128]{1,0}, s8[1024]{0}) custom-call(%p1, %bitcast.1), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %out.1 = bf16[8,128]{1,0} get-tuple-element(%gemm.1), index=0
  %space.1 = s8[1024]{0} get-tuple-element(%gemm.1), index=1
  ROOT %tuple.1 = (bf16[8,128]{1,0}, s8[1024]{0}) tuple(%out.1, %space.1)
}

%summed (s0: f32[64]) -> f32[8] {
  %s0 = f32[64]{0} parameter(0)
  ROOT %reduce-scatter.1 = f32[8]{0} reduce-scatter(%s0), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

ENTRY %main (w: bf16[4,64,128], x: bf16[1,64], i: s32[], g: f32[64]) -> bf16[8,128] {
  %w = bf16[4,64,128]{2,1,0} parameter(0), metadata={op_name="state.frozen[\\'w\\'].value"}
  %x = bf16[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %g = f32[64]{0} parameter(3)
  %start.1 = (bf16[1,64]{1,0}, bf16[8,64]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %sum-start.1 = ((f32[64]{0}), f32[8]{0}) async-start(%g), calls=%summed
  %done.1 = bf16[8,64]{1,0} all-gather-done(%start.1)
  %sum-done.1 = f32[8]{0} async-done(%sum-start.1)
  %gemm-fusion.1 = (bf16[8,128]{1,0}, s8[1024]{0}) fusion(%w, %done.1, %i), kind=kCustom, calls=%sliced
  ROOT %result.1 = bf16[8,128]{1,0} get-tuple-element(%gemm-fusion.1), index=0
}
"""


def test_the_form_of_the_gpu_compiler():
    gathered, scattered, product = operations(GPU)
    assert (gathered.opcode, gathered.devices, gathered.payload) == ("all-gather", 8, 2 * 8 * 64)
    assert gathered.sent == gathered.payload * 7 / 8 and gathered.bytes == 2 * (64 + 8 * 64) and gathered.source == "x"
    assert (scattered.opcode, scattered.devices, scattered.payload) == ("reduce-scatter", 8, 4 * 64)
    # One of four slices, and no workspace.
    assert product.bytes == 2 * (64 * 128 + 8 * 64 + 8 * 128) + 4
    assert product.flops == 2 * 8 * 64 * 128 and not product.copies
    assert product.source == "state.frozen['w'].value"
