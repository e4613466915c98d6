"""Dataclasses of settings to and from nested dictionaries, with every key and type checked."""

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal

from longshot_jax.errors import UserError

# Settings that other projects have and that cannot be exact here: why, and what serves instead.
ABSENT = {
    "top_k": "a rollout samples the whole distribution, whose log-probs are the policy's: lower "
    "config.ppo.token_temperature instead",
    "top_p": "a rollout samples the whole distribution, whose log-probs are the policy's: lower "
    "config.ppo.token_temperature instead",
    "dropout": "with it the log-probs of a rollout would not be those of the update: take config.curriculum.dropout, "
    "which PPO never sees, or raise weight_decay",
}


def as_values(value: Any) -> Any:
    """A dataclass of settings as nested dictionaries."""
    if dataclasses.is_dataclass(value):
        return {f.name: as_values(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def build(cls: Any, values: Any, place: str) -> Any:
    """The dataclass `cls` from nested dictionaries; a UserError names the setting below `place` that is wrong."""
    if not isinstance(values, dict):
        raise UserError(f"{place} must be a group of settings, not {values!r}.")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name in ABSENT and name not in hints:
            raise UserError(f"{place}.{name} is no setting, because {ABSENT[name]}.")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            advice = f"did you mean {place}.{near[0]}?" if near else f"it has {', '.join(hints)}."
            raise UserError(f"{place}.{name} is no setting: {advice}")
    arguments = {name: _coerce(hints[name], value, f"{place}.{name}") for name, value in values.items()}
    return cls(**arguments)


def _coerce(kind: Any, value: Any, place: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, place)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise UserError(f"{place} is {value!r}: it must be one of {', '.join(map(str, choices))}.")
        return value
    if origin is tuple:
        items = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            raise UserError(f"{place} is {value!r}: it must be a tuple such as (1, 2).")
        if items[-1] is not Ellipsis and len(items) != len(value):
            raise UserError(f"{place} is {value!r}: it must hold {len(items)} values.")
        kinds = [items[0]] * len(value) if items[-1] is Ellipsis else items
        return tuple(_coerce(k, v, place) for k, v in zip(kinds, value, strict=True))
    if origin is types.UnionType:
        raise TypeError(f"{place}: settings of several types are not supported")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{place} is {value!r}: it must be of type {kind.__name__}.")
    return value
