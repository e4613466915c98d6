"""The ablation: its variants are settings that exist, and its figures are those of the runs it finds."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from commands import requested_training

from longshot_jax.errors import UserError
from longshot_jax.experiments.ablation import PARTS, chosen_parts, run_ablation
from longshot_jax.experiments.ablation_tables import ablation_table, collect, fusion_table
from longshot_jax.experiments.variants import train_command

VARIANTS = {name: part.variant for name, part in PARTS.items()}


@pytest.mark.parametrize("name", PARTS)
def test_every_variant_is_a_config_that_train_accepts(name, tmp_path):
    start = PARTS[name].variant.starts_from
    assert start is None or PARTS[start].variant.starts_from is None
    run, folder = requested_training(*train_command(VARIANTS, name, tmp_path, seed=2)[2:])
    assert folder == tmp_path / name
    phases = ("ppo",) if "ppo" in PARTS[name].variant.overrides["phases"] else ("curriculum",)
    assert run.seed == 2 and run.phases == phases
    base = PARTS[name].base
    if base:
        other, _ = requested_training(*train_command(VARIANTS, base, tmp_path, seed=2)[2:])
        assert other != run


def test_a_subset_brings_what_it_needs():
    assert list(chosen_parts(["navigator_frozen"])) == [
        "start", "start_navigator", "pathwise", "navigator", "navigator_frozen",
    ]  # fmt: skip
    assert list(chosen_parts([])) == list(PARTS)
    with pytest.raises(UserError, match="no variant 'pathwize'"):
        chosen_parts(["pathwize"])


def results(seed, accuracy, thoughts):
    return {
        "accuracy": accuracy,
        "mean_thoughts": float(np.mean(thoughts[-1])),
        "sampled_accuracy": accuracy - 0.1,
        "any_accuracy": accuracy + 0.1,
        "distinct_answers": 1.25,
        "fusion": {"vote": accuracy},
        "compute": {"gradient_steps": 1, "sequences": 2, "seconds": 3.0},
        "config": {"training_seed": seed},
        "by_steps": {str(steps): {"accuracy": accuracy, "thoughts": group} for steps, group in enumerate(thoughts, 1)},
    }


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": "high"},
        {"accuracy": [0.5]},
        {"by_steps": [1]},
        {"by_steps": {"1": 0.5}},
        {"fusion": 3},
        {"compute": {"seconds": None}},
        {"config": 3},
        {"config": {}},
        {"mean_thoughts": None},
    ],
)
def test_results_of_wrong_types_name_their_file(tmp_path, change):
    put(tmp_path, "pathwise", 0, 0.5, [[1, 2]] * 4)
    file = tmp_path / "seed0" / "pathwise" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=r"pathwise/results\.json (lacks a figure|is not of a variant) .*: remove it, "):
        collect(tmp_path, {"pathwise": PARTS["pathwise"]}, 1, {})


def put(folder: Path, name: str, seed: int, accuracy: float, thoughts) -> None:
    place = folder / f"seed{seed}" / name
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(results(seed, accuracy, thoughts)))


def rows_of(table: str) -> list[list[str]]:
    """Cells of a Markdown table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_figures_over_seeds(tmp_path):
    stops, fixed = [[1, 1], [2, 2], [3, 4], [4, 4]], [[6, 6]] * 4
    for seed, (base, ours) in enumerate([(0.5, 0.6), (0.6, 0.9), (0.7, 0.6)]):
        put(tmp_path, "pathwise", seed, base, stops)
        put(tmp_path, "critic", seed, ours, fixed)
    content = collect(tmp_path, chosen_parts(["critic"]), seeds=4, settings={"iterations": 10})
    assert set(content["variants"]) == {"pathwise", "critic"}  # the start is not done
    base, ours = content["variants"]["pathwise"], content["variants"]["critic"]
    assert base["seeds"] == [0, 1, 2] and "difference" not in base and "stop_correlation" not in ours
    differences = np.asarray([0.1, 0.3, -0.1])
    assert ours["difference"]["mean"] == pytest.approx(0.1)
    interval = scipy.stats.t.interval(0.95, 2, differences.mean(), scipy.stats.sem(differences))
    assert ours["difference"]["interval"] == pytest.approx(interval)
    assert base["stop_correlation"]["mean"] == pytest.approx(
        scipy.stats.spearmanr([1, 1, 2, 2, 3, 3, 4, 4], [1, 1, 2, 2, 3, 4, 4, 4])[0]
    )
    table = rows_of(ablation_table(content))
    assert len(table) == 4 and table[3][3].startswith("+10.0 [")
    assert "6.00" in table[3] and "0.96" in table[2]
    fusions = rows_of(fusion_table(content))
    assert len(fusions) == 3, "bases alone"
    assert fusions[2][1:6] == ["60.0", "50.0", "1.25", "70.0", "60.0"]


def test_another_length_of_training_needs_another_folder(tmp_path):
    (tmp_path / "settings.json").write_text('{"iterations": 7, "distractors": 0}')
    with pytest.raises(UserError, match=r"holds variants of .*'iterations': 7.*, not of .*8"):
        run_ablation(tmp_path, tmp_path / "out.json", ["pathwise"], seeds=1, iterations=8, jobs=1)
    assert not (tmp_path / "tests").exists(), "a refused call leaves the folder alone"
    with pytest.raises(UserError, match="--distractors is 10: beside 4 operations there are names for 9"):
        run_ablation(tmp_path, tmp_path / "out.json", [], seeds=1, iterations=7, jobs=1, distractors=10)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings.json is not valid JSON"):
        run_ablation(tmp_path, tmp_path / "out.json", ["pathwise"], seeds=1, iterations=7, jobs=1)
