"""scripts/train.py: whatever is wrong on the command line ends with code 2 and one sentence that names it."""

import runpy
from pathlib import Path

import pytest
from commands import ROOT, TINY, requested_training, start

from longshot_jax.config import parse_config
from longshot_jax.config.declarations import declared, declared_groups
from longshot_jax.config.run import PATH_SETTINGS, RunConfig

CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


@pytest.fixture(autouse=True)
def no_shared_cache(monkeypatch, tmp_path):
    """The command would have this process keep its compilations in the user's folder."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))


def run_script(capsys, *arguments):
    """Exit code and standard error of the command."""
    return start("train.py", *arguments), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no config file was given"),
        (["--config", "configs/none.py"], "there is no config file configs/none.py"),
        (["--config", TINY, "--config.ppo.iteration=3"], "config.ppo.iteration is not a setting: did you mean config.ppo.iterations?"),
        (["--config", TINY, "--config.iterations=3"], "did you mean config.ppo.iterations?"),
        (["--config", TINY, "--config.ppo=3"], "config.ppo is a group of settings"),
        (["--config", TINY, "--config.zzz=3"], "config.zzz is not a setting: scripts/train.py --help lists them all."),
        (["--config", TINY, "--config.ppo.iterations=many"], "config.ppo.iterations is 'many': it must be of type int"),
        (["--config", TINY, "--config.ppo.gradient=both"], "config.ppo.gradient is 'both': it must be one of score, pathwise, mixture, none"),
        (["--config", TINY, "--config.phases=('ppo','sft')"], "config.phases is 'sft': it must be one of text, curriculum, ppo"),
        (["--config", TINY, "--config.seed=1.5"], "config.seed is 1.5: it must be of type int"),
        (["--config", TINY, "--config.ppo.trace=1"], "config.ppo.trace has a new name: config.ppo.gae_lambda."),
        (["--config", TINY, "--config", TINY], "--config is given 2 times"),
        (["--help", "zzz"], "--help zzz: the groups of settings are "),
        (["--config", TINY, "--workdirs=x"], "--workdirs is not an option: did you mean --workdir?"),
        (["--config", TINY, "stray"], "'stray' is not an option"),
    ],
)  # fmt: skip
def test_bad_command_lines(capsys, arguments, sentence):
    code, said = run_script(capsys, *arguments)
    assert code == 2 and sentence in said
    assert "Traceback" not in said and said.startswith("error: ") and said.count("\n") == 1


def test_broken_config_files(capsys, tmp_path):
    for text, sentence in (
        ("def get_config(:", "SyntaxError"),
        ("x = 1", "get_config"),
        (
            "from longshot_jax.config import default_config\ndef get_config():\n"
            "    c = default_config()\n    c.ppo.iteration = 3\n    return c",
            "iteration",
        ),
    ):
        (tmp_path / "mine.py").write_text(text)
        mine = ("--config", tmp_path / "mine.py", f"--workdir={tmp_path}/run", "--config.phases=()")
        code, said = run_script(capsys, *mine)
        assert code == 2 and sentence in said and "Traceback" not in said and said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--config.data.train=/no/such.json"], "there is no data file /no/such.json"),
        (["--config.model.source=/no/such"], "config.model.source '/no/such' is not a directory"),
        (["--config.initialize_from=/no/such"], "there is no folder /no/such"),
        (["--config.mesh.fsdp=64"], "config.mesh asks for data 1 x fsdp 64"),
        (["--config.data.prompt_length=9"], "prompt"),
    ],
)
def test_what_cannot_be_trained_stops_before_training(monkeypatch, capsys, tmp_path, overrides, sentence):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    work = tmp_path / "run"
    code, said = run_script(capsys, "--config", TINY, f"--workdir={work}", *overrides)
    assert code == 2 and sentence in said and "Traceback" not in said
    assert not (work / "checkpoints").exists() or not any((work / "checkpoints").iterdir())


def test_unwritable_workdir_and_broken_data_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, said = run_script(capsys, "--config", TINY, f"--workdir={tmp_path}/file/run")
    assert code == 2 and "cannot be written" in said
    (tmp_path / "data.txt").write_text("one||<<1+1=2>> #### 2\nbroken line\n")
    data = f"--config.data.train={tmp_path}/data.txt"
    code, said = run_script(capsys, "--config", TINY, f"--workdir={tmp_path}/run", data)
    assert code == 2 and "data.txt, line 2" in said


def test_hub_name_without_network(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, said = run_script(capsys, "--config", TINY, f"--workdir={tmp_path}", "--config.model.source=nobody/nothing")
    assert code == 2 and "the hub is out of reach" in said and "give a local Hugging Face directory" in said


@pytest.mark.parametrize("option", ["--workdir", "--config", *(f"--config.{key}" for key in PATH_SETTINGS)])
@pytest.mark.parametrize("path", ["gs://bucket/run", "~no_such_user_here/x", "x" * 300])
def test_a_path_that_is_none_here_is_refused_before_anything(capsys, tmp_path, monkeypatch, option, path):
    monkeypatch.chdir(tmp_path)
    code, said = (
        run_script(capsys, "--config", TINY, f"{option}={path}")
        if option != "--config"
        else run_script(capsys, "--config", path)
    )
    assert code == 2 and said.startswith(f"error: {option.removeprefix('--') if '.' in option else option} '")
    assert said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_every_setting_of_a_path_is_known():
    """A text setting that is no choice of words names a path, except prose and JSON."""
    texts = {key for key, setting in declared(RunConfig).items() if setting.kind is str}
    assert set(PATH_SETTINGS) == texts - {"data.instruction", "data.parameters"}


def test_help_is_the_docstring_and_every_setting(capsys):
    assert start("train.py", "--help") == 0
    shown = capsys.readouterr().out
    assert "--config.key=value" in shown and "--workdir" in shown
    assert all(f"\n{group}: " in shown for group in declared_groups(RunConfig) if group)
    assert start("train.py", "--help", "ppo") == 0
    shown = capsys.readouterr().out
    assert "--config.key=value" in shown and "\nppo.rewards: " in shown and "\nmodel: " not in shown


def test_overrides_and_default_folder():
    run, workdir = requested_training(
        "--config", TINY, "--config.ppo.thought_std=(0.3,0.1)", "--config.curriculum.optimizer.learning_rate=1",
        "--config.curriculum.stages=(0,2)", "--config.data.train=x.json",
    )  # fmt: skip
    assert run.ppo.thought_std == (0.3, 0.1) and run.curriculum.optimizer.learning_rate == 1.0
    assert run.curriculum.stages == (0, 2) and run.data.train == "x.json"
    assert workdir == Path("runs/tiny")
    assert requested_training(f"--config={TINY}", "--workdir", "w")[1] == Path("w")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_a_document(name):
    module = runpy.run_path(str(ROOT / "configs" / name))
    parse_config(module["get_config"]())
    told = module["__doc__"]
    for part in ("What it is for:", "Cost:", f"--config configs/{name}"):
        assert part in told, part
    assert any(word in told for word in ("should reach", "expect", "docs/results", "What it reaches:"))
