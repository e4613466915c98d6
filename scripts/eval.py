"""Evaluates a model on a file of problems, with its controls.

python scripts/eval.py --checkpoint runs/x [--data PATH] --output results.json
"""

import hashlib
from typing import TYPE_CHECKING

from longshot_jax.errors import UserError, run_command

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from longshot_jax.data.problems import Problem


def tests_of_run(checkpoint: "Path") -> "tuple[str, Sequence[Problem]]":
    """Name and problems of a run's `data.test`."""
    from longshot_jax.checkpoints.run_folder import read_settings
    from longshot_jax.data.sources import test_problems

    if not (checkpoint / "config.json").exists() or not (checkpoint / "checkpoints").is_dir():
        raise UserError(f"{checkpoint} is not a run folder with a config of its test: give --data.")
    run = read_settings(checkpoint)
    return run.data.test, test_problems(run)


def main() -> None:
    from longshot_jax.cli import OptionParser, keep_freed_memory, path_option, whole_number
    from longshot_jax.data.problems import load_problems
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
        "--data", help="problems: .json, .jsonl, .txt or name:config:split; default: the run's config.data.test"
    )
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
    data, problems = (flags.data, load_problems(flags.data)) if flags.data else tests_of_run(flags.checkpoint)
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
    )
    results["config"] |= {"checkpoint": str(flags.checkpoint), "data": data, "data_fingerprint": fingerprint}
    write_results(flags.output, results)
    print(results_table(results))
    if other is not None:
        print(comparison(results, other, flags.compare))


if __name__ == "__main__":
    run_command(main)
