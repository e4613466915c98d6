"""Settings: overrides on the command line, config files, and the stored settings of runs."""

import ast
import json
import math
import random
import typing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from campaign.damage import (
    ODD_TEXTS,
    ODD_VALUES,
    damaged_bytes,
    damaged_json,
    damaged_text,
    has_duplicates,
    written_json,
)
from campaign.judging import Case
from longshot_jax.checkpoints.run_folder import read_config
from longshot_jax.cli import command_parser, parse_command
from longshot_jax.config import RunConfig, parse_config
from longshot_jax.config.declarations import Setting, declared, flatten
from longshot_jax.config.parse import RENAMED

_SETTINGS = declared(RunConfig)
_DEFAULTS = flatten(RunConfig())
_PLAIN = "from longshot_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"


class Configs:
    name, share = "configs", 0.3

    def __init__(self, folder: Path) -> None:
        del folder

    def case(self, rng: random.Random, folder: Path) -> Case:
        return rng.choice([_overrides, _overrides, _config_file, _stored])(rng, folder)


def _command(file: Path, *arguments: str) -> RunConfig:
    return parse_command(command_parser("A command."), ["--config", str(file), *arguments])[0]


def _overrides(rng: random.Random, folder: Path) -> Case:
    file = folder / "plain.py"
    file.write_text(_PLAIN + "    return config\n")
    keys = rng.sample(sorted(_SETTINGS), rng.choice([1, 1, 2, 3]))
    expected: dict[str, Any] = {}
    arguments, broken = [], False
    for key in keys:
        setting, given = _SETTINGS[key], key
        if rng.random() < 0.5:
            value = _legal(rng, setting)
            text, expected[key] = _as_text(rng, value), value
        else:
            text = rng.choice(ODD_TEXTS)
            expected[key] = _meant(setting, text)
        if rng.random() < 0.05:
            what, given = damaged_text(rng, key, ["s", ".", "_", "x", "[0]", " "])
            broken |= given not in _SETTINGS and "[" not in given
        arguments.append(f"--config.{given}={text}")
    if any("[" in argument.partition("=")[0] for argument in arguments):
        expected = {key: ... for key in keys}

    def wrong(run: RunConfig) -> str | None:
        if broken:
            return "a setting that does not exist was taken"
        return _unlike(flatten(run), _inherited(_DEFAULTS | {"thoughts.normalised": None} | expected))

    what = f"{[argument[:80] for argument in arguments]}"
    return Case(what, lambda: _command(file, *arguments), wrong, ("config.", "--"))


def _legal(rng: random.Random, setting: Setting) -> Any:
    """A value that a setting allows."""
    kind, bound = setting.kind, setting.bound
    items = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return rng.choice(items)
    if typing.get_origin(kind) is tuple:
        count = rng.choice([1, 2, 3]) if items[-1] is Ellipsis else len(items)
        one = Setting(setting.key, items[0], bound, None, "")
        return tuple(_legal(rng, one) for _ in range(count))
    if kind is bool:
        return rng.random() < 0.5
    if kind is str:
        return rng.choice(["chains", "prosqa", "x/y", "ü 1", "a=b", "3", "(1,)", "'quoted'", "~"])
    low = bound.low if bound and math.isfinite(bound.low) else -10
    high = bound.high if bound and math.isfinite(bound.high) else low + rng.choice([2, 100, 10**6])
    if kind is int:
        return rng.randint(math.ceil(low), math.floor(high))
    return rng.choice([rng.uniform(low, high), (low + high) / 2, 3e-4 * (high - low) + low])


def _as_text(rng: random.Random, value: Any) -> str:
    """How a user may write a value."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return rng.choice([str(value), str(value).lower()])
    if isinstance(value, tuple) and rng.random() < 0.5:
        return ",".join(map(str, value))
    return repr(value)


def _meant(setting: Setting, text: str) -> Any:
    """The value that a text means by Python's own rules; `...` if it is none of the setting's kind."""
    items = typing.get_args(setting.kind)
    if setting.kind is str:
        return text
    if setting.kind is bool:
        return {"true": True, "false": False}.get(text.lower(), ...)
    if typing.get_origin(setting.kind) is tuple and not text.startswith(("(", "[")):
        text = text.strip()
        one = Setting(setting.key, items[0], setting.bound, None, "")
        parts = [part.strip(" '\"") for part in text.rstrip(",").split(",")] if text.rstrip(",") else []
        meant = tuple(_meant(one, part) for part in parts)
        return ... if ... in meant else meant
    if typing.get_origin(setting.kind) is Literal and text in items:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # of ast.literal_eval
        return ...
    return _of_kind(setting.kind, value)


def _of_kind(kind: Any, value: Any) -> Any:
    """A value as the setting holds it; `...` if it is of another kind."""
    items = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in items else ...
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or (items[-1] is not Ellipsis and len(value) != len(items)):
            return ...
        held = tuple(_of_kind(items[0], item) for item in value)
        return ... if ... in held else held
    if isinstance(value, bool) != (kind is bool):
        return ...
    if kind is float and isinstance(value, int):
        return float(value) if abs(value) < 2**1000 else ...
    return value if isinstance(value, kind) else ...


def _allowed(setting: Setting, value: Any) -> bool:
    numbers = [
        number for number in (value if isinstance(value, tuple) else (value,)) if isinstance(number, int | float)
    ]
    low, high = (setting.bound.low, setting.bound.high) if setting.bound else (-math.inf, math.inf)
    return all(
        abs(number) < (2**32 if isinstance(number, int) else 3e38) and low <= number <= high for number in numbers
    )


def _unlike(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """The first setting that has another value than expected, or one that it may not have."""
    for key, value in expected.items():
        if value is ... or found[key] != value or type(found[key]) is not type(value):
            return f"config.{key} is {found[key]!r}, expected {'a refusal' if value is ... else repr(value)[:100]}"
        if not _allowed(_SETTINGS[key], value):
            return f"config.{key} is {value!r}, outside of its bound"
    return None


def _config_file(rng: random.Random, folder: Path) -> Case:
    file = folder / "own.py"
    lines = []
    for key in rng.sample(sorted(_SETTINGS), rng.choice([1, 2, 4])):
        value = _legal(rng, _SETTINGS[key]) if rng.random() < 0.6 else rng.choice(ODD_VALUES)
        lines.append(f"    config.{key} = {_code(value)}\n")
    source, what = _PLAIN + "".join(lines) + "    return config\n", "undamaged"
    if rng.random() < 0.5:
        what, source = damaged_text(
            rng, source, ["\n", " ", "(", "'", "config.", "x", "\t", "s", "return", "#", "0", "."]
        )
    file.write_bytes(source.encode(errors="surrogatepass"))
    given = _executed(source)

    def wrong(run: RunConfig) -> str | None:
        if given is None:
            return "read, but Python cannot run the file"
        unknown = [key for key in given if key not in _SETTINGS]
        if unknown:
            return f"the unknown settings {unknown} were taken"
        given.update(_inherited(given))
        meant = {key: _of_kind(_SETTINGS[key].kind, value) for key, value in given.items()}
        return _unlike(flatten(run), _DEFAULTS | meant)

    what = f"{what} in {''.join(lines)[:200]!r}"
    return Case(what, lambda: _command(file), wrong, (file.name, "config."))


def _inherited(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the default of `thoughts.normalised` for weights from elsewhere, none of which exist here."""
    if settings.get("thoughts.normalised", False) is not None:
        return settings
    loaded = settings.get("model.source") != "scratch" or bool(settings.get("initialize_from"))
    return settings | {"thoughts.normalised": loaded}


def _code(value: Any) -> str:
    """A value in Python's notation."""
    return f"float({str(value)!r})" if isinstance(value, float) else repr(value)


def _executed(source: str) -> dict[str, Any] | None:
    """Settings of a config file, flat, run by Python alone."""
    names: dict[str, Any] = {}
    try:
        exec(compile(source, "own.py", "exec"), names)
        return flatten(names["get_config"]().to_dict())
    except BaseException:
        return None


def _stored(rng: random.Random, folder: Path) -> Case:
    content = json.loads(json.dumps(asdict(RunConfig())))
    what, harmless = "undamaged", True
    for key in rng.sample(sorted(_SETTINGS), 2):
        *above, name = key.split(".")
        group = content
        for part in above:
            group = group[part]
        if rng.random() < 0.5:
            group[name] = _legal(rng, _SETTINGS[key])
            harmless = False  # together with others it may be impossible
    if rng.random() < 0.6:
        (what, content), harmless = damaged_json(rng, content), False
    data = written_json(rng, content).encode()
    if rng.random() < 0.3:
        (what, data), harmless = damaged_bytes(rng, data), False
    (folder / "config.json").write_bytes(data)
    try:
        text = data.decode("utf-8-sig")
        given, twice = flatten(json.loads(text)), has_duplicates(text)
    except (ValueError, AttributeError, RecursionError):
        given, twice = None, False

    def wrong(run: RunConfig) -> str | None:
        return "read, but the file is no JSON object" if given is None else settings_unlike(run, given)

    names = ("config.json", "config.", "config must")
    return Case(f"stored, {what}", lambda: parse_config(read_config(folder)), wrong, names, harmless and not twice)


def settings_unlike(run: RunConfig, stored: dict[str, Any]) -> str | None:
    """What differs between settings that were read and stored ones, nested or flat, old keys included."""
    expected = dict(_DEFAULTS)
    for old, value in flatten(stored).items():
        key = RENAMED.get(old, old)
        if key is None or value == {}:
            continue
        if key not in _SETTINGS:
            return f"the unknown setting {old} was taken"
        expected[key] = _of_kind(_SETTINGS[key].kind, value)
    return _unlike(flatten(run), expected)
