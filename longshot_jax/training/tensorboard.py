"""TensorBoard events of a run, without TensorFlow.

Events are written in the calling thread, so a full disk is an error of the call. tensorboardX's own writer uses a
background thread, which dies silently if it cannot write; the tenth event after that waits forever.

This file writes values and computes none: `ppo/update.py` and `ppo/loop.py` compute `ppo/`, `reward/` and `rollout/`,
`curriculum/update.py` computes `curriculum/`, and `training/context.py` logs `evaluation/`.
"""

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from longshot_jax.config.declarations import flatten
from longshot_jax.errors import UserError

Log = Callable[[int, Mapping[str, float]], None]  # of a step and its scalars

# TensorBoard's own bins of histograms: 1e-12 to 1e20 in steps of 10 %, of either sign.
_POSITIVE = 1e-12 * 1.1 ** np.arange(774)
_BINS = np.concatenate([-_POSITIVE[::-1], [0.0], _POSITIVE])
# Special tokens look like HTML, so all markup of a cell is escaped.
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"} | {mark: "\\" + mark for mark in "\\`*_[]"}


class RunWriter:
    """Writes an event file; a context manager. Every method flushes its events.

    All methods do nothing after an error or `close`, and on all processes but the first.

    Args:
      folder: folder of the run's event files, created if missing.
      resumed_from: step of the checkpoint that the run continues from; None for a new run. Later steps of earlier files
        are hidden, since the continued run logs them again. What they have of that step itself, and of step 0, is not
        written again.
      log: also gets every step's scalars, if given.

    Raises:
      UserError: the file cannot be written; every method may raise this.
    """

    def __init__(self, folder: str | Path, resumed_from: int | None = None, log: Log | None = None):
        self._folder, self._log = Path(folder), log
        self._file: Any = None
        self._written: set[tuple[int, str]] = set()
        if jax.process_index() != 0:
            return
        with self._checked("choose another --workdir or fix its permissions"):
            self._folder.mkdir(parents=True, exist_ok=True)
            if resumed_from is not None:
                self._written = _tags_at(self._folder, (0, resumed_from))
            # Names have the time in whole seconds: the number keeps a quick restart from overwriting the last file.
            number = len(list(self._folder.glob("events.out.tfevents.*")))
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{number}"
            self._file = open(self._folder / name, "xb")
        self._write({"file_version": "brain.Event:2"})
        # Hides earlier events from this step on. TensorBoard ignores the first such event, so a new run writes one too.
        session = event_library().proto.event_pb2.SessionLog
        self._write(
            {"step": 0 if resumed_from is None else resumed_from + 1, "session_log": session(status=session.START)}
        )

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, error_type: type | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except UserError:
            if error is None:  # otherwise the first error is the one to report
                raise

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds one point per name; non-finite values are kept."""
        make = event_library().summary.scalar
        numbers = {name: float(value) for name, value in values.items() if (step, name) not in self._written}
        self._add(step, *(make(name, number) for name, number in numbers.items()))
        if self._log is not None and numbers:
            self._log(step, numbers)

    def histogram(self, step: int, name: str, array: Any) -> None:
        """Adds the distribution of an array's finite elements, if there are any; the outermost bins hold all beyond."""
        values = np.asarray(array, np.float64).ravel()
        values = np.clip(values[np.isfinite(values)], _BINS[0], _BINS[-1])
        if values.size:
            self._add(step, event_library().summary.histogram(name, values, _BINS))

    def text(self, step: int, name: str, markdown: str) -> None:
        """Adds a Markdown text, such as a `samples_table`."""
        self._add(step, event_library().summary.text(name, markdown))

    def image(self, step: int, name: str, pixels: Any) -> None:
        """Adds an image, uint8 [height, width, 3]."""
        self._add(step, event_library().summary.image(name, np.asarray(pixels, np.uint8), dataformats="HWC"))

    def hyperparameters(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Adds the nested config, at the start of a run, for the comparison of runs.

        `metrics` are the names of the final metrics, which `results` adds if the run ends.
        """
        shown = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flatten(config).items()
        }
        self._add(0, *event_library().summary.hparams(shown, dict.fromkeys(metrics))[:2])  # experiment, session start

    def results(self, metrics: Mapping[str, Any]) -> None:
        """Adds the final metrics, at the end of a run."""
        self._add(0, event_library().summary.hparams({}, {})[2])  # session end
        self.scalars(0, metrics)

    def close(self) -> None:
        """Closes the event file; may be repeated."""
        with self._checked():
            if self._file is not None:
                self._file.close()
        self._file = None

    def _add(self, step: int, *summaries: Any) -> None:
        new = [each for each in summaries if (step, each.value[0].tag) not in self._written]
        self._write(*({"step": step, "summary": summary} for summary in new))

    def _write(self, *events: dict[str, Any]) -> None:
        if self._file is None:
            return
        make, now = event_library().proto.event_pb2.Event, time.time()
        with self._checked():
            self._file.write(b"".join(_record(make(wall_time=now, **each).SerializeToString()) for each in events))
            self._file.flush()

    @contextmanager
    def _checked(self, advice: str = "free some space and start the same command again") -> Iterator[None]:
        """Turns an OSError into a UserError and closes the file, so that later calls do nothing."""
        try:
            yield
        except OSError as error:
            file, self._file = self._file, None
            if file is not None:
                with suppress(OSError):  # it tries to write the rest again
                    file.close()
            raise UserError(
                f"TensorBoard events cannot be written to {self._folder} ({error.strerror or error}): {advice}."
            ) from error


def _tags_at(folder: Path, steps: Sequence[int]) -> set[tuple[int, str]]:
    """(step, tag) of what the event files in a folder show at these steps."""
    event, found = event_library().proto.event_pb2.Event, set()
    for file in sorted(folder.glob("events.out.tfevents.*"), key=lambda file: (file.stat().st_mtime, file.name)):
        content, at = file.read_bytes(), 0
        while at + 12 <= len(content):
            start, (length,) = at + 12, struct.unpack_from("<Q", content, at)
            at = start + length + 4
            if at > len(content):  # a killed run was writing it
                break
            try:
                read = event.FromString(content[start : start + length])
            except Exception:  # protobuf's: the rest of the file is damaged, and TensorBoard does not show it either
                break
            if read.HasField("session_log"):
                found = {(step, tag) for step, tag in found if step < read.step}
            elif read.step in steps:
                found |= {(read.step, value.tag) for value in read.summary.value}
    return found


def samples_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with the keys of the first row as columns; cells are escaped, and their lines joined by <br>."""
    if not rows:
        return "(no samples)"
    lines = [list(rows[0]), *([row.get(column, "") for column in rows[0]] for row in rows)]
    table = [
        ["<br>".join(str(cell).translate(str.maketrans(_ESCAPES)).splitlines()) for cell in line] for line in lines
    ]
    table.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def _record(data: bytes) -> bytes:
    """TFRecord framing: length and data, each with its masked CRC-32C."""
    checksum = event_library().record_writer.masked_crc32c
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", checksum(length)), data, struct.pack("<I", checksum(data))))


@cache
def event_library() -> ModuleType:
    """Imports tensorboardX without PyTorch, which it would import for one annotation."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        import tensorboardX
        import tensorboardX.proto.event_pb2
        import tensorboardX.record_writer
        import tensorboardX.summary
    finally:
        if absent:
            del sys.modules["torch"]
    return tensorboardX
