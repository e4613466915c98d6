"""The command line: config file, overrides, options and help of a command; compilation cache and huge pages."""

import argparse
import ast
import importlib.util
import os
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import ml_collections

from longshot_jax.config import RunConfig, parse_config
from longshot_jax.config.bounds import MAX_INT
from longshot_jax.config.declarations import declared, declared_groups, flatten
from longshot_jax.config.parse import load_config, unknown_setting
from longshot_jax.config.run import PATH_SETTINGS
from longshot_jax.errors import UserError, did_you_mean, first_line, run_command, shown
from longshot_jax.files import local_path

_STARTED_AGAIN = "LONGSHOT_STARTED_AGAIN"
_TOP = "run"  # in help, the group of the settings that are in no other


class OptionParser(argparse.ArgumentParser):
    """A parser of a command's own options; a mistake is a UserError with one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}: see --help.")


def parse_command(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[RunConfig, Path, argparse.Namespace]:
    """Parses `--config FILE`, `--config.key=value` and a command's own options; returns settings, file and options.

    With `--help`, prints the help and exits; the help shows the values of the config file, if there is one.

    Args:
      parser: parser from `command_parser` with the command's own options.
      arguments: arguments of the command; None is those of the process.

    Raises:
      UserError: an option, a setting, a value or the config file is wrong.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for place, argument in enumerate(arguments):
        if argument in ("-h", "--help", "-help"):
            named = [word for word in arguments[place + 1 : place + 2] if not word.startswith("-")]
            others = arguments[:place] + arguments[place + 1 + len(named) :]
            print(f"{parser.description}\n{_help_beside(parser, others, ''.join(named))}")
            sys.exit(0)
    run, file, own = _settings(parser, arguments)
    for key in PATH_SETTINGS:
        if named := flatten(run)[key]:
            local_path(named, f"config.{key}")
    return run, file, own


def _settings(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[RunConfig, Path, argparse.Namespace]:
    """Settings of the config file with the overrides, the file, and the command's own options."""
    own, rest = parser.parse_known_args(arguments)
    file, overrides = _config_arguments(rest, [action.dest for action in parser._actions])
    config = load_config(file)
    for key, text in overrides:
        _override(config, key, text)
    return parse_config(config), file, own


def _help_beside(parser: argparse.ArgumentParser, arguments: list[str], group: str) -> str:
    """Help for the settings of a group, with the values that the other arguments of the command give."""
    if not any(argument.lstrip("-").partition("=")[0] == "config" for argument in arguments):
        return settings_help(group)
    try:
        run = _settings(parser, arguments)[0]
    except UserError as error:  # help is there for whoever makes mistakes
        return f"{settings_help(group)}\n\nThese are the defaults: {error}"
    return f"{settings_help(group, run)}\n\n* differs from the default."


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser for a command's own options; `parse_command` handles `--config` and `--help`."""
    return OptionParser(description=description, add_help=False, allow_abbrev=False)


def settings_help(group: str = "", run: RunConfig | None = None) -> str:
    """Default, allowed values and meaning of the settings of a group; of a `run` its values, with * where it differs.

    "" is all; `run` those that are in no other group. An unknown group is a UserError.
    """
    group = group.removeprefix("config.")
    groups = {name or _TOP: title for name, title in declared_groups(RunConfig).items()}
    if group and group not in groups:
        raise UserError(f"--help {group}: the groups of settings are {', '.join(groups)}.")
    lines, values = [], flatten(RunConfig() if run is None else run)
    for title_name, title in groups.items():
        if group and title_name != group and not title_name.startswith(group + "."):
            continue
        name = "" if title_name == _TOP else title_name
        lines += ["", f"{title_name}: {first_line(Exception(title))}"]
        for key, setting in declared(RunConfig).items():
            if key.rpartition(".")[0] == name:
                differs = values[key] != setting.default
                otherwise = f"; default {setting.default!r}" if differs else ""
                lines.append(
                    f"{'*' if differs else ' '} --config.{key}={values[key]!r}   ({setting.allowed}{otherwise})"
                )
                lines += textwrap.wrap(setting.meaning, 110, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _config_arguments(arguments: Sequence[str], options: Sequence[str]) -> tuple[Path, list[tuple[str, str]]]:
    """The config file, and the overrides as (dotted key, text)."""
    files, overrides, waiting = [], [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, text = argument.partition("=")
        key = name.lstrip("-")
        if not argument.startswith("-"):
            raise UserError(f"{shown(argument)} is not an option: settings are given as --config.key=value.")
        if key != "config" and not key.startswith("config."):
            known = [*options, "config", *(f"config.{key}" for key in declared(RunConfig))]
            otherwise = f"there are --config, --{', --'.join(options)}."
            raise UserError(f"--{key} is not an option: {did_you_mean(key, known, otherwise, '--{}')}")
        setting = declared(RunConfig).get(key.removeprefix("config."))
        if not equals and setting is not None and setting.kind is bool and (not waiting or waiting[0].startswith("-")):
            text = "True"
        elif not equals:
            if not waiting or waiting[0].startswith("--"):
                raise UserError(f"--{key} has no value: give it as --{key}=value.")
            text = waiting.pop(0)
        if key == "config":
            files.append(text)
        else:
            overrides.append((key.removeprefix("config."), text))
    if not files:
        raise UserError("no config file was given: add --config configs/tiny.py, or another file of configs/.")
    if len(files) > 1:
        raise UserError(f"--config is given {len(files)} times ({', '.join(files)}): give one config file.")
    return local_path(files[0], "--config"), overrides


def _override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets a setting of a config from text; `key` may end in the index of a tuple's item, such as `[1]`."""
    plain, bracket, index = key.partition("[")
    setting = declared(RunConfig).get(plain)
    if setting is None:
        raise unknown_setting(plain)
    above, _, name = plain.rpartition(".")
    group: Any = config
    for part in above.split(".") if above else []:
        group = group.get(part) if isinstance(group, ml_collections.ConfigDict) else None
    if not isinstance(group, ml_collections.ConfigDict):
        raise UserError(f"the config file has no group config.{above}: start from default_config().")
    if bracket:
        items: Any = group.get(name)
        index = index.removesuffix("]")
        places = [str(place) for place in range(len(items))] if isinstance(items, tuple | list) else []
        if index not in places or typing.get_origin(setting.kind) is not tuple:
            raise UserError(
                f"--config.{key} names no item of config.{plain}, which is {shown(items)}: set it as a whole."
            )
        item = _value(typing.get_args(setting.kind)[0], text)
        value = (*items[: int(index)], item, *items[int(index) + 1 :])
    else:
        value = _value(setting.kind, text)
    with group.ignore_type():  # `parse_config` checks types, and its messages name the key
        group[name] = value


def _value(kind: Any, text: str) -> Any:
    """Parses the text of a setting of type `kind`; returns the text itself if that fails."""
    if kind is str:
        return text
    if typing.get_origin(kind) is tuple:
        return _items(typing.get_args(kind)[0], text)
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
        if isinstance(value, bool):  # a ConfigDict would make it a number
            return text
        return float(value) if kind is float and type(value) is int else value
    except (ValueError, SyntaxError, MemoryError, RecursionError, OverflowError):
        return text


def _items(kind: Any, text: str) -> tuple[Any, ...] | str:
    """Parses the items of a tuple, in brackets or not, in quotes or not; returns the text itself if brackets fail."""
    text = text.strip()
    for quote in "'\"":
        if len(text) > 1 and text.startswith(quote) and text.endswith(quote) and quote not in text[1:-1]:
            text = text[1:-1].strip()
    if text.startswith(("(", "[")):
        if text[-1] != {"(": ")", "[": "]"}[text[0]]:
            return text
        text = text[1:-1]
    text = text.strip().removesuffix(",")
    return tuple(_value(kind, item.strip(" '\"")) for item in text.split(",")) if text else ()


def whole_number(least: int = 0, *words: str) -> Callable[[str], int | str]:
    """An argparse type: an integer from `least` to `MAX_INT`, or one of `words`."""
    kinds = ("one of " if words else "") + ", ".join([*words, f"a whole number from {least} to {MAX_INT}"])

    def read(text: str) -> int | str:
        if text in words:
            return text
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else least - 1
        if not least <= number <= MAX_INT:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not {kinds}")
        return number

    return read


def add_checkpoint(parser: argparse.ArgumentParser, help: str = "run folder or Hugging Face Llama directory") -> None:
    """Adds `--checkpoint`, the model."""
    parser.add_argument("--checkpoint", type=path_option("--checkpoint"), required=True, help=help)


def add_which(parser: argparse.ArgumentParser) -> None:
    """Adds `--which`, the checkpoint of a run."""
    parser.add_argument(
        "--which", type=whole_number(0, "best", "latest"), metavar="best|latest|STEP", help="default: best, else latest"
    )


def add_test_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name problems and how they are read and graded, see `settings_of_test`."""
    parser.add_argument(
        "--data",
        help="problems, as config.data.test, which is the default: a file, name:config:split, my_task:problems",
    )
    parser.add_argument("--grader", help="code of your own that grades answers, as config.data.grader: my_task:grade")
    parser.add_argument(
        "--fields",
        type=lambda text: tuple(filter(None, text.split(","))),
        help="as config.data.fields: question,answer",
    )
    parser.add_argument("--parameters", help="as config.data.parameters")


def path_option(option: str) -> Callable[[str], Path]:
    """An argparse type: a path of this machine, see `local_path`."""
    return lambda text: local_path(text, option)


def cache_compilations() -> None:
    """Stores compiled programs in the user's home folder, if there is one that can be written.

    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    import jax  # `longshot` imports this file before `run_command` sets what jax reads when it is imported

    folder = Path(os.path.expanduser("~/.cache/longshot_jax"))  # unchanged for a user without a home
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or not folder.is_absolute():
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))


def use_huge_pages() -> None:
    """Starts the command again with GLIBC_TUNABLES=glibc.malloc.hugetlb=1, where Linux gives huge pages on request.

    XLA on a CPU allocates a program's temporary memory at every call; glibc maps it anew each time, and the system clears
    its pages one by one: a quarter of an update (docs/performance.md). malloc, from glibc 2.35 on, reads the variable only
    when a process starts. The process id stays, and so does a value that the user has set. Call this first in a command.
    """
    tunables, modes = os.environ.get("GLIBC_TUNABLES", ""), Path("/sys/kernel/mm/transparent_hugepage/enabled")
    # The mark ends it where the new process does not see the variable.
    if "glibc.malloc.hugetlb" in tunables or _STARTED_AGAIN in os.environ or not _is_own_process():
        return
    asked = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    with suppress(OSError):  # another system
        if "[madvise]" in modes.read_text():
            environment = os.environ | {"GLIBC_TUNABLES": asked, _STARTED_AGAIN: "1"}
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _is_own_process() -> bool:
    """Whether Python was started for this command alone: by no notebook, test, debugger or profiler."""
    before, command = sys.orig_argv[: -len(sys.argv)], sys.orig_argv[-len(sys.argv) :]
    flags = before[1:]
    watched = sys.gettrace() or sys.getprofile() or "-m" in flags or any(map(os.path.exists, flags))
    return bool(sys.executable and command == sys.argv and os.path.isfile(command[0]) and not watched)


def main() -> None:
    """The `longshot` command: `longshot train ...` is `python scripts/train.py ...`, and so for every script."""
    use_huge_pages()
    # A wheel holds the scripts beside this file; a checkout has them in their own folder.
    folder = Path(__file__).parent / "scripts"
    folder = folder if folder.is_dir() else Path(__file__).parents[1] / "scripts"
    verbs = {path.stem: path for path in sorted(folder.glob("*.py"))}
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in verbs:
        sys.argv = [f"longshot {verb}", *sys.argv[2:]]
        spec: Any = importlib.util.spec_from_file_location(verb, verbs[verb])
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        run_command(script.main)
    elif verb in ("--help", "-h"):
        run_command(lambda: _print_verbs(verbs))
    else:
        run_command(lambda: _refuse(verb, list(verbs)))


def _print_verbs(verbs: Mapping[str, Path]) -> None:
    print("usage: longshot VERB [options]\n\nlongshot VERB --help says more.\n")
    for name, path in verbs.items():
        print(f"  {name:10}{(ast.get_docstring(ast.parse(path.read_text())) or '').splitlines()[0]}")


def _refuse(verb: str, verbs: list[str]) -> NoReturn:
    advice = did_you_mean(verb, verbs, f"it must be one of {', '.join(verbs)}.")
    raise UserError(f"longshot has no verb {shown(verb)}: {advice}")
