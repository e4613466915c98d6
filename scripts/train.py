"""Train: the stages of a config file, one after the other.

python scripts/train.py --config configs/multi.py [--config.key=value ...] [--workdir runs/x]

The run folder is runs/<name of the config file> unless --workdir says otherwise. Started again with the same
command, an interrupted run goes on from its newest checkpoint.
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from longshot_jax.config import default_config, parse_config
from longshot_jax.errors import UserError, run_command
from longshot_jax.training.loop import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; settings follow as --config.key=value.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run folder; default: runs/<name of the config file>.")
# Set by schedulers that start one process per machine.
_PROCESS_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")


def parse_arguments(arguments: Sequence[str]) -> tuple[Path, Path]:
    """Config file and run folder; a UserError for anything that cannot be read."""
    file = _config_file(arguments[1:])
    if not file.is_file():
        raise UserError(f"there is no config file {file}: give one of those in configs/, or your own.")
    _check_keys(arguments[1:])
    try:
        rest = flags.FLAGS(list(arguments))
    except flags.Error as error:
        raise UserError(f"{_first_line(error)}.") from None
    except UserError:
        raise
    except Exception as error:  # of the config file, which is the user's program
        raise UserError(
            f"the config file {file} or an override cannot be read ({type(error).__name__}: {_first_line(error)}): "
            "mend it."
        ) from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no option: settings are given as --config.key=value.")
    workdir = Path(_WORKDIR.value or Path("runs") / file.stem)
    return file, workdir


def _config_file(arguments: Sequence[str]) -> Path:
    for place, argument in enumerate(arguments):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config" and argument.startswith("-"):
            if equals:
                return Path(value)
            if place + 1 < len(arguments):
                return Path(arguments[place + 1])
    raise UserError("no config file was given: add --config configs/tiny.py, or another file of configs/.")


def _check_keys(arguments: Sequence[str]) -> None:
    """Options and settings that do not exist, each with the nearest that does."""
    settings = _dotted(default_config().to_dict())
    for argument in arguments:
        name = argument.split("=")[0]
        if not name.startswith("-"):
            continue
        name = name.lstrip("-")
        if name.startswith("config."):
            _check_setting(name.removeprefix("config."), settings)
        elif name not in flags.FLAGS and name.removeprefix("no") not in flags.FLAGS:
            near = difflib.get_close_matches(name, ["config", "workdir"], 1)
            advice = f"did you mean --{near[0]}?" if near else "there are --config, --config.key and --workdir."
            raise UserError(f"--{name} is no option: {advice}")


def _check_setting(key: str, settings: Sequence[str]) -> None:
    plain = key.split("[")[0]  # an item of a tuple
    groups = {name.rsplit(".", 1)[0] for name in settings if "." in name}
    if plain in settings:
        return
    if plain in groups:
        raise UserError(f"--config.{key} is a group of settings: name one of them, such as --config.{_first(plain, settings)}.")
    near = difflib.get_close_matches(plain, settings, 1, cutoff=0.5)
    by_name = [name for name in settings if name.split(".")[-1] == plain.split(".")[-1]]
    choice = (by_name or near or [None])[0]
    advice = f"did you mean --config.{choice}?" if choice else "longshot_jax/config.py lists them all."
    raise UserError(f"--config.{key} is no setting: {advice}")


def _first(group: str, settings: Sequence[str]) -> str:
    return next(name for name in settings if name.startswith(group + "."))


def _dotted(values: dict, prefix: str = "") -> list[str]:
    names = []
    for key, value in values.items():
        names += _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return names


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def keep_compilations(folder: Path) -> None:
    """Compiled programs are kept on disk, so that a run started again does not compile again."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def join_processes() -> None:
    """Several processes, one for each machine, become one run."""
    if any(int(os.environ.get(name, "1") or 1) > 1 for name in _PROCESS_COUNTS):
        jax.distributed.initialize()


def main(arguments: Sequence[str]) -> None:
    """Parses, checks and trains."""
    _, workdir = parse_arguments(arguments)
    run = parse_config(_CONFIG.value)
    join_processes()
    keep_compilations(Path.home() / ".cache" / "longshot_jax")
    train(run, workdir)


if __name__ == "__main__":
    import sys

    run_command(lambda: main(sys.argv))
