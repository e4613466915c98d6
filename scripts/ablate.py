"""Ablation: each part of the method on and off, on the generated chains, over several seeds.

python scripts/ablate.py --output ablations.json [--variants pathwise,critic] [--seeds 5] [--workdir runs/ablations]
python scripts/ablate.py --distractors 1 --output harder.json --workdir runs/ablations_harder --variants fixed_count
"""

import os

from longshot_jax.errors import UserError, run_command, shown


def main() -> None:
    from longshot_jax.benchmarks.machine import usable_cores
    from longshot_jax.cli import OptionParser, path_option, use_huge_pages, whole_number
    from longshot_jax.experiments.ablation import evaluate_part, run_ablation
    from longshot_jax.experiments.ablation_tables import ablation_table, fusion_table

    use_huge_pages()
    parser = OptionParser(description="Each part of the method on and off, from the same starts.")
    parser.add_argument("--output", type=path_option("--output"), help="JSON file to write")
    parser.add_argument("--variants", default="", help="names, separated by commas; default: all")
    parser.add_argument("--seeds", type=whole_number(1), default=5, help="runs of each variant")
    parser.add_argument(
        "--iterations",
        type=whole_number(1),
        default=100,
        help="PPO iterations of every variant; a start that variants share is trained whole, for minutes",
    )
    parser.add_argument(
        "--distractors", type=whole_number(0), default=0, help="irrelevant statements, for the harder task"
    )
    parser.add_argument("--jobs", type=whole_number(1), default=usable_cores(), help="parallel runs")
    parser.add_argument("--workdir", type=path_option("--workdir"), default="runs/ablations", help="folder of the runs")
    parser.add_argument("--evaluate", type=path_option("--evaluate"), help="only evaluate this trained variant")
    parser.add_argument("--tests", type=path_option("--tests"), help="with --evaluate: folder of the test files")
    flags = parser.parse_args()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((flags.workdir / "compilations").resolve()))
    if flags.evaluate:
        if flags.tests is None:
            raise UserError("--evaluate needs --tests: the folder of the test files.")
        evaluate_part(flags.evaluate, flags.tests)
        return
    if flags.output is None:
        raise UserError("--output is missing: name the JSON file to write.")
    names = [name for name in flags.variants.split(",") if name]
    if flags.variants and not names:
        raise UserError(f"--variants is {shown(flags.variants)}: name variants, or leave it out for all.")
    content = run_ablation(
        flags.workdir, flags.output, names, flags.seeds, flags.iterations, flags.jobs, flags.distractors
    )
    print(f"\n{ablation_table(content)}\n\n{fusion_table(content)}\n\n{flags.output} has every figure.")


if __name__ == "__main__":
    run_command(main)
