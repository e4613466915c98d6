"""Python code run in a process of its own, which may be killed or have devices of its own."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

NO_PROCESS = 2**22 + 1
"""Above the largest number that Linux gives a process: no other process can have it, as it can have a dead one's."""


def run_script(
    body: str, *arguments: object, prefix: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    ours = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    environment = {**os.environ, **ours, **(environment or {})}
    command = [*prefix, sys.executable, "-c", textwrap.dedent(body), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def obeying_permissions() -> tuple[str, ...]:
    """Prefix of a command to which the permissions of files apply, also for root; skips the test without one."""
    if os.geteuid() != 0:
        return ()
    powers = "-dac_override,-dac_read_search"
    prefix = ("setpriv", "--bounding-set", powers, "--inh-caps", powers)
    skip_without(prefix, "permissions do not apply to root, and this system has no way to give up its powers")
    return prefix


def skip_without(prefix: Sequence[str], reason: str) -> None:
    """Skips the test if this system does not run a command with this prefix."""
    try:
        possible = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip(reason)
