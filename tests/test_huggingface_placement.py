"""Weights loaded onto devices: each reads its own slices only, and the host holds little at a time."""

import gc
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from huggingface_folders import assert_equal, leaves, load, write
from safetensors import safe_open

from longshot_jax.model.huggingface import weights
from longshot_jax.model.huggingface.tensor_names import TENSORS


def single_device_mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))


def test_one_sharding_or_one_for_each_weight(tmp_path):
    plain = load(write(tmp_path))
    whole = jax.sharding.NamedSharding(single_device_mesh(), jax.P())
    assert_equal(load(tmp_path, sharding=whole), plain)
    cut = jax.sharding.NamedSharding(single_device_mesh(), jax.P("fsdp"))
    state = load(tmp_path, sharding=jax.tree.map(lambda _: cut, plain))
    assert_equal(state, plain)
    assert all(leaf.sharding == cut for leaf in jax.tree.leaves(state))
    with pytest.raises(ValueError, match="structure"):
        load(tmp_path, sharding=nnx.State({"embedding": nnx.Param(cut)}))


class Recorder:
    """Stands for a tensor of an open file, and counts the elements that are read from it."""

    def __init__(self, tensor):
        self.tensor, self.read = tensor, 0

    def __getattr__(self, name):
        return getattr(self.tensor, name)

    def __getitem__(self, index):
        block = self.tensor[index]
        self.read += block.size
        return block


@pytest.mark.parametrize(("name", "axis"), [("query", 1), ("query", 2), ("query", 3), ("output", 1), ("down", 2)])
def test_any_block_of_a_weight_can_be_read_alone(tmp_path, name, axis):
    """What sharding over several devices asks for, along each axis; only the rows and columns of it are read."""
    whole = leaves(load(write(tmp_path)))[f"layers.{name}"]
    layout = TENSORS["layers", name]
    half = [slice(None)] * whole.ndim
    half[axis] = slice(whole.shape[axis] // 2, whole.shape[axis])
    recorders = []

    def tensor(name):
        recorders.append(Recorder(safe_open(tmp_path / "model.safetensors", "numpy").get_slice(name)))
        return recorders[-1]

    shape = jax.ShapeDtypeStruct(whole.shape, whole.dtype)
    block = weights._reader(tensor, layout, shape)(half)
    np.testing.assert_array_equal(block, whole[tuple(half)])
    # The head dims of a head lie together in the file and are read together.
    assert sum(recorder.read for recorder in recorders) == whole.size // (1 if axis == 3 else 2)


@pytest.mark.parametrize("rows", [slice(0, 6), slice(8, 16), slice(12, 16)])
def test_blocks_of_a_grown_table(tmp_path, rows):
    whole = leaves(load(write(tmp_path), embedding_rows=16))["embedding"]

    def tensor(name):
        return safe_open(tmp_path / "model.safetensors", "numpy").get_slice(name)

    layout = TENSORS["embedding",]
    read = weights._reader(tensor, layout, jax.ShapeDtypeStruct((16, 8), np.float32))
    np.testing.assert_array_equal(read([rows, slice(2, 6)]), whole[rows, 2:6])


def test_host_memory_stays_far_below_the_checkpoint(tmp_path):
    """Beside the weights on the device, the host holds one stacked weight and one tensor at a time, and for a
    moment the weight before, which JAX lets go in the background."""
    big = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "head_dim": 64}
    size = (write(tmp_path, **big) / "model.safetensors").stat().st_size
    assert size > 50e6
    gc.collect()
    tracemalloc.start()
    try:
        state = load(tmp_path)
        # What is still held afterwards are weights on the CPU "device" that borrow the host's memory.
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) > 50e6
    assert peak - held < 2 * largest + 2e6 < 0.6 * size


SHARDED_LOAD = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from longshot_jax.model.huggingface import read_config, weights as hf

folder = sys.argv[1]
config = read_config(folder)
plain = hf.load_weights(folder, config, embedding_rows=16)
mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
real, reads = hf._reader, []

def counted(*arguments):
    block = real(*arguments)
    return lambda index: reads.append(index) or block(index)

hf._reader = counted
for axis in (-1, -2):
    reads.clear()

    def cut(leaf):
        names = [None] * leaf.ndim
        if leaf.ndim > 1:
            names[axis] = "fsdp"
        return jax.sharding.NamedSharding(mesh, jax.P(*names))

    targets = jax.tree.map(cut, plain)
    state = hf.load_weights(folder, config, embedding_rows=16, sharding=targets)
    for leaf, target, expected in zip(*map(jax.tree.leaves, (state, targets, plain)), strict=True):
        assert leaf.sharding == target and len(leaf.addressable_shards) == 4
        np.testing.assert_array_equal(leaf, expected)
        assert leaf.ndim == 1 or leaf.addressable_shards[0].data.size == leaf.size // 2
    cut_weights = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(plain))
    # Each half is read once, though two devices hold it.
    assert len(reads) == len(jax.tree.leaves(plain)) + cut_weights, len(reads)
"""


def test_four_devices_receive_their_own_slices(tmp_path):
    write(tmp_path)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", SHARDED_LOAD, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
