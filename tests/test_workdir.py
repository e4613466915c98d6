"""A run's folder: its settings, its lock, and folders that cannot be written."""

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from child_process import run_script

from longshot_jax.checkpoints.run_folder import (
    check_same_config,
    config_differences,
    prepare_workdir,
    read_config,
    read_settings,
    write_config,
)
from longshot_jax.config import RunConfig
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
    for content, words in [
        ("{", "not valid JSON"),
        ("[1]", "JSON object"),
        (r'{"a": ["\ud800"]}', "surrogates not allowed"),
    ]:
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


def content(folder: Path) -> dict[str, object]:
    """Everything in a folder: files with their bytes, links with their targets, folders."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else path.is_dir()
        for path in folder.rglob("*")
    }


def write(folder: Path, files: dict[str, str]) -> Path:
    """Writes files into a new folder; a name that ends in a slash is a folder, a text `-> x` a link to x."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        elif text.startswith("-> "):
            path.symlink_to(text[3:])
        else:
            path.write_text(text)
    return folder


OWN = json.dumps(asdict(RunConfig()))
OLD = json.dumps({"seed": 0, "stages": ["curriculum"], "curriculum": {}, "ppo": {}, "gone": 1})


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"config.json": '{"model_type": "llama", "hidden_size": 8}', "model.safetensors": "x"}, "config.json"),
        ({"config.json": '{"seed": 1, "lr": 0.1}'}, "config.json"),
        ({"config.json": "[1]"}, "config.json"),
        ({"config.json": "half of"}, "config.json"),
        ({"config.json": ""}, "config.json"),
        ({"config.json/x": "x"}, "config.json"),
        ({"../mine": OWN, "config.json": "-> ../mine"}, "config.json"),
        ({"tokenizer/tokenizer.json": "{}"}, "tokenizer"),
        ({"tokenizer": "x"}, "tokenizer"),
        ({"config.json": OWN, "../mine/x": "x", "tokenizer": "-> ../mine"}, "tokenizer"),
        ({"../mine": "x", ".lock": "-> ../mine"}, ".lock"),
        ({".lock": "-> nowhere"}, ".lock"),
        ({".lock": "locked by hand"}, ".lock"),
        ({".lock/x": "x"}, ".lock"),
        ({"checkpoints/1000/pytorch_model.bin": "x"}, "checkpoints/1000"),
        ({"checkpoints/3/state/x": "x", "config.json": '{"model_type": "llama"}'}, "config.json"),
    ],
    ids=lambda value: "".join(value)[:60] if isinstance(value, dict) else "",
)
def test_a_folder_with_what_a_run_would_replace_is_refused_as_it_is(tmp_path, files, named):
    folder = write(tmp_path / "folder", files)
    before = content(tmp_path)
    with pytest.raises(
        UserError, match=rf"folder holds {named}, which is not .*: choose another --workdir\.$"
    ) as raised:
        prepare_workdir(folder)
    assert "\n" not in str(raised.value) and content(tmp_path) == before


@pytest.mark.parametrize(
    "files",
    [
        {},
        {".lock": "123\n"},
        {".lock": "", "config.json": OWN},
        {".lock": "7\n", "config.json": OWN, "tokenizer/tokenizer.json": "{}", "tensorboard/events.out": "x"},
        {"config.json": OLD, "tokenizer/x": "x", "checkpoints/": ""},
        {"config.json": "half of", "checkpoints/4504/host/metadata": "{}", "tokenizer/x": "x"},
        {"checkpoints/4504/_CHECKPOINT_METADATA": "{}", "tokenizer/x": "x"},
        {"checkpoints/2.orbax-checkpoint-tmp-7/state/x": "", "tokenizer/x": "x", "config.json": OWN},
        {"../moved/x": "x", "checkpoints/4/state/x": "x", "tokenizer": "-> ../moved"},
        {"../fast/": "", "checkpoints": "-> ../fast", "tensorboard": "-> ../fast"},
        {"slurm-123.out": "x", ".gitkeep": "", ".nfs0001": "", "lost+found/": "", "run.log": "x", "tokenizer/": ""},
        {"model.safetensors": "x", "tokenizer.json": "{}", "checkpoints/best.pt": "x", "checkpoints/notes/x": "x"},
    ],
    ids=lambda files: "".join(files)[:60],
)
def test_a_folder_of_a_run_or_with_other_files_is_taken_as_it_is(tmp_path, files):
    folder = write(tmp_path / "folder", files)
    before = content(tmp_path)
    prepare_workdir(folder).close()
    after = content(tmp_path)
    assert after.pop("folder/.lock") == f"{os.getpid()}\n".encode()
    assert after == {name: value for name, value in before.items() if name != "folder/.lock"}


def test_a_link_to_a_folder_may_be_the_workdir(tmp_path):
    write(tmp_path / "there", {})
    (tmp_path / "run").symlink_to("there")
    with prepare_workdir(tmp_path / "run"), pytest.raises(UserError, match="Another run"):
        prepare_workdir(tmp_path / "there")
    assert (tmp_path / "there" / ".lock").is_file()


def test_settings_of_a_run_that_are_wrong_name_their_file(tmp_path):
    """Any setting of a wrong type, at any depth, is a sentence with the file's name."""
    right = asdict(RunConfig())

    def places(group, trail=()):
        for key, value in group.items():
            yield (*trail, key)
            if isinstance(value, dict):
                yield from places(value, (*trail, key))

    for trail in places(right):
        for wrong in (None, -1e400, [[]], {"": {"x\ny": 1}}, 10**400):
            broken = json.loads(json.dumps(right))
            group = broken
            for key in trail[:-1]:
                group = group[key]
            group[trail[-1]] = wrong
            write_config(tmp_path, broken)
            try:
                read_settings(tmp_path)  # an empty group has its defaults, and a text may be any
            except UserError as error:
                assert str(tmp_path / "config.json") in str(error) and "\n" not in str(error), (trail, wrong)
    write_config(tmp_path, right)
    assert read_settings(tmp_path) == RunConfig()


ONLY_THE_FIRST = """
    import sys
    from longshot_jax.checkpoints.run_folder import prepare_workdir
    from longshot_jax.distributed import join_processes, on_primary
    from longshot_jax.errors import UserError
    join_processes()
    for folder in sys.argv[1:]:
        try:
            print("LOCKED", on_primary(lambda: prepare_workdir(folder)) is not None)
        except UserError as error:
            print("REFUSED", error)
"""


def test_only_the_first_of_several_processes_prepares_the_folder(tmp_path):
    mine = write(tmp_path / "mine", {"config.json": "{}"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def start(index: int) -> list[str]:
        own = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
        collectives = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
        done = run_script(ONLY_THE_FIRST, tmp_path / "run", mine, environment=own | collectives)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith(("LOCKED", "REFUSED"))]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(start, range(2))
    assert first[0] == "LOCKED True" and "mine holds config.json" in first[1]
    assert second == ["LOCKED False", "REFUSED the first process of this run failed: see its message."]
    assert content(mine) == {"config.json": b"{}"}


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path, why in (
        (tmp_path / "file", "it is not a folder"),
        (tmp_path / "dangling", "it is not a folder"),
        (tmp_path / "file" / "x", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("/proc/longshot"), ""),
        (Path("/sys"), ""),
    ):
        with pytest.raises(UserError, match=rf"{path} cannot be written \({why}.*: choose another --workdir"):
            prepare_workdir(path)
    assert (tmp_path / "file").read_text() == "mine"
