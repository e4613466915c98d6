"""The lens and the donor experiment, on random weights: what they report is what is there."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import END, ragged_prompts, small_bank, small_reasoner
from commands import start
from flax import nnx
from run_folders import CURRICULUM, save_run

from longshot_jax.data.chains import ChainProblems, apply_operation
from longshot_jax.data.problems import Problem
from longshot_jax.errors import UserError
from longshot_jax.evaluation.decoder import Decoder
from longshot_jax.evaluation.lens import lens_rows, read_thoughts, stop_figure
from longshot_jax.evaluation.patching import measure_donors, operations_of, swapped_answers, trained_to
from longshot_jax.evaluation.step_patching import measure_steps
from longshot_jax.longshot import LongShot
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.stopping import StopRule, ThoughtRule
from longshot_jax.thoughts.think import encode, think, think_given


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, CURRICULUM, "curriculum")
    return LongShot.from_pretrained(folder)


BANK = small_bank()


def test_soft_tokens_show_their_weights():
    """With all tokens as the nearest, the mean of their embeddings by the weights shown is the thought itself."""
    reasoner = small_reasoner("vocabulary")
    table = np.asarray(reasoner.backbone.embedding[...])
    prompt, mask = ragged_prompts([3, 5], 5)
    counts = jnp.array([[2], [2]])
    still = jnp.zeros((2, 1, 2, reasoner.action_size))
    thoughts = think(reasoner, encode(reasoner, prompt, mask), None, StopRule(counts, counts), still, jnp.zeros(()))
    readings = read_thoughts(reasoner, prompt, mask, thoughts.embeddings, counts, len(table))
    found = np.einsum("bntk,bntkd->bntd", readings.probabilities, table[np.asarray(readings.tokens)])
    np.testing.assert_allclose(found, thoughts.embeddings, rtol=1e-4, atol=1e-6)


@jax.jit
def thought_and_read(reasoner):
    prompt, mask = ragged_prompts([3, 5], 5)
    counts = jnp.array([[1, 2], [0, 2]])
    noise = jax.random.normal(jax.random.key(1), (2, 2, 2, 5))
    thoughts = think(reasoner, encode(reasoner, prompt, mask), None, StopRule(counts, counts), noise, jnp.float32(0.3))
    return thoughts, read_thoughts(reasoner, prompt, mask, thoughts.embeddings, counts, 3, BANK)


def test_readings_are_those_of_the_thoughts_that_were_fed_back():
    reasoner = small_reasoner("navigator", True, memory_top=2)
    thoughts, readings = thought_and_read(reasoner)
    logits = np.asarray(thoughts.embeddings) @ np.asarray(reasoner.backbone.embedding[...]).T
    if not reasoner.backbone.config.tie_word_embeddings:
        logits = np.asarray(thoughts.embeddings) @ np.asarray(reasoner.backbone.head[...]).T
    values = np.asarray(reasoner.navigator.value(thoughts.hidden))
    for row, column in np.ndindex(2, 2):
        count = int(thoughts.num_thoughts[row, column])
        for step in range(2):
            place = row, column, step
            if step >= count:
                assert not readings.tokens[place].any() and readings.norms[place] == 0
                continue
            order = np.argsort(-logits[place])[:3]
            np.testing.assert_array_equal(readings.tokens[place], order)
            state = np.asarray(thoughts.hidden[place]) @ np.asarray(reasoner.navigator.state_in[...])
            entries = np.asarray(BANK.positions)[: int(BANK.filled)]
            score = entries @ state / np.linalg.norm(entries, axis=-1) * np.asarray(BANK.values)[: len(entries)]
            best = [slot for slot in np.argsort(-score)[:2] if score[slot] > 0]
            assert readings.slots[place][readings.found[place]].tolist() == best
            share = np.exp(logits[place][order[0]]) / np.exp(logits[place]).sum()
            np.testing.assert_allclose(readings.probabilities[place][0], share, rtol=1e-4)
            np.testing.assert_allclose(readings.norms[place], np.linalg.norm(thoughts.embeddings[place]), rtol=1e-5)
        np.testing.assert_allclose(
            readings.values[row, column, : count + 1], values[row, column, : count + 1], atol=1e-5
        )
        assert not readings.values[row, column, count + 1 :].any()


def test_generations_show_their_thoughts(model):
    result = model.generate(["a=6 n=a+2 i=n*3 i?", "b=1 c=b+4 c?"], 2, return_all_trajectories=True, thoughts=2)
    for generation in result:
        for trajectory in generation.trajectories:
            assert [round(thought.norm, 3) for thought in trajectory.lens] == [
                round(norm, 3) for norm in trajectory.thought_norms
            ]
            assert [thought.stop_probability for thought in trajectory.lens] == [*trajectory.stop_probabilities[:-1]]
            for thought in trajectory.lens:
                probabilities = [probability for _, probability in thought.nearest]
                assert len(probabilities) == 3 and sorted(probabilities, reverse=True) == probabilities
                assert all(token for token, _ in thought.nearest)
    rows = lens_rows(["first", "second"], [[t.lens for t in g.trajectories] for g in result], stops=True)
    assert [row["question"] for row in rows] == ["first", "", "second", ""]
    assert [row["thought"] for row in rows] == ["1", "2", "1", "2"] and all("stop before it" in row for row in rows)
    untrained = lens_rows(["first"], [[t.lens for t in result[0].trajectories]], stops=False)
    assert all("stop before it" not in row and "value" in row for row in untrained)


def test_picture_of_stops():
    picture = stop_figure(np.array([[0.0, 1.0, 0.5], [1.0, 0.2, 0.3]]), np.array([2, 0]))
    assert picture.shape == (12, 144, 3) and picture.dtype == np.uint8
    # The question without thoughts comes first: it stops at once, the rest is not reached.
    assert picture[0, 0].tolist() == [255, 255, 255] and picture[0, 48].tolist() == [40, 60, 120]
    assert picture[6, 0].tolist() == [0, 0, 0] and picture[6, 96].tolist() == [128, 128, 128]


@pytest.mark.parametrize("distractors", [0, 2])
def test_operations_are_read_off_a_chain(distractors):
    chains = ChainProblems(5, 12, (1, 2, 3, 4), "test", distractors)
    for index in range(len(chains)):
        problem = chains[index]
        value = int(problem.question.split("=")[1][0])
        results = []
        for operation in operations_of(problem):
            value = apply_operation(operation, value)
            results.append(str(value))
        assert tuple(results) == problem.steps


def test_lengths_that_do_not_fit_are_refused_before_the_first_is_measured(tmp_path, monkeypatch, capsys):
    short = replace(CURRICULUM, data=replace(CURRICULUM.data, prompt_length=12))
    save_run(tmp_path, short, "curriculum")
    monkeypatch.setattr("longshot_jax.evaluation.patching.swapped_answers", lambda *_: pytest.fail("measured"))
    for longest, sentence in (
        (9, "the chains have 9 operations, but the model at most"),
        (3, "the prompt length with which the model was trained is 12: shorten or remove"),
    ):
        assert start("lens.py", "--checkpoint", tmp_path, "--questions", 2, "--operations", 1, longest) == 2
        said = capsys.readouterr()
        assert sentence in said.err and not said.out


@pytest.mark.slow
def test_a_donors_thought_is_put_in_and_thinking_goes_on_from_it(model):
    """Against the answers from thoughts that are put together by hand."""
    pretrained = model.model
    chains = ChainProblems(5, 6, (2,), "test")
    problems = [chains[index] for index in range(6)]
    assert measure_donors(pretrained, problems, batch_size=4).questions == 6, "two batches of three"
    found = measure_donors(pretrained, problems, batch_size=6)
    assert found.operations == 2 and found.questions == 6 and all(0 <= share <= 1 for share in found.lens)

    decoder = Decoder(pretrained.graphdef, pretrained.layout, 2, pretrained.answer_length)
    prompts = pretrained.layout.prompts(problems)
    reasoner = nnx.merge(pretrained.graphdef, *pretrained.params)
    encoded = encode(reasoner, *map(jnp.asarray, prompts))
    own = encoded.hidden[:, None, None]  # raw hidden states are fed back: the first thought
    after = think_given(reasoner, encoded, own, jnp.ones((6, 1), int)).hidden[:, :, 1:]
    given = {1: jnp.concatenate([own, jnp.roll(after, 1, axis=0)], axis=2)}
    first = jnp.roll(own, 1, axis=0)
    second = think_given(reasoner, encoded, first, jnp.ones((6, 1), int)).hidden[:, :, 1:]
    given[0] = jnp.concatenate([first, second], axis=2)
    layout = pretrained.layout
    nearest, tokens = swapped_answers(
        pretrained.graphdef, layout.opening, layout.tokenizer.ends, pretrained.answer_length, 2,
        pretrained.params, None, *prompts,
    )  # fmt: skip
    for thought in (0, 1):
        expected = decoder.decode_given(pretrained.params, prompts, given[thought], np.full((6, 1), 2))
        np.testing.assert_array_equal(tokens[thought], expected.tokens)
    np.testing.assert_array_equal(nearest[:, 0], np.argmax(reasoner.backbone.logits(own[:, 0, 0]), axis=-1))


@pytest.mark.slow
def test_the_donor_experiment_begins_trajectories_with_their_role():
    reasoner = small_reasoner(roles=2, vocab_size=260)
    graphdef, *params = nnx.split(reasoner)
    prompt, mask = ragged_prompts([4, 6], 6)
    nearest, _ = swapped_answers(graphdef, (7,), (END,), 3, 2, params, None, prompt, mask)
    encoded = begin_trajectories(reasoner, encode(reasoner, prompt, mask), 1)
    np.testing.assert_array_equal(
        nearest[:, 0], np.argmax(reasoner.backbone.logits(encoded.roles.hidden[:, 0]), axis=-1)
    )


@pytest.mark.parametrize(
    ("mode", "per_step", "found"), [("pause", 1, "mode pause"), ("coconut", 2, "c_thought 2")], ids=str
)
def test_the_donor_experiment_refuses_other_thoughts_than_one_a_step(model, mode, per_step, found):
    other = replace(
        model.model, source=model.model.source | {"mode": mode}, rule=replace(model.model.rule, per_step=per_step)
    )
    with pytest.raises(UserError, match=f"{found}.*: give a model of mode coconut with c_thought 1"):
        measure_donors(other, [Problem("a=1 b=a+3 b?", ("4",), "4")] * 2)


@pytest.mark.parametrize("rule", [ThoughtRule("steps", 1), ThoughtRule("steps", 9, per_step=0, stage=1)], ids=str)
def test_thoughts_that_the_checkpoints_stage_does_not_have_are_told(model, rule):
    early = replace(model.model, stage_rule=rule, source=model.model.source | {"stage": 1})
    assert trained_to(early, 2).startswith(
        "the checkpoint is of stage 1, which trains the first 1 thoughts; later ones"
    )
    assert trained_to(early, 1) == trained_to(model.model, 4) == trained_to(replace(early, stage_rule=None), 9) == ""


def test_the_donor_experiment_refuses_joined_answers(model):
    chains = ChainProblems(5, 2, (2,), "test")
    for measure in (measure_donors, lambda *given: measure_steps(*given, 9)):
        with pytest.raises(UserError, match=r"joins several \(config\.thoughts\.join\)"):
            measure(replace(model.model, joined=2), [chains[0], chains[1]])


@pytest.mark.parametrize(
    ("problems", "sentence"),
    [
        ([Problem("Tom has 3 apples.", ("3",), "3")] * 2, "is not a chain of operations"),
        ([Problem("a=1 b=a+1 b?", ("2",), "2")], "two or more chains"),
        ([Problem("a=1 b=a+1 b?", ("2",) * 9, "2")] * 2, "but the model at most 4 thoughts"),
    ],
)
def test_donor_experiment_refuses(model, problems, sentence):
    with pytest.raises(UserError, match=sentence):
        measure_donors(model.model, problems)
