"""One TensorBoard event file, written at once and in this thread: a disk that is full is an error where it happens.

The library's own writer hands events to a background thread. Where that thread cannot write, it dies silently, and
the next event but ten waits for it for ever.
"""

import os
import socket
import struct
import sys
import time
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from longshot_jax.errors import UserError


class EventFile:
    """A new event file; every `add` is on its way to the disk when it returns, so a kill loses nothing.

    Args:
      folder: where it goes; made where missing.

    Raises:
      UserError: the file cannot be written: here, in `add`, or in `close`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._events = event_library().proto.event_pb2
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The name has the time in whole seconds: a quick restart must not write over the last file.
            number = len(list(folder.glob("events.out.tfevents.*")))
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{number}"
            self._file: Any = open(folder / name, "xb")
        except OSError as error:
            raise UserError(
                f"TensorBoard events cannot be written to {folder} ({error.strerror or error}): choose another "
                "--workdir or mend its permissions."
            ) from error
        self._write([self._events.Event(wall_time=time.time(), file_version="brain.Event:2")])

    def purge(self, step: int) -> None:
        """From `step` on, what earlier files of the folder hold is void."""
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write([self._events.Event(wall_time=time.time(), step=step, session_log=start)])

    def add(self, step: int, *summaries: Any) -> None:
        """Appends summaries of a step; does nothing once the file is closed."""
        now = time.time()
        self._write([self._events.Event(wall_time=now, step=step, summary=each) for each in summaries])

    def _write(self, events: list[Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(b"".join(_record(event.SerializeToString()) for event in events))
            self._file.flush()
        except OSError as error:
            file, self._file = self._file, None
            try:
                file.close()  # tries to write what is left, and cannot
            except OSError:
                pass
            raise self._failure(error) from error

    def close(self) -> None:
        """Closes the file; harmless when repeated."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                raise self._failure(error) from error

    def _failure(self, error: OSError) -> UserError:
        return UserError(
            f"TensorBoard events cannot be written to {self.folder} ({error.strerror or error}): free some space and "
            "start the same command again."
        )


def _record(data: bytes) -> bytes:
    """TFRecord's framing: length and data, each with its masked CRC-32C."""
    checksum = event_library().record_writer.masked_crc32c
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", checksum(length)), data, struct.pack("<I", checksum(data))))


@cache
def event_library() -> ModuleType:
    """tensorboardX, kept from importing PyTorch: where that is installed, it would load it for one annotation."""
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
