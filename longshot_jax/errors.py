"""The one exception that means: the user can mend this."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in what the user gave: a config key, a file, a checkpoint, a device count.

    The message is one sentence that names the file, line or key and says what to do. Commands print it to
    standard error and exit with code 2; nothing that was already written is touched.
    """


class Preempted(Exception):
    """The run was told to end and has saved its state; the same command goes on."""


def run_command(main: Callable[[], object]) -> None:
    """Runs a command's `main` and ends the process: 0 done, 2 for a UserError, 130 when interrupted, 143 when told to
    end and ready to go on (what a scheduler takes for "start it again")."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Preempted as told:
        print(f"stopped: {told}; start the same command again to go on", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt:
        print("interrupted: start the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
