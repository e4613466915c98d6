"""Errors of commands, their sentences and their exit codes."""

import difflib
import importlib.util
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

# Seconds that background threads have to end after an error; several processes leave together, which takes longer.
_GRACE, _GRACE_OF_SEVERAL = 5.0, 60.0
_LONGEST_WORD = 400  # of a message: longer ones, such as a file pasted into an option, are cut in the middle
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")


class UserError(Exception):
    """An error that the user can fix, such as a wrong config key, file, checkpoint or device count.

    The message is one sentence that names the file, line or key and gives advice. Values in it go through `shown`.
    """

    def __init__(self, message: str):
        super().__init__(_LONG_WORD.sub(lambda word: f"{word[0][:160]}...{word[0][-80:]}", message))


class Preempted(Exception):
    """The run was preempted and has saved its state; the same command continues it."""


def shown(value: Any, limit: int = 80) -> str:
    """A value for a message, as Python writes it, cut to `limit` characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return "a number of thousands of digits"
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply to show"
    return text if len(text) <= limit else f"{text[:limit]}..."


def first_line(error: BaseException, limit: int = 160) -> str:
    """First line of an error's text, without its full stop and cut to `limit`; the class name if it has no text."""
    lines = str(error).strip().splitlines()
    return (lines[0][:limit].rstrip(". ") if lines else "") or type(error).__name__


def did_you_mean(name: str, known: Iterable[str], otherwise: str, form: str = "{!r}", cutoff: float = 0.6) -> str:
    """Advice for a misspelt name: the nearest known one, written by `form`, or `otherwise`."""
    near = difflib.get_close_matches(name, list(known), 1, cutoff)
    return f"did you mean {form.format(near[0])}?" if near else otherwise


def whole_argument(name: str, value: Any, least: int, end: int, other: str = "") -> int:
    """A whole number from `least` to before `end`, of Python's or NumPy's types; a UserError for anything else."""
    number = -1 if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if not least <= number < end:
        raise UserError(f"{name} is {shown(value)}: it must be a whole number from {least} to {end - 1}{other}.")
    return number


def line_of(error: BaseException, file: str) -> int | None:
    """The line of a file, the last of the traceback, at which an error of the user's code arose; None if in none."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.realpath(frame.filename) == os.path.realpath(file)]
    return lines[-1] if lines else None


def machine_fault(error: BaseException) -> str | None:
    """The sentence for an error, or one of its causes, that means this machine: no such device, too little memory."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        unknown = text.startswith("Unable to initialize backend")
        if unknown or _in_backend_selection(seen):
            reason = first_line(Exception(text.split(" (set ")[0])) if unknown else "its plug-in is not installed"
            return (
                f"JAX_PLATFORMS is {shown(os.environ.get('JAX_PLATFORMS', ''))}, and JAX can use no such device here "
                f"({reason}): set it to 'cpu', or leave it out for the devices that there are."
            )
        # XLA raises a RuntimeError. tensorstore says RESOURCE_EXHAUSTED of a full disk, in a ValueError.
        exhausted = isinstance(seen, RuntimeError) and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text)
        if isinstance(seen, MemoryError) or exhausted:
            return (
                f"the memory does not suffice ({first_line(seen)}): use fewer rows at once (--batch_size, "
                "config.evaluation.batch_size, config.curriculum.micro_batch_size, config.ppo.micro_batches), shorter "
                "config.data lengths, a smaller config.model, or more devices in config.mesh; scripts/plan.py tells "
                "what a run needs."
            )
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def _in_backend_selection(error: BaseException) -> bool:
    """Whether JAX failed an assertion while it chose a backend, as for a platform whose plug-in is not installed."""
    if not isinstance(error, AssertionError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.endswith("xla_bridge.py")


def run_command(main: Callable[[], object]) -> None:
    """Runs a command's `main` and exits.

    Exit codes: 0 done; 2 UserError, or a device or memory that this machine lacks; 130 interrupted; 141 the output's
    reader has left; 143 preempted with the state saved (schedulers then restart it). Background threads have a few seconds
    after an error; the process then ends without them.
    """
    sys.unraisablehook = _report_unraisable
    _hide_false_alarms()
    code = 1  # an exception that is not caught here
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # so that a reader who left is noticed here, not when the interpreter ends
        code = 0
    except BrokenPipeError:  # as in `... | head`
        code = 141  # what a shell says after SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Preempted as told:
        code = 143
        print(f"stopped: {told}; start the same command again to continue", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        print("interrupted: start the same command again to continue", file=sys.stderr)
    except SystemExit:  # of `--help` and of a plan that does not fit
        code = 0
        raise
    except Exception as error:
        sentence = machine_fault(error) or (str(error) if isinstance(error, UserError) else None)
        if sentence is None:
            raise
        code = 2
        print(f"error: {sentence}", file=sys.stderr)
    finally:
        if code not in (0, 143):  # after a preemption nothing is left to write, and processes leave together
            threading.Thread(target=_end_after_main, args=(code,), daemon=True).start()
    sys.exit(code)


def _hide_false_alarms() -> None:
    """Leaves only fatal errors of XLA's C++ log where JAX has CPUs alone; exceptions tell of the others.

    On many CPUs XLA logs an error of kilobytes for each compiled program that it reads from the cache, because it takes
    preferences of LLVM for features that the CPU lacks (jax issue 38445); the program is right. JAX reads the variable
    when it is imported, so this comes before. TF_CPP_MIN_LOG_LEVEL=0 shows everything.
    """
    others = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not others:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _end_after_main(code: int) -> None:
    """Ends the process when the main thread has ended and others go on: a failed save leaves one that waits minutes."""
    distributed = sys.modules.get("jax.distributed")
    several = distributed is not None and distributed.is_initialized()
    threading.main_thread().join()
    time.sleep(_GRACE_OF_SEVERAL if several else _GRACE)
    os._exit(code)


_unraisablehook = sys.unraisablehook


def _report_unraisable(unraisable: Any) -> None:
    """As before, except for writes that a failed save leaves behind: the save has raised, and nothing waits for them."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _unraisablehook(unraisable)
