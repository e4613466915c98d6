"""Measure: what every part of a run costs on this machine, beside its peaks and, on a CPU, beside PyTorch.

    python scripts/bench.py --config configs/bench.py [--config.key=value ...] [--output bench.json]
        [--figure bench.svg] [--only curriculum_step,generation] [--repetitions 7] [--clock processor]

Weights are random, of the config's shape: nothing is downloaded or read. A Llama 3 of meta-llama is known by its name.
On a GPU the same command measures the fractions of the matrix peak and of the bandwidth:

    python scripts/bench.py --config configs/single.py --only rollout,update,bandwidth --output bench.json

Sections: curriculum_step, generation, rollout, update, bandwidth, conversion, curves, compile. Everything that is
compared takes turns, and figures are medians. On a busy machine, `taskset -c 0` with `--clock processor` compares what
is computed on one core and not who had to wait. Keys of bench.json are those of the printed table; ratios to PyTorch are
null where it is not installed or the device is no CPU.
"""

import sys
from pathlib import Path

from longshot_jax.command_line import parse_bench
from longshot_jax.errors import run_command
from longshot_jax.evaluation.results import check_writable, write_results
from longshot_jax.host_memory import keep_freed_memory


def main() -> None:
    """Parses, measures, prints, writes."""
    if {"-h", "--help", "-help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    asked = parse_bench(sys.argv)
    for path in filter(None, (asked.output, asked.figure)):
        check_writable(path)
    keep_freed_memory()
    from longshot_jax.benchmarks.measurements import Bench
    from longshot_jax.benchmarks.report import figure, measure, table
    from longshot_jax.planning.shapes import planned_llama

    bench = Bench(asked.run, planned_llama(asked.run), asked.repetitions, clock=asked.clock)
    results = measure(bench, asked.only, note=lambda text: print(text, file=sys.stderr, flush=True))
    print(table(results))
    if asked.output:
        write_results(asked.output, results)
    if asked.figure:
        Path(asked.figure).write_text(figure(results), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
