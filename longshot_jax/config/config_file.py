"""Reads a config file: a Python file with a function `get_config()`, which may start from that of another file."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import ml_collections

from longshot_jax.config.parse import RENAMED
from longshot_jax.errors import UserError, first_line, line_of

_CHECKOUT = Path(__file__).parents[2]


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
    try:
        spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError:
        raise
    except Exception as error:  # the config file is the user's code
        line = line_of(error, str(file))
        place = f", line {line}" if line else ""
        text = f"{type(error).__name__} ({first_line(error)}){_new_name(error)}"
        raise UserError(f"the config file {file}{place} raises {text}: fix it.") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"get_config() of {file} returns a {type(config).__name__}: start from default_config().")
    return config


def _new_name(error: Exception) -> str:
    """Advice for an error of a config file that reads a renamed key."""
    names = re.findall(r"""['"](\w+)['"]""", str(error)) if isinstance(error, AttributeError | KeyError) else []
    new = [key for old, key in RENAMED.items() if key and old.split(".")[-1] in names]
    return f"; its new name is config.{new[0]}" if new else ""
