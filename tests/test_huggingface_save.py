"""Export to a Hugging Face folder: the same tensors again, and never anything lost that stood there."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from huggingface_folders import SCALING, assert_equal, load, write
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from longshot_jax.errors import UserError
from longshot_jax.model.huggingface import load_weights, read_config, save_weights, stored_tensors
from longshot_jax.model.llama import LlamaConfig


def saved(tmp_path: Path, **options) -> tuple[nnx.State, LlamaConfig, Path]:
    config = read_config(write(tmp_path / "source"))
    state = load(tmp_path / "source")
    save_weights(state, config, tmp_path / "out", **options)
    return state, config, tmp_path / "out"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaling", [None, {"rope_type": "llama3"} | SCALING], ids=["plain", "llama3"])
def test_round_trip_gives_the_same_tensors_and_config(tmp_path, tied, scaling):
    source = write(tmp_path / "source", tie_word_embeddings=tied, rope_scaling=scaling)
    save_weights(
        load(source), read_config(source), tmp_path / "out", token_ids={"bos_token_id": 3, "eos_token_id": [4, 5]}
    )
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

    monkeypatch.setattr(stored_tensors, "save_file", full_after_one)
    with pytest.raises(UserError, match=r"out cannot be written \(No space left on device\): choose another folder"):
        save_weights(state, config, folder, shard_bytes=1500)
    assert len(calls) == 2
    after = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else None
    assert after == before
    left = ["out", "source"] if earlier else ["source"]
    assert sorted(file.name for file in tmp_path.iterdir()) == left
