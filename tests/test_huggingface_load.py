"""Weights from a Hugging Face folder: each tensor in its place, and what is missing, surplus or damaged named."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from huggingface_folders import CONFIG, FIRST_QUERY, assert_equal, hf_tensors, leaves, load, write, write_sharded
from tiny_run import tiny

from longshot_jax.checkpoints.pretrained import load_pretrained
from longshot_jax.errors import UserError
from longshot_jax.model.huggingface import read_config, weights
from longshot_jax.model.llama import Llama
from longshot_jax.train import train


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
    np.testing.assert_array_equal(state["layers.attention_norm"][1], tensors[prefix + "input_layernorm.weight"])
    np.testing.assert_array_equal(state["layers.mlp_norm"][1], tensors[prefix + "post_attention_layernorm.weight"])


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
    assert_equal(load(write(tmp_path / "both", tensors | {"lm_head.weight": table}, tie_word_embeddings=True)), plain)
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
        np.testing.assert_allclose(table[11:], np.broadcast_to(leaves(old)[name].mean(0), (5, 8)), rtol=1e-5, atol=1e-6)
    grown = replace(read_config(tmp_path), vocab_size=16)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Llama(grown, nnx.Rngs(0))))
    assert jax.tree.structure(new) == jax.tree.structure(shapes)
    hidden = jax.random.normal(jax.random.key(0), (50, 8))
    shares = jax.nn.softmax(nnx.merge(graph, new).logits(hidden))
    assert shares[:, 11:].max() <= 1 / 16


def test_added_and_reserved_rows_start_from_those_that_are_named(tmp_path):
    old, new = load(write(tmp_path)), load(tmp_path, embedding_rows=13, copied_rows={12: 4, 3: 5})
    for name in ("embedding", "head"):
        table, before = leaves(new)[name], leaves(old)[name]
        assert np.array_equal(table[12], before[4]) and np.array_equal(table[3], before[5])
        assert not np.array_equal(table[11], before[4]) and np.array_equal(table[4:11], before[4:11])


def test_fewer_rows_than_stored_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"has 11 rows, but 10 were asked for"):
        load(write(tmp_path), embedding_rows=10)


# Every tensor accounted for


def test_missing_tensor_is_named(tmp_path):
    tensors = hf_tensors(CONFIG)
    del tensors[FIRST_QUERY]
    with pytest.raises(UserError, match=r"model\.safetensors: tensor .*0\.self_attn\.q_proj.*\[24, 8\].*missing"):
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
    expected = f"model.safetensors: tensor {FIRST_QUERY} has shape {list(shape)}, but config.json asks for [24, 8]"
    assert expected in str(error.value)


def test_quantised_tensor_is_named(tmp_path):
    write(tmp_path, hf_tensors(CONFIG) | {FIRST_QUERY: np.ones((24, 8), np.int8)})
    with pytest.raises(UserError, match=r"q_proj\.weight is stored as I8, but only BF16, F16, F32"):
        load(tmp_path)


def test_all_tensors_are_checked_before_any_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_place", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(UserError, match="no place"):
        load(write(tmp_path, hf_tensors(CONFIG) | {"score.weight": np.ones(1, np.float32)}))


# Damaged directories


@pytest.mark.parametrize("kept", [0.9, 0.01, 0.0])
def test_truncated_file_is_named(tmp_path, kept):
    file = write(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or cut short"):
        load(tmp_path)


def test_a_run_looks_at_the_weights_before_it_writes_anything(tmp_path):
    shutil.copytree("tests/fixtures/golden_llama3", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    run = tiny(model__source=str(tmp_path / "model"), data__tokenizer="chains")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or cut short"):
        train(run, tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


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


@pytest.mark.parametrize("name", ["../other.safetensors", "/other.safetensors", "a/../../b.safetensors", "a\0b"])
def test_index_cannot_lead_out_of_its_folder(tmp_path, name):
    index = tmp_path / "model" / "model.safetensors.index.json"
    write_sharded(tmp_path / "model")
    write(tmp_path / "whole").joinpath("model.safetensors").rename(tmp_path / "other.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(hf_tensors(CONFIG), name)}))
    with pytest.raises(UserError, match=r"index\.json: weight_map names the file .* does not lie in .*model: put"):
        load(tmp_path / "model")


def test_links_into_a_hub_cache_are_followed(tmp_path):
    tensors = write_sharded(tmp_path / "blobs")
    (tmp_path / "snapshots" / "main").mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshots" / "main" / file.name).symlink_to(f"../../blobs/{file.name}")
    state = leaves(load(tmp_path / "snapshots" / "main"))
    np.testing.assert_array_equal(state["embedding"], tensors["model.embed_tokens.weight"])


# Numbers that are none


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(tmp_path, stored, value):
    tensors = {name: tensor.astype(stored) for name, tensor in hf_tensors(CONFIG).items()}
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][3, 5] = value
    for wanted in (jnp.float32, jnp.bfloat16, jnp.int8):
        with pytest.raises(
            UserError, match=r"model\.safetensors: tensor .*1\.mlp\.down_proj\.weight holds NaN or infinity"
        ):
            load(write(tmp_path, tensors), wanted)


def test_the_largest_numbers_are_finite(tmp_path):
    tensors = hf_tensors(CONFIG)
    tensors["model.norm.weight"][:4] = [3.4e38, -3.4e38, -0.0, 1e-45]
    np.testing.assert_array_equal(leaves(load(write(tmp_path, tensors)))["final_norm"], tensors["model.norm.weight"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "pytorch_model.bin is not read: write safetensors with transformers"),
        ("model.Q4_K_M.gguf", "GGUF is not read: give the folder from which it was converted"),
        ("adapter_config.json", "merge them into their model"),
        ("consolidated.00.pth", "give the same model in Hugging Face's form"),
        ("params.json", "give the same model in Hugging Face's form"),
        ("model-00001-of-00002.safetensors", "needs the index of the shards, model.safetensors.index.json"),
        ("other.txt", "copy it from the source of the model"),
    ],
)
def test_weights_of_another_form_are_refused_with_the_way_to_safetensors(tmp_path, name, words):
    (write(tmp_path) / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(
        UserError, match=r"model\.safetensors is missing; weights are read from safetensors only"
    ) as told:
        load(tmp_path)
    assert words in str(told.value)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds neither checkpoints nor a config\.json") as told:
        load_pretrained(tmp_path)
    assert name == "other.txt" or words in str(told.value)


def test_a_file_is_no_folder_of_weights(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"model\.gguf is a file: give a run folder .* \(GGUF is not read"):
        load_pretrained(tmp_path / "model.gguf")


def test_a_pointer_of_git_is_not_called_damaged(tmp_path):
    (write(tmp_path) / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(UserError, match=r"model\.safetensors is a pointer of Git LFS.*run git lfs pull"):
        load(tmp_path)
