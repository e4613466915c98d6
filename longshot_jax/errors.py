"""Errors of commands and their exit codes."""

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

# Seconds that background threads have to end after an error; several processes leave together, which takes longer.
_GRACE, _GRACE_OF_SEVERAL = 5.0, 60.0


class UserError(Exception):
    """An error that the user can fix, such as a wrong config key, file, checkpoint or device count.

    The message is one sentence that names the file, line or key and gives advice.
    """


class Preempted(Exception):
    """The run was preempted and has saved its state; the same command continues it."""


def first_line(error: BaseException, limit: int = 160) -> str:
    """First line of an error's text, without its full stop and cut to `limit`; the class name if it has no text."""
    lines = str(error).strip().splitlines()
    return (lines[0][:limit].rstrip(". ") if lines else "") or type(error).__name__


def run_command(main: Callable[[], object]) -> None:
    """Runs a command's `main` and exits.

    Exit codes: 0 done; 2 UserError; 130 interrupted; 143 preempted with the state saved (schedulers then restart it).
    Background threads have a few seconds after an error; the process then ends without them.
    """
    sys.excepthook = _print_uncaught
    code = 1  # an exception that is not caught here
    try:
        main()
        code = 0
    except UserError as error:
        code = 2
        print(f"error: {error}", file=sys.stderr)
    except Preempted as told:
        code = 143
        print(f"stopped: {told}; start the same command again to continue", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        print("interrupted: start the same command again to continue", file=sys.stderr)
    except SystemExit:  # of `--help` and of the parser of options
        code = 0
        raise
    finally:
        if code not in (0, 143):  # after a preemption nothing is left to write, and processes leave together
            threading.Thread(target=_end_after_main, args=(code,), daemon=True).start()
    sys.exit(code)


def _end_after_main(code: int) -> None:
    """Ends the process when the main thread has ended and others go on: a failed save leaves one that waits minutes."""
    distributed = sys.modules.get("jax.distributed")
    several = distributed is not None and distributed.is_initialized()
    threading.main_thread().join()
    time.sleep(_GRACE_OF_SEVERAL if several else _GRACE)
    os._exit(code)


def _print_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python, except for writes that a failed save leaves behind: they find nothing to report to."""
    if kind is not RuntimeError or str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)
