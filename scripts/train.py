"""Train: the stages of a config file, one after the other.

    python scripts/train.py --config configs/multi.py [--config.key=value ...] [--workdir runs/x]

The run folder is runs/<name of the config file> unless --workdir says otherwise. Started again with the same
command, an interrupted run goes on from its newest checkpoint. Told to end (SIGTERM), it saves and ends with code 143.
On many hosts the same command runs once for each process: see docs/performance.md. Every setting is described in longshot_jax/config.py.
"""

import sys
from pathlib import Path

from longshot_jax.command_line import keep_compilations, parse_arguments
from longshot_jax.errors import run_command
from longshot_jax.host_memory import keep_freed_memory
from longshot_jax.processes import join_processes
from longshot_jax.training.loop import train


def main() -> None:
    """Parses, checks and trains."""
    if {"-h", "--help", "-help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    run, workdir = parse_arguments(sys.argv)
    keep_freed_memory()
    join_processes()
    keep_compilations(Path.home() / ".cache" / "longshot_jax")
    train(run, workdir)


if __name__ == "__main__":
    run_command(main)
