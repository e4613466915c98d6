"""A tiny curriculum with a checkpoint after its first update, to be told to end; run as a program by test_distributed.

python tests/preempted_run.py WORKDIR
"""

import sys

import jax
from tiny_run import tiny

from longshot_jax.errors import run_command
from longshot_jax.train import train

if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    # Long enough to be told in time: an update takes milliseconds.
    run = tiny(phases=("curriculum",), curriculum__stages=(1,), curriculum__max_steps_per_stage=400, curriculum__epochs_per_stage=50,
               checkpoint__every=50)  # fmt: skip
    run_command(lambda: train(run, sys.argv[1]))
