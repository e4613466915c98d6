"""The content of thoughts: the lens compared with the written steps, and thoughts patched into another question.

python scripts/lens.py --checkpoint runs/demo/ppo [--questions 500]
python scripts/lens.py --checkpoint runs/soft_stories --task stories --largest_number 99 --operations 1 2 3
"""

from longshot_jax.errors import UserError, run_command


def main() -> None:
    from longshot_jax.cli import OptionParser, add_checkpoint, add_which, whole_number

    parser = OptionParser(description="Do thoughts carry the intermediate results of chains or stories?")
    add_checkpoint(parser, "run folder trained on generated chains or stories")
    parser.add_argument(
        "--task",
        choices=("chains", "stories"),
        default="chains",
        help="chains, for a model with one thought a step, or stories with equations, for one with a thought a token",
    )
    parser.add_argument("--questions", type=whole_number(1), default=500, help="held-out problems of each length")
    parser.add_argument(
        "--operations", type=whole_number(1), nargs="+", default=[1, 2, 3, 4], help="lengths of problems"
    )
    parser.add_argument("--largest_number", type=whole_number(1), default=999, help="largest number in stories")
    parser.add_argument("--seed", type=whole_number(), default=20_000, help="seed of the problems")
    add_which(parser)
    flags = parser.parse_args()
    if flags.questions < 2:
        raise UserError(f"--questions is {flags.questions}: a donor is another question, so give 2 or more.")
    from longshot_jax.checkpoints.pretrained import load_pretrained  # these take seconds, so after reading the flags
    from longshot_jax.data.chains import ChainProblems
    from longshot_jax.data.stories import StoryProblems
    from longshot_jax.evaluation.patching import check_donors, measure_donors, trained_to
    from longshot_jax.evaluation.step_patching import measure_steps, thought_whole

    model = load_pretrained(flags.checkpoint, flags.which)
    generated = {}
    for length in flags.operations:  # checked before the first is measured
        given = flags.seed, flags.questions, (length,), "test"
        stories = flags.task == "stories"
        problems = StoryProblems(*given, largest=flags.largest_number) if stories else ChainProblems(*given)
        generated[length] = [problems[index] for index in range(len(problems))]
        (thought_whole if stories else check_donors)(model, generated[length])
    trained_on = model.source.get("trained_on", [])
    if flags.task not in trained_on:
        print(f"the model was trained on {', '.join(trained_on) or 'other problems'}, not on generated {flags.task}")
    if flags.task == "stories":
        print("operations  step  nearest tokens are the step  answer follows donor  keeps its own  pairs")
        for length, problems in generated.items():
            for step in measure_steps(model, problems, flags.largest_number):
                print(
                    f"{length:10}  {step.step:4}  {step.named:27.1%}  {step.follows_donor:20.1%}  {step.keeps_own:13.1%}  "
                    f"{step.pairs:5}",
                    flush=True,
                )
        return
    if note := trained_to(model, max(flags.operations)):
        print(note)
    print("operations  thought  nearest token is its result  answer follows donor  keeps its own  pairs")
    for length, problems in generated.items():
        found = measure_donors(model, problems)
        for thought in range(length):
            print(
                f"{length:10}  {thought + 1:7}  {found.lens[thought]:27.1%}  {found.follows_donor[thought]:20.1%}  "
                f"{found.keeps_own[thought]:13.1%}  {found.compared[thought]:5}"
            )


if __name__ == "__main__":
    run_command(main)
