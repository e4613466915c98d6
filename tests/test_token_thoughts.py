"""As many thoughts as the replaced steps have tokens (`curriculum.c_thought` 0): their numbers, texts and loss."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import small_reasoner

from longshot_jax.config.curriculum import CurriculumConfig, GuidanceConfig
from longshot_jax.curriculum.batch import curriculum_batch, thoughtless_problems, unfitting_steps
from longshot_jax.curriculum.loss import curriculum_sums
from longshot_jax.curriculum.parallel import parallel_batch
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.thoughts.stopping import ThoughtRule, rule_of_stage

LAYOUT = Layout(Tokenizer.for_chains(), "answer", "coconut", 26)
# Steps of 3, 1 and 2 tokens; of 1; of 4 and 1.
PROBLEMS = [
    Problem("a=1 a?", ("1+2", "3", "45"), "45"),
    Problem("b=1 b?", ("7",), "7"),
    Problem("c=1 c?", ("1234", "5"), "5"),
]
CONFIG = CurriculumConfig(c_thought=0, thought_slots=5, max_latent_stage=3)
A = 16


def batch_at(stage, config=CONFIG, layout=LAYOUT):
    return curriculum_batch(PROBLEMS, stage, config, layout, A, np.random.default_rng(0))


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize(
    ("stage", "thoughts", "written"), [(0, [0, 0, 0], [3, 1, 2]), (1, [3, 1, 4], [2, 0, 1]), (3, [4, 1, 5], [1, 0, 0])]
)
def test_a_stage_replaces_its_first_steps_token_by_token_as_far_as_they_fit(stage, thoughts, written):
    """The last step of the first problem would need a sixth thought, and stays written."""
    batch, layout = batch_at(stage), LAYOUT
    assert batch.num_thoughts.tolist() == thoughts
    fewest, most = rule_of_stage(CONFIG, stage).bounds(PROBLEMS, layout)
    assert fewest.tolist() == most.tolist() == thoughts
    for problem, count, ids, mask in zip(PROBLEMS, written, batch.tokens, batch.token_mask, strict=True):
        steps = problem.steps[len(problem.steps) - count :]
        assert ids[mask].tolist() == [t for step in steps for t in layout.step(step)] + layout.answer(problem)


def test_a_stage_above_the_last_leaves_out_the_steps_that_have_no_thoughts():
    batch = batch_at(4)
    assert batch.num_thoughts.tolist() == [4, 1, 5]
    assert [int(row.sum()) for row in batch.token_mask] == [len(LAYOUT.answer(problem)) for problem in PROBLEMS]


def test_a_question_without_steps_has_the_most_thoughts_or_those_of_a_trained_stop_head():
    rule = rule_of_stage(CONFIG, 3)
    assert rule == ThoughtRule("steps", 5, per_step=0, stage=3)
    bare = [Problem("q", (), "2")]
    assert [each.tolist() for each in rule.bounds(bare, LAYOUT)] == [[5], [5]]
    taught = rule_of_stage(replace(CONFIG, guidance=GuidanceConfig(stop=1.0)), 3)
    assert [each.tolist() for each in taught.bounds(bare, LAYOUT)] == [[0], [5]]


@pytest.mark.parametrize("stage", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["pause", "no_thoughts"])
def test_the_baselines_leave_out_the_same_steps(mode, stage):
    batch, ours = batch_at(stage, replace(CONFIG, mode=mode)), batch_at(stage)
    assert batch.tokens.tolist() == ours.tokens.tolist() and batch.token_mask.tolist() == ours.token_mask.tolist()
    assert batch.num_thoughts.tolist() == (ours.num_thoughts.tolist() if mode == "pause" else [0, 0, 0])


def test_each_thread_of_a_problem_fits_for_itself():
    problem = Problem("a=1 b=2 ab?", (), "45", threads=(("1+2", "345"), ("7",)))
    batch = parallel_batch([problem], 2, CONFIG, LAYOUT, A, 3, np.random.default_rng(0))
    assert batch.num_thoughts.tolist() == [[3, 1, 0]]
    fewest, most = rule_of_stage(CONFIG, 2).bounds([problem], LAYOUT, 3)
    assert fewest.tolist() == most.tolist() == [[3, 1, 0]]


def test_steps_that_do_not_fit_are_told():
    assert "steps of 1 of 3 training problems" in (told := unfitting_steps(PROBLEMS, CONFIG, LAYOUT, 0))
    assert "thought_slots 5, at most 6" in told
    assert unfitting_steps(PROBLEMS, replace(CONFIG, thought_slots=6), LAYOUT, 0) == ""
    assert unfitting_steps(PROBLEMS, CurriculumConfig(), LAYOUT, 0) == ""
    threads = [Problem("a=1 b=2 ab?", ("1234", "567"), "45", threads=(("1234",), ("567",)))]
    assert unfitting_steps(threads, CONFIG, LAYOUT, 2) == "" != unfitting_steps(threads, CONFIG, LAYOUT, 0)


def test_problems_without_steps_among_others_are_named():
    """They are trained without thoughts, and evaluated with all."""
    config, mixed = CurriculumConfig(), [*PROBLEMS, Problem("x?", (), "1")]
    assert "1 of 4 training problems have no steps" in thoughtless_problems(mixed, config)
    stops = replace(config, guidance=GuidanceConfig(stop=1.0))
    for problems, other in (
        (PROBLEMS, config),
        (mixed[-1:], config),
        (mixed, stops),
        (mixed, replace(config, pad_latent_to_max=True)),
        (mixed, replace(config, mode="cot")),
    ):
        assert thoughtless_problems(problems, other) == ""


def test_each_thought_has_its_token_as_its_step():
    guidance = GuidanceConfig(target=1.0)
    steps = batch_at(3, replace(CONFIG, guidance=guidance)).steps
    tokens = [[t for step in problem.steps for t in LAYOUT.step(step)] for problem in PROBLEMS]
    for row, (ids, count) in enumerate(zip(tokens, (4, 1, 5), strict=True)):
        assert steps.tokens[row, :count, 0].tolist() == ids[:count]
        assert steps.mask[row].sum(axis=-1).tolist() == [1] * count + [0] * (5 - count)


@pytest.mark.slow
@pytest.mark.parametrize("feedback", ["hidden", "vocabulary"])
def test_tokens_fed_back_instead_of_thoughts_are_the_written_steps(feedback):
    """With every thought forced, the loss of the answer is that of the answer after the same steps in text."""
    reasoner = small_reasoner(feedback, False, vocab_size=LAYOUT.tokenizer.vocabulary_size)
    forced = replace(CONFIG, thought_slots=6, guidance=GuidanceConfig(forcing=(1.0, 1.0)))
    batch = on_device(batch_at(3, forced))
    assert batch.num_thoughts.tolist() == [6, 1, 5]
    latent = curriculum_sums(reasoner, batch, 6, guidance=forced.guidance)
    text = on_device(batch_at(0))
    answers = np.arange(A) >= text.answer_starts[:, None] - 1  # from the marker before the answer
    written = curriculum_sums(reasoner, replace(text, loss_mask=text.loss_mask & answers), 6)
    assert float(latent.count) == float(written.count) == sum(len(LAYOUT.answer(problem)) for problem in PROBLEMS)
    assert float(latent.loss_sum) == pytest.approx(float(written.loss_sum), rel=1e-5)
    free = curriculum_sums(reasoner, on_device(batch_at(3, replace(CONFIG, thought_slots=6))), 6)
    assert abs(float(free.loss_sum) - float(written.loss_sum)) > 1e-3
