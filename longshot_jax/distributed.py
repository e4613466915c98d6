"""Multi-process runs: initialization, actions of the first process, and preemption."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from longshot_jax.errors import UserError, first_line, shown

# Set by schedulers that start several processes, one per device or host.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# Set by hand, or by launchers that JAX does not know.
_COORDINATOR, _NUMBER, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

_SECONDS_TO_MEET = 300  # as `jax.distributed` waits

T = TypeVar("T")


def join_processes() -> None:
    """Joins the processes that a launcher has started; does nothing for a single process.

    `jax.distributed` detects SLURM and MPI. Any other launcher must set JAX_COORDINATOR_ADDRESS (host:port
    of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0).

    Raises:
      UserError: these are incomplete, or a process does not find process 0. (If process 0 waits for others in vain, XLA ends
        it after five minutes, with exit code 134.)
    """
    named = {name: os.environ[name] for name in (_NUMBER, _INDEX) if os.environ.get(name)}
    several = any(_task_count(name) > 1 for name in _COUNTS)
    if not (named or several):
        if os.environ.get(_COORDINATOR):
            raise UserError(f"{_COORDINATOR} is set, but {_NUMBER} and {_INDEX} are not: set all three, or none.")
        if os.environ.get("JOB_COMPLETION_INDEX", "0") != "0":  # Kubernetes; a pod alone has the index 0
            raise UserError(
                f"this is pod {shown(os.environ['JOB_COMPLETION_INDEX'])} of an indexed job, and each would train by "
                f"itself: set {_COORDINATOR}, {_NUMBER} and {_INDEX}."
            )
        return
    if named and not (len(named) == 2 and all(map(_is_count, named.values()))):
        raise UserError(
            f"{_NUMBER} and {_INDEX} must both be numbers: they are {shown(os.environ.get(_NUMBER))} and "
            f"{shown(os.environ.get(_INDEX))}."
        )
    coordinator = os.environ.get(_COORDINATOR, "")
    if named and not coordinator:
        raise UserError(f"{_NUMBER} is set, but {_COORDINATOR} is not: set it to host:port of process 0.")
    host, _, port = coordinator.rpartition(":")
    if coordinator and not (host and _is_count(port) and 0 < int(port) < 2**16):
        raise UserError(
            f"{_COORDINATOR} is {shown(coordinator)}: set it to host:port of process 0, such as node1:55527."
        )
    number, index = (int(named[name]) if named else None for name in (_NUMBER, _INDEX))
    if number is not None and index is not None and index >= number:
        raise UserError(f"{_INDEX} {index} must be less than {_NUMBER} {number}: processes count from 0.")
    if index:
        _wait_for(host, int(port))
    try:
        jax.distributed.initialize(num_processes=number, process_id=index)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of this run do not find each other ({first_line(error)}): check that the launcher starts "
            f"one for each, or set {_COORDINATOR}, {_NUMBER} and {_INDEX}."
        ) from error


def _wait_for(host: str, port: int) -> None:
    """Returns once process 0 listens; before it does, XLA would end this process with a stack trace of C++."""
    tried_until = time.monotonic() + _SECONDS_TO_MEET
    while True:
        try:
            socket.create_connection((host.strip("[]"), port), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > tried_until:
                raise UserError(
                    f"process 0 of this run is not found at {host}:{port} ({error}): check that it runs, and that "
                    f"{_COORDINATOR} names its host and a port that is open."
                ) from None
            time.sleep(1)


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def _task_count(name: str) -> int:
    text = os.environ.get(name) or "1"
    if not _is_count(text):
        raise UserError(f"{name} is {shown(text)}: the launcher must set it to a number of processes, or not at all.")
    return int(text)


def on_primary(action: Callable[[], T]) -> T | None:
    """Runs an action on the first process while the others wait; returns its result, or None on the others.

    If the action raises a UserError, so does every process.
    """
    result, failed = None, None
    if jax.process_index() == 0:
        try:
            result = action()
        except UserError as error:
            failed = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        done = bool(multihost_utils.broadcast_one_to_all(np.asarray(failed is None)))
        if failed is None and not done:
            raise UserError("the first process of this run failed: see its message.")
    if failed is not None:
        raise failed
    return result


class Preemption:
    """Detects SIGTERM, which schedulers send before they kill a run; a context manager.

    With several processes one signal is enough: JAX agrees on an update after which all stop.
    """

    def __init__(self) -> None:
        self._told = False
        self._before: Any = None
        self._updates = 0

    def __enter__(self) -> "Preemption":
        # With several processes JAX handles the signal. Only the main thread can set handlers.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _tell(self, *_: object) -> None:
        self._told = True

    def requested(self) -> bool:
        """Whether to save and exit now; every process must call it once after every update."""
        self._updates += 1
        if jax.process_count() == 1:
            return self._told
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(self._updates)
