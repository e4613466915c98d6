"""docs/metrics.md names every TensorBoard tag of a run through all phases and no other; the new ones have their meaning."""

import io

import numpy as np
import pytest
from metric_entries import entries_and_tags, tags_of
from test_tensorboard import points, read
from tiny_run import tiny

from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import make_mesh
from longshot_jax.ppo.rewards import TERMS
from longshot_jax.thoughts.reasoner import AbstractReasoner
from longshot_jax.train import train
from longshot_jax.training import throughput
from longshot_jax.training.accelerators import ACCELERATORS, peak_flops
from longshot_jax.training.throughput import Clock, ModelFlops, answer_lengths

EVERYTHING = {
    "phases": ("text", "curriculum", "ppo"), "text__max_steps": 2, "text__batch_size": 8,
    "curriculum__stages": (1, 2), "curriculum__max_steps_per_stage": 2, "curriculum__batch_size": 8, "curriculum__variational__kl": 0.1,
    "curriculum__guidance__stop": 0.1,
    "data__answer_length": 8, "thoughts__feedback": "navigator", "thoughts__reasoning_dim": 4, "thoughts__memory_top": 1,
    "thoughts__max_trajectories": 3, "thoughts__noise": "learned", "ppo__num_trajectories": 3, "ppo__iterations": 2, "ppo__memory_slots": 4,
    "ppo__early_stop_kl": 9.0, "ppo__shared_reward": True, "evaluation__every_iterations": 1,
    **{f"ppo__rewards__{name}": 0.1 for name in (*TERMS, "thought_cost")},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "peak_flops", lambda _: 1e9)
        train(tiny(**EVERYTHING), folder, io.StringIO())
    return folder / "tensorboard"


@pytest.mark.slow
def test_every_tag_has_an_entry_and_every_entry_a_tag(folder):
    """The fast tests of training compare the tags of a smaller run with the entries."""
    without_tag, without_entry = entries_and_tags(tags_of(folder))
    assert without_tag == {"ppo/thought_entropy"}  # of thoughts drawn as tokens, whose noise this run does not have
    assert without_entry == set()


@pytest.mark.slow
def test_rates_and_times_of_ppo(folder):
    for name in ("time/rollout", "time/rewards", "time/update", "time/evaluation"):
        assert len(points(folder, name)) == 2 and all(value > 0 for _, value in points(folder, name))
    seconds = np.asarray([value for _, value in points(folder, "time/rollout")])
    thoughts = np.asarray([value for _, value in points(folder, "speed/thoughts_per_second")]) * seconds
    np.testing.assert_allclose(thoughts, np.rint(thoughts), atol=1e-3)
    number = [value for _, value in points(folder, "rollout/trajectories")]
    mean = [value for _, value in points(folder, "rollout/thoughts")]
    np.testing.assert_allclose(thoughts, 8 * np.multiply(number, mean), rtol=1e-4)
    assert all(0 < value < 1 for _, value in points(folder, "speed/flops_utilisation"))
    assert all(0 <= value < 1e-4 for _, value in points(folder, "ppo/sampler_difference"))


@pytest.mark.slow
def test_samples_of_ppo_stand_beside_their_rewards(folder):
    (*_, last) = read(folder).Tensors("rollout/samples/text_summary")
    table = last.tensor_proto.string_val[0].decode()
    head, _, *rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in table.splitlines()]
    assert head[:6] == ["question", "expected", "sampled", "right", "thoughts", "reward"] and len(rows) >= 8
    assert set(head[6:]) == {name.replace("_", "\\_") for name in TERMS}
    for row in rows:
        terms = dict(zip(head, row, strict=True))
        paid = sum(float(terms[name]) for name in head[6:]) - 0.1 * int(terms["thoughts"])
        assert float(terms["reward"]) == pytest.approx(paid, abs=0.01)


def test_flops_of_a_model():
    run, shape = tiny(), LlamaConfig(50, 8, 12, 3, 2, 1, 4)
    mesh = make_mesh(run.mesh)
    flops = ModelFlops.of(AbstractReasoner.of(run, shape, mesh), mesh, "all")
    weights = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12)
    assert (flops.layers, flops.head, flops.passes, flops.peak) == (weights, 8 * 50, 3, None)
    assert flops.forward(10, 2) == 2 * (10 * weights + 2 * 8 * 50)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_peaks_are_known_by_the_names_of_devices(kind, name):
    assert peak_flops(kind) == (ACCELERATORS[name].flops if name else None)


def test_lengths_and_laps():
    tokens = np.array([[[1, 9, 9], [1, 2, 3], [8, 1, 1]]])
    assert answer_lengths(tokens, (8, 9)).tolist() == [[2, 3, 1]]
    clock = Clock()
    first = clock.lap()
    assert first >= 0 and 0 <= clock.lap() < 1
