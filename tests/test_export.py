"""What an export says about its weights, and what it does to files that are there already."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import start
from huggingface_folders import LLAMA, LLAMA_SPECIALS, llama_files
from run_folders import CURRICULUM, save_run
from safetensors.numpy import load_file, save_file

from longshot_jax import LongShot
from longshot_jax.checkpoints.convert import from_hf, to_hf
from longshot_jax.checkpoints.sidecar import FILE
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.model.huggingface.stored_tensors import stored_marks
from longshot_jax.model.huggingface.weights import METADATA

TABLE = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose latent tokens are reserved tokens of Llama 3, and its export."""
    folder = tmp_path_factory.mktemp("llama3")
    tokens = Tokenizer.load(llama_files(folder / "files", LLAMA_SPECIALS, **LLAMA))
    assert len(tokens.meanings) == 3 and not tokens.came_with_latents
    save_run(folder / "run", CURRICULUM, "curriculum", tokens=tokens)
    to_hf(folder / "run", folder / "export")
    return folder / "run"


def embedding(folder: Path) -> np.ndarray:
    return np.asarray(LongShot.from_pretrained(folder).model.params[0]["backbone"]["embedding"][...])


def rewritten(export: Path, folder: Path) -> Path:
    """The export as a plain Llama: with the marks of no program, and without the file of the run."""
    folder.mkdir()
    for file in export.iterdir():
        if file.name != FILE:
            (folder / file.name).write_bytes(file.read_bytes())
    save_file(load_file(export / "model.safetensors"), folder / "model.safetensors", {"format": "pt"})
    return folder


def test_trained_rows_of_reserved_tokens_survive_there_and_back(run, tmp_path):
    trained = load_file(run.parent / "export" / "model.safetensors")[TABLE]
    assert from_hf(run.parent / "export", tmp_path / "converted")  # leaves out a navigator
    to_hf(tmp_path / "converted", tmp_path / "again")
    np.testing.assert_array_equal(embedding(tmp_path / "converted"), trained)
    np.testing.assert_array_equal(embedding(tmp_path / "again"), trained)
    from_hf(tmp_path / "again", tmp_path / "converted_again")
    to_hf(tmp_path / "converted_again", tmp_path / "third")
    np.testing.assert_array_equal(embedding(tmp_path / "third"), trained)


def test_untrained_rows_of_reserved_tokens_start_from_their_meanings(run, tmp_path):
    plain = rewritten(run.parent / "export", tmp_path / "plain")
    tokens = Tokenizer.load(str(plain))
    assert not from_hf(plain, tmp_path / "converted")
    to_hf(tmp_path / "converted", tmp_path / "out")
    for folder in (plain, tmp_path / "converted", tmp_path / "out"):
        table = embedding(folder)
        for row, origin in tokens.meanings.items():
            np.testing.assert_array_equal(table[row], table[origin])
    assert stored_marks(tmp_path / "out")["latent_rows"] == "untrained"


def test_only_the_export_of_a_run_can_have_lost_what_makes_it_think(run, tmp_path):
    export = rewritten(run.parent / "export", tmp_path / "export")
    weights = run.parent / "export" / "model.safetensors"
    (export / "model.safetensors").write_bytes(weights.read_bytes())
    assert LongShot.from_pretrained(export).model.lost_sidecar, (
        "the weights say so, whatever the latent tokens are called"
    )

    # Its latent tokens have names of their own, as those that a conversion adds.
    save_run(tmp_path / "chains", CURRICULUM, "curriculum")
    to_hf(tmp_path / "chains", tmp_path / "of_chains")
    plain = rewritten(tmp_path / "of_chains", tmp_path / "plain")
    from_hf(plain, tmp_path / "converted")
    to_hf(tmp_path / "converted", tmp_path / "out")
    assert not LongShot.from_pretrained(tmp_path / "out").model.lost_sidecar
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    save_file(tensors, tmp_path / "out" / "model.safetensors", METADATA)  # as earlier exports, which do not say
    assert LongShot.from_pretrained(tmp_path / "out").model.lost_sidecar


@pytest.mark.parametrize("target", [".", "..", "whole"])
def test_the_working_directory_is_not_replaced(run, tmp_path, monkeypatch, capsys, target):
    (tmp_path / "export").mkdir()
    monkeypatch.chdir(tmp_path / "export")
    assert start("convert.py", "to-hf", run, tmp_path / "export" if target == "whole" else target) == 2
    said = capsys.readouterr().err
    assert "is the working directory or one above it" in said and said.count("\n") == 1
    assert Path.cwd() == tmp_path / "export" and list(tmp_path.rglob("*")) == [tmp_path / "export"]


def test_what_the_user_put_into_an_export_stays_or_is_refused(run, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(run.parent / "export", folder)
    for name in ("README.md", "tokenizer.model", "LICENSE", "LICENCE.txt"):
        (folder / name).write_text(f"my {name}")
    to_hf(run, folder, "bfloat16")
    for name in ("README.md", "tokenizer.model", "LICENSE", "LICENCE.txt"):
        assert (folder / name).read_text() == f"my {name}"
    assert load_file(folder / "model.safetensors")[TABLE].dtype.name == "bfloat16"
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):  # which no export writes
        (folder / name).write_text("mine")
        with pytest.raises(UserError, match=rf"holds {name}, which does not belong to an export; choose a new folder"):
            to_hf(run, folder)
        assert (folder / name).read_text() == "mine"
        (folder / name).unlink()
    (folder / "LICENSES").mkdir()
    with pytest.raises(UserError, match="holds LICENSES, which does not belong"):
        to_hf(run, folder)
