"""Key, type, bound, default and meaning (the string below the field) of every setting, read from the dataclasses."""

import ast
import dataclasses
import functools
import inspect
import textwrap
import typing
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from longshot_jax.config.bounds import Bound


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
      key: dotted path below `config`.
      kind: type without the bound.
      bound: bound of its numbers, or None.
      default: default value.
      meaning: effect and unit.
    """

    key: str
    kind: Any
    bound: Bound | None
    default: Any
    meaning: str

    @property
    def allowed(self) -> str:
        """Allowed values, for messages and help."""
        items = typing.get_args(self.kind)
        if typing.get_origin(self.kind) is Literal:
            return "one of " + ", ".join(map(str, items))
        if typing.get_origin(self.kind) is tuple:
            many = items[-1] is Ellipsis
            inner = dataclasses.replace(self, kind=items[0]).allowed
            return f"{'any number' if many else len(items)} of: {inner}"
        name = {int: "whole number", float: "number", bool: "True or False", str: "text"}[self.kind]
        return name if self.bound is None else f"{name}, {self.bound}"


@functools.cache
def declared(cls: type, prefix: str = "") -> Mapping[str, Setting]:
    """Settings of a group and its subgroups by dotted key."""
    found = {}
    hints, meanings = typing.get_type_hints(cls, include_extras=True), _meanings(cls)
    for field in dataclasses.fields(cls):
        key, kind, bound = prefix + field.name, hints[field.name], None
        if dataclasses.is_dataclass(kind):
            found |= declared(typing.cast(type, kind), key + ".")
            continue
        if typing.get_origin(kind) is Annotated:
            kind, bound = typing.get_args(kind)
        found[key] = Setting(key, kind, bound, field.default, meanings.get(field.name, ""))
    return found


@functools.cache
def declared_groups(cls: type, prefix: str = "") -> Mapping[str, str]:
    """Docstring of a group and its subgroups by dotted key; "" is the group itself."""
    found = {prefix.removesuffix("."): inspect.getdoc(cls) or ""}
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            found |= declared_groups(typing.cast(type, kind), f"{prefix}{name}.")
    return found


def flatten(nested: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings or dataclasses to dotted keys; an empty mapping stays a value."""
    if dataclasses.is_dataclass(nested) and not isinstance(nested, type):
        nested = {field.name: getattr(nested, field.name) for field in dataclasses.fields(nested)}
    flat: dict[str, Any] = {}
    for key, value in typing.cast(Mapping[str, Any], nested).items():
        if dataclasses.is_dataclass(value) or (isinstance(value, Mapping) and value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _meanings(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass, with lines joined."""
    (body,) = [
        node.body for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body if isinstance(node, ast.ClassDef)
    ]
    found = {}
    for field, text in pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
            found[field.target.id] = " ".join(text.value.value.split())
    return found
