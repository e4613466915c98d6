"""Writes one HTML page to look at trajectories: thoughts, what they say, and what the answer owes to each.

python scripts/view.py --checkpoint runs/x [--data PATH] --output trajectories.html
"""

import os

from longshot_jax.errors import UserError, run_command


def main() -> None:
    from longshot_jax.cli import OptionParser, add_checkpoint, add_test_options, add_which, path_option, whole_number
    from longshot_jax.files import check_writable, local_path, write_text

    parser = OptionParser(description="One page, without network, of a model's trajectories on some questions.")
    add_checkpoint(parser, "run folder or export with thoughts")
    add_test_options(parser)
    parser.add_argument("--output", type=path_option("--output"), required=True, help="page to write, a new .html file")
    parser.add_argument("--questions", type=whole_number(1), default=40, help="questions, evenly spaced over the data")
    parser.add_argument(
        "--num_trajectories", type=whole_number(), default=4, help="samples beside the greedy trajectory"
    )
    parser.add_argument("--seed", type=whole_number(), default=0, help="seed of samples")
    add_which(parser)
    flags = parser.parse_args()
    if flags.data:
        local_path(flags.data, "--data")
    if flags.output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {flags.output}: the page is HTML, so give a name that ends in .html.")
    if os.path.lexists(flags.output):
        raise UserError(f"--output {flags.output} exists and is not overwritten: give another name, or remove it.")
    check_writable(flags.output, lambda _: False)
    from longshot_jax.checkpoints.run_folder import settings_of_test
    from longshot_jax.data.own import own_grader
    from longshot_jax.data.problems import evenly_spaced
    from longshot_jax.data.sources import test_problems
    from longshot_jax.evaluation.trajectory_page import check_has_thoughts, trajectory_page

    check_has_thoughts(flags.checkpoint)
    own = {"fields": flags.fields, "parameters": flags.parameters}
    run = settings_of_test(flags.checkpoint, flags.data, flags.grader, **own)
    problems = test_problems(run)
    grade = own_grader(run.data.grader, problems, "--grader")
    problems = evenly_spaced(problems, flags.questions)
    from longshot_jax.checkpoints.pretrained import load_pretrained  # takes seconds, so after the checks above

    model = load_pretrained(flags.checkpoint, flags.which)
    page = trajectory_page(flags.checkpoint, model, problems, flags.num_trajectories, flags.seed, grade)
    write_text(flags.output, page, advice="choose another --output")
    print(f"{flags.output}: {len(problems)} questions. Open it in a browser.")


if __name__ == "__main__":
    run_command(main)
