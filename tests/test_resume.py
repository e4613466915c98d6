"""Runs that go on although something around them has moved, changed or gone."""

import io
import json
import shutil
from dataclasses import replace

import pytest
from commands import start
from run_folders import CURRICULUM, save_run
from tiny_run import tiny

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.convert import from_hf, to_hf
from longshot_jax.checkpoints.pretrained import load_pretrained
from longshot_jax.data.chains import write_chains
from longshot_jax.errors import UserError
from longshot_jax.ppo.loop import PPOLoop
from longshot_jax.train import train

FEW = {"phases": ("ppo",), "ppo__iterations": 2, "evaluation__every_iterations": 1, "checkpoint__every": 1}
FEW |= {"checkpoint__keep_last": 9}


def prints(folder):
    with Checkpoints.reader(folder) as checkpoints:
        arrays = checkpoints._read_metadata(checkpoints.steps[-1])[1]
    return {name: entry["fingerprint"] for name, entry in arrays.items()}


def went_on(run, folder):
    """What the end of a run is once more after its last checkpoint is lost, and what was said."""
    with Checkpoints.reader(folder) as checkpoints:
        last = checkpoints.steps[-1]
    shutil.rmtree(folder / "checkpoints" / str(last))
    stream = io.StringIO()
    train(run, folder, stream)
    return prints(folder), stream.getvalue()


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    save_run(folder / "run", CURRICULUM, "curriculum")
    to_hf(folder / "run", folder / "llama")
    (folder / "llama" / "longshot.safetensors").unlink()
    return folder


@pytest.mark.parametrize("kind", ["initialize_from", "model__source"])
def test_a_run_goes_on_when_what_it_started_from_is_gone_or_has_moved(before, tmp_path, kind):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(before / ("run" if kind == "initialize_from" else "llama"), here)
    named = {kind: str(here)} | ({"data__tokenizer": "model"} if kind == "model__source" else {})
    run = tiny(**FEW, **named)
    train(run, tmp_path / "run", io.StringIO())
    end = prints(tmp_path / "run")
    here.rename(there)
    again, said = went_on(tiny(**FEW, **named), tmp_path / "run")  # its defaults are found anew
    assert again == end and "is not read again" not in said
    again, said = went_on(tiny(**FEW, **named | {kind: str(there)}), tmp_path / "run")
    assert again == end
    assert f"config.{kind.replace('__', '.')} was {here} and is not read again: the checkpoint has all weights." in said
    with pytest.raises(UserError, match="was made with another config"):  # nothing has moved: another start is meant
        train(tiny(**FEW, **named | {kind: str(before / "run")}), tmp_path / "run", io.StringIO())


@pytest.mark.parametrize("named", ["meta-llama/Llama-3.2-1B", "nowhere/at/all"])
def test_another_start_is_refused_where_nothing_has_moved(tmp_path, named):
    run = tiny(**FEW)
    train(run, tmp_path, io.StringIO())
    with pytest.raises(UserError, match=r"was made with another config: model\.source"):
        train(replace(run, model=replace(run.model, source=named)), tmp_path, io.StringIO())


def test_a_foreign_folder_is_not_called_a_damaged_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "5" / "readme.txt").write_text("mine")
    with pytest.raises(UserError, match="which is not that of a run"):
        train(tiny(), tmp_path, io.StringIO())


def test_the_result_is_that_of_the_best_checkpoint_on_disk(tmp_path):
    run = tiny(**FEW | {"checkpoint__keep_last": 1, "checkpoint__keep_best": 0})
    result = train(run, tmp_path, io.StringIO())
    with Checkpoints.reader(tmp_path) as checkpoints:
        assert checkpoints.best == (result.best_accuracy, result.best_step)
        assert checkpoints.steps == [result.best_step]
        assert checkpoints.metadata()["progress"]["first_norm"] > 0


def test_a_run_that_goes_on_remembers_the_first_norm_of_thoughts(tmp_path, monkeypatch):
    train(tiny(**FEW), tmp_path, io.StringIO())
    with Checkpoints.reader(tmp_path) as checkpoints:
        first = checkpoints.metadata()["progress"]["first_norm"]
    seen, make = [], PPOLoop._evaluate
    monkeypatch.setattr(PPOLoop, "_evaluate", lambda loop, *given: seen.append(loop.first_norm) or make(loop, *given))
    went_on(tiny(**FEW), tmp_path)
    assert seen and seen[0] == first


def test_data_that_changed_are_refused(tmp_path):
    train_file, test_file = tmp_path / "train.json", tmp_path / "test.json"
    write_chains(train_file, 2, 40, seed=1)
    write_chains(test_file, 2, 8, seed=2)
    run = tiny(**FEW, data__train=str(train_file), data__validation=str(test_file))
    train(run, tmp_path / "run", io.StringIO())
    with Checkpoints.reader(tmp_path / "run") as checkpoints:
        assert set(checkpoints.metadata()["data"]) == {"data.train", "data.validation"}
    for file, setting in ((train_file, "data.train"), (test_file, "data.validation")):
        rows = json.loads(file.read_text())
        file.write_text(json.dumps(rows[:-1]))
        with pytest.raises(UserError, match=rf"the problems of config\.{setting} changed since the checkpoint"):
            train(run, tmp_path / "run", io.StringIO())
        file.write_text(json.dumps(rows))
    again, _ = went_on(run, tmp_path / "run")
    assert again == prints(tmp_path / "run")


@pytest.mark.parametrize("left", [(), ("metrics",), ("commit_success.txt",), ("metrics", "commit_success.txt")])
def test_what_a_kill_left_of_a_removed_checkpoint_ends_no_run(tmp_path, left):
    run = tiny(**FEW)
    train(run, tmp_path, io.StringIO())
    with Checkpoints.reader(tmp_path) as checkpoints:
        first = tmp_path / "checkpoints" / str(checkpoints.steps[0])
    for part in first.iterdir():
        if part.name not in left:
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    end = prints(tmp_path)
    assert went_on(run, tmp_path)[0] == end


def test_an_export_with_a_navigator_is_not_replaced_by_a_llama(before, tmp_path):
    to_hf(before / "run", tmp_path / "export")
    from_hf(tmp_path / "export", tmp_path / "converted")
    with pytest.raises(UserError, match=r"export holds an export with a navigator \(longshot\.safetensors\)"):
        to_hf(tmp_path / "converted", tmp_path / "export")
    with pytest.raises(UserError, match="is no run folder, so it has no checkpoints to choose from"):
        load_pretrained(tmp_path / "export", which=5)


def test_any_checkpoint_is_exported(tmp_path):
    train(tiny(**FEW, checkpoint__keep_best=0), tmp_path / "run", io.StringIO())
    with Checkpoints.reader(tmp_path / "run") as checkpoints:
        first = checkpoints.steps[0]
    for which in (first, "latest"):
        assert start("convert.py", "to-hf", tmp_path / "run", tmp_path / str(which), "--which", which) == 0
    steps = [load_pretrained(tmp_path / str(which)).source["step"] for which in (first, "latest")]
    assert steps[0] == first < steps[1]


def test_an_export_without_its_navigator_is_told_of(before, tmp_path, capsys):
    write_chains(tmp_path / "test.json", 1, 2, seed=2)
    options = ("--checkpoint", before / "llama")
    assert start("generate.py", *options, "--question", "a=1 b=a+1 b?") == 0
    evaluation = ("--data", tmp_path / "test.json", "--output", tmp_path / "results.json", "--num_trajectories", 0)
    assert start("eval.py", *options, *evaluation) == 0
    assert capsys.readouterr().err.count("longshot.safetensors is not beside its weights, so it has no thoughts") == 2
