"""Evaluates a model on a file of problems, with its controls.

python scripts/eval.py --checkpoint runs/x [--data PATH] --output results.json
"""

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from longshot_jax.errors import UserError, run_command

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from longshot_jax.config import RunConfig


def settings(flags: "argparse.Namespace") -> "RunConfig":
    """The settings of the run, if the checkpoint is a run's, with the test and the grader that the options name."""
    from longshot_jax.checkpoints.run_folder import read_settings
    from longshot_jax.config import RunConfig
    from longshot_jax.data.own import names_code

    folder: Path = flags.checkpoint
    is_run = (folder / "config.json").exists() and (folder / "checkpoints").is_dir()
    if not is_run and not flags.data:
        raise UserError(f"{folder} is not a run folder with a config of its test: give --data.")
    run = read_settings(folder) if is_run else RunConfig()
    # A folder may come from elsewhere, so code that its config.json names does not run.
    for option, given, stored in (("data", flags.data, run.data.test), ("grader", flags.grader, run.data.grader)):
        if given is None and names_code(stored):
            raise UserError(
                f"{folder / 'config.json'} names the code {stored}, which runs only if you name it: add --{option} {stored}"
                + (", or --grader= for the rule of data/grading.py." if option == "grader" else ", or other problems.")
            )
    options = {"test": flags.data, "grader": flags.grader, "fields": flags.fields, "parameters": flags.parameters}
    return replace(run, data=replace(run.data, **{name: value for name, value in options.items() if value is not None}))


def main() -> None:
    from longshot_jax.cli import OptionParser, keep_freed_memory, path_option, whole_number
    from longshot_jax.data.own import own_grader
    from longshot_jax.data.sources import contamination, test_problems
    from longshot_jax.evaluation.results import (
        check_same_questions,
        comparison,
        read_results,
        results_table,
        write_results,
    )
    from longshot_jax.files import check_writable, json_with, local_path

    parser = OptionParser(description="Accuracy with its interval, vote and controls.")
    parser.add_argument(
        "--checkpoint",
        type=path_option("--checkpoint"),
        required=True,
        help="run folder or Hugging Face Llama directory",
    )
    parser.add_argument(
        "--data",
        help="problems, as config.data.test, which is the default: a file, name:config:split, my_task:problems",
    )
    parser.add_argument("--grader", help="code of your own that grades answers, as config.data.grader: my_task:grade")
    parser.add_argument(
        "--fields",
        type=lambda text: tuple(filter(None, text.split(","))),
        help="as config.data.fields: question,answer",
    )
    parser.add_argument("--parameters", help="as config.data.parameters")
    parser.add_argument("--output", type=path_option("--output"), required=True, help="results.json to write")
    parser.add_argument("--num_trajectories", type=whole_number(), default=5, help="N of samples and vote; 0: none")
    parser.add_argument("--seed", type=whole_number(), default=0, help="seed of samples")
    parser.add_argument(
        "--thoughts",
        type=whole_number(0, "own", "steps", "fixed"),
        metavar="own|steps|fixed|N",
        help="by the stop head, one per step, training's largest, or N, and the answer at once; default: as trained, "
        "in an unfinished curriculum with the remaining steps written",
    )
    parser.add_argument(
        "--which", type=whole_number(0, "best", "latest"), metavar="best|latest|STEP", help="default: best, else latest"
    )
    parser.add_argument("--batch_size", type=whole_number(1), default=128, help="questions decoded at once")
    parser.add_argument(
        "--compare", type=path_option("--compare"), metavar="RESULTS", help="another model's results.json"
    )
    flags = parser.parse_args()
    if flags.data:
        local_path(flags.data, "--data")
    check_writable(flags.output, json_with("correct"))
    other = read_results(flags.compare) if flags.compare else None
    run = settings(flags)
    data, problems = run.data.test, test_problems(run)
    grade = own_grader(run.data.grader, problems, "--grader")
    keep_freed_memory()
    from longshot_jax import LongShot  # takes seconds, so after the checks above

    fingerprint = hashlib.sha256(repr(list(problems)).encode()).hexdigest()[:16]
    if other is not None:
        check_same_questions(len(problems), fingerprint, other, flags.compare)
    model = LongShot.from_pretrained(flags.checkpoint, which=flags.which)
    results = model.evaluate(
        problems,
        num_trajectories=flags.num_trajectories,
        thoughts=flags.thoughts,
        batch_size=flags.batch_size,
        seed=flags.seed,
        grade=grade,
    )
    results["config"] |= {"checkpoint": str(flags.checkpoint), "data": data, "data_fingerprint": fingerprint}
    results["config"] |= {"grader": run.data.grader} if run.data.grader else {}
    if note := contamination(results["config"].get("trained_on", ()), data):
        results["config"]["contamination"] = note
    write_results(flags.output, results)
    print(results_table(results))
    if other is not None:
        print(comparison(results, other, flags.compare))


if __name__ == "__main__":
    run_command(main)
