"""What a start of a run takes from the folder that it is given, and what it leaves there. Nothing is trained."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
from run_folders import PPO, edit_metadata, save_run
from tiny_run import tiny

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.pretrained import load_pretrained
from longshot_jax.config.curriculum import CurriculumConfig
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.files import part_of
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.train import train


class Drawn(Exception):
    """All checks are passed: the model would now be built."""


@pytest.fixture
def start(monkeypatch):
    """Starts a run up to that point; the vocabulary of its tokenizer."""
    sizes = []

    def abstract_reasoner(run, tokenizer, mesh, folder, stored):
        sizes.append(tokenizer.vocabulary_size)
        return None

    def checkpoints(*_):
        raise Drawn

    def started(run, folder):
        with monkeypatch.context() as patch:
            patch.setattr("longshot_jax.train.abstract_reasoner", abstract_reasoner)
            stopping = type("Stopping", (), {"__init__": checkpoints, "reader": Checkpoints.reader})
            patch.setattr("longshot_jax.train.Checkpoints", stopping)
            with pytest.raises(Drawn):
                train(run, folder)
        return sizes.pop()

    return started


def bpe(vocabulary, **overrides):
    return tiny(
        data__tokenizer="bpe", data__bpe_vocabulary=vocabulary, data__generated_train=64, data__answer_length=9,
        **({"data__prompt_length": 32} | overrides),
    )  # fmt: skip


def test_only_a_checkpoint_binds_to_its_settings(tmp_path, start):
    """An empty folder of checkpoints, as a run leaves it that failed before its first one, does not."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(replace(PPO, seed=7))))
    start(tiny(), folder)
    shutil.rmtree(folder)

    save_run(folder, PPO, "ppo")
    start(PPO, folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"another config: seed \(stored 0, now 1\)"):
        train(replace(PPO, seed=1), folder)
    with pytest.raises(UserError, match=r"another config: .*curriculum\.c_thought \(stored 1, now 2\)"):
        train(replace(PPO, curriculum=CurriculumConfig(c_thought=2)), folder)


def test_settings_that_came_or_went_since_a_checkpoint_do_not_matter(tmp_path, start):
    save_run(tmp_path, PPO, "ppo")
    with edit_metadata(tmp_path, 7) as metadata:
        del metadata["config"]["ppo"]["early_stop_kl"]
        metadata["config"]["evaluation"]["num_trajectories"] = 5  # which once was a setting that nothing read
    start(PPO, tmp_path)


def test_converted_weights_are_no_run(tmp_path):
    shape = LlamaConfig(9, 8, 12, 1, 2, 1, 4)
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(0, {"x": 1.0}, {"backbone": asdict(shape), "backbone_path": "trainable.backbone"})
    with pytest.raises(UserError, match=r"converted weights, not a run: name it as config\.initialize_from"):
        train(tiny(), tmp_path)


def test_the_tokenizer_is_this_starts_own_until_there_is_a_checkpoint(tmp_path, start):
    with pytest.raises(UserError, match="prompt_length"):
        train(bpe(300, data__prompt_length=8), tmp_path)
    assert not (tmp_path / "tokenizer").exists()
    assert start(bpe(270), tmp_path) == 270
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("half of")
    part = part_of(tmp_path / "tokenizer")
    part.mkdir()
    assert start(bpe(265), tmp_path) == 265
    assert Tokenizer.load(str(tmp_path / "tokenizer")).vocabulary_size == 265
    assert not part.exists()


def test_a_checkpoints_tokenizer_stays(tmp_path, start):
    run = replace(PPO, data=replace(PPO.data, tokenizer="bpe"))
    save_run(tmp_path, run, "ppo")  # beside it the tokenizer of the chains
    assert start(run, tmp_path) == Tokenizer.for_chains().vocabulary_size
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"tokenizer is missing, and the checkpoints beside it need it"):
        train(run, tmp_path)


def everything(folder):
    return sorted((str(path), path.is_symlink() or path.is_dir() or path.read_bytes()) for path in folder.rglob("*"))


def test_a_run_whose_checkpoints_are_on_a_disk_that_is_gone_is_no_new_run(tmp_path, start):
    """It would get another tokenizer, which the checkpoints would then be read with."""
    folder, run = tmp_path / "run", bpe(270)
    save_run(folder, replace(run, phases=("ppo",)), "ppo")
    (folder / "checkpoints").rename(tmp_path / "disk")
    (folder / "checkpoints").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").rename(tmp_path / "away")
    before = everything(tmp_path)
    for read in (lambda: train(run, folder), lambda: Checkpoints.reader(folder), lambda: load_pretrained(folder)):
        with pytest.raises(UserError, match=r"checkpoints is a link to .*disk, where no folder can be reached: mount"):
            read()
    assert everything(tmp_path) == before
    (tmp_path / "away").rename(tmp_path / "disk")
    start(replace(run, phases=("ppo",)), folder)


def test_a_start_from_a_run_whose_tokenizer_is_out_of_reach_trains_no_other(tmp_path):
    save_run(tmp_path / "before", PPO, "ppo")
    shutil.rmtree(tmp_path / "before" / "tokenizer")
    (tmp_path / "before" / "tokenizer").symlink_to("nowhere")
    with pytest.raises(UserError, match="tokenizer is a link to nowhere, where no folder can be reached"):
        train(bpe(270, initialize_from=str(tmp_path / "before")), tmp_path / "run")


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "tokenizer"])
def test_a_file_in_place_of_a_folder_is_refused_before_anything_is_written(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name} is not a folder: move it elsewhere"):
        train(tiny(), tmp_path)
    assert everything(tmp_path) == [(str(tmp_path / name), b"mine")]
