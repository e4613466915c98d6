"""What guides the curriculum's thoughts: each part against its definition, and all together cut into micro-batches."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import QUICK, from_scratch, ragged_prompts, small_reasoner
from flax import nnx

from longshot_jax.config.curriculum import CurriculumConfig, GuidanceConfig
from longshot_jax.curriculum.batch import StepTexts, curriculum_batch, forcing_probability
from longshot_jax.curriculum.guidance import (
    distillation_distance,
    explanation_loss,
    step_embeddings,
    stop_loss,
    target_distance,
)
from longshot_jax.curriculum.loss import _hidden_of_tokens, curriculum_sums
from longshot_jax.curriculum.update import curriculum_update
from longshot_jax.data.chains import ChainProblems
from longshot_jax.data.layout import Layout
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.thoughts.jacobi import think_in_parallel
from longshot_jax.thoughts.stopping import StopRule
from longshot_jax.thoughts.think import Teaching, encode, think
from longshot_jax.training.state import start_state

B, T, W = 2, 2, 3
LAYOUT = Layout(Tokenizer.for_chains(), "answer", "coconut", 26)
STEPS = StepTexts(
    tokens=jnp.array([[[3, 4, 0], [5, 0, 0]], [[6, 7, 8], [0, 0, 0]]]),
    mask=jnp.array([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]]], bool),
    forced=jnp.array([[True, False], [False, False]]),
)


@partial(jax.jit, static_argnames="forced", compiler_options=QUICK)
def thought(reasoner, forced):
    prompt, mask = ragged_prompts([3, 5], 5)
    num_thoughts = jnp.array([[2], [1]])
    encoded = encode(reasoner, prompt, mask)
    teaching = Teaching(step_embeddings(reasoner, STEPS)[:, None], STEPS.forced[:, None]) if forced else None
    rule, noise = StopRule(num_thoughts, num_thoughts), jnp.zeros((B, 1, T, 8))
    thoughts = think(reasoner, encoded, None, rule, noise, jnp.zeros(()), teaching=teaching)
    return thoughts, target_distance(reasoner, thoughts, STEPS), explanation_loss(reasoner, thoughts, STEPS)


@pytest.mark.parametrize("markers", ["answer", "coconut"])
def test_a_hidden_question_changes_nothing_but_through_the_thoughts(markers):
    """With the thoughts of one question and the keys and values of another, a hidden row's loss is the same."""
    reasoner = small_reasoner("hidden", True, vocab_size=LAYOUT.tokenizer.vocabulary_size)
    layout = replace(LAYOUT, markers=markers)
    problems, config = ChainProblems(0, 4, (1,), "train"), CurriculumConfig(max_latent_stage=1, question_hidden=1.0)
    whole = curriculum_batch([problems[index] for index in range(2)], 1, config, layout, 9, np.random.default_rng(0))
    assert whole.hidden is not None and whole.hidden.all()
    batch = jax.tree.map(jnp.asarray, replace(whole, hidden=np.array([True, False])))
    prompt = encode(reasoner, batch.prompt, batch.prompt_mask)
    other = encode(reasoner, (batch.prompt + 1) % 8, batch.prompt_mask)
    number = batch.num_thoughts[:, None]
    thoughts = think(reasoner, prompt, None, StopRule(number, number), jnp.zeros((2, 1, 1, 8)), jnp.zeros(()))
    ours, theirs = (_hidden_of_tokens(reasoner, each, thoughts, batch) for each in (prompt, other))
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert np.abs(ours[1, :, 1:] - theirs[1, :, 1:]).max() > 1e-3


def test_hidden_questions_are_a_share_that_falls_and_only_of_problems_without_remaining_steps():
    config = CurriculumConfig(question_hidden=0.5, question_hidden_updates=10)
    chains = ChainProblems(0, 400, (1,), "train")
    problems = [chains[index] for index in range(400)]

    def share(stage, update):
        return curriculum_batch(problems, stage, config, LAYOUT, 9, np.random.default_rng(0), update).hidden.mean()

    assert share(1, 0) == pytest.approx(0.5, abs=0.1) and share(1, 5) == pytest.approx(0.25, abs=0.08)
    assert share(1, 10) == share(1, 99) == share(0, 0) == 0
    mixed = [*problems[:2], *(ChainProblems(0, 1, (2,), "train")[0] for _ in range(2))]
    whole = replace(config, question_hidden=1.0)
    for stage, hidden in ((1, [True, True, False, False]), (2, [True] * 4)):
        batch = curriculum_batch(mixed, stage, whole, LAYOUT, 12, np.random.default_rng(0))
        np.testing.assert_array_equal(batch.hidden, hidden)
    plain = replace(config, question_hidden=0.0)
    assert curriculum_batch(problems, 1, plain, LAYOUT, 9, np.random.default_rng(0)).hidden is None


def test_targets_are_mean_embeddings_and_forced_ones_are_fed_back():
    reasoner = small_reasoner("hidden", True)
    free, distance, _ = thought(reasoner, False)
    forced, after_forcing, _ = thought(reasoner, True)
    table = np.asarray(reasoner.backbone.embedding[...])
    targets = {(0, 0): table[[3, 4]].mean(0), (0, 1): table[5], (1, 0): table[[6, 7, 8]].mean(0)}

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = sum(1 - cosine(np.asarray(free.embeddings[b, 0, t]), x) for (b, t), x in targets.items())
    assert float(distance) == pytest.approx(expected, abs=1e-4)
    np.testing.assert_allclose(forced.embeddings[0, 0, 0], targets[0, 0], atol=1e-6)
    np.testing.assert_allclose(forced.embeddings[1, 0, 0], free.embeddings[1, 0, 0], atol=1e-6)
    # The second thought follows from the one that was fed back, not from the model's own.
    assert np.abs(forced.embeddings[0, 0, 1] - free.embeddings[0, 0, 1]).max() > 1e-2
    # What is drawn to the target is the model's own thought, the same for the one that was replaced.
    own = expected - (1 - cosine(np.asarray(free.embeddings[0, 0, 1]), targets[0, 1]))
    own += 1 - cosine(np.asarray(forced.embeddings[0, 0, 1]), targets[0, 1])
    assert float(after_forcing) == pytest.approx(own, abs=1e-4)


def test_a_problems_thoughts_begin_with_its_role():
    reasoner = small_reasoner("hidden", True, roles=3, vocab_size=LAYOUT.tokenizer.vocabulary_size)
    problems, config = ChainProblems(0, 4, (1,), "train"), CurriculumConfig(max_latent_stage=1)
    drawn = curriculum_batch([problems[0], problems[1]], 1, config, LAYOUT, 9, np.random.default_rng(0))
    batch = jax.tree.map(jnp.asarray, drawn)
    graphdef, params = nnx.split(reasoner)

    def loss(params, roles):
        return curriculum_sums(nnx.merge(graphdef, params), replace(batch, roles=jnp.asarray(roles)), 1).loss_sum

    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)
    for roles in ([0, 2], [1, 1]):
        sizes = jnp.abs(gradient(params, roles)["navigator"]["role_table"][...]).max(axis=1)
        assert set(np.flatnonzero(sizes).tolist()) == set(roles)


@pytest.mark.parametrize("forced", [False, True])
def test_steps_are_explained_from_their_thoughts_alone(forced):
    """Against a decoder from scratch that is given one thought, the model's own, and the step's tokens before each."""
    reasoner = small_reasoner("hidden", True)
    thoughts, _, loss = thought(reasoner, forced)
    own = np.array(thoughts.embeddings)
    own[0, 0, 0] = thought(reasoner, False)[0].embeddings[0, 0, 0]  # the one that was replaced
    table = np.asarray(reasoner.backbone.embedding[...])
    head = np.asarray(reasoner.backbone.head[...])
    expected = 0.0
    for b, t in ((0, 0), (0, 1), (1, 0)):
        tokens = np.asarray(STEPS.tokens[b, t])[np.asarray(STEPS.mask[b, t])]
        inputs = np.concatenate([own[b, 0, t][None], table[tokens[:-1]]])
        logits = from_scratch(reasoner, inputs) @ head.T
        log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        expected -= log_probs[np.arange(len(tokens)), tokens].sum()
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_the_stop_head_is_to_go_on_before_the_last_thought_and_stop_after_it():
    reasoner = small_reasoner("hidden", True)
    hidden = np.random.default_rng(0).normal(size=(2, 2, 4, 8)).astype(np.float32)
    counts, active = np.array([[3, 0], [1, 2]]), np.array([[True, True], [True, False]])
    weight, bias = (np.asarray(x[...]) for x in (reasoner.navigator.stop_weight, reasoner.navigator.stop_bias))
    expected = 0.0
    for row, column in ((0, 0), (0, 1), (1, 0)):
        for step in range(counts[row, column] + 1):
            stops = 1 / (1 + np.exp(-(hidden[row, column, step] @ weight + bias[0])))
            expected -= np.log(stops if step == counts[row, column] else 1 - stops)
    found = stop_loss(reasoner, jnp.asarray(hidden), jnp.asarray(counts), jnp.asarray(active))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_distillation_compares_the_states_before_the_answer_and_moves_the_student_alone():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 2, 4, 3)).astype(np.float32)
    starts = jnp.array([1, 0]), jnp.array([3, 2])
    expected = np.abs(student[0, 1] - teacher[0, 3]).mean() + np.abs(student[1, 0] - teacher[1, 2]).mean()
    of = lambda s, t: distillation_distance(s, starts[0], t, starts[1])  # noqa: E731
    value, gradients = jax.value_and_grad(of, argnums=(0, 1))(jnp.asarray(student), jnp.asarray(teacher))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert np.count_nonzero(gradients[0]) == 6 and not np.any(gradients[1])


@pytest.mark.parametrize("feedback", ["hidden", "navigator"])
def test_as_many_jacobi_iterations_as_thoughts_think_in_sequence(feedback):
    reasoner = small_reasoner(feedback, True)
    prompt, mask = ragged_prompts([3, 5], 5)
    num_thoughts = jnp.array([[3], [2]])

    @partial(jax.jit, compiler_options=QUICK)
    def both(reasoner):
        encoded = encode(reasoner, prompt, mask)
        start = reasoner.backbone.embed(jnp.asarray(4))
        size = 8 if feedback == "hidden" else 5
        rule, noise = StopRule(num_thoughts, num_thoughts), jnp.zeros((B, 1, 3, size))
        parallel = [think_in_parallel(reasoner, encoded, num_thoughts, start, 3, k) for k in (2, 3)]
        return think(reasoner, encoded, None, rule, noise, jnp.zeros(())), *parallel

    sequential, two, three = both(reasoner)
    np.testing.assert_allclose(three.last_hidden, sequential.last_hidden, atol=1e-5)
    np.testing.assert_allclose(three.means[0], sequential.means[0], atol=1e-5)
    # After two iterations two thoughts are right, and the row that has no more is done.
    np.testing.assert_allclose(two.embeddings[0, 0, :2], sequential.embeddings[0, 0, :2], atol=1e-5)
    np.testing.assert_allclose(two.last_hidden[1], sequential.last_hidden[1], atol=1e-5)
    assert np.abs(two.last_hidden[0] - sequential.last_hidden[0]).max() > 1e-3


def test_forcing_anneals_and_batches_hold_the_replaced_steps():
    config = GuidanceConfig(forcing=(0.8, 0.2), forcing_updates=10, distillation=1.0)
    assert [forcing_probability(config, update) for update in (0, 5, 10, 99)] == pytest.approx([0.8, 0.5, 0.2, 0.2])
    curriculum = CurriculumConfig(c_thought=2, max_latent_stage=2, guidance=config)
    chains = ChainProblems(1, 200, (1, 2, 3))
    problems = [chains[index] for index in range(200)]
    batch = curriculum_batch(problems, 1, curriculum, LAYOUT, 8, np.random.default_rng(0), update=5)
    for row, problem in enumerate(problems[:6]):
        for slot in range(4):
            told = batch.steps.tokens[row, slot][batch.steps.mask[row, slot]].tolist()
            assert told == (LAYOUT.step(problem.steps[0]) if slot < 2 else [])
        answer = LAYOUT.tokenizer.encode(problem.answer)[0]
        for part in (batch, batch.text):
            assert part.tokens[row, part.answer_starts[row]] == answer
        assert batch.text.num_thoughts[row] == 0
    assert 0.4 < batch.steps.forced[:, :2].mean() < 0.6 and not batch.steps.forced[:, 2:].any()


GUIDANCE = GuidanceConfig(target=0.5, forcing=(0.5, 0.5), distillation=0.7, explanation=0.3, stop=0.2)
GUIDED = CurriculumConfig(max_latent_stage=2, guidance=GUIDANCE, batch_size=4)


def guided():
    """Structure and parameters of a reasoner of one layer, and a batch of which every part of the guidance reads something."""
    chains = ChainProblems(1, 4, (1, 2))
    problems = [chains[index] for index in range(4)]
    batch = jax.tree.map(jnp.asarray, curriculum_batch(problems, 2, GUIDED, LAYOUT, 5, np.random.default_rng(0)))
    reasoner = small_reasoner("hidden", True, vocab_size=LAYOUT.tokenizer.vocabulary_size, num_hidden_layers=1)
    return *nnx.split(reasoner), batch


@pytest.mark.slow
def test_an_update_descends_the_loss_and_the_guidance_each_with_its_weight():
    """The step of plain gradient descent is the gradient of the documented sum, each part per what it counts."""
    graphdef, params, batch = guided()
    counts = {
        "target": batch.steps.mask.any(-1).sum(),
        "explanation": batch.steps.mask.sum(),
        "distillation": 4,
        "stop": (batch.num_thoughts + 1).sum(),
        "text": batch.text.loss_mask.sum(),
    }
    weights = {"target": 0.5, "explanation": 0.3, "distillation": 0.7, "stop": 0.2, "text": 1.0}

    def loss(params):
        sums = curriculum_sums(nnx.merge(graphdef, params), batch, 2, None, GUIDANCE)
        assert set(sums.guidance) == set(weights)
        return sums.loss_sum / batch.loss_mask.sum() + sum(
            weights[name] * part / counts[name] for name, part in sums.guidance.items()
        )

    expected = jax.jit(jax.grad(loss), compiler_options=QUICK)(params)
    state = start_state(params, nnx.State({}), optax.sgd(1.0), jax.random.key(0))
    update = curriculum_update(graphdef, optax.sgd(1.0), GUIDED)
    after, _ = jax.jit(update, compiler_options=QUICK)(state, batch)
    for before, new, gradient in zip(*map(jax.tree.leaves, (params, after.trainable, expected)), strict=True):
        np.testing.assert_allclose(before - new, gradient, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_guidance_does_not_depend_on_micro_batches():
    graphdef, params, batch = guided()
    steps, metrics = [], []
    for parts in (1, 2):
        config = replace(GUIDED, micro_batch_size=4 // parts)
        update = curriculum_update(graphdef, optax.sgd(1.0), config)
        state = start_state(params, nnx.State({}), optax.sgd(1.0), jax.random.key(0))
        after, told = jax.jit(update, compiler_options=QUICK)(state, batch)
        steps.append(jax.tree.leaves(jax.tree.map(lambda a, b: a - b, after.trainable, params)))
        metrics.append(told)
    assert set(metrics[0]) >= {f"guidance/{name}" for name in ("target", "distillation", "explanation", "stop", "text")}
    for name, value in metrics[0].items():
        np.testing.assert_allclose(value, metrics[1][name], rtol=1e-4, atol=1e-5)
    for one, two in zip(*steps, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=2e-5)
