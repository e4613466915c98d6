"""`scripts/convert.py`: a Llama there and back without a changed bit, and a run with what makes it think beside it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from builders import ADAPTERS
from commands import start
from run_folders import PPO, edit_metadata, save_run
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_run import tiny

from longshot_jax import LongShot
from longshot_jax.checkpoints import convert
from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.convert import from_hf, to_hf
from longshot_jax.checkpoints.initialize import abstract_reasoner, build_reasoner
from longshot_jax.checkpoints.run_folder import settings_of_test
from longshot_jax.checkpoints.saved_reasoner import SavedReasoner
from longshot_jax.checkpoints.sidecar import FILE, read_sidecar
from longshot_jax.config.model import ModelConfig
from longshot_jax.data import sources
from longshot_jax.data.problems import fingerprint
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.evaluation.model_card import model_card
from longshot_jax.model.huggingface import read_config
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.rope import RopeScaling
from longshot_jax.model.sharding import make_mesh

ROOT = Path(__file__).parents[1]
LLAMA = Path(__file__).parent / "fixtures" / "golden_llama3"
RUN = replace(PPO, ppo=replace(PPO.ppo, trainable="lora"), model=ModelConfig(lora=ADAPTERS))
TOKENS = np.array([[1, 4, 2, 7], [3, 3, 5, 0]])
QUESTIONS = ["a=6 n=a+2 i=n*3 i?", "b=1 c=b+1 c?"]


def with_tokenizer(folder: Path, words: int) -> tuple[Path, Tokenizer]:
    """The fixture's weights, of 96 rows, beside a tokenizer with that many words and the latent tokens."""
    import tokenizers
    import transformers

    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((LLAMA / name).read_bytes())
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{number}": number for number in range(words)}))
    tokens = Tokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="w0"), "of a test")
    tokens.save(folder)
    return folder, Tokenizer.load(str(folder))


def test_there_and_back_changes_no_bit(tmp_path):
    from_hf(LLAMA, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "out")
    before, after = load_file(LLAMA / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    assert read_config(tmp_path / "out") == read_config(LLAMA)


def test_embeddings_grow_to_the_tokenizer_and_it_travels_along(tmp_path):
    folder, tokens = with_tokenizer(tmp_path / "llama", 96)
    from_hf(folder, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "out", "bfloat16")
    assert read_config(tmp_path / "out").vocab_size == tokens.vocabulary_size == 99
    exported = Tokenizer.load(str(tmp_path / "out"))
    assert exported.latent == tokens.latent
    # The file that transformers reads first; the fixture's config.json keeps the id of another tokenizer.
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == tokens.end


def test_another_models_tokenizer_is_refused(tmp_path):
    folder, _ = with_tokenizer(tmp_path / "llama", 97)
    with pytest.raises(UserError, match=r"ids up to 96 but the model's embedding has only 96 rows"):
        from_hf(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shape_survives_json():
    config = LlamaConfig(9, 8, 12, 1, 2, 1, 4, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64))
    assert LlamaConfig.from_json(json.loads(json.dumps(asdict(config)))) == config


def test_earlier_checkpoints_are_not_touched(tmp_path):
    from_hf(LLAMA, tmp_path / "run")
    with pytest.raises(UserError, match="already holds checkpoints"):
        from_hf(LLAMA, tmp_path / "run")
    with pytest.raises(
        UserError, match=r"holds no checkpoints but a model in Hugging Face's form: .* config\.model\.source"
    ):
        to_hf(LLAMA, tmp_path / "out")


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path):
    result = subprocess.run(
        [sys.executable, "scripts/convert.py", "from-hf", str(tmp_path), str(tmp_path / "run")],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2
    assert result.stderr.strip() == (
        f"error: {tmp_path}/config.json does not exist: give a folder that holds a Hugging Face Llama, copied whole from "
        "its source."
    )
    assert not (tmp_path / "run").exists()


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    save_run(folder / "run", RUN, "ppo")
    to_hf(folder / "run", folder / "out")
    return folder / "run", LongShot.from_pretrained(folder / "run")


@pytest.fixture(scope="module")
def exported(run):
    return run[0].parent / "out"


@pytest.mark.parametrize("train", ["threads", "colouring"])
def test_an_export_is_tested_as_its_run(tmp_path, train):
    """On problems of the run's own settings, graded by its rule, although the folder is no run folder."""
    data = replace(
        RUN.data, train=train, tokenizer=train, test=train, generated_test=7, threads=(1, 3), operations=(2,)
    )
    tokens = Tokenizer.for_chains(words=sources.ALPHABETS[train])
    save_run(tmp_path / "run", replace(RUN, data=data), "ppo", tokens=tokens)
    to_hf(tmp_path / "run", tmp_path / "out")
    run, export = (settings_of_test(tmp_path / folder, None, None) for folder in ("run", "out"))
    assert export.data == run.data and len(sources.test_problems(export)) == 7
    assert fingerprint(sources.test_problems(export)) == fingerprint(sources.test_problems(run))


def test_code_that_an_export_names_runs_only_if_it_is_named_again(tmp_path):
    save_run(tmp_path / "run", replace(RUN, data=replace(RUN.data, grader="my_grader:grade")), "ppo")
    to_hf(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UserError, match=rf"{FILE} names the code my_grader:grade, which runs only if you name it"):
        settings_of_test(tmp_path / "out", "chains", None)


def test_all_files_of_an_export_are_readable_by_others_as_the_umask_says(exported):
    assert (exported / FILE).exists() and len({file.stat().st_mode for file in exported.iterdir()}) == 1


@pytest.mark.slow
def test_it_comes_back_and_thinks_as_the_run_did(run, exported):
    here, there = run[1], LongShot.from_pretrained(exported)
    latent = here.latent_token_id
    assert latent == there.latent_token_id
    thinking = np.concatenate([TOKENS, np.full((2, 2), latent), TOKENS[:, :1]], axis=1)
    np.testing.assert_allclose(there.logits(thinking), here.logits(thinking), atol=1e-5)
    for trajectories in (3,):
        ours, theirs = (
            model.generate(QUESTIONS, trajectories, return_all_trajectories=True) for model in (here, there)
        )
        for one, other in zip(ours, theirs, strict=True):
            assert one.answer == other.answer and one.chosen == other.chosen
            for mine, its in zip(one.trajectories, other.trajectories, strict=True):
                assert (mine.answer, mine.thoughts) == (its.answer, its.thoughts)
                np.testing.assert_allclose(mine.stop_probabilities, its.stop_probabilities, atol=1e-5)
                np.testing.assert_allclose(mine.value, its.value, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, here.model.memory, there.model.memory)
    assert there.model.temperatures.thought_std == here.model.temperatures.thought_std > 0
    assert there.model.source == here.model.source


def test_training_goes_on_from_it(run, exported):
    """The navigator of the same kind comes along, another starts afresh."""
    kind = {"thoughts__feedback": "navigator", "thoughts__reasoning_dim": 4, "thoughts__memory_top": 1}
    source = {"phases": ("ppo",), "model__source": str(exported), "data__tokenizer": "model", "ppo__memory_slots": 2}
    theirs = load_file(exported / FILE)["navigator.direction"]
    for dim, same in ((4, True), (3, False)):
        settings = tiny(**kind | source | {"thoughts__reasoning_dim": dim})
        assert not settings.thoughts.normalised, "as the export was trained"
        tokenizer, mesh = Tokenizer.load(str(exported)), make_mesh(settings.mesh)
        abstract = abstract_reasoner(settings, tokenizer, mesh, exported)
        params, _ = build_reasoner(settings, abstract, exported)
        direction = np.asarray(params["navigator"]["direction"][...])
        assert np.array_equal(direction, theirs) is same


def test_an_earlier_export_is_replaced_and_anything_else_is_left(run, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "again")
    to_hf(run[0], tmp_path / "again", "bfloat16")
    assert (tmp_path / "again" / FILE).exists()
    assert load_file(tmp_path / "again" / "model.safetensors")["model.norm.weight"].dtype.name == "bfloat16"


def test_what_does_not_fit_is_refused(exported, tmp_path):
    with pytest.raises(
        UserError, match=r"navigator\.direction is|navigator\.decode_mlp_out is float32\[8, 16\], .*width 17"
    ):
        read_sidecar(exported, 17)
    shutil.copytree(exported, tmp_path / "broken")
    file = tmp_path / "broken" / FILE
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"longshot\.safetensors is damaged .*export the run again"):
        LongShot.from_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").unlink()
    shutil.copy(exported / FILE, file)
    with pytest.raises(UserError, match="holds a run but no tokenizer"):
        LongShot.from_pretrained(tmp_path / "broken")
    file.unlink()
    assert LongShot.from_pretrained(tmp_path / "broken").model.source == {"mode": "plain"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda trained: [trained], "object has no attribute"),
        (lambda trained: 7, "object has no attribute"),
        (lambda trained: trained | {"phase": ["ppo"]}, r"its phase is \"\['ppo'\]\""),
        (lambda trained: trained | {"step": 1e999}, "its step is 'inf'"),
        (lambda trained: trained | {"step": "7"}, "its step is '7'"),
        (lambda trained: trained | {"step": None}, "its step is 'None'"),
        (lambda trained: trained | {"config": []}, ""),  # the checker of the tests sees it first
        (lambda trained: trained | {"config": trained["config"] | {"ppo": 3}}, "config.ppo must be a group of settings"),
        (lambda trained: trained | {"config": trained["config"] | {"seed": "x"}}, "config.seed is 'x'"),
        (lambda trained: {}, "lack 'stage'"),
    ],
)  # fmt: skip
def test_wrong_types_in_the_metadata_are_a_sentence(exported, tmp_path, change, words):
    arrays = load_file(exported / FILE)
    with safe_open(exported / FILE, "numpy") as opened:
        metadata = opened.metadata()
    save_file(arrays, tmp_path / FILE, metadata | {"trained": json.dumps(change(json.loads(metadata["trained"])))})
    with pytest.raises(
        UserError, match=rf"longshot\.safetensors is damaged \(.*{words}.*export the run again"
    ) as raised:
        read_sidecar(tmp_path, 16)
    assert "\n" not in str(raised.value)


def test_an_array_of_another_type_is_refused(exported, tmp_path):
    arrays = load_file(exported / FILE)
    with safe_open(exported / FILE, "numpy") as opened:
        metadata = opened.metadata()
    save_file(arrays | {"thought_rms": np.array(1, np.int32)}, tmp_path / FILE, metadata)
    with pytest.raises(UserError, match=r"thought_rms is int32\[\], but its settings .* ask for float32\[\]"):
        read_sidecar(tmp_path, 16)


@pytest.mark.parametrize("name", ["checkpoints", "tokenizer"])
def test_weights_are_converted_into_no_folder_with_others(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"already holds {name}; choose a new folder"):
        from_hf(LLAMA, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == [name]


def test_two_conversions_into_one_folder_do_not_mix(tmp_path, monkeypatch):
    """The second one begins while the first one reads its weights, or ended just before the first one locked the folder."""
    first, _ = with_tokenizer(tmp_path / "first", 96)
    out, load_weights, prepare = tmp_path / "out", convert.load_weights, convert.prepare_workdir

    def while_loading(*given, **named):
        with pytest.raises(
            UserError, match=rf"Another run .* is writing to {out}: wait for it, or choose a new folder"
        ):
            from_hf(LLAMA, out)
        return load_weights(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "load_weights", while_loading)
        from_hf(first, out)
    assert Tokenizer.find(out / "tokenizer") is not None and SavedReasoner.find(out).backbone.vocab_size == 99

    def after_another(path, advice):
        from_hf(first, path)
        return prepare(path, advice)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "prepare_workdir", lambda *given: (patch.undo(), after_another(*given))[1])
        with pytest.raises(UserError, match="already holds checkpoints; choose a new folder"):
            from_hf(LLAMA, tmp_path / "late")
    assert SavedReasoner.find(tmp_path / "late").backbone.vocab_size == 99


def test_a_conversion_whose_checkpoint_is_not_written_does_not_end_well(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "save", lambda *_: False)
    with pytest.raises(UserError, match="already holds checkpoints; choose a new folder"):
        from_hf(LLAMA, tmp_path / "run")


@pytest.mark.slow
def test_transformers_loads_the_merged_llama_with_equal_logits(run, exported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(exported, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
    np.testing.assert_allclose(run[1].logits(TOKENS), theirs, atol=1e-4, rtol=0)


def test_an_export_has_a_model_card_that_is_never_overwritten(run, tmp_path, capsys):
    folder, out = tmp_path / "run", tmp_path / "export"
    shutil.copytree(run[0], folder)
    results = {
        "accuracy": 0.75, "count": 4, "confidence_interval": [0.3, 0.95], "mean_thoughts": 1.5, "by_steps": {},
        "controls": {"zero": 0.25, "swap": 0.0}, "correct": [1, 1, 1, 0],
        "config": {"step": 7, "phase": "ppo", "seed": 3, "data": str(tmp_path / "held_out.json")},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    results["config"]["step"] = 8
    (folder / "of_another_checkpoint.json").write_text(json.dumps(results))
    results["config"] |= {"step": 7, "run_seed": RUN.seed + 1}
    (folder / "of_another_checkpoint_of_another_run.json").write_text(json.dumps(results))
    (folder / "damaged.json").write_text('{"correct": [1], "config": {"step": 7, "phase": "ppo"}}')
    assert start("convert.py", "to-hf", folder, out) == 0
    assert "README.md holds 1 results of the run folder" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name:") and "# export\n" in card
    assert "On `held_out.json` (`results.json`, seed 3):" in card and "of_another_checkpoint" not in card
    assert "greedy accuracy   75.0 %   [ 30.0 %,  95.0 %]" in card
    assert "thoughts: zero    25.0 %" in card and "thoughts: swap     0.0 %" in card
    assert 'as seen from the one that holds it.\nmodel = LongShot.from_pretrained("export")' in card
    assert "Checkpoint: step 7 of phase `ppo`" in card and '"feedback": "navigator"' in card
    assert "- `ppo` (lora weights): not finished at this checkpoint" in card and str(tmp_path) not in card

    (out / "README.md").write_text("mine")
    assert start("convert.py", "to-hf", folder, out, "--dtype", "bfloat16") == 0
    assert "README.md was there and is kept; remove it" in capsys.readouterr().out
    assert (out / "README.md").read_text() == "mine"
    assert load_file(out / "model.safetensors")["model.norm.weight"].dtype.name == "bfloat16"


@pytest.mark.parametrize("which", ["latest", None], ids=str)
def test_an_export_of_a_run_at_work_is_of_one_checkpoint(tmp_path, monkeypatch, which):
    """The run writes another one after the export has begun."""
    folder, later, out = (tmp_path / name for name in ("run", "later", "export"))
    save_run(folder, RUN, "ppo", metric=None)
    save_run(later, RUN, "ppo", metric=None, seed=1)
    with edit_metadata(later, 7) as metadata:
        metadata["step"] = 8
    ours, theirs = (SavedReasoner.find(each).params()["navigator"] for each in (folder, later))
    read = SavedReasoner.params

    def read_late(saved):
        shutil.copytree(later / "checkpoints" / "7", folder / "checkpoints" / "8", dirs_exist_ok=True)
        return read(saved)

    monkeypatch.setattr(SavedReasoner, "params", read_late)
    arguments = () if which is None else ("--which", which)
    assert start("convert.py", "to-hf", folder, out, *arguments) == 0
    sidecar = read_sidecar(out, 16)
    assert sidecar is not None and sidecar.step == 7 and "Checkpoint: step 7 of" in (out / "README.md").read_text()
    jax.tree.map(np.testing.assert_array_equal, sidecar.navigator, ours)
    assert not np.array_equal(ours["direction"][...], theirs["direction"][...])
    assert SavedReasoner.find(folder, which).step == 8


def test_a_card_tells_what_each_finished_phase_did(run):
    saved = SavedReasoner.find(run[0])
    figures = {"updates": 1200, "sequences": 9600, "seconds": 1.0, "accuracy": 0.5}
    card = model_card("x", replace(saved, metadata=saved.metadata | {"finished": {"ppo": figures}}), {})
    assert "- `ppo` (lora weights): 1,200 updates, 9,600 sequences, validation accuracy 50.0%" in card
    assert "Started from random weights, seed 0, on" in card
    assert "No evaluation of this checkpoint was in the run folder" in card
    data = replace(saved.run.data, instruction="In km/h.", train="data/mine/train.jsonl")
    card = model_card("x", replace(saved, run=replace(saved.run, data=data)), {})
    assert '"instruction": "In km/h."' in card and '"train": "train.jsonl"' in card
