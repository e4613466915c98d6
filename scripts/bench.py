"""Benchmark: the cost of every part of a run on this machine, compared with its peaks and, on a CPU, with PyTorch.

    python scripts/bench.py --config configs/bench.py [--config.key=value ...] [--output bench.json]
        [--figure bench.svg] [--profile FOLDER] [--only curriculum_step,generation] [--repetitions 7] [--clock processor]

Parameters are random, of the config's shape, and nothing is downloaded; the shapes of meta-llama's Llama 3 are known by
name. On a GPU `make bench-gpu` checks the laws on the card and measures an update and its share of the matrix peak. A rollout of
Llama-3-8B compiles for minutes there, so every further section costs many:

    python scripts/bench.py --config configs/published_single.py --only update --profile trace --output bench.json

--profile writes a profiler trace of one rollout and of one epoch of an update, for Perfetto or TensorBoard, and prints
their time by the scopes that the code names.

Sections: curriculum_step, generation, rollout, update, bandwidth, conversion, curves, compile. With config.thoughts.join
name rollout, update, conversion or curves: the others measure single trajectories. With config.thoughts.roles, which fix
the number of trajectories, there is neither n5_over_n1 nor the curve of N. Compared functions take
turns; figures are medians. On a busy machine, `taskset -c 0` with `--clock processor` compares CPU time on one core,
without waiting. The keys of bench.json and of the printed table agree; ratios to PyTorch are null without PyTorch and
on other devices.
"""

import sys

from longshot_jax.errors import UserError, run_command, shown


def main() -> None:
    from longshot_jax.cli import command_parser, parse_command, path_option, use_huge_pages, whole_number
    from longshot_jax.evaluation.results import write_results
    from longshot_jax.files import check_writable, json_with, write_text

    use_huge_pages()
    parser = command_parser(__doc__)
    parser.add_argument("--output", type=path_option("--output"))
    parser.add_argument("--figure", type=path_option("--figure"))
    parser.add_argument("--profile", type=path_option("--profile"))
    parser.add_argument("--only")
    parser.add_argument("--repetitions", type=whole_number(1), default=7)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    run, _, options = parse_command(parser)
    import jax

    from longshot_jax.benchmarks import trace
    from longshot_jax.benchmarks.machine import Bench
    from longshot_jax.benchmarks.report import SECTIONS, SINGLE, figure, measure, table
    from longshot_jax.planning.shapes import planned_backbone
    from longshot_jax.tables import markdown_table

    sections = options.only.split(",") if options.only else SECTIONS
    for section in sections:
        if section not in SECTIONS:
            raise UserError(f"--only names {shown(section)}: it may name {', '.join(SECTIONS)}.")
    if run.thoughts.join and (alone := [section for section in sections if section in SINGLE]):
        others = ",".join(section for section in SECTIONS if section not in SINGLE)
        raise UserError(
            f"--only names {', '.join(alone)}, which measure single trajectories, and config.thoughts.join is set: "
            f"name others, such as --only {others}."
            if options.only
            else f"the sections {', '.join(SINGLE)} measure single trajectories, and config.thoughts.join is set: "
            f"add --only {others}."
        )
    if options.figure and "curves" not in sections:
        raise UserError("--figure draws the section curves: add it to --only.")
    if options.output:
        check_writable(options.output, json_with("peaks"))
    if options.figure:
        check_writable(options.figure, lambda text: text.startswith("<svg"), "--figure")
    if options.profile:
        trace.check_folder(options.profile)
    seconds = 60.0 if jax.default_backend() == "cpu" else 20.0
    bench = Bench(run, planned_backbone(run), options.repetitions, seconds, options.clock)
    results = measure(bench, sections, note=lambda text: print(text, file=sys.stderr, flush=True))
    print(table(results))
    if options.output:
        write_results(options.output, results)
    if options.figure:
        write_text(options.figure, figure(results), advice="choose another --figure")
    if options.profile:
        print("\n" + markdown_table(trace.rows(trace.profile(bench, options.profile))))


if __name__ == "__main__":
    run_command(main)
