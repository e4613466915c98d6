"""Paths that a user names, atomic writes of files and folders, and reads of JSON, with errors that name the file."""

import errno
import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from longshot_jax.errors import UserError

# `gs://bucket/run`, also as pathlib shortens it; a hub data set, `name:config:split`, has no slash there.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_FORGOTTEN = 86_400  # seconds after which the unfinished file of another host's process is abandoned


def local_path(named: str | Path, option: str) -> Path:
    """The path that an option or a setting names, with the user's home folder for `~`; it need not exist.

    Raises a UserError that begins with `option` for the address of a bucket or server, an empty text, an unknown home
    folder, a folder without permission, and anything else that can be no path here.
    """
    text = str(named)
    shown = f"{option} {text if len(text) <= 80 else text[:80] + '...'!r}"
    if not text:
        raise UserError(f"{option} is empty: give a path.")
    if _ADDRESS.match(text):
        raise UserError(
            f"{shown} is an address, and only paths of this machine are read and written: mount the bucket (for example "
            "with gcsfuse or s3fs) or download the file, and give its path."
        )
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except RuntimeError:
        raise UserError(f"{shown} begins with an unknown home folder: give the whole path.") from None
    except (OSError, ValueError) as error:  # too long, a NUL byte, half a character, a circle of links
        raise UserError(
            f"{shown} cannot be used ({getattr(error, 'strerror', None) or error}): give another path."
        ) from None
    if path.is_dir() and not os.access(path, os.X_OK):
        raise UserError(f"{shown} is a folder that may not be entered: fix its permissions, or give another path.")
    return path


def write_text(path: str | Path, text: str, *, advice: str) -> None:
    """Writes a file atomically. Raises a UserError that ends with `advice` if it cannot be written."""
    path = Path(path)
    part = part_of(path)
    try:
        remove_abandoned(path, "part")
        with new_file(part) as file:
            file.write(text)
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error, advice) from None
    finally:
        with suppress(OSError):
            part.unlink()


def write_json(path: str | Path, content: Mapping[str, Any], *, advice: str, sort_keys: bool = False) -> None:
    """Writes a JSON file as `write_text` does."""
    write_text(path, json.dumps(content, indent=1, sort_keys=sort_keys) + "\n", advice=advice)


def read_json(path: str | Path, *, advice: str) -> dict[str, Any]:
    """Reads a JSON object. Raises a UserError that ends with `advice` if it is missing, unreadable or not an object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        json.dumps(content, ensure_ascii=False).encode()  # half a character (a lone surrogate) is in no name or text
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {advice}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {advice}.") from None
    except RecursionError:
        raise UserError(f"{path} is JSON nested too deeply: {advice}.") from None
    except ValueError as error:  # broken JSON or UTF-8, or a number with more digits than Python reads
        raise UserError(f"{path} is not valid JSON ({error}): {advice}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: {advice}.")
    return content


@contextmanager
def replacing_folder(folder: Path, advice: str) -> Iterator[Path]:
    """Yields a new folder that replaces `folder` when the block ends and is deleted when it raises.

    What killed processes left of the same folder is removed. Raises a UserError that ends with `advice` if the folder
    cannot be written or is a symbolic link.
    """
    part, replaced = part_of(folder), part_of(folder, "replaced")
    if folder.is_symlink():
        raise UserError(f"{folder} is a symbolic link, which is not replaced by a folder: {advice}.")
    try:
        remove_abandoned(folder, "part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rename(replaced)
        part.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
        remove_abandoned(folder, "replaced")  # only now is there another whole one
    except OSError as error:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        raise unwritable(folder, error, advice) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_writable(path: str | Path, is_own: Callable[[str], bool], option: str = "--output") -> None:
    """Creates the folder of a file that a command writes at its end.

    Raises a UserError if the file cannot be written, or if something is there that the command would destroy: anything
    but a regular file that is empty or whose content `is_own`, see `json_with`.
    """
    path = local_path(path, option)
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: give the name of a file.")
    part = part_of(path)
    try:
        check_own(path, is_own, option)
        path.parent.mkdir(parents=True, exist_ok=True)
        new_file(part).close()
        part.unlink()
    except OSError as error:
        raise unwritable(path, error, f"choose another {option}") from None


def check_own(path: Path, is_own: Callable[[str], bool], option: str) -> None:
    """Raises a UserError if something is at `path` that `check_writable` refuses."""
    if os.path.lexists(path) and not (is_regular(path) and _holds(path, is_own)):
        raise UserError(
            f"{option} {path} exists and is not a file that this command wrote: give another name, or remove it."
        )


def json_with(*keys: str) -> Callable[[str], bool]:
    """Whether a text is a JSON object that has one of these keys."""

    def has_one(text: str) -> bool:
        try:
            content = json.loads(text) if text.startswith("{") else None
        except (ValueError, RecursionError):
            return False
        return isinstance(content, dict) and not content.keys().isdisjoint(keys)

    return has_one


def _holds(path: Path, is_own: Callable[[str], bool]) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return not text or is_own(text)


def is_regular(path: Path) -> bool:
    """Whether a path is a regular file and no link to one."""
    return stat.S_ISREG(path.lstat().st_mode)


def new_file(part: Path) -> Any:
    """Opens a part as a new text file, never through a link; an OSError if that is impossible."""
    part.unlink(missing_ok=True)  # of an earlier process with this number
    return part.open("x", encoding="utf-8")


def open_no_link(name: str | Path, flags: int) -> int:
    """An opener for `open` and `FileIO` that refuses symbolic links."""
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)


def unwritable(path: Path, error: OSError, advice: str) -> UserError:
    """The error for a file or folder that cannot be written."""
    return UserError(f"{path} cannot be written ({error.strerror or error}): {advice}.")


def unreadable(what: object, error: OSError) -> UserError:
    """The error for what the operating system refuses to read: it may be intact, so nothing says that it is damaged."""
    advice = "it may be intact: see to its disk, and start the same command again"
    if error.errno in (errno.EACCES, errno.EPERM):
        advice = "fix its permissions"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        advice = "raise the limit of open files (`ulimit -n`)"
    return UserError(f"{what} cannot be read ({error.strerror or error}): {advice}.")


def is_there(file: Path) -> bool:
    """Whether there is a file; a UserError if the operating system refuses to open it.

    To be asked before safetensors, which says of such a file that it does not exist.
    """
    try:
        file.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except IsADirectoryError:  # its reader says what is wrong
        return True
    except OSError as error:
        raise unreadable(file, error) from None
    return True


def has_folder(path: Path) -> bool:
    """Whether there is a folder at `path`, or a link to one; False if there is nothing.

    Raises a UserError for anything else. A link whose disk is not mounted is no absent folder: its content comes back.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from None
    if os.path.isdir(path):
        return True
    if path.is_symlink():
        raise UserError(
            f"{path} is a link to {os.readlink(path)}, where no folder can be reached: mount its disk, or correct the link."
        )
    raise UserError(f"{path} is not a folder: move it elsewhere, or give another folder than {path.parent}.")


def part_of(path: Path, kind: str = "part") -> Path:
    """Path of an unfinished file or folder (or of the one that it replaced), unique to this process of this host."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{kind}")


def remove_abandoned(path: Path, kind: str) -> None:
    """Removes the parts of `path` whose process is dead; one of another host counts as dead after a day."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(?:(?P<host>.+)\.)?(?P<process>\d+)\.{kind}")
    with suppress(OSError):
        for left in path.parent.iterdir():
            found = name.fullmatch(left.name)
            if found is None or left.is_symlink():
                continue
            elsewhere = found["host"] not in (None, socket.gethostname())  # parts before version 0.1 name no host
            if time.time() - left.stat().st_mtime < _FORGOTTEN if elsewhere else _lives(int(found["process"])):
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
