"""The demo's variants are commands that train.py accepts, and its table has every variant and control."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from commands import requested_training

from longshot_jax.errors import UserError
from longshot_jax.experiments.demo import VARIANTS, run_demonstration, table, variants
from longshot_jax.experiments.variants import (
    OPERATIONS,
    check_variants,
    finished_results,
    run_logged,
    train_command,
    write_tests,
)


def entry(accuracy, controls):
    group = {
        "accuracy": accuracy,
        "mean_thoughts": 2.0,
        "sampled_accuracy": 0.5,
        "vote_accuracy": 0.25,
        "controls": controls,
    }
    return {
        "confidence_interval": [0.1, 0.9],
        "by_steps": {str(operations): group for operations in OPERATIONS},
        "controls": controls,
        "compute": {"gradient_steps": 1000, "sequences": 64000, "seconds": 12.3},
    }


def test_every_variant_starts_after_the_one_it_needs_and_names_its_run():
    for name, variant in VARIANTS.items():
        command = train_command(VARIANTS, name, Path("runs"), seed=3)
        assert "--config.seed=3" in command and str(Path("runs") / name) in command
        start = [part for part in command if part.startswith("--config.initialize_from=")]
        assert bool(start) == (variant.starts_from is not None)
        run, folder = requested_training(*command[2:])
        assert run.seed == 3 and folder == Path("runs") / name
        assert run.initialize_from == (str(Path("runs") / variant.starts_from) if variant.starts_from else "")


def test_continued_sees_as_many_sequences_as_ppo_trains_on():
    for iterations in (200, 400):
        ppo, continued = (
            requested_training(*train_command(variants(iterations), name, Path("runs"), seed=0)[2:])[0]
            for name in ("ppo", "continued")
        )
        sequences = ppo.ppo.iterations * ppo.ppo.epochs * ppo.ppo.questions * ppo.ppo.num_trajectories
        curriculum = continued.curriculum
        assert sequences == curriculum.max_steps_per_stage * curriculum.batch_size * len(curriculum.stages)


def test_table_has_a_row_for_each_variant_sample_vote_and_control():
    summary = {name: entry(0.75, {"zero": 0.125}) for name in VARIANTS}
    lines = table(summary).splitlines()
    assert len(lines) == 2 + len(VARIANTS) + 2 + 2
    assert len({line.count("|") for line in lines}) == 1
    ppo = next(line for line in lines if line.startswith("| PPO "))
    assert "75.0 [10.0, 90.0]" in ppo and "1,000" in ppo and "64,000" in ppo and "2 2 2 2" in ppo
    assert sum("12.5" in line for line in lines) == 2


def test_variants_of_other_settings_are_not_shown_as_these(tmp_path):
    run, folder = requested_training(*train_command(VARIANTS, "ppo", tmp_path, seed=1)[2:])
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asdict(run)))
    check_variants(VARIANTS, tmp_path, seed=2)  # nothing was finished: training says by itself whether it can go on
    (folder / "results.json").write_text("{}")
    check_variants(VARIANTS, tmp_path, seed=1)
    with pytest.raises(
        UserError, match=r"ppo was trained with other settings \(seed \(stored 1, now 2\)\): remove ppo"
    ):
        check_variants(VARIANTS, tmp_path, seed=2)
    folder.rename(tmp_path / "cot")
    with pytest.raises(UserError, match="remove cot, pause, coconut, ppo, continued there"):
        check_variants(VARIANTS, tmp_path, seed=1)
    (tmp_path / "cot").rename(folder)
    tmp_path.rename(moved := tmp_path.with_name("moved"))
    check_variants(VARIANTS, moved, seed=1)


@pytest.mark.parametrize("content", ['{"config": {"seed": 1}, "correct": [1]}', '{"config": 3}', "[]", "{", ""])
def test_results_of_another_command_are_no_variants(tmp_path, content):
    """Such as those of scripts/eval.py with `--output runs/demo/cot/results.json`."""
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"results\.json .*: remove it, or choose another --workdir"):
        finished_results(path, 1)
    path.write_text('{"config": {"training_seed": 1}, "by_steps": {}}')
    assert finished_results(path, 1) and finished_results(path, 2) is None


def test_nothing_is_written_over_other_files_or_through_links(tmp_path):
    write_tests(tmp_path, 2)
    write_tests(tmp_path, 2)  # the same files
    (tmp_path / "test_3.json").write_text("mine")
    with pytest.raises(UserError, match=r"test_3\.json exists and is not a file that this command wrote"):
        write_tests(tmp_path, 2)
    (tmp_path / "cot.log").symlink_to(tmp_path / "test_3.json")
    with pytest.raises(UserError, match=r"cot\.log cannot be written .*choose another --workdir"):
        run_logged(["true"], tmp_path / "cot.log")
    assert (tmp_path / "test_3.json").read_text() == "mine"
    run_logged(["true"], tmp_path / "ppo.log")
    (tmp_path / "summary.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"summary\.json exists and is not a file that this command wrote"):
        run_demonstration(tmp_path, 0)


def test_a_variant_that_cannot_be_read_is_not_shown(tmp_path):
    (tmp_path / "cot").mkdir()
    (tmp_path / "cot" / "results.json").write_text("{}")
    (tmp_path / "cot" / "config.json").write_text('{"ppo": {"lucky": true}}')
    with pytest.raises(
        UserError, match=r"trained by another version \(config.ppo.lucky is not a setting.*\): remove cot, "
    ):
        check_variants(VARIANTS, tmp_path, seed=1)
