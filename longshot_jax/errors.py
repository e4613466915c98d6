"""Errors of commands and their exit codes."""

import sys
from collections.abc import Callable


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
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Preempted as told:
        print(f"stopped: {told}; start the same command again to continue", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt:
        print("interrupted: start the same command again to continue", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
