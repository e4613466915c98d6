"""Python code run in a process of its own, which may be killed or have devices of its own."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

NO_PROCESS = 2**22 + 1
"""Above the largest number that Linux gives a process: no other process can have it, as it can have a dead one's."""


def run_script(
    body: str, *arguments: object, prefix: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    ours = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    environment = {**os.environ, **ours, **(environment or {})}
    command = [*prefix, sys.executable, "-c", textwrap.dedent(body), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
