"""One input of the campaign and its judgement: refused in one sentence that names the place, or read right."""

import contextlib
import hashlib
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from longshot_jax.errors import UserError

_LONGEST = 20.0  # seconds of one input; a longer one hangs
_SENTENCE = 1000  # characters of a refusal at most: it echoes no file


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
      what: the damage, for the report.
      read: calls the functions that users' commands call, on real files.
      wrong: what is wrong with the result, compared with an expectation that does not use the package; None if nothing.
      names: a refusal contains one of these: files, keys.
      harmless: the damage changes no meaning, so a refusal is a failure.
    """

    what: str
    read: Callable[[], Any]
    wrong: Callable[[Any], str | None]
    names: tuple[str, ...]
    harmless: bool = False


class Kind(Protocol):
    """A kind of inputs: `share` is its part of a campaign."""

    name: str
    share: float

    def __init__(self, folder: Path) -> None: ...

    def case(self, rng: random.Random, folder: Path) -> Case:
        """The input that `rng` draws; its files are written to the empty `folder`."""
        ...


@dataclass
class Tally:
    """Judgements of the inputs of one kind."""

    inputs: int = 0
    refused: int = 0
    read: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: "Tally") -> None:
        """Counts the inputs of another kind too."""
        for key, value in vars(other).items():
            setattr(self, key, getattr(self, key) + value)

    def line(self, name: str) -> str:
        """The summary of a kind."""
        return (
            f"{name:14} {self.inputs:6} inputs, {self.refused:6} refused, {self.read:6} read right, "
            f"{len(self.failures):4} failures, {self.seconds:6.0f} s"
        )


class TooLong(Exception):
    """An input took longer than any should."""


def judge(kind: Kind, seed: int, index: int, scratch: Path, tally: Tally) -> None:
    """Judges input `index` of a kind and counts it."""
    began, folder = time.monotonic(), scratch / "input"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = kind.case(random.Random(f"{seed} {kind.name} {index}"), folder)
    before = _contents(folder)
    refusal, fault = None, None
    try:
        with _time_limit():
            fault = case.wrong(case.read())
    except UserError as error:
        refusal, fault = str(error), _fault_of_sentence(str(error), case)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        fault = f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:300]}"
    if fault is None and _contents(folder) != before:
        fault = "reading changed a file"
    tally.inputs += 1
    if fault is not None:
        tally.failures.append(f"--only {kind.name} --index {index} --seed {seed}: {case.what}: {fault}")
    elif refusal is None:
        tally.read += 1
    else:
        tally.refused += 1
    tally.seconds += time.monotonic() - began


def _fault_of_sentence(text: str, case: Case) -> str | None:
    if case.harmless:
        return f"refused though nothing is wrong: {text[:300]}"
    if "\n" in text.strip() or len(text) > _SENTENCE:
        return f"the refusal is no sentence ({len(text)} characters): {text[:300]!r}"
    if not any(name in text for name in case.names):
        return f"the refusal names none of {case.names}: {text[:300]}"
    return None


def _contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TooLong(f"no answer after {_LONGEST:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, _LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def same(found: Any, expected: Any, name: str) -> str | None:
    """What differs between two values; floats are equal if their values are, NaN included."""
    if found == expected or (found != found and expected != expected):
        return None
    return f"{name} is {str(found)[:120]!r}, expected {str(expected)[:120]!r}"


def first(*faults: str | None) -> str | None:
    return next((fault for fault in faults if fault), None)
