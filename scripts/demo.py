"""The whole method on generated arithmetic, in minutes, with every baseline and control: `make demo`.

python scripts/demo.py [--seed 0] [--workdir runs/demo]
"""

import argparse
import os
from pathlib import Path

from longshot_jax.cli import whole_number
from longshot_jax.errors import run_command
from longshot_jax.experiments.demo import ARMS, evaluate_arm, run_demonstration


def main() -> None:
    """Runs the demonstration, or evaluates one trained arm of it."""
    parser = argparse.ArgumentParser(description="Every arm on the generated chains, and one table.")
    parser.add_argument("--seed", type=whole_number(), default=0, help="of weights, data order and sampling")
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"), help="where runs and summary.json go")
    parser.add_argument("--evaluate", choices=list(ARMS), help="only evaluate this arm, which is trained already")
    flags = parser.parse_args()
    # Programs that several arms share are compiled once.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((flags.workdir / "compilations").resolve()))
    if flags.evaluate:
        evaluate_arm(flags.evaluate, flags.workdir)
    else:
        run_demonstration(flags.workdir, flags.seed)


if __name__ == "__main__":
    run_command(main)
