"""The folder of a run: its lock, and the config that the run was started with."""

import fcntl
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

from longshot_jax.checkpoints.sidecar import FILE as SIDECAR
from longshot_jax.checkpoints.sidecar import settings_of_export
from longshot_jax.config import RunConfig, parse_config
from longshot_jax.config.checks import check_combinations
from longshot_jax.config.declarations import flatten
from longshot_jax.data.own import names_code
from longshot_jax.errors import UserError
from longshot_jax.files import has_folder, is_regular, open_no_link, read_json, unwritable, write_json
from longshot_jax.model.huggingface.other_forms import other_form

_CONFIG, _LOCK = "config.json", ".lock"
_ADVICE = "give the folder that was the run's --workdir, with its own config.json"
_STEP = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?")
# Each checkpoint has some of these, also one from which a part is lost; `host` is from before version 0.1.
_OF_A_CHECKPOINT = ("_CHECKPOINT_METADATA", "state", "metadata", "host", "metrics", "commit_success.txt")
_MISSING = "(absent)"


def prepare_workdir(path: str | Path, advice: str = "choose another --workdir") -> FileIO:
    """Creates the run folder, checks that it can be written, and locks it; only the first process of a run calls this.

    The returned lock holds until it is closed or this process ends, however it ends: it belongs to the open file, so
    the lock file of a killed run blocks no other run.

    Raises a UserError that ends with `advice`, and writes nothing, if the folder cannot be written or is locked, or if
    it holds something that no run wrote under a name that a run writes or removes. Other files may lie in it.
    """
    path, lock = Path(path), None
    try:
        path = path.absolute()
        path.mkdir(parents=True, exist_ok=True)
        foreign = _foreign_name(path)
        if foreign is not None:
            raise UserError(
                f"{path} holds {foreign}, which is not that of a run and which a run would replace: {advice}."
            )
        lock = FileIO(path / _LOCK, "a+", opener=open_no_link)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
    except BlockingIOError as error:
        assert lock is not None  # only `flock` raises this
        with lock:
            holder = os.pread(lock.fileno(), 64, 0).decode(errors="replace").strip()
        raise UserError(f"Another run (process {holder}) is writing to {path}: wait for it, or {advice}.") from error
    except FileExistsError:
        raise UserError(f"{path} cannot be written (it is not a folder): {advice}.") from None
    except OSError as error:
        if lock is not None:
            lock.close()
        raise unwritable(path, error, f"{advice} or fix its permissions") from error
    return lock


def _foreign_name(folder: Path) -> str | None:
    """The first name that a run writes or removes and that is not from a run; None if there is none.

    A start writes the lock, then `config.json`, then the tokenizer, then checkpoints: a tokenizer without any of the
    others is not a run's. Folders of events and checkpoints may be links, because nothing in them is replaced.
    """
    lock, config, tokenizer = folder / _LOCK, folder / _CONFIG, folder / "tokenizer"
    if os.path.lexists(lock) and not (is_regular(lock) and re.fullmatch(rb"\d*\n?", lock.read_bytes()[:64])):
        return _LOCK
    steps = folder / "checkpoints"
    saved = [step for step in steps.iterdir() if _STEP.fullmatch(step.name)] if has_folder(steps) else []
    for step in saved:
        if step.name.isdecimal() and not _is_of_a_run(step):
            return f"checkpoints/{step.name}"
    if os.path.lexists(config) and not (is_regular(config) and _is_config(config, broken=bool(saved))):
        return _CONFIG
    began = saved or config.exists()
    replaceable = not tokenizer.is_symlink() and tokenizer.is_dir() and (began or not any(tokenizer.iterdir()))
    if os.path.lexists(tokenizer) and not (saved or replaceable):
        return "tokenizer"
    return None


def _is_of_a_run(step: Path) -> bool:
    """Whether a run wrote this checkpoint; killed while it removed one, it may leave the empty folder."""
    if any((step / name).exists() for name in _OF_A_CHECKPOINT):
        return True
    return step.is_dir() and not step.is_symlink() and not any(step.iterdir())


def _is_config(file: Path, broken: bool) -> bool:
    """Whether a file holds the settings of a run, of any version; `broken` if it is not JSON at all."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return broken
    return isinstance(content, dict) and {"seed", "curriculum", "ppo"} <= content.keys()


def write_config(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Writes `config` atomically as ``config.json`` into the run folder; a UserError if it cannot be written."""
    write_json(Path(folder) / _CONFIG, config, advice="choose another --workdir", sort_keys=True)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config that a run was started with; a UserError if the folder has none or it cannot be read."""
    return read_json(Path(folder) / _CONFIG, advice=_ADVICE)


def read_settings(folder: str | Path) -> RunConfig:
    """The settings of `read_config`; a UserError that names the file also for settings that cannot be a run's."""
    try:
        return parse_config(read_config(folder))
    except UserError as error:
        file = Path(folder) / _CONFIG
        raise error if str(file) in str(error) else UserError(f"{file} holds a wrong setting: {error}") from None


def check_model_folder(path: Path) -> None:
    """Raises a UserError if a path is neither a run folder nor a Hugging Face directory."""
    if not path.is_dir():
        what = f"{path} is a file" if path.exists() else f"there is no folder {path}"
        raise UserError(f"{what}: give a run folder or a Hugging Face Llama directory{_hint(path)}.")
    if not has_folder(path / "checkpoints") and not (path / _CONFIG).exists():
        raise UserError(
            f"{path} holds neither checkpoints nor a config.json: give a run folder or a Hugging Face Llama "
            f"directory{_hint(path)}."
        )


def _hint(path: Path) -> str:
    other = other_form(path)
    return f" ({other})" if other else ""


def settings_of_test(folder: Path, data: str | None, grader: str | None, **others: Any) -> RunConfig:
    """Settings of a run or its export, or the defaults for another model, with the test problems and what else the options name.

    A folder may come from elsewhere, so code that its settings name does not run: a UserError, as for a model without a
    run's settings and without `data`. An option that is None leaves the setting as it is.
    """
    check_model_folder(folder)
    is_run = (folder / _CONFIG).exists() and has_folder(folder / "checkpoints")
    stored_in = folder / (_CONFIG if is_run else SIDECAR)
    stored = read_settings(folder) if is_run else settings_of_export(folder)
    if stored is None and not data:
        raise UserError(f"{folder} is neither a run folder nor an export with the settings of its test: give --data.")
    run = stored or RunConfig()
    for option, given, stored in (("data", data, run.data.test), ("grader", grader, run.data.grader)):
        if given is None and names_code(stored):
            raise UserError(
                f"{stored_in} names the code {stored}, which runs only if you name it: add --{option} {stored}"
                + (", or --grader= for the rule of data/grading.py." if option == "grader" else ", or other problems.")
            )
    options = {"test": data, "grader": grader} | others
    given = {name: value for name, value in options.items() if value is not None}
    run = replace(run, data=replace(run.data, **given))
    check_combinations(run)
    return run


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
    if value is _MISSING:
        return value
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
