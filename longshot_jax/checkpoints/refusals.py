"""Why the operating system refused to write a checkpoint, or to read one that may be intact."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from longshot_jax.errors import first_line

TIMED_OUT = "a wait timed out"
DISK_FULL = "no space or no inodes left, the disk is full"
_DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The array writer reports the operating system's error only as text.
_DISK_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large", "ENOSPC")
_ERRNO_IN_TEXT = re.compile(r"os_error_code='(\d+)'|OS error (\d+)")
# What a disk, a network or permissions are the reason of; any other error may come from what a file holds.
_REFUSALS = {
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EAGAIN),
}


def write_refusal(error: BaseException) -> str | None:
    """Why the operating system refused to write, or that writing took too long; None for any other error."""
    for seen in _chain(error):
        # An OSError too, but orbax's: its parts wait for one another by the wall clock.
        if _is_timeout(seen):
            return f"{TIMED_OUT}: {first_line(seen)}"
        if isinstance(seen, OSError) and seen.errno not in _DISK_FULL_ERRNOS:
            return seen.strerror or first_line(seen)
        if isinstance(seen, OSError) or any(text in str(seen) for text in _DISK_FULL_TEXTS):
            return DISK_FULL
        # Reading what was just written fails too where the folder was removed.
        if any(text in str(seen) for text in ("Error writing", "NOT_FOUND: Error ", "No ArrayMetadata found")):
            return "its files are gone or cannot be written"
    return None


def read_refusal(error: BaseException, folder: Path) -> OSError | None:
    """The operating system's refusal behind a failed read of a checkpoint; None if its content is at fault."""
    for seen in _chain(error):
        told = _ERRNO_IN_TEXT.search(str(seen))
        code = int(told[1] or told[2]) if told else getattr(seen, "errno", None)
        if _is_timeout(seen):
            code = errno.ETIMEDOUT
        if code in _REFUSALS:
            return OSError(code, os.strerror(code))
    return _unreadable_part(folder)


def _unreadable_part(folder: Path) -> OSError | None:
    """The refusal of the first folder or file below `folder` that cannot be opened.

    orbax says of what lies in a folder without permission only that it is not there.
    """

    def refuse(error: OSError) -> None:
        raise error

    try:
        for place, _, names in os.walk(folder, onerror=refuse):
            for name in names:
                with open(os.path.join(place, name), "rb"):
                    pass
    except OSError as error:
        return error if error.errno in _REFUSALS else None
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or "DEADLINE_EXCEEDED" in str(error)
