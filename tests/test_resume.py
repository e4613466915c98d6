"""Runs that go on although something around them has moved, changed or gone."""

import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import jax.numpy as jnp
import pytest
from commands import start
from run_folders import CURRICULUM, save_run
from tiny_run import moved, skip_evaluations, stub_updates, tiny

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.convert import from_hf, to_hf
from longshot_jax.checkpoints.pretrained import load_pretrained
from longshot_jax.data.chains import write_chains
from longshot_jax.errors import UserError
from longshot_jax.ppo.loop import PPOLoop
from longshot_jax.train import _continued, train

FEW = {"phases": ("ppo",), "ppo__iterations": 2, "evaluation__every_iterations": 1, "checkpoint__every": 1}
FEW |= {"checkpoint__keep_last": 9}


class Drawn(Exception):
    """All checks are passed: the model of these settings would now be built."""


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


def start_of(run, folder):
    """The settings with which a run would build its model, and what was said till then."""

    def drawn(run, *_):
        raise Drawn(run)

    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Drawn) as stopped:
        patch.setattr("longshot_jax.train.abstract_reasoner", drawn)
        train(run, folder, stream)
    return stopped.value.args[0], stream.getvalue()


def leave(folder, left):
    """Removes the first checkpoint of a run but for these parts."""
    with Checkpoints.reader(folder) as checkpoints:
        first = folder / "checkpoints" / str(checkpoints.steps[0])
    for part in first.iterdir():
        if part.name not in left:
            shutil.rmtree(part) if part.is_dir() else part.unlink()


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    save_run(folder / "run", CURRICULUM, "curriculum")
    to_hf(folder / "run", folder / "llama")
    (folder / "llama" / "longshot.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run of problems in files, and its folder."""
    folder = tmp_path_factory.mktemp("ended")
    for name, count, seed in (("train", 40, 1), ("test", 8, 2)):
        write_chains(folder / f"{name}.json", 2, count, seed=seed)
    run = tiny(**FEW, data__train=str(folder / "train.json"), data__validation=str(folder / "test.json"))
    train(run, folder / "run", io.StringIO())
    return run, folder / "run"


@pytest.fixture
def copied(ended, tmp_path):
    run, folder = ended
    return run, Path(shutil.copytree(folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def again(ended, tmp_path_factory):
    """Its end once more, though a kill left its first checkpoint half removed, and the first norm at each evaluation."""
    run, folder = ended
    folder = Path(shutil.copytree(folder, tmp_path_factory.mktemp("again") / "run"))
    leave(folder, ("metrics",))
    seen, evaluate = [], PPOLoop._evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPOLoop, "_evaluate", lambda loop, *given: seen.append(loop.first_norm) or evaluate(loop, *given))
        end, _ = went_on(run, folder)
    return end, seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["initialize_from", "model__source"])
def test_a_run_goes_on_when_what_it_started_from_is_gone_or_has_moved(before, tmp_path, monkeypatch, kind):
    skip_evaluations(monkeypatch.setattr)
    stub_updates(monkeypatch.setattr, change=moved)
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(before / ("run" if kind == "initialize_from" else "llama"), here)
    named = {kind: str(here)} | ({"data__tokenizer": "model"} if kind == "model__source" else {})
    run = tiny(**FEW, **named)
    train(run, tmp_path / "run", io.StringIO())
    end = prints(tmp_path / "run")
    here.rename(there)
    again, said = went_on(tiny(**FEW, **named), tmp_path / "run")  # its defaults are found anew
    assert again == end and "is not read again" not in said
    elsewhere = tiny(**FEW, **named | {kind: str(there)})
    started, said = start_of(elsewhere, tmp_path / "run")
    assert started == elsewhere and started.thoughts == run.thoughts
    assert f"config.{kind.replace('__', '.')} was {here} and is not read again: the checkpoint has all weights." in said
    there.rename(here)
    with pytest.raises(UserError, match="was made with another config"):  # nothing has moved: another start is meant
        train(tiny(**FEW, **named | {kind: str(before / "run")}), tmp_path / "run", io.StringIO())


@pytest.mark.slow
@pytest.mark.parametrize("named", ["meta-llama/Llama-3.2-1B", "nowhere/at/all"])
def test_another_start_is_refused_where_nothing_has_moved(ended, named):
    run, folder = ended
    start_of(run, folder)
    with pytest.raises(UserError, match=r"was made with another config: model\.source"):
        train(replace(run, model=replace(run.model, source=named)), folder, io.StringIO())


def test_a_foreign_folder_is_not_called_a_damaged_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "5" / "readme.txt").write_text("mine")
    with pytest.raises(UserError, match="which is not that of a run"):
        train(tiny(), tmp_path, io.StringIO())


def test_the_result_is_that_of_the_best_checkpoint_on_disk(copied):
    run, folder = copied
    result = train(replace(run, checkpoint=replace(run.checkpoint, keep_last=1, keep_best=0)), folder, io.StringIO())
    with Checkpoints.reader(folder) as checkpoints:
        assert checkpoints.best == (result.best_accuracy, result.best_step)
        assert checkpoints.steps == [result.best_step]
        assert checkpoints.metadata()["progress"]["first_norm"] > 0


@pytest.mark.slow
def test_a_run_that_goes_on_remembers_the_first_norm_of_thoughts(ended, again):
    with Checkpoints.reader(ended[1]) as checkpoints:
        first = checkpoints.metadata()["progress"]["first_norm"]
    assert again[1] and again[1][0] == first


def test_data_that_changed_are_refused(ended):
    run, folder = ended
    with Checkpoints.reader(folder) as checkpoints:
        assert set(checkpoints.metadata()["data"]) == {"data.train", "data.validation"}
    for file, setting in ((Path(run.data.train), "data.train"), (Path(run.data.validation), "data.validation")):
        rows = json.loads(file.read_text())
        file.write_text(json.dumps(rows[:-1]))
        with pytest.raises(UserError, match=rf"the problems of config\.{setting} changed since the checkpoint"):
            train(run, folder, io.StringIO())
        file.write_text(json.dumps(rows))
    start_of(run, folder)


@pytest.mark.parametrize("left", [(), ("metrics",), ("commit_success.txt",), ("metrics", "commit_success.txt")])
def test_what_a_kill_left_of_a_removed_checkpoint_ends_no_run(ended, again, copied, left):
    """A run goes on from a later one; others, with each part that a kill may leave, have nothing left to do but saving."""
    end = prints(ended[1])
    assert again[0] == end
    run, folder = copied
    leave(folder, left)
    train(run, folder, io.StringIO())
    assert prints(folder) == end
    with Checkpoints(folder, run.checkpoint.keep_last, run.checkpoint.keep_best) as checkpoints:
        last = checkpoints.latest_step
        checkpoints.save(last + 1, {"x": jnp.ones(3)}, checkpoints.metadata(), 0.5)
        assert checkpoints.latest_step == last + 1


def test_an_export_with_a_navigator_is_not_replaced_by_a_llama(before, tmp_path):
    to_hf(before / "run", tmp_path / "export")
    from_hf(tmp_path / "export", tmp_path / "converted")
    with pytest.raises(UserError, match=r"export holds an export with a navigator \(longshot\.safetensors\)"):
        to_hf(tmp_path / "converted", tmp_path / "export")
    with pytest.raises(UserError, match="is no run folder, so it has no checkpoints to choose from"):
        load_pretrained(tmp_path / "export", which=5)


def test_any_checkpoint_is_exported(ended, tmp_path):
    with Checkpoints.reader(ended[1]) as checkpoints:
        first = checkpoints.steps[0]
    for which in (first, "latest"):
        assert start("convert.py", "to-hf", ended[1], tmp_path / str(which), "--which", which) == 0
    steps = [load_pretrained(tmp_path / str(which)).source["step"] for which in (first, "latest")]
    assert steps[0] == first < steps[1]


def test_an_export_without_its_navigator_is_told_of(before, tmp_path, capsys):
    write_chains(tmp_path / "test.json", 1, 2, seed=2)
    options = ("--checkpoint", before / "llama")
    assert start("generate.py", *options, "--question", "a=1 b=a+1 b?") == 0
    evaluation = ("--data", tmp_path / "test.json", "--output", tmp_path / "results.json", "--num_trajectories", 0)
    assert start("eval.py", *options, *evaluation) == 0
    assert capsys.readouterr().err.count("longshot.safetensors is not beside its weights, so it has no thoughts") == 2


def test_a_start_that_is_gone_leaves_its_thoughts_normalised(tmp_path):
    """Whether thoughts are normalised by default is read off the folder that a run starts from; the checkpoint knows it too."""
    run = tiny(phases=("ppo",), initialize_from=str(tmp_path / "gone"))
    stored = replace(run, thoughts=replace(run.thoughts, normalised=not run.thoughts.normalised))
    metadata = {"config": asdict(stored), "step": 3}
    found, source = _continued(run, {}, tmp_path, metadata, print)
    assert found.thoughts.normalised == stored.thoughts.normalised and source is None
