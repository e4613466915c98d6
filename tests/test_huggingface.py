"""Weights from and to Hugging Face directories; every checkpoint here is written by the test itself."""

import gc
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from longshot_jax.errors import UserError
from longshot_jax.model import huggingface
from longshot_jax.model.huggingface import load_weights, read_config, save_weights
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.model.rope import RopeScaling

CONFIG = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FIRST_QUERY = "model.layers.0.self_attn.q_proj.weight"


def hf_tensors(content: dict) -> dict[str, np.ndarray]:
    """Random tensors with the names and [out, in] shapes of `LlamaForCausalLM`."""
    hidden, inner, vocab = (content[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    heads = content["num_attention_heads"] * content["head_dim"]
    kv_heads = content["num_key_value_heads"] * content["head_dim"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not content["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(content["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (heads, hidden),
            "self_attn.k_proj": (kv_heads, hidden),
            "self_attn.v_proj": (kv_heads, hidden),
            "self_attn.o_proj": (hidden, heads),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, tensors: dict[str, np.ndarray] | None = None, **changes) -> Path:
    """A checkpoint in one file; a change to None removes the key from `config.json`."""
    content = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    save_file(hf_tensors(CONFIG | changes) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def write_sharded(folder: Path) -> dict[str, np.ndarray]:
    """The same in two files with an index."""
    tensors = hf_tensors(CONFIG)
    write(folder, tensors)
    (folder / "model.safetensors").unlink()
    placed = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        placed |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return tensors


def load(folder: Path, *arguments, **options) -> nnx.State:
    return load_weights(folder, read_config(folder), *arguments, **options)


def leaves(state: nnx.State) -> dict[str, jax.Array]:
    return {
        ".".join(step.key for step in path if hasattr(step, "key")): leaf
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def assert_equal(state: nnx.State, other: nnx.State) -> None:
    assert jax.tree.structure(state) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, state, other)


# Config


def test_config_is_read(tmp_path):
    assert read_config(write(tmp_path)) == LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=64,
    )


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "llama3"} | SCALING},
        {"rope_theta": 1e4, "rope_scaling": {"type": "llama3"} | SCALING},
        {"rope_theta": ..., "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4} | SCALING},
    ],
    ids=["rope_scaling", "older type", "rope_parameters"],
)
def test_scaled_rope_is_read_in_every_spelling(tmp_path, rope):
    config = read_config(write(tmp_path, **rope))
    assert (config.rope_theta, config.rope_scaling) == (1e4, RopeScaling(8.0, 1.0, 4.0, 32))


def test_unscaled_rope_parameters_and_defaults(tmp_path):
    config = read_config(
        write(
            tmp_path,
            rope_theta=...,
            rope_scaling=...,
            rope_parameters={"rope_type": "default", "rope_theta": 7e3},
        )
    )
    assert (config.rope_theta, config.rope_scaling) == (7e3, None)
    write(tmp_path, head_dim=2)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["head_dim"], content["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert (read_config(tmp_path).head_dim, read_config(tmp_path).tie_word_embeddings) == (2, False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": ...}, "key hidden_size is missing"),
        ({"num_key_value_heads": ...}, "key num_key_value_heads is missing"),
        ({"rms_norm_eps": ...}, "key rms_norm_eps is missing"),
        ({"rope_theta": ...}, "key rope_theta is missing"),
        ({"hidden_size": "8"}, "hidden_size must be a positive whole number, not '8'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive whole number, not 0"),
        ({"vocab_size": True}, "vocab_size must be a positive whole number, not True"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple of num_key_value_heads 3"),
        ({"head_dim": 5}, "head_dim 5 must be even"),
        ({"head_dim": ..., "hidden_size": 9}, "hidden_size 9 must be a multiple of num_attention_heads 4"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type is 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor is missing"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
        (
            {"rope_scaling": {"rope_type": "llama3"} | SCALING | {"high_freq_factor": 1.0}},
            "rope_scaling.high_freq_factor must be greater",
        ),
    ],
)
def test_config_that_cannot_be_honoured_is_refused(tmp_path, changes, words):
    content = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize(("text", "words"), [("{", "not valid JSON"), ("[]", "must hold a JSON object")])
def test_broken_config_is_refused(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"elsewhere/config\.json is missing"):
        read_config(tmp_path / "elsewhere")


# Loading


def test_weights_are_placed_and_turned(tmp_path):
    tensors = hf_tensors(CONFIG)
    state = leaves(load(write(tmp_path)))
    config = read_config(tmp_path)
    fresh = jax.jit(lambda: nnx.split(Llama(config, nnx.Rngs(0)))[1])()
    assert jax.tree.structure(load(tmp_path)) == jax.tree.structure(fresh)
    assert {name: leaf.shape for name, leaf in state.items()} == {
        name: leaf.shape for name, leaf in leaves(fresh).items()
    }
    np.testing.assert_array_equal(state["embedding"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(state["head"], tensors["lm_head.weight"])
    prefix = "model.layers.1."
    # Head 2's dim 5, from hidden unit 3: the row of a flattened [heads, head_dim].
    assert state["layers.query"][1, 3, 2, 5] == tensors[prefix + "self_attn.q_proj.weight"][2 * 6 + 5, 3]
    assert state["layers.key"][1, 3, 1, 5] == tensors[prefix + "self_attn.k_proj.weight"][6 + 5, 3]
    assert state["layers.value"][1, 3, 1, 4] == tensors[prefix + "self_attn.v_proj.weight"][6 + 4, 3]
    assert state["layers.output"][1, 2, 5, 3] == tensors[prefix + "self_attn.o_proj.weight"][3, 2 * 6 + 5]
    np.testing.assert_array_equal(state["layers.gate"][1], tensors[prefix + "mlp.gate_proj.weight"].T)
    np.testing.assert_array_equal(state["layers.up"][1], tensors[prefix + "mlp.up_proj.weight"].T)
    np.testing.assert_array_equal(state["layers.down"][1], tensors[prefix + "mlp.down_proj.weight"].T)
    np.testing.assert_array_equal(
        state["layers.attention_norm"][1], tensors[prefix + "input_layernorm.weight"]
    )
    np.testing.assert_array_equal(
        state["layers.mlp_norm"][1], tensors[prefix + "post_attention_layernorm.weight"]
    )


def test_sharded_equals_single(tmp_path):
    write_sharded(tmp_path / "sharded")
    assert_equal(load(tmp_path / "sharded"), load(write(tmp_path / "single")))


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
def test_dtypes_are_converted(tmp_path, stored, wanted):
    tensors = {name: tensor.astype(stored) for name, tensor in hf_tensors(CONFIG).items()}
    state = leaves(load(write(tmp_path, tensors), wanted))
    assert all(leaf.dtype == wanted for leaf in state.values())
    expected = tensors["model.layers.0.mlp.up_proj.weight"].astype(np.float32).astype(wanted).T
    np.testing.assert_array_equal(state["layers.up"][0], expected)


def test_buffers_that_follow_from_the_config_are_ignored(tmp_path):
    tensors = hf_tensors(CONFIG) | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    assert_equal(load(write(tmp_path / "old", tensors)), load(write(tmp_path / "new")))


def test_tied_head_may_be_stored_if_it_is_the_table(tmp_path):
    tensors = hf_tensors(CONFIG | {"tie_word_embeddings": True})
    table = tensors["model.embed_tokens.weight"]
    plain = load(write(tmp_path / "plain", tensors, tie_word_embeddings=True))
    assert "head" not in leaves(plain)
    assert_equal(
        load(write(tmp_path / "both", tensors | {"lm_head.weight": table}, tie_word_embeddings=True)), plain
    )
    write(tmp_path / "short", tensors | {"lm_head.weight": table[:-1].copy()}, tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"lm_head\.weight has shape \[10, 8\].*\[11, 8\]"):
        load(tmp_path / "short")
    write(tmp_path / "other", tensors | {"lm_head.weight": table + 1}, tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"lm_head\.weight differs .* set tie_word_embeddings to false"):
        load(tmp_path / "other")


def test_new_rows_are_the_mean_and_start_with_no_more_than_an_average_share(tmp_path):
    old, new = load(write(tmp_path)), load(tmp_path, embedding_rows=16)
    for name in ("embedding", "head"):
        table = leaves(new)[name]
        np.testing.assert_array_equal(table[:11], leaves(old)[name])
        np.testing.assert_allclose(
            table[11:], np.broadcast_to(leaves(old)[name].mean(0), (5, 8)), rtol=1e-5, atol=1e-6
        )
    grown = replace(read_config(tmp_path), vocab_size=16)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Llama(grown, nnx.Rngs(0))))
    assert jax.tree.structure(new) == jax.tree.structure(shapes)
    hidden = jax.random.normal(jax.random.key(0), (50, 8))
    shares = jax.nn.softmax(nnx.merge(graph, new).logits(hidden))
    assert shares[:, 11:].max() <= 1 / 16


def test_fewer_rows_than_stored_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"has 11 rows, but 10 were asked for"):
        load(write(tmp_path), embedding_rows=10)


# Every tensor accounted for


def test_missing_tensor_is_named(tmp_path):
    tensors = hf_tensors(CONFIG)
    del tensors[FIRST_QUERY]
    with pytest.raises(
        UserError, match=r"model\.safetensors: tensor .*0\.self_attn\.q_proj.*\[24, 8\].*missing"
    ):
        load(write(tmp_path, tensors))


def test_missing_head_is_named(tmp_path):
    tensors = hf_tensors(CONFIG)
    del tensors["lm_head.weight"]
    with pytest.raises(UserError, match=r"tensor lm_head\.weight of shape \[11, 8\].*missing"):
        load(write(tmp_path, tensors))


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "score.weight"]
)
def test_surplus_tensor_is_named(tmp_path, name):
    write(tmp_path, hf_tensors(CONFIG) | {name: np.ones((3, 5), np.float32)})
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert f"model.safetensors: tensor {name} of shape [3, 5] has no place" in str(error.value)


@pytest.mark.parametrize("shape", [(8, 24), (24, 7), (192,)])
def test_misshapen_tensor_is_named_with_both_shapes(tmp_path, shape):
    write(tmp_path, hf_tensors(CONFIG) | {FIRST_QUERY: np.ones(shape, np.float32)})
    with pytest.raises(UserError) as error:
        load(tmp_path)
    expected = (
        f"model.safetensors: tensor {FIRST_QUERY} has shape {list(shape)}, but config.json asks for [24, 8]"
    )
    assert expected in str(error.value)


def test_quantised_tensor_is_named(tmp_path):
    write(tmp_path, hf_tensors(CONFIG) | {FIRST_QUERY: np.ones((24, 8), np.int8)})
    with pytest.raises(UserError, match=r"q_proj\.weight is stored as I8, but only BF16, F16, F32"):
        load(tmp_path)


def test_all_tensors_are_checked_before_any_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "_place", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(UserError, match="no place"):
        load(write(tmp_path, hf_tensors(CONFIG) | {"score.weight": np.ones(1, np.float32)}))


# Damaged directories


@pytest.mark.parametrize("kept", [0.9, 0.01, 0.0])
def test_truncated_file_is_named(tmp_path, kept):
    file = write(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or cut short"):
        load(tmp_path)


def test_truncated_and_missing_shards_are_named(tmp_path):
    write_sharded(tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is damaged or cut short"):
        load(tmp_path)
    second.unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is missing"):
        load(tmp_path)


def test_index_that_does_not_fit_its_files_is_named(tmp_path):
    write_sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][FIRST_QUERY] = (
        {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)} - {content["weight_map"][FIRST_QUERY]}
    ).pop()
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"q_proj\.weight is missing, though model\.safetensors\.index\.json"):
        load(tmp_path)
    index.write_text('{"metadata": {}}')
    with pytest.raises(UserError, match="weight_map must map tensor names"):
        load(tmp_path)
    index.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load(tmp_path)


def test_folder_without_safetensors_is_refused(tmp_path):
    (write(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"model\.safetensors is missing; weights are read from safetensors only"
    ):
        load(tmp_path)


# Placement and memory


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


@pytest.mark.parametrize(
    ("name", "axis"), [("query", 1), ("query", 2), ("query", 3), ("output", 1), ("down", 2)]
)
def test_any_block_of_a_weight_can_be_read_alone(tmp_path, name, axis):
    """What sharding over several devices asks for, along each axis; only the rows and columns of it are read."""
    whole = leaves(load(write(tmp_path)))[f"layers.{name}"]
    layout = huggingface.LAYOUTS["layers", name]
    half = [slice(None)] * whole.ndim
    half[axis] = slice(whole.shape[axis] // 2, whole.shape[axis])
    recorders = []

    def tensor(name):
        recorders.append(Recorder(safe_open(tmp_path / "model.safetensors", "numpy").get_slice(name)))
        return recorders[-1]

    shape = jax.ShapeDtypeStruct(whole.shape, whole.dtype)
    block = huggingface._reader(tensor, layout, shape)(half)
    np.testing.assert_array_equal(block, whole[tuple(half)])
    # The head dims of a head lie together in the file and are read together.
    assert sum(recorder.read for recorder in recorders) == whole.size // (1 if axis == 3 else 2)


@pytest.mark.parametrize("rows", [slice(0, 6), slice(8, 16), slice(12, 16)])
def test_blocks_of_a_grown_table(tmp_path, rows):
    whole = leaves(load(write(tmp_path), embedding_rows=16))["embedding"]

    def tensor(name):
        return safe_open(tmp_path / "model.safetensors", "numpy").get_slice(name)

    layout = huggingface.LAYOUTS["embedding",]
    read = huggingface._reader(tensor, layout, jax.ShapeDtypeStruct((16, 8), np.float32))
    np.testing.assert_array_equal(read([rows, slice(2, 6)]), whole[rows, 2:6])


def test_host_memory_stays_far_below_the_checkpoint(tmp_path):
    """Beside the weights on the device, the host holds one stacked weight and one tensor at a time, and for a
    moment the weight before, which JAX lets go in the background."""
    big = {
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 12,
        "head_dim": 64,
    }
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


# Saving


def saved(tmp_path: Path, **options) -> tuple[nnx.State, LlamaConfig, Path]:
    config = read_config(write(tmp_path / "source"))
    state = load(tmp_path / "source")
    save_weights(state, config, tmp_path / "out", **options)
    return state, config, tmp_path / "out"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaling", [None, {"rope_type": "llama3"} | SCALING], ids=["plain", "llama3"])
def test_round_trip_gives_the_same_tensors_and_config(tmp_path, tied, scaling):
    source = write(tmp_path / "source", tie_word_embeddings=tied, rope_scaling=scaling)
    save_weights(load(source), read_config(source), tmp_path / "out", bos_token_id=3, eos_token_id=[4, 5])
    assert read_config(tmp_path / "out") == read_config(source)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (content["bos_token_id"], content["eos_token_id"]) == (3, [4, 5])


def test_large_models_are_written_in_files_below_the_limit(tmp_path):
    state, config, folder = saved(tmp_path, shard_bytes=1500)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert set(index["weight_map"].values()) == {file.name for file in files}
    total = 0
    for file in files:
        sizes = [tensor.nbytes for tensor in load_file(file).values()]
        assert sum(sizes) <= 1500 or len(sizes) == 1
        total += sum(sizes)
    assert index["metadata"]["total_size"] == total == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert_equal(load_weights(folder, config), state)


def test_bfloat16_is_written_rounded(tmp_path):
    state, config, folder = saved(tmp_path, dtype=jnp.bfloat16)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with safe_open(folder / "model.safetensors", "numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state)
    assert_equal(load_weights(folder, config, jnp.bfloat16), rounded)


def test_other_dtypes_and_states_of_another_config_are_refused(tmp_path):
    state, config, folder = saved(tmp_path)
    with pytest.raises(ValueError, match="not float16"):
        save_weights(state, config, folder, dtype=jnp.float16)
    with pytest.raises(ValueError, match="not that of a Llama"):
        save_weights(state, replace(config, vocab_size=12), folder)


def test_an_earlier_export_is_replaced_whole(tmp_path):
    state, config, folder = saved(tmp_path, shard_bytes=1500)
    (folder / "tokenizer.json").write_text("{}")
    save_weights(state, config, folder)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_new_export_is_readable_by_others_as_the_umask_says(tmp_path):
    _, _, folder = saved(tmp_path)
    modes = {file.stat().st_mode for file in folder.iterdir()}
    assert len(modes) == 1


def test_nothing_else_is_ever_replaced(tmp_path):
    state, config, folder = saved(tmp_path)
    source = tmp_path / "source"
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    with pytest.raises(UserError, match=r"source holds model\.safetensors, which is not an export"):
        save_weights(state, config, source)
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out holds notes\.txt"):
        save_weights(state, config, folder)
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"settings holds config\.json but no exported weights"):
        save_weights(state, config, tmp_path / "settings")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file cannot be written"):
        save_weights(state, config, tmp_path / "file")


@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_leaves_the_folder_as_it_was(tmp_path, monkeypatch, earlier):
    state, config, folder = saved(tmp_path)
    if not earlier:
        shutil.rmtree(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()} if earlier else None
    real, calls = save_file, []

    def full_after_one(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(huggingface, "save_file", full_after_one)
    with pytest.raises(UserError, match=r"out cannot be written: .*No space left on device"):
        save_weights(state, config, folder, shard_bytes=1500)
    assert len(calls) == 2
    after = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else None
    assert after == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "source"] if earlier else ["source"]


SHARDED_LOAD = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from longshot_jax.model import huggingface as hf

folder = sys.argv[1]
config = hf.read_config(folder)
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
