"""scripts/train.py: whatever is wrong on the command line ends with code 2 and one sentence that names it."""

import runpy
import sys
from pathlib import Path

import pytest

from longshot_jax.command_line import parse_arguments
from longshot_jax.config import parse_config

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "configs" / "tiny.py")
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


def run_script(monkeypatch, capsys, *arguments):
    """Exit code and standard error of the command, in this process: starting one takes seconds."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    return exit.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no config file was given"),
        (["--config", "configs/none.py"], "there is no config file configs/none.py"),
        (["--config", TINY, "--config.ppo.iteration=3"], "--config.ppo.iteration is no setting: did you mean --config.ppo.iterations?"),
        (["--config", TINY, "--config.iterations=3"], "did you mean --config.ppo.iterations?"),
        (["--config", TINY, "--config.ppo=3"], "--config.ppo is a group of settings"),
        (["--config", TINY, "--config.zzz=3"], "--config.zzz is no setting: longshot_jax/config.py lists them all."),
        (["--config", TINY, "--config.ppo.iterations=many"], "config.ppo.iterations"),
        (["--config", TINY, "--config.ppo.gradient=both"], "config.ppo.gradient is 'both': it must be one of score, pathwise, mixture, none"),
        (["--config", TINY, "--config.stages=('ppo','sft')"], "config.stages holds 'sft'"),
        (["--config", TINY, "--config.seed=1.5"], "config.seed"),
        (["--config", TINY, "--workdirs=x"], "--workdirs is no option: did you mean --workdir?"),
        (["--config", TINY, "stray"], "'stray' is no option"),
    ],
)  # fmt: skip
def test_bad_command_lines(monkeypatch, capsys, arguments, sentence):
    code, said = run_script(monkeypatch, capsys, *arguments)
    assert code == 2 and sentence in said
    assert "Traceback" not in said and said.startswith("error: ") and said.count("\n") == 1


def test_broken_config_files(monkeypatch, capsys, tmp_path):
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
        for name in [name for name in sys.modules if name.endswith("_config")]:
            monkeypatch.delitem(sys.modules, name)  # the loader would add to what an earlier test has loaded
        code, said = run_script(
            monkeypatch,
            capsys,
            "--config",
            str(tmp_path / "mine.py"),
            f"--workdir={tmp_path}/run",
            "--config.stages=()",
        )
        assert code == 2 and sentence in said and "Traceback" not in said and said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--config.data.train=/no/such.json"], "there is no data file /no/such.json"),
        (["--config.model.source=/no/such"], "config.model.source '/no/such' is no directory"),
        (["--config.initialize_from=/no/such"], "/no/such holds no checkpoints"),
        (["--config.mesh.fsdp=64"], "config.mesh asks for data 1 x fsdp 64"),
        (["--config.data.prompt_length=9"], "prompt"),
    ],
)
def test_what_cannot_be_trained_stops_before_training(monkeypatch, capsys, tmp_path, overrides, sentence):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    work = tmp_path / "run"
    code, said = run_script(monkeypatch, capsys, "--config", TINY, f"--workdir={work}", *overrides)
    assert code == 2 and sentence in said and "Traceback" not in said
    assert not (work / "checkpoints").exists() or not any((work / "checkpoints").iterdir())


def test_unwritable_workdir_and_broken_data_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, said = run_script(monkeypatch, capsys, "--config", TINY, f"--workdir={tmp_path}/file/run")
    assert code == 2 and "cannot be written" in said
    (tmp_path / "data.txt").write_text("one||<<1+1=2>> #### 2\nbroken line\n")
    code, said = run_script(
        monkeypatch,
        capsys,
        "--config",
        TINY,
        f"--workdir={tmp_path}/run",
        f"--config.data.train={tmp_path}/data.txt",
    )
    assert code == 2 and "data.txt, line 2" in said


def test_hub_name_without_network(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, said = run_script(
        monkeypatch, capsys, "--config", TINY, f"--workdir={tmp_path}", "--config.model.source=nobody/nothing"
    )
    assert code == 2 and "the hub is out of reach" in said and "give a local Hugging Face directory" in said


def test_help_is_the_docstring(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    assert exit.value.code == 0 and "--config.key=value" in capsys.readouterr().out


def test_overrides_and_default_folder():
    run, workdir = parse_arguments(
        ["train.py", "--config", TINY, "--config.ppo.noise=(0.3,0.1)", "--config.curriculum.optimizer.learning_rate=1",
         "--config.curriculum.stages=(0,2)", "--config.data.train=x.json"]
    )  # fmt: skip
    assert run.ppo.noise == (0.3, 0.1) and run.curriculum.optimizer.learning_rate == 1.0
    assert run.curriculum.stages == (0, 2) and run.data.train == "x.json"
    assert workdir == Path("runs/tiny")
    assert parse_arguments(["train.py", f"--config={TINY}", "--workdir", "w"])[1] == Path("w")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_a_document(name):
    module = runpy.run_path(str(ROOT / "configs" / name))
    parse_config(module["get_config"]())
    told = module["__doc__"]
    for part in ("What it is for:", "Cost:", f"--config configs/{name}"):
        assert part in told, part
    assert any(word in told for word in ("should reach", "expect", "docs/results.md"))
