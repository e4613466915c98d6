"""The whole method on generated arithmetic in minutes, with baselines and controls: `make demo`.

python scripts/demo.py [--seed 0] [--iterations 200] [--workdir runs/demo]
"""

import os

from longshot_jax.errors import run_command


def main() -> None:
    from longshot_jax.cli import OptionParser, path_option, use_huge_pages, whole_number
    from longshot_jax.experiments.demo import ITERATIONS, VARIANTS, evaluate_variant, run_demonstration

    use_huge_pages()
    parser = OptionParser(description="All variants on the generated chains, and one table.")
    parser.add_argument("--seed", type=whole_number(), default=0, help="seed of parameters, data order and sampling")
    parser.add_argument(
        "--workdir", type=path_option("--workdir"), default="runs/demo", help="folder of the runs and summary.json"
    )
    parser.add_argument(
        "--iterations",
        type=whole_number(1),
        default=ITERATIONS,
        help="of PPO, whose sequences `continued` sees as well; configs/tiny.py has 400",
    )
    parser.add_argument("--evaluate", choices=list(VARIANTS), help="only evaluate this trained variant")
    flags = parser.parse_args()
    # Variants share compiled programs.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((flags.workdir / "compilations").resolve()))
    if flags.evaluate:
        evaluate_variant(flags.evaluate, flags.workdir)
    else:
        run_demonstration(flags.workdir, flags.seed, flags.iterations)


if __name__ == "__main__":
    run_command(main)
