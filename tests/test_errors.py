"""Sentences of commands: cut to a sane length, and true about devices and memory."""

import os
import subprocess
import sys

import jax.numpy as jnp
import pytest
from child_process import run_script
from commands import ROOT, TINY, start

from longshot_jax.errors import UserError, machine_fault, run_command, shown


def ended(main) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as error:
        run_command(main)
    return int(error.value.code or 0)


def test_values_and_words_are_cut():
    assert shown("a") == "'a'" and shown((1, 2)) == "(1, 2)"
    assert shown("a" * 40_000) == "'" + "a" * 79 + "..." and shown(10**5000) == "a number of thousands of digits"
    path = "/" + "folder/" * 40 + "file.json"
    assert str(UserError(f"{path} is missing.")) == f"{path} is missing.", "a path stays whole"
    said = str(UserError(f"--{'x' * 40_000} is not an option: see --help."))
    assert said.startswith("--xxx") and said.endswith("xxx is not an option: see --help.") and len(said) < 300


@pytest.mark.parametrize(
    ("missing", "environment", "level"),
    [
        ("jax_plugins libtpu", {"JAX_PLATFORMS": ""}, "3"),
        ("libtpu", {"JAX_PLATFORMS": ""}, None),
        ("jax_plugins", {"JAX_PLATFORMS": ""}, None),
        ("", {"JAX_PLATFORMS": "cpu"}, "3"),
        ("", {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "0"}, "0"),
    ],
)
@pytest.mark.parametrize("entry", ["longshot_jax.errors", "longshot_jax.cli"])
def test_xlas_own_log_is_off_where_there_are_cpus_alone(entry, missing, environment, level):
    """In a process that has not imported jax, which reads the variable; `longshot` begins with longshot_jax.cli."""
    program = """
        import importlib.util, os, sys
        from importlib import import_module
        def found(name, real=importlib.util.find_spec):
            return real("json" if name in ("jax_plugins", "libtpu") and name not in sys.argv[2:] else name)
        importlib.util.find_spec = lambda name, *_: None if name in sys.argv[2:] else found(name)
        import_module(sys.argv[1])
        assert "jax" not in sys.modules
        from longshot_jax.errors import run_command
        run_command(lambda: print(os.environ.get("TF_CPP_MIN_LOG_LEVEL")))
    """
    inherited = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", inherited)
        shown = run_script(program, entry, *missing.split(), environment=environment)
    assert shown.stdout.split() == [str(level)], shown.stderr


LONG = "x" * 40_000


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("train.py", ["--config", LONG]),
        ("train.py", ["--config", TINY, f"--{LONG}"]),
        ("train.py", ["--config", TINY, LONG]),
        ("train.py", ["--config", TINY, f"--config.{LONG}=1"]),
        ("train.py", ["--config", TINY, f"--config.markers={LONG}"]),
        ("train.py", ["--config", TINY, f"--config.ppo.thought_std[{LONG}]=1"]),
        ("train.py", ["--help", LONG]),
        ("plan.py", ["--config", TINY, "--devices", LONG]),
        ("bench.py", ["--config", TINY, "--clock", LONG]),
        ("bench.py", ["--config", TINY, "--repetitions", "0"]),
        ("bench.py", ["--config", TINY, "--output"]),
        ("bench.py", ["--config", TINY, "--only", "x " * 20_000]),
        ("eval.py", ["--checkpoint", "x", "--output", "y", "--thoughts", LONG]),
        ("eval.py", []),
        ("eval.py", ["--checkpoint", "x", "--output", "y", "--seed", "-1e-3"]),
        ("generate.py", ["--checkpoint", "x", "--question", "q", "--seed", "1.5"]),
        ("lens.py", ["--checkpoint", LONG, "--operations", "0"]),
        ("convert.py", ["from-hf"]),
        ("convert.py", [LONG]),
        ("demo.py", ["--evaluate", LONG]),
        ("ablate.py", ["--output", "out.json", "--variants", "x " * 20_000]),
    ],
)
def test_a_wrong_option_of_any_script_is_one_short_sentence(script, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert start(script, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 1000, said
    assert said.rstrip().endswith((".", "?")) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("platform", ["banana", "cuda"])
def test_a_device_that_is_not_there_is_named(platform, tmp_path):
    if platform == "cuda" and _has_gpu():
        pytest.skip("this machine has the device")
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", TINY, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": platform}, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: JAX_PLATFORMS is {platform!r}, and JAX can use no such device here (")
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def _has_gpu() -> bool:
    return os.path.exists("/dev/nvidia0")


def test_memory_that_does_not_suffice_is_a_sentence(capsys):
    assert ended(lambda: jnp.zeros(2**45)) == 2
    assert "error: the memory does not suffice (RESOURCE_EXHAUSTED" in capsys.readouterr().err

    def wrapped() -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise UserError("the checkpoint is damaged (MemoryError): remove it.") from error

    assert ended(wrapped) == 2
    assert "error: the memory does not suffice (MemoryError): use fewer rows at once" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)
    assert machine_fault(UserError("config.seed is -1.")) is None


@pytest.mark.parametrize(
    "setting",
    [
        ["model.hidden_size=4194304"],
        ["model.hidden_size=2147483640", "model.num_hidden_layers=2147483647"],
        ["thoughts.feedback=navigator", "thoughts.reasoning_dim=2147483647"],
    ],
)
def test_a_model_beyond_memory_is_refused_before_it_is_made(setting, capsys, tmp_path):
    work = tmp_path / "run"
    options = [f"--config.{each}" for each in setting]
    assert start("train.py", "--config", TINY, f"--workdir={work}", *options) == 2
    said = capsys.readouterr().err
    assert "lower the sizes in config.model and config.thoughts" in said and said.count("\n") == 1
    assert not (work / "config.json").exists()
