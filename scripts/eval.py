"""Evaluates a model on a file of problems, with its controls.

python scripts/eval.py --checkpoint runs/x [--data PATH] --output results.json
"""

import sys

from longshot_jax.errors import run_command


def main() -> None:
    from longshot_jax.checkpoints.run_folder import settings_of_test
    from longshot_jax.cli import (
        OptionParser,
        add_checkpoint,
        add_test_options,
        add_which,
        path_option,
        use_huge_pages,
        whole_number,
    )
    from longshot_jax.data.own import own_grader
    from longshot_jax.data.problems import fingerprint
    from longshot_jax.data.sources import contamination, test_problems
    from longshot_jax.evaluation.results import check_comparable, comparison, read_results, results_table, write_results
    from longshot_jax.files import check_writable, json_with, local_path

    use_huge_pages()
    parser = OptionParser(description="Accuracy with its interval, vote and controls.")
    add_checkpoint(parser)
    add_test_options(parser)
    parser.add_argument(
        "--output",
        type=path_option("--output"),
        required=True,
        help="results.json to write; earlier results are replaced",
    )
    parser.add_argument("--num_trajectories", type=whole_number(), default=5, help="N of samples and vote; 0: none")
    parser.add_argument("--seed", type=whole_number(), default=0, help="seed of samples")
    parser.add_argument(
        "--thoughts",
        type=whole_number(0, "own", "steps", "fixed"),
        metavar="own|steps|fixed|N",
        help="by the stop head, as many as the steps have, training's largest, or N, and the answer at once; "
        "default: as trained, in an unfinished curriculum with the remaining steps written",
    )
    add_which(parser)
    parser.add_argument("--batch_size", type=whole_number(1), default=128, help="questions decoded at once")
    parser.add_argument(
        "--compare", type=path_option("--compare"), metavar="RESULTS", help="another model's results.json"
    )
    flags = parser.parse_args()
    if flags.data:
        local_path(flags.data, "--data")
    check_writable(flags.output, json_with("correct"))
    other = read_results(flags.compare) if flags.compare else None
    run = settings_of_test(flags.checkpoint, flags.data, flags.grader, fields=flags.fields, parameters=flags.parameters)
    data, problems = run.data.test, test_problems(run)
    grade = own_grader(run.data.grader, problems, "--grader")
    from longshot_jax import LongShot  # takes seconds, so after the checks above
    from longshot_jax.checkpoints.pretrained import LOST_SIDECAR
    from longshot_jax.evaluation.batches import GREEDY
    from longshot_jax.training.progress import ProgressOfPasses

    data_fingerprint = fingerprint(problems)
    if other is not None:
        check_comparable(len(problems), data_fingerprint, run.data.grader, other, flags.compare)
    model = LongShot.from_pretrained(flags.checkpoint, which=flags.which)
    if model.model.lost_sidecar:
        print(f"warning: {LOST_SIDECAR}.", file=sys.stderr)
    passes = ProgressOfPasses()
    results = model.evaluate(
        problems,
        num_trajectories=flags.num_trajectories,
        thoughts=flags.thoughts,
        batch_size=flags.batch_size,
        seed=flags.seed,
        grade=grade,
        decoded=passes,
    )
    results["seconds_per_question"] = passes.seconds_per_question(GREEDY)
    results["config"]["batch_size"] = flags.batch_size
    results["config"] |= {"checkpoint": str(flags.checkpoint), "data": data, "data_fingerprint": data_fingerprint}
    results["config"] |= {"grader": run.data.grader} if run.data.grader else {}
    if note := contamination(results["config"].get("trained_on", ()), data):
        results["config"]["contamination"] = note
    write_results(flags.output, results)
    print(results_table(results))
    if other is not None:
        print(comparison(results, other, flags.compare))


if __name__ == "__main__":
    run_command(main)
