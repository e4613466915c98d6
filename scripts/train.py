"""Trains the phases of a config file, one after the other.

    python scripts/train.py --config configs/multi.py [--config.key=value ...] [--workdir runs/x]

The run folder is runs/<name of the config file> by default. The same command continues an interrupted run from its
newest checkpoint. On SIGTERM the run saves and exits with code 143. For several hosts see docs/performance.md: the same
command runs once per process. `--help` lists every setting, `--help ppo` one group; with `--config` their values in that file.
"""

from pathlib import Path

from longshot_jax.errors import run_command


def main() -> None:
    from longshot_jax.cli import cache_compilations, command_parser, parse_command, path_option, use_huge_pages
    from longshot_jax.distributed import join_processes

    use_huge_pages()
    parser = command_parser(__doc__)
    parser.add_argument("--workdir", type=path_option("--workdir"))
    run, file, options = parse_command(parser)
    join_processes()
    cache_compilations()
    from longshot_jax.train import train  # takes seconds, so after the checks above

    train(run, options.workdir or Path("runs") / file.stem)


if __name__ == "__main__":
    run_command(main)
