"""A run's folder: its settings, its lock, and folders that cannot be written."""

import json
import os
import signal
from pathlib import Path

import pytest
from child_process import run_script

from longshot_jax.checkpoints.run_folder import (
    check_same_config,
    config_differences,
    prepare_workdir,
    read_config,
    write_config,
)
from longshot_jax.errors import UserError


def test_config_differences_by_dotted_key():
    stored = {"seed": 1, "ppo": {"clip": 0.2, "epochs": 2}, "log": {"every": 5}, "steps": [1, 2], "gone": None}
    current = {"seed": 1, "ppo": {"clip": 0.3, "epochs": 2}, "log": {"every": 9}, "steps": (1, 2), "new": True}
    assert config_differences(stored, current, {"log"}) == [
        "gone (stored null, now (absent))",
        "new (stored (absent), now true)",
        "ppo.clip (stored 0.2, now 0.3)",
    ]
    assert config_differences(stored, stored) == []
    assert config_differences({"a": 1}, {"a": True}) == ["a (stored 1, now true)"]
    assert config_differences({"log": 1}, {"log": 2}, {"lo"}) == ["log (stored 1, now 2)"]
    check_same_config("runs/x", stored, stored)
    with pytest.raises(UserError, match=r"runs/x.*log\.every.*ppo\.clip.*--workdir") as raised:
        check_same_config("runs/x", stored, current)
    assert "\n" not in str(raised.value)


def test_config_beside_the_checkpoints(tmp_path):
    config = {"seed": 1, "ppo": {"clip": 0.2}, "phases": ["curriculum", "ppo"]}
    write_config(tmp_path, config)
    assert read_config(tmp_path) == config == json.loads((tmp_path / "config.json").read_text())
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    for content, words in [("{", "not valid JSON"), ("[1]", "JSON object")]:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=words):
            read_config(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be written"):
        write_config(tmp_path / "nowhere", config)


def test_one_run_writes_one_workdir(tmp_path):
    path = tmp_path / "runs" / "x"
    with prepare_workdir(path):
        assert path.is_dir()
        with pytest.raises(UserError, match=rf"process {os.getpid()}\) is writing to .*runs/x"):
            prepare_workdir(path)
    prepare_workdir(path).close()


def test_lock_of_a_killed_run_is_stale(tmp_path):
    done = run_script(
        """
        import os, signal, sys
        from longshot_jax.checkpoints.run_folder import prepare_workdir
        lock = prepare_workdir(sys.argv[1])
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL and (tmp_path / ".lock").exists()
    prepare_workdir(tmp_path).close()


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/longshot")):
        with pytest.raises(UserError, match=rf"{path} cannot be written"):
            prepare_workdir(path)
    assert (tmp_path / "file").read_text() == "mine"
