"""Frozen weights that a checkpoint names instead of holding: a run over them, resumed, asked, exported, moved, changed."""

import io
import json
import shutil
from dataclasses import asdict, replace
from typing import Any, cast

import jax
import numpy as np
import pytest
from builders import ADAPTERS
from flax import nnx
from huggingface_folders import CONFIG as HUGGING_FACE_CONFIG
from huggingface_hub.utils import filter_repo_objects
from run_folders import CURRICULUM, edit_metadata, save_run
from safetensors.numpy import load_file, save_file
from tiny_run import tiny, watch_batches

from longshot_jax import LongShot
from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.convert import from_hf, to_hf
from longshot_jax.checkpoints.frozen_source import KEY, FrozenSource, model_folder, split_frozen
from longshot_jax.checkpoints.initialize import abstract_reasoner, build_reasoner, frozen_source
from longshot_jax.checkpoints.run_folder import write_config
from longshot_jax.checkpoints.saved_reasoner import SavedReasoner
from longshot_jax.curriculum.loop import Position
from longshot_jax.curriculum.update import CurriculumPrograms
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.model.huggingface.weights import METADATA
from longshot_jax.model.sharding import make_mesh, with_sharding
from longshot_jax.model.storage import merge_states
from longshot_jax.train import train
from longshot_jax.training.context import RunContext


def adapting(llama, **changes):
    """Three updates of the adapters of the Llama in a folder, each with a checkpoint."""
    return tiny(**{"phases": ("curriculum",), "curriculum__trainable": "lora", "curriculum__stages": (1,),
                   "curriculum__max_steps_per_stage": 3, "checkpoint__every": 1, "checkpoint__keep_last": 9,
                   "model__lora__rank": ADAPTERS.rank, "model__source": str(llama), "data__tokenizer": "model"}
                | changes)  # fmt: skip


def arrays(folder):
    with Checkpoints.reader(folder) as checkpoints:
        return checkpoints._read_metadata(checkpoints.steps[-1])[1]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    save_run(folder / "before", CURRICULUM, "curriculum")
    to_hf(folder / "before", folder / "llama")
    return folder / "llama"


@pytest.fixture(scope="module")
def trained(llama):
    """A run as training leaves it after three updates, without the updates."""
    run, folder, tokens = adapting(llama), llama.parent / "run", Tokenizer.load(str(llama))
    mesh, unused = make_mesh(run.mesh), cast(Any, None)
    abstract = abstract_reasoner(run, tokens, mesh, llama)
    params, _ = build_reasoner(run, abstract, llama)
    with Checkpoints(folder, 9, 1) as checkpoints:
        context = RunContext(run, abstract, unused, unused, mesh, checkpoints, unused)
        context.frozen_source = frozen_source(run, llama, params)
        state = CurriculumPrograms(run, abstract, mesh, tokens.latent, 3).start(params)
        state = replace(state, trainable=jax.tree.map(lambda x: x + 1, state.trainable))  # adapters start at zero
        for step in (1, 2, 3):
            context.save(step, state, "curriculum", vars(Position(step=step, batch=step)))
    tokens.save(folder / "tokenizer")
    write_config(folder, asdict(run))
    return folder


@pytest.fixture
def copies(llama, trained, tmp_path):
    """A copy of the run, and its weights where the copy looks for them, to be moved and changed."""
    shutil.copytree(llama, tmp_path / "llama")
    shutil.copytree(trained, tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        with edit_metadata(tmp_path / "run", int(step.name)) as metadata:
            metadata["config"]["model"]["source"] = metadata[KEY]["folder"] = str(tmp_path / "llama")
    rename(tmp_path / "run", tmp_path / "llama")
    return tmp_path / "run", tmp_path / "llama"


def rename(run, llama):
    """Names a place of the weights in config.json."""
    settings = json.loads((run / "config.json").read_text())
    settings["model"]["source"] = str(llama)
    (run / "config.json").write_text(json.dumps(settings))


def change_weights(llama):
    tensors = load_file(llama / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + np.eye(1, 16, 3, dtype=np.float32)[0]
    save_file(tensors, llama / "model.safetensors", METADATA)


def test_a_checkpoint_holds_no_frozen_weights_and_is_read_as_one_that_does(llama, trained, tmp_path):
    stored, saved = arrays(trained), SavedReasoner.find(trained)
    assert not any(name.startswith("frozen") for name in stored)
    assert any(name.startswith("trainable.backbone.layers.lora.") for name in stored)
    params, before = saved.params(), SavedReasoner.find(llama.parent / "before").params()
    adapters, weights = split_frozen(merge_states(backbone=params["backbone"]))
    jax.tree.map(np.testing.assert_array_equal, weights, before["backbone"])
    # The form that earlier versions wrote.
    whole = {"trainable": nnx.merge_state(adapters, merge_states(navigator=params["navigator"])),
             "frozen": merge_states(backbone=before["backbone"])}  # fmt: skip
    with Checkpoints(tmp_path / "old", 1, 1) as checkpoints:
        checkpoints.save(4, whole, {key: value for key, value in saved.metadata.items() if key != KEY}, 0.5)
    shutil.copytree(trained / "tokenizer", tmp_path / "old" / "tokenizer")
    for run, out in ((trained, "new_out"), (tmp_path / "old", "old_out")):
        to_hf(run, tmp_path / out)
    new, old, plain = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "new_out", tmp_path / "old_out", llama)
    )
    jax.tree.map(np.testing.assert_array_equal, new, old)
    assert sum(not np.array_equal(new[name], plain[name]) for name in plain) == 7  # adapters are merged
    with pytest.raises(UserError, match=r"llama holds the frozen weights that the checkpoints in .* need"):
        to_hf(trained, llama)


@pytest.mark.slow
def test_a_run_goes_on_over_moved_weights_with_the_same_bits(llama, tmp_path, monkeypatch):
    train(adapting(llama), tmp_path / "whole", io.StringIO())
    shutil.copytree(llama, tmp_path / "first")

    def stop(taken: int) -> None:
        if taken == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        watch_batches(patch.setattr, stop)
        with pytest.raises(KeyboardInterrupt):
            train(adapting(tmp_path / "first"), tmp_path / "run", io.StringIO())
    moved = (tmp_path / "first").rename(tmp_path / "second")
    with pytest.raises(
        UserError, match=r"does not hold the frozen weights that its checkpoints belong to, and there is no folder"
    ):
        train(adapting(tmp_path / "first"), tmp_path / "run", io.StringIO())
    # Only a place may change, and only for weights that lie there.
    with pytest.raises(UserError, match=r"another config: curriculum\.batch_size"):
        train(adapting(moved, curriculum__batch_size=8), tmp_path / "run", io.StringIO())
    train(adapting(moved), tmp_path / "run", io.StringIO())
    assert arrays(tmp_path / "run") == arrays(tmp_path / "whole")
    assert SavedReasoner.find(tmp_path / "run", "latest").metadata[KEY]["folder"] == str(moved)


def test_other_weights_are_refused(copies):
    run, llama = copies
    assert LongShot.from_pretrained(run)
    sentence = (
        r"weights in .*llama are not the frozen weights .*run belong to \(final_norm has other values\): .*config\.json"
    )
    change_weights(llama)
    for use in (lambda: LongShot.from_pretrained(run), lambda: train(adapting(llama), run, io.StringIO())):
        with Checkpoints.reader(run) as checkpoints:
            shutil.rmtree(run / "checkpoints" / str(checkpoints.latest_step))  # an unfinished run
        with pytest.raises(UserError, match=sentence):
            use()
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match=r"\(rms_norm_eps is 0\.001 and was 1e-05\)"):
        LongShot.from_pretrained(run)


def test_a_run_folder_alone_says_what_it_lacks(copies):
    run, llama = copies
    moved = llama.rename(llama.parent / "elsewhere")
    with pytest.raises(
        UserError,
        match=r"run does not hold the frozen weights .* no folder .*llama: .* as config\.model\.source.*run/config\.json",
    ):
        LongShot.from_pretrained(run)
    rename(run, moved)
    assert LongShot.from_pretrained(run)
    rename(run, moved / "nothing")
    with pytest.raises(UserError, match=r"config\.model\.source .* is not a directory"):
        LongShot.from_pretrained(run)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("start", ["directory", "converted", "adapted"])
def test_weights_are_read_again_with_the_same_bits(llama, trained, tmp_path, start, dtype):
    """From each place that they may have come from; another run's, where it holds them as they came."""
    if start == "converted":
        from_hf(llama, tmp_path / "converted")
    first = {"directory": "", "converted": str(tmp_path / "converted"), "adapted": str(trained)}[start]
    run = adapting(llama, initialize_from=first, model__weight_dtype=dtype)
    folder = model_folder(run)
    abstract = abstract_reasoner(run, Tokenizer.load(str(llama)), make_mesh(run.mesh), folder)
    rows = {0: 3, 1: 2} if start == "directory" else {}  # of added tokens: the checkpoint names them too
    params, _ = build_reasoner(run, abstract, folder, rows)
    source = frozen_source(run, folder, params, rows)
    if start == "adapted" and dtype == "int8":
        assert source is None
        return
    assert source is not None and source.setting == ("initialize_from" if start == "converted" else "model.source")
    assert source.folder == (tmp_path / "converted" if start == "converted" else llama)
    metadata = json.loads(json.dumps({KEY: source.to_json()}))
    found = FrozenSource.find(metadata, run, run, tmp_path)
    weights, template = (
        split_frozen(merge_states(backbone=part["backbone"]))[1]
        for part in (params, with_sharding(abstract.params, abstract.placement))
    )
    assert found is not None
    again = found.load(abstract.backbone, dtype, template, tmp_path)
    assert jax.tree.structure(again) == jax.tree.structure(weights)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(weights), strict=True):
        assert ours.sharding == theirs.sharding and ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_weights_that_nothing_else_holds_stay_in_the_checkpoint(llama, trained):
    both = adapting(llama, phases=("curriculum", "ppo"), ppo__trainable="lora")
    for run in (
        replace(both, curriculum=replace(both.curriculum, trainable="all")),
        adapting("scratch", data__tokenizer="chains"),
        adapting(llama, initialize_from=str(llama.parent / "before")),
        adapting(llama, initialize_from=str(trained), model__lora__rank=3),  # merged
    ):
        assert frozen_source(run, model_folder(run), nnx.State({})) is None


def test_the_config_of_a_hub_model_is_read_before_its_weights(tmp_path, monkeypatch):
    """The hub is a folder here: `snapshot_download` copies what the patterns allow, as it would from there."""
    hub, cache, asked = tmp_path / "hub", tmp_path / "cache", []
    for name in (
        "config.json",
        "model.safetensors",
        "consolidated.safetensors",
        "original/params.json",
        "tokenizer.json",
    ):
        (hub / name).parent.mkdir(parents=True, exist_ok=True)
        (hub / name).write_text(json.dumps(HUGGING_FACE_CONFIG))

    def download(name, *, local_files_only, allow_patterns, ignore_patterns=()):
        asked.append(name)
        files = [str(file.relative_to(hub)) for file in hub.rglob("*") if file.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=list(ignore_patterns)):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(hub / file, cache / file)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("longshot_jax.checkpoints.frozen_source.hub_reachable", lambda: True)
    run = tiny(model__source="someone/model", data__tokenizer="model")
    assert model_folder(run) == cache
    assert sorted(file.name for file in cache.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    shutil.rmtree(cache)
    (hub / "config.json").write_text(json.dumps(HUGGING_FACE_CONFIG | {"model_type": "qwen2"}))
    with pytest.raises(UserError, match="model_type is 'qwen2'"):
        model_folder(run)
    assert [file.name for file in cache.iterdir()] == ["config.json"] and asked == ["someone/model"] * 3
