"""The logger `wandb`: what it gets, and what a run says that cannot start it."""

import io
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_tensorboard import read
from tiny_run import tiny

from longshot_jax.errors import UserError
from longshot_jax.train import train


def test_without_the_package_a_run_is_refused_before_it_writes_anything(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"config\.logger 'wandb' needs the package wandb.*pip install wandb"):
        train(tiny(logger="wandb"), tmp_path / "run", io.StringIO())
    assert not list(tmp_path.rglob("config.json"))


def records(file: Path) -> Iterator[Any]:
    """The records of a run's file: LevelDB's log format, in blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4) and place <= len(data):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def finished_records(file: Path) -> list[Any]:
    """All records of a finished run. W&B's own process may write the last blocks after `finish` has returned."""
    deadline = time.monotonic() + 60
    while True:
        read = list(records(file))
        if read and read[-1].HasField("exit"):
            return read
        assert time.monotonic() < deadline, f"{file} has no record of the run's end after 60 s"
        time.sleep(0.1)


@pytest.mark.slow
def test_it_gets_the_settings_and_every_scalar_of_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(tiny(logger="wandb", curriculum__max_steps_per_stage=2, ppo__iterations=2), tmp_path / "run", io.StringIO())
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    points, settings = set(), {}
    for record in finished_records(file):
        if record.HasField("run"):
            assert record.run.project == "longshot" and record.run.display_name == "run"
            settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            points |= {(name, values["step"]) for name in values if name != "step" and not name.startswith("_")}
    assert settings["seed"] == 0 and settings["ppo"]["iterations"] == 2
    events = read(tmp_path / "run" / "tensorboard")
    theirs = {(tag, event.step) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert points == theirs and len(points) > 100


@pytest.mark.slow
def test_without_a_login_a_run_is_refused_before_it_writes_anything(tmp_path):
    pytest.importorskip("wandb")
    root = Path(__file__).parents[1]
    command = [sys.executable, "scripts/train.py", "--config", "configs/tiny.py", "--config.logger=wandb"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment["HOME"] = str(tmp_path)  # no stored key
    done = subprocess.run(
        [*command, "--workdir", tmp_path / "run"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: config.logger 'wandb' cannot start" in done.stderr and "wandb login" in done.stderr
    assert not list((tmp_path / "run").glob("config.json"))
