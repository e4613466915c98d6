"""What `scripts/train.py` and `scripts/plan.py` are given: a config file, overrides of its settings, own options.

Every mistake is one sentence that names the key and the nearest one there is.
"""

import difflib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from longshot_jax.config import RunConfig, default_config, parse_config
from longshot_jax.config_values import ABSENT
from longshot_jax.errors import UserError


@dataclass(frozen=True)
class PlanRequest:
    """What `scripts/plan.py` is asked: a run, a number and kind of devices, and a file to write or None."""

    run: RunConfig
    devices: int
    accelerator: str
    output: str | None


def parse_arguments(arguments: Sequence[str]) -> tuple[RunConfig, Path]:
    """The settings and the run folder that a command line (its first item is the program) asks for.

    Raises:
      UserError: an option, a setting, a value or the config file is wrong.
    """
    run, file, (workdir,) = _parse(arguments, ("workdir",))
    return run, Path(workdir or Path("runs") / file.stem)


def parse_plan(arguments: Sequence[str]) -> PlanRequest:
    """What a command line asks of the planner; devices are those of the config's mesh unless it says otherwise.

    Raises:
      UserError: as for `parse_arguments`; no accelerator; devices that are no positive number.
    """
    run, _, (devices, accelerator, output) = _parse(arguments, ("devices", "accelerator", "output"))
    if accelerator is None:
        raise UserError("no accelerator was given: add --accelerator h100-80g, or another one.")
    if devices is not None and not (devices.isdecimal() and int(devices)):
        raise UserError(f"--devices is {devices!r}: it must be a positive number.")
    mesh = run.mesh
    return PlanRequest(run, int(devices or mesh.data * mesh.fsdp * mesh.tensor), accelerator, output)


@dataclass(frozen=True)
class BenchRequest:
    """What a command line asks of the benchmark: a run's shape, files to write, sections, turns and clock."""

    run: RunConfig
    output: str | None
    figure: str | None
    only: tuple[str, ...]
    repetitions: int
    clock: str


def parse_bench(arguments: Sequence[str]) -> BenchRequest:
    """What a command line asks of the benchmark.

    Raises:
      UserError: as for `parse_arguments`; a section that does not exist; a figure without its curves; repetitions
        that are no positive number; an unknown clock.
    """
    from longshot_jax.benchmarks.report import SECTIONS
    from longshot_jax.benchmarks.timing import CLOCKS

    options = ("output", "figure", "only", "repetitions", "clock")
    run, _, (output, figure, only, repetitions, clock) = _parse(arguments, options)
    sections = tuple(only.split(",")) if only else SECTIONS
    for section in sections:
        if section not in SECTIONS:
            raise UserError(f"--only names {section!r}: it may name {', '.join(SECTIONS)}.")
    if figure and "curves" not in sections:
        raise UserError("--figure draws the section curves: add it to --only.")
    if repetitions is not None and not (repetitions.isdecimal() and int(repetitions)):
        raise UserError(f"--repetitions is {repetitions!r}: it must be a positive number.")
    clock = clock or "wall"
    if clock not in CLOCKS:
        raise UserError(f"--clock is {clock!r}: it must be one of {', '.join(CLOCKS)}.")
    return BenchRequest(run, output, figure, sections, int(repetitions or 7), clock)


def _parse(arguments: Sequence[str], options: Sequence[str]) -> tuple[RunConfig, Path, list[str | None]]:
    """The settings, the config file, and the values of a command's own options."""
    file = _config_file(arguments[1:])
    if not file.is_file():
        raise UserError(f"there is no config file {file}: give one of those in configs/, or your own.")
    _check_options(arguments[1:], ("config", *options))
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(arguments))
    own = [flags.DEFINE_string(name, None, "See the command's help.", flag_values=values) for name in options]
    try:
        with warnings.catch_warnings():
            # Config files are loaded in a way that Python has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            rest = values(list(arguments))
    except flags.Error as error:
        raise UserError(f"{_first_line(error)}: mend the command line.") from None
    except Exception as error:  # the config file is a program of the user's
        raise UserError(
            f"the config file {file}, or a setting given beside it, cannot be read ({type(error).__name__}: "
            f"{_first_line(error)}): mend it."
        ) from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no option: settings are given as --config.key=value.")
    return parse_config(config.value), file, [option.value for option in own]


def _config_file(arguments: Sequence[str]) -> Path:
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            if equals:
                return Path(value)
            if place + 1 < len(arguments):
                return Path(arguments[place + 1])
    raise UserError("no config file was given: add --config configs/tiny.py, or another file of configs/.")


def _check_options(arguments: Sequence[str], options: Sequence[str]) -> None:
    """Refuses options and settings that do not exist, each with the nearest that does."""
    settings = _dotted(default_config().to_dict())
    is_value = False  # of the option before it
    for argument in arguments:
        name = argument.split("=")[0].lstrip("-")
        if is_value or not argument.startswith("-") or name in options:
            is_value = not is_value and argument.startswith("-") and "=" not in argument
            continue
        if name.startswith("config."):
            _check_setting(name.removeprefix("config."), settings)
            continue
        near = difflib.get_close_matches(name, [*options, *(f"config.{key}" for key in settings)], 1)
        advice = (
            f"did you mean --{near[0]}?" if near else f"there are --config.key, --{', --'.join(options)}."
        )
        raise UserError(f"--{name} is no option: {advice}")


def _check_setting(key: str, settings: Sequence[str]) -> None:
    plain = key.split("[")[0]  # without the index into a tuple
    if plain in settings:
        return
    if plain.split(".")[-1] in ABSENT:
        raise UserError(f"--config.{key} is no setting, because {ABSENT[plain.split('.')[-1]]}.")
    inside = next((name for name in settings if name.startswith(plain + ".")), None)
    if inside:
        raise UserError(
            f"--config.{key} is a group of settings: name one of them, such as --config.{inside}."
        )
    same_name = [name for name in settings if name.split(".")[-1] == plain.split(".")[-1]]
    near = same_name or difflib.get_close_matches(plain, settings, 1, cutoff=0.5)
    advice = f"did you mean --config.{near[0]}?" if near else "longshot_jax/config.py lists them all."
    raise UserError(f"--config.{key} is no setting: {advice}")


def _dotted(values: dict, prefix: str = "") -> list[str]:
    names = []
    for key, value in values.items():
        names += _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return names


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def keep_compilations(folder: Path) -> None:
    """Compiled programs stay on disk, so that a run started again does not compile again."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))
