"""The folder of a run: one writer at a time, and the config that it was started with."""

import fcntl
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from longshot_jax.errors import UserError

_CONFIG = "config.json"
_MISSING = "(absent)"


class WorkdirLock:
    """Holds a run folder for this process until `close` or the end of the process, however it ends.

    The lock belongs to the open file, so the file that a killed run leaves behind blocks nobody.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path = path
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        """Lets another run use the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "WorkdirLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare_workdir(path: str | Path) -> WorkdirLock:
    """Makes the run folder, proves that it can be written, and locks it. In a run of several processes, the
    first process alone calls it.

    Raises:
        UserError: The folder cannot be made or written, or another run is writing there.
    """
    path = Path(path).absolute()
    descriptor = None
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BlockingIOError as error:
        assert descriptor is not None  # only the lock itself can be busy
        holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise UserError(
            f"Another run (process {holder}) is writing to {path}: wait for it, or choose another --workdir."
        ) from error
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise UserError(
            f"The workdir {path} cannot be written ({error.strerror or error}): choose another --workdir or "
            "mend its permissions."
        ) from error
    return WorkdirLock(path, descriptor)


def write_config(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Stores `config` as ``config.json`` in the run folder, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    file = Path(folder) / _CONFIG
    part = file.with_name(f".{_CONFIG}.part")
    try:
        part.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        os.replace(part, file)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror or error}): choose another --workdir."
        ) from error


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config a run was started with.

    Raises:
        UserError: The folder is not that of a run, or its config cannot be read.
    """
    file = Path(folder) / _CONFIG
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist: give the folder that was the run's --workdir.") from error
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror or error}): mend its permissions."
        ) from error
    except ValueError as error:
        raise UserError(
            f"{file} is not valid JSON ({error}): restore it from the config of the run."
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{file} does not hold a JSON object: restore it from the config of the run.")
    return config


def config_differences(
    stored: Mapping[str, Any], current: Mapping[str, Any], ignore: Collection[str] = frozenset()
) -> list[str]:
    """One line for each key whose value differs, keys joined by dots, sorted.

    Args:
        stored: The config of the checkpoint.
        current: The config of this run.
        ignore: Dotted keys that may differ; a key stands for all below it.
    """
    old, new = _flat(json.loads(json.dumps(stored))), _flat(json.loads(json.dumps(current)))
    differences = []
    for key in sorted(old.keys() | new.keys()):
        ignored = any(key == name or key.startswith(name + ".") for name in ignore)
        before, now = old.get(key, _MISSING), new.get(key, _MISSING)
        if not ignored and (type(before), before) != (type(now), now):
            differences.append(f"{key} (stored {_shown(before)}, now {_shown(now)})")
    return differences


def check_same_config(
    folder: str | Path,
    stored: Mapping[str, Any],
    current: Mapping[str, Any],
    ignore: Collection[str] = frozenset(),
) -> None:
    """Refuses to continue the run in `folder` with another config.

    Raises:
        UserError: The configs differ in a key outside `ignore`; all such keys are named.
    """
    differences = config_differences(stored, current, ignore)
    if differences:
        raise UserError(
            f"The checkpoint in {folder} was made with another config: {', '.join(differences)}; use another "
            "--workdir, or the original values."
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots; an empty dict stays a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(value: Any) -> str:
    return value if value is _MISSING else json.dumps(value)
