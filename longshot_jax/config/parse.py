"""Reads settings of a config file, a checkpoint or an export, old keys included, into a checked `RunConfig`.

A config file is a Python file with a function `get_config()`, which may start from that of another file.
"""

import dataclasses
import difflib
import importlib.util
import json
import os
import re
import sys
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_collections
from ml_collections.config_dict import placeholder

from longshot_jax.config.bounds import Bound
from longshot_jax.config.checks import check_combinations
from longshot_jax.config.declarations import Setting, declared, flatten
from longshot_jax.config.run import RunConfig
from longshot_jax.errors import UserError, first_line, line_of, shown

_CHECKOUT = Path(__file__).parents[2]
_SIDECAR = "longshot.safetensors"  # see checkpoints.sidecar, which writes it

# Old keys of stored runs and exports -> current keys; None: removed.
RENAMED: Mapping[str, str | None] = {
    "stages": "phases",
    "ppo.discount": "ppo.gamma",
    "ppo.trace": "ppo.gae_lambda",
    "ppo.noise": "ppo.thought_std",
    "ppo.noise_annealing": "ppo.thought_std_annealing",
    "ppo.stop_annealing": "ppo.stop_temperature_annealing",
    "ppo.token_annealing": "ppo.token_temperature_annealing",
    "ppo.min_steps": "ppo.min_thoughts",
    "ppo.max_steps": "ppo.max_thoughts",
    "ppo.target_steps": "ppo.target_thoughts",
    "ppo.together": "ppo.ensemble",
    "ppo.rescore": None,
    "evaluation.num_trajectories": None,
    "mesh.decoding.placement": "mesh.decoding_weights",
    "mesh.decoding.layers": None,
}

# Settings of other projects that would be inexact here: the reason and an alternative.
_TRUNCATION = "a rollout samples the whole distribution that it scores: lower config.ppo.token_temperature instead"
ABSENT = {
    "top_k": _TRUNCATION,
    "top_p": _TRUNCATION,
    "dropout": "with it the log-probs of a rollout and its update would differ: take config.curriculum.dropout, "
    "which PPO never sees, or raise weight_decay",
}


def default_config() -> ml_collections.ConfigDict:
    """All settings at their defaults, as a `ConfigDict` that a config file edits and returns."""
    config = ml_collections.ConfigDict(dataclasses.asdict(RunConfig()))
    with config.thoughts.ignore_type():
        config.thoughts.normalised = placeholder(bool)  # until parsed: see _normalised
    with config.ppo.ignore_type():
        config.ppo.reward = ml_collections.FieldReference((), field_type=object)  # one name is a text: see _coerced
    return config


def extend(file: str) -> ml_collections.ConfigDict:
    """The config of another file, to be changed and returned; for use in config files.

    `file` is relative to the folder of the file whose `get_config` calls this, wherever the command runs; if nothing is
    there, to the checkout: `configs/tiny.py` is found from any folder.
    """
    frame = sys._getframe(1)
    while "get_config" not in frame.f_globals and frame.f_back is not None:
        frame = frame.f_back
    caller = Path(frame.f_globals["__file__"])
    found = [folder / file for folder in (caller.parent, _CHECKOUT) if (folder / file).is_file()]
    if not found:
        raise UserError(
            f"{caller} extends {file}, and there is no config file {caller.parent / file}: give a path that is relative to "
            "that folder, or one of configs/."
        )
    return load_config(found[0])


def load_config(file: Path) -> ml_collections.ConfigDict:
    """Returns `get_config()` of a config file; a missing or failing file, or another type, is a UserError."""
    if not os.path.isfile(file):  # also false for a name that is too long
        raise UserError(f"there is no config file {file}: give one from configs/, or your own.")
    name = f"config_{file.stem}_{os.path.abspath(file)}"  # another for each file: one may extend another of its stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is not a Python file: give a config file, a .py with get_config().")
    try:
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look for their module there
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError:
        raise
    except Exception as error:  # the config file is the user's code
        line = line_of(error, str(file))
        place = f", line {line}" if line else ""
        text = f"{type(error).__name__} ({first_line(error)}){_new_name(error)}"
        raise UserError(f"the config file {file}{place} raises {text}: fix it.") from None
    finally:
        sys.modules.pop(name, None)
    if isinstance(config, ml_collections.FrozenConfigDict):  # so that flags can change it
        config = config.as_configdict()
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"get_config() of {file} returns a {type(config).__name__}: start from default_config().")
    return config


def _new_name(error: Exception) -> str:
    """Advice for an error of a config file that reads a renamed key."""
    names = re.findall(r"""['"](\w+)['"]""", str(error)) if isinstance(error, AttributeError | KeyError) else []
    new = [key for old, key in RENAMED.items() if key and old.split(".")[-1] in names]
    return f"; its new name is config.{new[0]}" if new else ""


def parse_config(config: ml_collections.ConfigDict | Mapping[str, Any]) -> RunConfig:
    """Checks the `ConfigDict` of a config file or the nested mapping of a checkpoint or an export.

    Raises:
      UserError: an unknown key, a wrong type, a value out of bounds or an impossible combination; it names the key.
    """
    if isinstance(config, ml_collections.ConfigDict):
        values = _normalised(config.to_dict())
    elif isinstance(config, Mapping):
        try:
            values = _with_current_keys(config)
        except RecursionError:
            raise UserError("config is nested too deeply: settings lie in groups at most three deep.") from None
    else:
        raise UserError(f"config must be a group of settings, not {shown(config)}.")
    run = _build(RunConfig, values, "config")
    check_combinations(run)
    return run


def _normalised(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a config file, with the default of `thoughts.normalised` that belongs to its weights."""
    thoughts, model = values.get("thoughts"), values.get("model")
    if isinstance(thoughts, dict) and thoughts.get("normalised", False) is None:
        source = model.get("source") if isinstance(model, dict) else "scratch"
        thoughts["normalised"] = _normalised_thoughts(source, values.get("initialize_from"), thoughts.get("feedback"))
    return values


def _normalised_thoughts(source: Any, initialize_from: Any, feedback: Any) -> bool:
    """Default of `thoughts.normalised`: that of the run or export that a run starts from; True for a plain Llama.

    The raw hidden states of a pretrained Llama are far larger than its token embeddings. From scratch it is False, and
    for thoughts that are means of token embeddings.
    """
    try:
        if initialize_from:
            stored = json.loads((Path(initialize_from).expanduser() / "config.json").read_bytes())
        else:
            with (Path(source).expanduser() / _SIDECAR).open("rb") as file:
                header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 1 << 24)))
            stored = json.loads(header["__metadata__"]["trained"])["config"]
        before = stored.get("thoughts", {})
        if "vocabulary" in (feedback, before.get("feedback")) and feedback != before.get("feedback"):
            # Nothing of that navigator is kept; what the weights are tells the run that loaded them.
            return _normalised_thoughts(stored["model"]["source"], stored.get("initialize_from"), feedback)
        return before.get("normalised", False) is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        # No run: whoever loads it says what is wrong.
        return feedback != "vocabulary" and (bool(initialize_from) or source != "scratch")


def unknown_setting(key: str) -> UserError:
    """The error for an unknown dotted key below `config`: its new name, a setting of the group, or the nearest key."""
    known, name = declared(RunConfig), key.split(".")[-1]
    if RENAMED.get(key):
        return UserError(f"config.{key} has a new name: config.{RENAMED[key]}.")
    if name in ABSENT:
        return UserError(f"config.{key} is not a setting, because {ABSENT[name]}.")
    inside = next((other for other in known if other.startswith(key + ".")), None)
    if inside:
        return UserError(f"config.{key} is a group of settings: name one of them, such as config.{inside}.")
    groups = {other.rpartition(".")[0] for other in known} - {""}
    near = nearest(key, [*known, *groups])
    advice = f"did you mean config.{near}?" if near else "scripts/train.py --help lists them all."
    return UserError(f"config.{key} is not a setting: {advice}")


def nearest(key: str, known: Collection[str]) -> str | None:
    """The known key closest to a misspelt one: in its group, below it, of the same name elsewhere, then by spelling."""
    group, _, name = key.rpartition(".")

    def likeness(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    beside = [other for other in known if other.rpartition(".")[0] == group]
    below = [other for other in known if other.startswith(group + ".")]
    for candidates in (beside, below):
        likely = [(likeness(name, other.rpartition(".")[2]), likeness(key, other), other) for other in candidates]
        if likely and max(likely)[0] >= 0.7:
            return max(likely)[2]
    same = [other for other in known if other.rpartition(".")[2] == name]
    likely = [(likeness(key, other), other) for other in same or known]
    return max(likely)[1] if same or max(likely)[0] >= 0.5 else None


def _with_current_keys(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings, nested, under current keys; a UserError for a setting under its old and its current key."""
    values: dict[str, Any] = {}
    for key, value in flatten(stored).items():
        current = RENAMED.get(key, key)
        if current is None:
            continue
        *groups, name = current.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise UserError(f"config.{group} must be a group of settings, not {shown(place)}.")
        if name in place:
            old = next((old for old, new in RENAMED.items() if new == current), current)
            raise UserError(f"the stored settings have config.{current} and its old name config.{old}: remove one.")
        place[name] = value
    thoughts, data = values.get("thoughts"), values.get("data")
    # Together they were accepted before, without an effect of `batch_shapes`.
    if isinstance(thoughts, dict) and thoughts.get("join") is True and isinstance(data, dict):
        data["batch_shapes"] = 0
    return values


def _build(cls: type, values: Any, place: str) -> Any:
    """Builds the dataclass `cls` from nested mappings; missing settings have their defaults."""
    if not isinstance(values, Mapping):
        raise UserError(f"{place} must be a group of settings, not {shown(values)}.")
    settings, hints = declared(cls), typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        key = f"{place}.{name}"
        if name not in hints:
            raise unknown_setting(key.removeprefix("config."))
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = _build(typing.cast(type, hints[name]), value, key)
        else:
            arguments[name] = _checked(settings[name], value, key)
    return cls(**arguments)


def _checked(setting: Setting, value: Any, key: str) -> Any:
    """Checks type and bound of a value; converts an int to a float and a list to a tuple."""
    value = _coerced(setting.kind, value, key)
    numbers = value if isinstance(value, tuple) else (value,)
    bound = setting.bound or (Bound() if setting.kind in (int, float) else None)
    if bound is not None and any(number not in bound for number in numbers):
        what = "each must be" if isinstance(value, tuple) else "it must be"
        raise UserError(f"{key} is {shown(value)}: {what} {bound.explain(numbers)}.")
    return value


def _coerced(kind: Any, value: Any, key: str) -> Any:
    items = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in items:
            raise UserError(f"{key} is {shown(value)}: it must be one of {', '.join(map(str, items))}.")
        return value
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str) and items == (str, Ellipsis):
            value = (value,) if value else ()
        if not isinstance(value, list | tuple):
            raise UserError(f"{key} is {shown(value)}: it must be a tuple such as (1, 2).")
        many = items[-1] is Ellipsis
        if not many and len(items) != len(value):
            raise UserError(f"{key} is {shown(value)}: it must hold {len(items)} values.")
        kinds = [items[0]] * len(value) if many else items
        return tuple(_coerced(k, v, key) for k, v in zip(kinds, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{key} is {shown(value)}: it must be a finite number.") from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        infinite = kind is float and isinstance(value, str) and value.lower().lstrip("+-") in ("inf", "infinity", "nan")
        raise UserError(f"{key} is {shown(value)}: it must be {'finite' if infinite else f'of type {kind.__name__}'}.")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{key} is {shown(value)}: it must be UTF-8 text.") from None
    return value
