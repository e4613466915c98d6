"""Atomic writes of files and folders, and reads of JSON with errors that name the file."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longshot_jax.errors import UserError


def write_json(path: str | Path, content: Mapping[str, Any], *, advice: str, sort_keys: bool = False) -> None:
    """Writes a JSON file atomically. Raises a UserError that ends with `advice` if it cannot be written."""
    path = Path(path)
    part = part_of(path)
    try:
        part.write_text(json.dumps(content, indent=1, sort_keys=sort_keys) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise unwritable(path, error, advice) from None


def read_json(path: str | Path, *, advice: str) -> dict[str, Any]:
    """Reads a JSON object. Raises a UserError that ends with `advice` if it is missing, unreadable or not an object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
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

    Raises a UserError that ends with `advice` if it cannot be written.
    """
    part, replaced = part_of(folder), folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rename(replaced)
        part.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        raise unwritable(folder, error, advice) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_writable(path: str | Path, option: str = "--output") -> None:
    """Creates the folder of a file; raises a UserError if the file cannot be written or is a folder."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: give the name of a file.")
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise unwritable(path, error, f"choose another {option}") from None


def unwritable(path: Path, error: OSError, advice: str) -> UserError:
    """The error for a file or folder that cannot be written."""
    return UserError(f"{path} cannot be written ({error.strerror or error}): {advice}.")


def part_of(path: Path) -> Path:
    """Path of an unfinished file or folder, unique to this process."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")
