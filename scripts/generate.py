"""Answers a question, with the thoughts of every trajectory.

python scripts/generate.py --checkpoint runs/x --question "b=3 d=b+4 d?" [--num_trajectories 3]
"""

import sys

from longshot_jax.errors import UserError, run_command


def main() -> None:
    from longshot_jax.cli import OptionParser, add_checkpoint, add_which, whole_number

    parser = OptionParser(description="Answer a question and show the thoughts.")
    add_checkpoint(parser)
    parser.add_argument("--question", required=True)
    parser.add_argument(
        "--num_trajectories",
        type=whole_number(1, "own"),
        default=1,
        metavar="N|own",
        help="1: greedy; more: sampled and fused; own: the model chooses",
    )
    parser.add_argument(
        "--fusion", default="vote", metavar="vote|weighted|best|attend|mean", help="how trajectories become one answer"
    )
    parser.add_argument("--thoughts", type=whole_number(), help="exact number; default: as trained")
    parser.add_argument("--answer_length", type=whole_number(1), help="most tokens; default: as trained")
    parser.add_argument("--seed", type=whole_number(), default=0, help="seed of samples")
    add_which(parser)
    flags = parser.parse_args()
    if not flags.question.strip():
        raise UserError("--question is empty: give a question.")
    from longshot_jax import LongShot  # takes seconds, so after reading the flags
    from longshot_jax.checkpoints.pretrained import LOST_SIDECAR
    from longshot_jax.evaluation.lens import nearest_text, reads_text

    model = LongShot.from_pretrained(flags.checkpoint, which=flags.which)
    if model.model.lost_sidecar:
        print(f"warning: {LOST_SIDECAR}.", file=sys.stderr)
    result = model.generate(
        flags.question,
        num_trajectories=flags.num_trajectories,
        return_all_trajectories=True,
        thoughts=flags.thoughts,
        answer_length=flags.answer_length,
        seed=flags.seed,
        fusion=flags.fusion,
    )
    # Only PPO trains the critic, and only it or a curriculum with `guidance.stop` the stop head.
    valued, stops = model.model.source.get("phase") == "ppo", model.model.rule.stops
    print(f"answer: {result.answer}")
    for number, trajectory in enumerate(result.trajectories, start=1):
        value = f", value {trajectory.value:+.3f}" if valued else ""
        print(f"trajectory {number}: answer {trajectory.answer!r}, {trajectory.thoughts} thoughts{value}")
        for place, thought in enumerate(trajectory.lens, start=1):
            stop = f", stop probability before it {thought.stop_probability:.3f}" if stops else ""
            value = f", value {thought.value:+.3f}" if valued else ""
            print(f"  thought {place}: {nearest_text(thought)}; norm {thought.norm:.3f}{stop}{value}")
            if thought.reads:
                print(f"    reads {reads_text(thought)}")
        if stops:
            print(f"  stop probability at the end {trajectory.stop_probabilities[-1]:.3f}")


if __name__ == "__main__":
    run_command(main)
