"""Threads told from equations: what is independent, what is joint, and how it is trained and graded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from longshot_jax.cli import load_config
from longshot_jax.config import parse_config
from longshot_jax.config.curriculum import CurriculumConfig
from longshot_jax.curriculum.parallel import parallel_batch
from longshot_jax.data.equation_graph import parallel_steps
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem, checked_problem, load_problems
from longshot_jax.data.sources import Problems, check_problems
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.thoughts.stopping import ThoughtRule

GRAPHS = {
    # Nothing is shared; each result is asked or summed by nothing.
    ("2*3=6", "4*5=20"): ((("2*3=6",), ("4*5=20",)), ()),
    # One after the other.
    ("48/2=24", "48+24=72"): ((("48/2=24", "48+24=72"),), ()),
    ("<<48/2=24>>", "<<8*3=24>>", "<<24+24=48>>"): ((("<<48/2=24>>",), ("<<8*3=24>>",)), ("<<24+24=48>>",)),
    # A thread goes on after another one began, and what uses a joint result is joint.
    ("1+2=3", "5*5=25", "3*7=21", "21+25=46", "46-4=42"): ((("1+2=3", "3*7=21"), ("5*5=25",)), ("21+25=46", "46-4=42")),
    # Equal results: the sum uses both, and a step after it the sum alone.
    ("3*4=12", "2*6=12", "12+12=24"): ((("3*4=12",), ("2*6=12",)), ("12+12=24",)),
    ("3*4=12", "12*12=144"): ((("3*4=12", "12*12=144"),), ()),
    ("0.5*8=4", "2*2.50=5", "4.0+5.0=9"): ((("0.5*8=4",), ("2*2.50=5",)), ("4.0+5.0=9",)),
    # Decimals without a first digit, and thousands.
    ("<<1/2=.5>>", "<<0.5*20=10>>"): ((("<<1/2=.5>>", "<<0.5*20=10>>"),), ()),
    ("600*2=1,200", "1200+5=1,205"): ((("600*2=1,200", "1200+5=1,205"),), ()),
    # Not equations of numbers: nothing is known.
    ("x=5", "y=7", "x+y=12"): ((("x=5", "y=7", "x+y=12"),), ()),
    ("7", "9"): ((("7", "9"),), ()),
    ("2*3=6", "so it is six"): ((("2*3=6", "so it is six"),), ()),
    (): (((),), ()),
}


@pytest.mark.parametrize("steps", GRAPHS)
def test_equations_tell_threads_and_joint_steps(steps):
    assert parallel_steps(Problem("q", steps, "1"), 5) == GRAPHS[steps]


def test_more_threads_than_trajectories_share_one_in_the_order_of_the_steps():
    steps = ("1+1=2", "2*9=18", "3+4=7", "5+5=10", "18+7=25", "25+10=35")
    many = parallel_steps(Problem("q", steps, "35"), 3)
    assert many.threads == (("1+1=2", "2*9=18"), ("3+4=7",), ("5+5=10",)) and many.joint == steps[4:]
    two = parallel_steps(Problem("q", steps, "35"), 2)
    assert two.threads == (("1+1=2", "2*9=18"), ("3+4=7", "5+5=10")) and two.joint == steps[4:]
    assert parallel_steps(Problem("q", steps, "35"), 1) == ((steps,), ())


def test_stated_threads_are_taken_and_steps_after_them_are_joint():
    threads = (("1", "2"), ("3",))
    assert parallel_steps(Problem("q", ("1", "2", "3"), "5", threads), 2) == (threads, ())
    assert parallel_steps(Problem("q", ("1", "2", "3", "4+1=5"), "5", threads), 2) == (threads, ("4+1=5",))
    # In the order in which one would write them.
    assert parallel_steps(Problem("q", ("1", "3", "4+1=5", "2"), "5", threads), 2) == (threads, ("4+1=5",))
    # The steps are told in another way, as for one trajectory that holds both chains.
    assert parallel_steps(Problem("q", ("1,3", "2,3"), "5", threads), 2) == (threads, ())
    with pytest.raises(
        UserError, match=r"2 threads, but config.thoughts.roles is 1: .* leave out problems such as 'q'"
    ):
        parallel_steps(Problem("q", ("1", "2", "3"), "5", threads), 1)


def test_every_step_of_gsm8k_is_taken_once_and_reads_nothing_of_another_thread(shared_data):
    problems = load_problems(str(shared_data / "gsm8k_aug/train_no_aug.txt"))
    shared = 0
    for problem in problems:
        threads, joint = parallel_steps(problem, 9)
        assert sorted([*(step for thread in threads for step in thread), *joint]) == sorted(problem.steps)
        results = [{step.rpartition("=")[2].strip("<> ") for step in thread} for thread in threads]
        for number, thread in enumerate(threads):
            others = set().union(*results[:number], *results[number + 1 :]) - results[number]
            own = {step.rpartition("=")[0] for step in thread}
            shared += any(left.strip("<> ") in others for left in own)
    assert not shared
    several = [problem for problem in problems if len(problem.steps) > 1]
    parallel = sum(len(parallel_steps(problem, 9).threads) > 1 for problem in several)
    assert 0.3 < parallel / len(several) < 0.45  # 0.37 of the training problems


CONFIGS = Path(__file__).parents[1] / "configs"
TOKENS = Tokenizer.for_chains(1, [*"0123456789+*=?"])
LAYOUT = Layout(TOKENS, "answer", "coconut", prompt_length=12)
JOINT = Problem("2*3+4*5?", ("2*3=6", "4*5=20", "6+20=26"), "26")


def test_joint_steps_stand_before_the_joined_answer_which_alone_is_graded():
    batch = parallel_batch([JOINT], 1, CurriculumConfig(c_thought=1), LAYOUT, 12, 2, np.random.default_rng(0))
    written = TOKENS.decode_literally(np.asarray(batch.answers)[0][np.asarray(batch.answer_mask)[0]])
    assert written == "<|end-latent|>6+20=26<|end-latent|>26<|end-of-text|>"
    assert batch.num_thoughts.tolist() == [[1, 1]] and batch.active.tolist() == [[True, True]]
    assert LAYOUT.answer_text(LAYOUT.answer(JOINT, 2)) == "26" and JOINT.grade(
        LAYOUT.answer_text(LAYOUT.answer(JOINT, 2))
    )
    # One trajectory alone, and a model without joined answers, write or think all steps themselves.
    assert LAYOUT.answer(JOINT, 1) == LAYOUT.answer(JOINT)
    assert LAYOUT.answer(JOINT) != LAYOUT.answer(JOINT, 2)
    assert replace(LAYOUT, mode="no_cot").answer(JOINT, 2) == LAYOUT.answer(JOINT)


def test_threads_are_checked_as_they_are_read():
    """Also where they are other texts than the steps, of which nothing is written."""
    config = load_config(CONFIGS / "threads.py")
    config.data.tokenizer, config.data.answer_length = "chains", 12

    def refused(problem, message):
        with pytest.raises(UserError, match=message):
            check_problems(parse_config(config), LAYOUT, Problems([problem], [problem]))

    refused(replace(JOINT, threads=(("2*3=6" * 9,), ("4*5=20",))), "have 46 tokens but config.data.answer_length is 12")
    refused(replace(JOINT, threads=(("2*3=\N{LATIN SMALL LETTER E WITH ACUTE}",), ("4*5=20",))), "cannot spell")
    alone = replace(JOINT, steps=(), threads=(("6",), ("20",)))
    assert check_problems(parse_config(config), LAYOUT, Problems([alone], [alone])).train == [alone]
    with pytest.raises(UserError, match=r'p: "threads" must be a tuple of tuples'):
        checked_problem("p", replace(JOINT, threads=("ab", "cd")))
    assert checked_problem("p", replace(JOINT, threads=((" 2*3=6 ",),))).threads == (("2*3=6",),)


def test_a_rule_counts_the_thoughts_and_trajectories_of_told_threads():
    rule = ThoughtRule("steps", 8, per_step=0, stage=2)
    assert [bound.tolist() for bound in rule.bounds([JOINT], LAYOUT, 3)] == [[[5, 6, 0]]] * 2
    assert rule.counts([JOINT], 3).tolist() == [2]
