"""A run as a Hugging Face directory: the Llama for everyone, and what makes it think beside it."""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from builders import ADAPTERS
from run_folders import PPO, save_run
from safetensors.numpy import load_file
from tiny_run import tiny

from longshot_jax import LongShot
from longshot_jax.config import ModelConfig
from longshot_jax.data.tokens import Tokens
from longshot_jax.errors import UserError
from longshot_jax.export import to_hf
from longshot_jax.model.sharding import make_mesh
from longshot_jax.training.companion import FILE, read_companion
from longshot_jax.training.setup import build_reasoner, draw

RUN = replace(PPO, ppo=replace(PPO.ppo, trainable="lora"), model=ModelConfig(lora=ADAPTERS))
TOKENS = np.array([[1, 4, 2, 7], [3, 3, 5, 0]])
QUESTIONS = ["a=6 n=a+2 i=n*3 i?", "b=1 c=b+1 c?"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    save_run(folder / "run", RUN, "ppo")
    to_hf(folder / "run", folder / "out")
    return folder / "run", LongShot.from_pretrained(folder / "run")


@pytest.fixture(scope="module")
def exported(run):
    return run[0].parent / "out"


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
    assert there.model.temperatures.std == here.model.temperatures.std > 0
    assert there.model.source == here.model.source


def test_training_goes_on_from_it(run, exported):
    """The navigator of the same kind comes along, another starts afresh."""
    kind = {"thoughts__feedback": "navigator", "thoughts__reasoning_dim": 4, "thoughts__memory_top": 1}
    source = {
        "stages": ("ppo",),
        "model__source": str(exported),
        "data__tokenizer": "model",
        "ppo__memory_slots": 2,
    }
    theirs = load_file(exported / FILE)["navigator.direction"]
    for dim, same in ((4, True), (3, False)):
        settings = tiny(**kind | source | {"thoughts__reasoning_dim": dim})
        blueprint = draw(settings, Tokens.load(str(exported)), make_mesh(settings.mesh), exported)
        weights = build_reasoner(settings, blueprint, exported)
        direction = np.asarray(weights["navigator"]["direction"][...])
        assert np.array_equal(direction, theirs) is same


def test_an_earlier_export_is_replaced_and_anything_else_is_left(run, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "again")
    to_hf(run[0], tmp_path / "again", "bfloat16")
    assert (tmp_path / "again" / FILE).exists()
    assert load_file(tmp_path / "again" / "model.safetensors")["model.norm.weight"].dtype.name == "bfloat16"


def test_what_does_not_fit_is_refused(exported, tmp_path):
    with pytest.raises(
        UserError, match=r"navigator\.direction is|navigator\.decode_mlp_out is \[8, 16\], .*width 17"
    ):
        read_companion(exported, 17)
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


@pytest.mark.slow
def test_transformers_loads_the_merged_llama_with_equal_logits(run, exported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(exported, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
    np.testing.assert_allclose(run[1].logits(TOKENS), theirs, atol=1e-4, rtol=0)
