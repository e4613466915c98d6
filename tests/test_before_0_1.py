"""A run folder and an export written before the names of version 0.1: read, evaluated and resumed with the same results.

`tests/fixtures/before_0_1` holds an interrupted run (curriculum, then PPO of adapters, with memory bank, stopped two
iterations before its end), its export, what both answered to the same held-out chains, and the parameters with which the
undisturbed run ended.
"""

import io
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from longshot_jax import LongShot
from longshot_jax.checkpoints.named_arrays import current_name
from longshot_jax.checkpoints.run_folder import read_config
from longshot_jax.checkpoints.saved_reasoner import SavedReasoner
from longshot_jax.config import parse_config
from longshot_jax.data.chains import ChainProblems
from longshot_jax.thoughts.rescore import rescore
from longshot_jax.train import train

FIXTURE = Path(__file__).parent / "fixtures" / "before_0_1"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """The folders `run` and `export`."""
    place = tmp_path_factory.mktemp("before_0_1")
    with tarfile.open(FIXTURE / "folders.tar.gz") as archive:
        archive.extractall(place, filter="data")
    return place


@pytest.mark.parametrize("name", ["run", pytest.param("export", marks=pytest.mark.slow)])
def test_folder_answers_as_it_did(folders: Path, name: str):
    chains = ChainProblems(123, 60, (1, 2), "test")
    problems = [chains[index] for index in range(60)]
    expected = json.loads((FIXTURE / "expected.json").read_text())[name]
    results = LongShot.from_pretrained(folders / name).evaluate(problems, num_trajectories=3, batch_size=60)
    assert results["answers"] == expected["answers"] and len(set(expected["answers"])) > 5
    assert results["thoughts"] == expected["thoughts"]
    assert results["accuracy"] == expected["accuracy"] > 0
    # Since then the memory bank is taken away too, and the mean is that of the other questions.
    assert results["controls"].pop("no_reads") <= 1 and results["controls"].pop("mean") <= expected["controls"].pop(
        "mean"
    )
    for key in ("sampled_accuracy", "fusion", "controls"):
        assert results[key] == pytest.approx(expected[key], abs=0.02), key


# The one change of results since: an update reads the entries of the memory bank that its rollout read, where it chose them
# anew from the weights of the moment. So that everything else is compared, the test chooses them anew too.
@pytest.mark.slow
def test_run_resumes_and_ends_as_it_did(folders: Path, monkeypatch):
    def choosing_anew(reasoner, rollout, *args, **kwargs):
        return rescore(reasoner, rollout.replace(bank_slots=None), *args, **kwargs)

    monkeypatch.setattr("longshot_jax.ppo.loss.rescore", choosing_anew)
    stored = read_config(folders / "run")
    assert "stages" in stored and "max_steps" in stored["ppo"], "the fixture has the old keys"
    result = train(parse_config(stored), folders / "run", io.StringIO())
    assert result.phases["ppo"]["updates"] == 8
    params = SavedReasoner.find(folders / "run", "latest").params()
    ended = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    with np.load(FIXTURE / "final.npz") as file:
        expected = {current_name(name): file[name] for name in file.files}
    assert ended.keys() == expected.keys()
    for name, array in expected.items():
        # Bit for bit on the machine that wrote it; elsewhere products round differently.
        np.testing.assert_allclose(ended[name], array, atol=2e-5, rtol=2e-4, err_msg=name)
