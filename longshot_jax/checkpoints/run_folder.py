"""The folder of a run: its lock, and the config that the run was started with."""

import fcntl
import json
import os
from collections.abc import Collection, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from longshot_jax.config.declarations import flatten
from longshot_jax.errors import UserError
from longshot_jax.files import read_json, unwritable, write_json

_CONFIG = "config.json"
_MISSING = "(absent)"


def prepare_workdir(path: str | Path) -> FileIO:
    """Creates the run folder, checks that it can be written, and locks it; only the first process of a run calls this.

    The returned lock holds until it is closed or this process ends, however it ends: it belongs to the open file, so
    the lock file of a killed run blocks no other run. Raises a UserError if the folder cannot be written or is locked.
    """
    path = Path(path).absolute()
    lock = None
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileIO(path / ".lock", "a+")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
    except BlockingIOError as error:
        assert lock is not None  # only `flock` raises this
        with lock:
            holder = os.pread(lock.fileno(), 64, 0).decode(errors="replace").strip()
        raise UserError(
            f"Another run (process {holder}) is writing to {path}: wait for it, or choose another --workdir."
        ) from error
    except OSError as error:
        if lock is not None:
            lock.close()
        raise unwritable(path, error, "choose another --workdir or fix its permissions") from error
    return lock


def write_config(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Writes `config` atomically as ``config.json`` into the run folder; a UserError if it cannot be written."""
    write_json(Path(folder) / _CONFIG, config, advice="choose another --workdir", sort_keys=True)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config that a run was started with; a UserError if the folder has none or it cannot be read."""
    advice = "give the folder that was the run's --workdir, with its own config.json"
    return read_json(Path(folder) / _CONFIG, advice=advice)


def config_differences(
    stored: Mapping[str, Any], current: Mapping[str, Any], ignore: Collection[str] = frozenset()
) -> list[str]:
    """One line for each key whose value differs, sorted; keys are joined by dots.

    Keys in `ignore`, and all keys below them, may differ.
    """
    old, new = flatten(json.loads(json.dumps(stored))), flatten(json.loads(json.dumps(current)))
    differences = []
    for key in sorted(old.keys() | new.keys()):
        ignored = any(f"{key}.".startswith(f"{name}.") for name in ignore)
        before, now = old.get(key, _MISSING), new.get(key, _MISSING)
        if not ignored and (type(before), before) != (type(now), now):
            differences.append(f"{key} (stored {_shown(before)}, now {_shown(now)})")
    return differences


def check_same_config(
    folder: str | Path, stored: Mapping[str, Any], current: Mapping[str, Any], ignore: Collection[str] = frozenset()
) -> None:
    """Raises a UserError that names the `config_differences`, if there are any."""
    differences = config_differences(stored, current, ignore)
    if differences:
        raise UserError(
            f"The checkpoint in {folder} was made with another config: {', '.join(differences)}; use another "
            "--workdir, or the original values."
        )


def _shown(value: Any) -> str:
    return value if value is _MISSING else json.dumps(value)
