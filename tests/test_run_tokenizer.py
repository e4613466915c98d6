"""Which tokenizer a run has, and that weights which were trained with another one are not taken without a word."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_folders import LLAMA, LLAMA_SPECIALS, llama_files
from run_folders import CURRICULUM, save_run
from tiny_run import Stopped, stop_before_iterations, tiny

from longshot_jax.checkpoints.convert import to_hf
from longshot_jax.checkpoints.initialize import other_layout
from longshot_jax.data.run_tokenizer import build_tokenizer, foreign_tokenizer
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.train import train

TEXTS = ["a=1 n=a+2 n?"] * 3


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A run whose tokenizer is a BPE."""
    folder = tmp_path_factory.mktemp("bpe") / "run"
    save_run(folder, CURRICULUM, "curriculum", tokens=Tokenizer.train_bpe(TEXTS, 265))
    return folder


def chosen(kind: str, model_folder: Path | None = None, **settings) -> str:
    run = tiny(data__tokenizer=kind, **settings)
    return foreign_tokenizer(run, build_tokenizer(run, "unused", [], model_folder, resumed=False), model_folder)


def test_training_says_that_the_weights_of_another_run_have_another_tokenizer(start, tmp_path, monkeypatch):
    stop_before_iterations(monkeypatch.setattr)
    for kind, warned in (("chains", True), ("model", False)):
        said = io.StringIO()
        run = tiny(phases=("ppo",), initialize_from=str(start), data__tokenizer=kind, data__prompt_length=40)
        with pytest.raises(Stopped):
            train(run, tmp_path / kind, said)
        assert ("warning: config.data.tokenizer 'chains' gives" in said.getvalue()) is warned
        assert (f"the tokenizer in {start / 'tokenizer'}, with which" in said.getvalue()) is warned


def test_texts_of_another_form_than_the_weights_were_trained_with_are_told(start, tmp_path):
    run = tiny(initialize_from=str(start))
    assert run.markers == "answer" and other_layout(run, None) == other_layout(tiny(), None) == ""
    said = other_layout(replace(run, markers="coconut", data=replace(run.data, instruction="Think.")), None)
    assert "config.markers is 'coconut' and was 'answer', config.data.instruction is 'Think.' and was ''" in said
    to_hf(start, tmp_path / "export")
    exported = replace(tiny(model__source=str(tmp_path / "export")), markers="coconut")
    assert "config.markers is 'coconut' and was 'answer'" in other_layout(exported, tmp_path / "export")


def test_a_tokenizer_named_by_its_folder_is_compared_with_that_of_the_weights(start, tmp_path):
    Tokenizer.train_bpe(["zzz yyy"] * 3, 266).save(tmp_path / "other")
    said = chosen(str(tmp_path / "other"), initialize_from=str(start))
    assert "of its 266 tokens other ids than" in said and "the weights of config.initialize_from" in said
    assert said.endswith("set config.data.tokenizer to 'model'")
    shutil.copytree(start / "tokenizer", tmp_path / "same")
    assert chosen(str(tmp_path / "same"), initialize_from=str(start)) == ""


def test_a_hugging_face_folder_is_compared_if_it_has_a_tokenizer(tmp_path):
    (tmp_path / "bare").mkdir()
    folder = Path(llama_files(tmp_path / "llama", LLAMA_SPECIALS, **LLAMA))
    assert f"the tokenizer in {folder}, with which the weights of config.model.source" in chosen("chains", folder)
    assert chosen("model", folder) == chosen("chains", tmp_path / "bare") == chosen("chains") == ""
    (folder / "tokenizer.json").write_text("{")
    assert chosen("chains", folder) == "", "a broken tokenizer that is not used is not compared"


@pytest.mark.parametrize("kind", ["bpe", "model"])
def test_a_run_without_its_tokenizer_gives_no_weights_to_another_one(start, tmp_path, kind):
    shutil.copytree(start, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    with pytest.raises(
        UserError, match=r"run/tokenizer is missing, .* restore it, or name .* as config\.data\.tokenizer"
    ):
        chosen(kind, initialize_from=str(tmp_path / "run"))
