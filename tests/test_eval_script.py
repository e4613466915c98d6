"""eval.py and generate.py as a user starts them, and the file that eval.py leaves."""

import json
import re
import time

import pytest
from commands import ROOT, start
from run_folders import CURRICULUM, PPO, save_run

from longshot_jax.data.chains import write_chains
from longshot_jax.errors import UserError
from longshot_jax.evaluation.results import comparison, read_results, write_results
from longshot_jax.files import check_writable, json_with


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    save_run(folder / "run", PPO, "ppo")
    write_chains(folder / "chains.json", 2, 6, seed=1)
    write_chains(folder / "others.json", 3, 6, seed=1)
    (folder / "broken.json").write_text('[{"question": "a=1 a?"')
    return folder


@pytest.fixture(scope="module")
def results(folder):
    output = folder / "new" / "results.json"
    arguments = ("--checkpoint", folder / "run", "--data", folder / "chains.json", "--output", output)
    assert start("eval.py", *arguments, "--num_trajectories", 2, "--seed", 3) == 0
    return output


def test_results_are_of_the_contract(results, folder):
    content = json.loads(results.read_text())
    assert content["count"] == 6 == len(content["correct"])
    assert content["accuracy"] == pytest.approx(sum(content["correct"]) / 6)
    for name in ("sampled_accuracy", "vote_accuracy", "mean_accuracy"):
        assert 0 <= content[name] <= 1
    assert len(content["confidence_interval"]) == 2
    assert set(content["by_steps"]) == {"2"}
    assert set(content["controls"]) == {"zero", "noise", "mean", "swap", "no_reads"}
    config = content["config"]
    assert (config["seed"], config["num_trajectories"], config["sigma"]) == (3, 2, 0.1)
    assert config["data"] == str(folder / "chains.json") and config["checkpoint"] == str(folder / "run")
    assert [path.name for path in results.parent.iterdir()] == ["results.json"]


@pytest.mark.slow
def test_it_times_the_greedy_answers(folder, results, capsys):
    write_chains(folder / "nine.json", 2, 9, seed=1)
    output = folder / "timed.json"
    flags = ("--num_trajectories", 0, "--batch_size", 1, "--output", output)
    started = time.monotonic()
    assert start("eval.py", "--checkpoint", folder / "run", "--data", folder / "nine.json", *flags) == 0
    took = time.monotonic() - started
    seconds = json.loads(output.read_text())["seconds_per_question"]
    assert 0 < seconds < took / 5  # five of nine questions take at least the median
    assert re.search(rf"greedy, 1 at once +{1000 * seconds:#.3g} ms a question", capsys.readouterr().out)
    content = json.loads(results.read_text())  # one batch, which compiled
    assert content["seconds_per_question"] is None and content["config"]["batch_size"] == 128


def test_it_shows_a_table_and_the_paired_interval(results, folder, capsys):
    arguments = ("--checkpoint", folder / "run", "--data", folder / "chains.json")
    output = folder / "again.json"
    few = ("--num_trajectories", 0, "--output", output, "--compare", results, "--thoughts", "own")
    assert start("eval.py", *arguments, *few) == 0
    shown = capsys.readouterr().out
    assert "6 questions" in shown and "greedy accuracy" in shown and "thoughts: swap" in shown
    assert f"difference to {results}: +0.0 points, 95 % interval [" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "absent.json"}, "there is no data file"),
        ({"--data": "broken.json"}, "broken.json, line 1: broken JSON"),
        ({"--checkpoint": "absent"}, "there is no folder"),
        ({"--checkpoint": "new"}, "neither checkpoints nor a config.json"),
        ({"--output": "run"}, "is a folder"),
        ({"--output": "chains.json/results.json"}, "cannot be written"),
        ({"--compare": "chains.json"}, "chains.json does not hold a JSON object: give a results.json of eval.py"),
        ({"--compare": "run/config.json"}, "config.json does not list which answers are right: give a results.json"),
        ({"--compare": "absent.json"}, "absent.json does not exist: give a results.json of eval.py"),
        ({"--compare": "broken.json"}, "broken.json is not valid JSON"),
        ({"--batch_size": "0"}, "--batch_size: '0' is not a whole number from 1"),
        ({"--num_trajectories": "-1"}, "--num_trajectories: '-1' is not a whole number from 0"),
        ({"--seed": str(2**70)}, "--seed"),
        ({"--thoughts": "often"}, "--thoughts: 'often' is not one of own, steps, fixed, a whole number"),
        ({"--which": "12"}, "no checkpoint of step 12"),
    ],
)
def test_mistakes_end_with_code_2_and_leave_no_file(folder, change, message, capsys):
    (folder / "new").mkdir(exist_ok=True)
    files = {"--checkpoint": "run", "--data": "chains.json", "--output": "untouched.json"} | change
    paths = ("--checkpoint", "--data", "--output", "--compare")
    arguments = [part for flag, value in files.items() for part in (flag, folder / value if flag in paths else value)]
    assert start("eval.py", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (folder / "untouched.json").exists()


def test_generate_shows_every_trajectory(folder, capsys):
    arguments = ("--checkpoint", folder / "run", "--question", "a=6 n=a+2 n?", "--thoughts", 2)
    assert start("generate.py", *arguments, "--num_trajectories", 2) == 0
    shown = capsys.readouterr().out
    assert shown.count("trajectory ") == 2 and shown.count("  thought 2: ") == 2
    assert "answer: " in shown and shown.count("value") == 6 and shown.count("stop probability") == 6


def test_generate_leaves_out_what_no_phase_has_trained(folder, capsys):
    save_run(folder / "taught", CURRICULUM, "curriculum")
    assert start("generate.py", "--checkpoint", folder / "taught", "--question", "a=6 n=a+2 n?") == 0
    shown = capsys.readouterr().out
    assert shown.count("  thought 4: ") == 1 and "value" not in shown and "stop probability" not in shown


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--question", " ", "--question is empty"),
        ("--answer_length", "-1", "--answer_length: '-1' is not a whole number from 1"),
        ("--thoughts", "-1", "--thoughts"),
        ("--num_trajectories", "0", "--num_trajectories"),
        ("--seed", "1.5", "--seed"),
    ],
)
def test_generate_refuses(folder, capsys, flag, value, message):
    flags = {"--question": "a=6 n=a+2 n?"} | {flag: value}
    given = [f"{name}={text}" for name, text in flags.items()]
    assert start("generate.py", "--checkpoint", folder / "run", *given) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_results_are_replaced_at_once_or_kept(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"correct": [1, 0]})
    assert read_results(path)["correct"] == [1, 0]
    with pytest.raises(TypeError):
        write_results(path, {"correct": object()})
    assert read_results(path)["correct"] == [1, 0]
    check_writable(path, json_with("correct"))
    assert read_results(path)["correct"] == [1, 0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"correct": "yes"}, "does not list which answers are right"),
        ({"correct": [[1]]}, "does not list which answers are right"),
        ({"correct": [1, None]}, "does not list which answers are right"),
        ({"correct": [1], "config": ["x" * 40_000]}, "config is ['xxxx"),
    ],
)
def test_results_of_wrong_types_are_refused(tmp_path, content, sentence):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_results(path)
    said = str(error.value)
    assert said.startswith(str(path)) and sentence in said and len(said) < 400


@pytest.mark.parametrize(
    "text", ["[" * 100_000 + "]" * 100_000, '{"correct": ' * 100_000, '{"correct": [1' + "0" * 5000 + "]}"]
)
def test_results_nested_too_deeply_are_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json .*give a results\.json of eval\.py"):
        read_results(tmp_path / "results.json")


def test_other_questions_cannot_be_paired():
    ours = {"correct": [1, 0], "config": {"data_fingerprint": "a"}}
    with pytest.raises(UserError, match="other questions"):
        comparison(ours, {"correct": [1]}, "x")
    with pytest.raises(UserError, match="other questions"):
        comparison(ours, {"correct": [1, 1], "config": {"data_fingerprint": "b"}}, "x")
    graded = {"correct": [1, 1], "config": {"grader": "mine.py:grade"}}
    with pytest.raises(UserError, match=r"x was graded by mine\.py:grade, these results by the rule of the data"):
        comparison(ours, graded, "x")
    text = comparison(ours, {"correct": [0, 0], "config": {"data_fingerprint": "a"}}, "x")
    assert text.startswith("difference to x: +50.0 points")


@pytest.mark.slow
def test_a_runs_own_test_is_the_default(folder, capsys):
    output = folder / "own.json"
    assert start("eval.py", "--checkpoint", folder / "run", "--output", output, "--num_trajectories", 0) == 0
    content = json.loads(output.read_text())
    assert content["count"] == PPO.data.generated_test and content["config"]["data"] == "chains"
    llama = ROOT / "tests" / "fixtures" / "golden_llama3"
    for wrong, sentence in (
        (llama, "is neither a run folder nor an export with the settings of its test: give --data"),
        (folder, "holds neither checkpoints nor a config.json"),
        (folder / "no", "there is no folder"),
    ):
        assert start("eval.py", "--checkpoint", wrong, "--output", output) == 2
        assert sentence in capsys.readouterr().err
