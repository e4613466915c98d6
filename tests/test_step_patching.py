"""The lens and the donor experiment for thoughts of a token each, on random weights: what they report is what is there."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from run_folders import CURRICULUM, save_run

from longshot_jax.checkpoints.pretrained import load_pretrained
from longshot_jax.config.curriculum import GuidanceConfig
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.data.stories import StoryProblems
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.evaluation import step_patching
from longshot_jax.evaluation.decoder import Decoder
from longshot_jax.evaluation.step_patching import answer_from, measure_steps, result_span
from longshot_jax.thoughts.think import encode, think_given

pytestmark = pytest.mark.slow

SLOTS = 14
LAYOUT = Layout(Tokenizer.for_chains(), "answer", "coconut", 26)
PROBLEMS = [
    Problem("a=1 b=a+3 a?", ("1+3=4", "4*2=8"), "8"),
    Problem("a=2 b=a+3 a?", ("2+3=5", "5*3=15"), "15"),
    Problem("a=5 b=a+1 a?", ("5+7=12", "12+1=13"), "13"),
    Problem("a=7 b=a+4 a?", ("7*1=7", "7+4=11"), "11"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights with thoughts of a token each, whose stop head goes on and stops."""
    folder = tmp_path_factory.mktemp("run")
    curriculum = replace(
        CURRICULUM.curriculum,
        c_thought=0,
        thought_slots=SLOTS,
        stages=(2,),
        max_latent_stage=2,
        guidance=GuidanceConfig(stop=1.0),
    )
    run = replace(CURRICULUM, thoughts=NavigatorConfig("vocabulary"), curriculum=curriculum)
    save_run(folder, run, "curriculum", metric=None)
    model = load_pretrained(folder)
    params = model.params[0]
    weight = params["navigator"]["stop_weight"]
    weight[...] = jnp.cos(jnp.arange(weight.shape[0], dtype=jnp.float32)) * 3
    params["navigator"]["stop_bias"][...] = jnp.array([-1.0])
    return model


def test_the_answer_that_follows_from_another_result_is_that_of_the_remaining_operations():
    stories = StoryProblems(0, 60, (1, 2, 3), "test", largest=99)
    for problem in (stories[index] for index in range(60)):
        for step in range(len(problem.steps)):
            result = int(problem.steps[step].rpartition("=")[2])
            assert answer_from(problem, step, result, 99) == int(problem.answer)
    problem = Problem("q", ("1+3=4", "4*6=24", "24/3=8", "8-2=6"), "6")
    assert answer_from(problem, 0, 5, 99) == 8
    assert answer_from(problem, 0, 17, 99) is None, "102 is too large"
    assert answer_from(problem, 1, 25, 99) is None, "25 / 3"
    assert answer_from(problem, 2, 1, 99) is None, "1 - 2"
    assert answer_from(problem, 3, 7, 99) == 7


def test_the_result_of_a_step_is_found_among_its_tokens():
    ids = LAYOUT.step("5+7=12")
    start, stop = result_span(LAYOUT, "5+7=12")
    assert ids[start:stop] == LAYOUT.tokenizer.encode("12") and stop == len(ids) - len(LAYOUT.step(""))
    with pytest.raises(UserError, match="not an equation"):
        result_span(LAYOUT, "5+7")


@jax.jit
def next_state(reasoner, encoded, thoughts, number):
    """The state after the first `number` thoughts, and the thought that follows from it."""
    hidden = think_given(reasoner, encoded, thoughts, number).last_hidden
    return hidden, reasoner.thought_source(hidden[:, :, None])[:, :, 0]


def thinks_by_hand(model, row, fewest, given):
    """The answer and the thoughts of one problem, a thought after the other; `given` are thoughts by their places."""
    reasoner = nnx.merge(model.graphdef, *model.params)
    prompts = model.layout.prompts(PROBLEMS)
    encoded = encode(reasoner, *(jnp.asarray(x[row : row + 1]) for x in prompts))
    thoughts, count = jnp.zeros((1, 1, SLOTS, encoded.hidden.shape[-1])), 0
    while count < SLOTS:
        hidden, own = next_state(reasoner, encoded, thoughts, jnp.full((1, 1), count))
        if count >= fewest and float(reasoner.navigator.stop_logit(hidden)[0, 0]) > 0:
            break
        thoughts = thoughts.at[:, :, count].set(given.get(count, own))
        count += 1
    decoder = Decoder(model.graphdef, model.layout, SLOTS, model.answer_length)
    alone = tuple(x[row : row + 1] for x in prompts)
    return decoder.decode_given(model.params, alone, thoughts, np.full((1, 1), count)).tokens[0], thoughts[0, 0]


def test_a_donors_result_is_put_in_and_thinking_goes_on_from_it(model, monkeypatch):
    answers = {}
    program = step_patching._answers

    def recorded(*given):
        answers[len(answers)] = found = program(*given)
        return found

    monkeypatch.setattr(step_patching, "_answers", recorded)
    results = measure_steps(model, PROBLEMS, 99, batch_size=4)
    assert [(found.operations, found.step, found.questions) for found in results] == [(2, 1, 4), (2, 2, 4)]
    # The first results have one digit but for the third problem's; in the second step only the first's has one.
    assert [found.pairs for found in results] == [3, 3]
    whole = [
        thinks_by_hand(model, row, sum(len(LAYOUT.step(s)) for s in PROBLEMS[row].steps), {})[1] for row in range(4)
    ]
    # Step, question, donor, places of the results in the thoughts of both.
    pairs = [(0, 0, 1, [4], [4]), (0, 1, 3, [4], [4]), (0, 3, 0, [4], [4])]
    pairs += [(1, 1, 2, [10, 11], [12, 13]), (1, 2, 3, [12, 13], [10, 11]), (1, 3, 1, [10, 11], [10, 11])]
    for step, row, donor, here, there in pairs:
        given = {place: whole[donor][source] for place, source in zip(here, there, strict=True)}
        expected, _ = thinks_by_hand(model, row, here[-1] + 1, given)
        np.testing.assert_array_equal(answers[step][row], expected)


def test_a_problem_whose_steps_are_not_all_thought_is_left_out(model):
    longer = Problem("a=9 b=a+3 a?", ("10+30=40", "40*20=800"), "800")
    alone, beside = (measure_steps(model, problems, 999) for problems in (PROBLEMS, [*PROBLEMS, longer]))
    assert alone == beside
    three = Problem("a=1 b=a+3 a?", ("1+3=4", "4*2=8", "8-3=5"), "5")
    with pytest.raises(
        UserError, match=r"have 3 steps, of which this model thinks the first 2 .*give fewer operations"
    ):
        measure_steps(model, [three, three], 999)
    with pytest.raises(
        UserError, match="fewer than two of 2 problems have all their 2 steps in the model's 14 thoughts"
    ):
        measure_steps(model, [longer, PROBLEMS[0]], 999)
    early = replace(model, stage_rule=replace(model.rule, stage=1))
    with pytest.raises(UserError, match=r"have 2 steps, of which this model thinks the first 1 .*--which"):
        measure_steps(early, PROBLEMS, 999)


def test_batches_do_not_change_what_a_step_is_named(model):
    one, two = (measure_steps(model, PROBLEMS, 99, batch_size=size) for size in (4, 2))
    assert [found.named for found in one] == [found.named for found in two]
    assert sum(found.pairs for found in two) < sum(found.pairs for found in one), "fewer donors"


@pytest.mark.parametrize(
    ("problems", "change", "sentence"),
    [
        (PROBLEMS[:1], {}, "two or more problems"),
        ([*PROBLEMS, Problem("q", ("1+3=4",), "4")], {}, "equally many steps"),
        ([Problem("a=4 a?", ("4",), "4")] * 2, {}, "'4' is not an equation"),
        (PROBLEMS, {"per_step": 1}, "config.curriculum.c_thought 0"),
        (PROBLEMS, {"stops": False}, "config.curriculum.guidance.stop"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, problems, change, sentence):
    with pytest.raises(UserError, match=sentence):
        measure_steps(replace(model, rule=replace(model.rule, **change)), problems, 99)
