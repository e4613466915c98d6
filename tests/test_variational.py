"""A curriculum with sampled thoughts: the KL against its formula, whose gradient goes where, and the same bits on resume."""

import io
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import QUICK, ragged_prompts, small_reasoner
from flax import nnx
from tiny_run import copier, skip_evaluations, tiny, watch_batches

from longshot_jax import LongShot
from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.saved_reasoner import SavedReasoner
from longshot_jax.config.curriculum import CurriculumConfig, VariationalConfig
from longshot_jax.curriculum.batch import CurriculumBatch, curriculum_batch
from longshot_jax.curriculum.loop import CurriculumLoop, Position
from longshot_jax.curriculum.loss import curriculum_sums
from longshot_jax.curriculum.update import curriculum_update
from longshot_jax.curriculum.variational import summary_of_answer, thought_noise, variational_metrics
from longshot_jax.data.chains import CHAIN_WORDS, ChainProblems
from longshot_jax.data.layout import Layout
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.thoughts.stopping import StopRule
from longshot_jax.thoughts.think import encode, think
from longshot_jax.train import train
from longshot_jax.training.state import start_state

pytestmark = pytest.mark.slow

ROWS, STEPS, STD = 4, 2, 0.3
BOUND = VariationalConfig(kl=0.5)


def batch_of(answers=1):
    prompt, mask = ragged_prompts([3, 6, 1, 4], 6)
    tokens, real = ragged_prompts([4, 4, 4, 4], 4, answers)
    seeds = jnp.asarray(np.arange(ROWS) + 2**31, jnp.uint32)
    return CurriculumBatch(prompt, mask, jnp.array([2, 1, 0, 2]), tokens, real, real, noise_seeds=seeds)


@partial(jax.jit, static_argnums=(2, 3), compiler_options=QUICK)
def sums_of(reasoner, batch, config, std=STD):
    return curriculum_sums(reasoner, batch, STEPS, variational=config, thought_std=std)


@pytest.mark.parametrize("feedback", ["hidden", pytest.param("navigator", marks=pytest.mark.slow)])
def test_kl_is_that_of_the_gaussians_that_made_the_thoughts(feedback):
    reasoner, batch = small_reasoner(feedback, True, noise="learned"), batch_of()
    found = sums_of(reasoner, batch, BOUND).variational
    prompt = encode(reasoner, batch.prompt, batch.prompt_mask)
    summary = summary_of_answer(reasoner, prompt, batch.tokens, batch.token_mask)
    noise = thought_noise(batch.noise_seeds, STEPS, reasoner.action_size)
    number = batch.num_thoughts[:, None]
    thoughts = think(reasoner, prompt, None, StopRule(number, number), noise, jnp.float32(STD), summary=summary)
    kl, navigator = np.zeros(STEPS), reasoner.navigator
    for row, step in np.argwhere(np.asarray(thoughts.thought_mask[:, 0])):
        state, mean = np.asarray(thoughts.hidden[row, 0, step]), np.asarray(thoughts.means[row, 0, step])
        prior = STD * 8 ** np.tanh(state @ navigator.noise_weight[...] + navigator.noise_bias[...][0])
        features = state @ navigator.posterior_in[...] + summary[row, 0] @ navigator.posterior_summary[...]
        features = np.asarray(jax.nn.gelu(features))
        shift = STD * features @ np.asarray(navigator.posterior_shift[...])
        std = STD * 8 ** np.tanh(features @ np.asarray(navigator.posterior_noise[...]))
        action = np.asarray(thoughts.actions[row, 0, step])
        np.testing.assert_allclose(action, mean + shift + std * np.asarray(noise[row, 0, step]), rtol=1e-4, atol=1e-4)
        kl[step] += np.sum(shift**2) / (2 * prior**2)
        kl[step] += len(mean) * (std**2 / (2 * prior**2) - 0.5 - np.log(std / prior))
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-3)
    assert float(found["objective"]) == pytest.approx(2 * kl.sum(), rel=1e-3)
    np.testing.assert_array_equal(found["thoughts"], [3, 2])


def test_a_new_posterior_is_the_prior_and_reads_the_answer_once_it_is_trained():
    reasoner = small_reasoner(noise="learned")
    loss = sums_of(reasoner, batch_of(), BOUND).loss_sum
    for name in ("posterior_shift", "posterior_noise", "noise_weight", "noise_bias"):
        getattr(reasoner.navigator, name)[...] *= 0
    silent = sums_of(reasoner, batch_of(), BOUND)
    np.testing.assert_array_equal(silent.variational["kl"], 0.0)
    assert abs(float(silent.loss_sum - loss)) > 1e-3
    # Nearly without noise it is the curriculum as it was.
    still = curriculum_sums(reasoner, replace(batch_of(), noise_seeds=None), STEPS).loss_sum
    assert float(sums_of(reasoner, batch_of(), BOUND, 1e-5).loss_sum) == pytest.approx(float(still), rel=1e-3)


@pytest.mark.parametrize("balance", [0.5, 0.8, 1.0])
def test_balance_shares_the_gradient_between_prior_and_posterior(balance):
    graphdef, params = nnx.split(small_reasoner(noise="learned"))
    config = replace(BOUND, balance=balance)

    @partial(jax.jit, compiler_options=QUICK)
    def gradients(params, number):
        def part(params, name):
            batch = replace(batch_of(), num_thoughts=number)
            sums = curriculum_sums(nnx.merge(graphdef, params), batch, STEPS, variational=config, thought_std=STD)
            return sums.variational[name]

        return jax.grad(part)(params, "objective")["navigator"]

    found = gradients(params, batch_of().num_thoughts)
    if balance == 0.5:
        plain = gradients_of_plain_kl(graphdef, params)
        for name in found:
            np.testing.assert_allclose(found[name][...], plain[name][...], rtol=1e-3, atol=1e-4)
    # Of single thoughts: an earlier one's posterior moves the priors of later ones, too.
    one = np.abs(np.asarray(gradients(params, jnp.minimum(batch_of().num_thoughts, 1))["posterior_noise"][...])).sum()
    assert one == 0.0 if balance == 1.0 else one > 0.0


def gradients_of_plain_kl(graphdef, params):
    from longshot_jax.thoughts.densities import gaussian_kl

    @partial(jax.jit, compiler_options=QUICK)
    def gradient(params):
        def kl(params):
            reasoner, batch = nnx.merge(graphdef, params), batch_of()
            prompt = encode(reasoner, batch.prompt, batch.prompt_mask)
            summary = summary_of_answer(reasoner, prompt, batch.tokens, batch.token_mask)
            noise = thought_noise(batch.noise_seeds, STEPS, reasoner.action_size)
            number, std = batch.num_thoughts[:, None], jnp.float32(STD)
            thoughts = think(reasoner, prompt, None, StopRule(number, number), noise, std, summary=summary)
            hidden = thoughts.hidden[:, :, :-1]
            posterior = reasoner.navigator.posterior(hidden, summary[:, :, None], thoughts.means, std)
            each = gaussian_kl(*posterior, thoughts.means, reasoner.navigator.noise_std(hidden, std), "summed")
            return jnp.sum(each, where=thoughts.thought_mask)

        return jax.grad(kl)(params)["navigator"]

    return gradient(params)


def test_the_update_does_not_depend_on_micro_batches():
    graphdef, params = nnx.split(small_reasoner(noise="learned", num_hidden_layers=1))
    descent = optax.sgd(0.1)
    state = start_state(params, nnx.State({}), descent, jax.random.key(3))

    def updated(parts):
        config = CurriculumConfig(max_latent_stage=STEPS, batch_size=2, micro_batch_size=2 // parts, variational=BOUND)
        update = jax.jit(curriculum_update(graphdef, descent, config), compiler_options=QUICK)
        return update(state, batch_of())

    (whole, metrics), (cut, cut_metrics) = updated(1), updated(2)
    assert {"kl", "kl_of_thought_1", "kl_of_thought_2", "prior_std", "posterior_std"} <= set(metrics)
    for name, value in metrics.items():
        np.testing.assert_allclose(cut_metrics[name], value, rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(cut.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert float(whole.thought_rms) != float(state.thought_rms)
    np.testing.assert_allclose(whole.thought_rms, cut.thought_rms, rtol=1e-5)


def test_a_slot_that_nobody_took_is_no_thought_without_noise():
    """Four thoughts of 0.3 in eight slots, in units of 0.5."""
    sums = {"kl": jnp.arange(8.0), "prior_std": jnp.float32(1.2), "posterior_std": jnp.float32(0.6)}
    sums["thoughts"] = jnp.array([3.0, 1, 0, 0, 0, 0, 0, 0])
    found = variational_metrics(sums, 4, jnp.float32(0.5))
    assert (float(found["prior_std"]), float(found["posterior_std"])) == (pytest.approx(0.6), pytest.approx(0.3))
    assert (float(found["kl"]), float(found["kl_of_thought_2"]), float(found["kl_of_thought_4"])) == (7.0, 1.0, 3.0)


@pytest.mark.parametrize("thoughts", [0.0, 1.5])
def test_standard_deviations_are_logged_where_there_are_thoughts(thoughts):
    logged = {}
    metrics = {"loss": 1.0, "token_accuracy": 0.5, "skipped": 0, "skipped_in_a_row": 0, "thoughts": thoughts}
    context = SimpleNamespace(
        writer=SimpleNamespace(scalars=lambda _, given: logged.update(given)), check_skipped=lambda *_: None
    )
    loop = SimpleNamespace(context=context, phase="curriculum", config=CurriculumConfig(max_latent_stage=STEPS))
    at = Position()
    at.pending = metrics | {"prior_std": 0.3, "posterior_std": 0.2}
    CurriculumLoop._observe(loop, at, 1)
    assert ({"curriculum/prior_std", "curriculum/posterior_std"} <= logged.keys()) == bool(thoughts)
    assert logged["curriculum/loss"] == 1.0


def test_seeds_follow_from_the_batch_and_change_no_other_draw():
    layout = Layout(Tokenizer.for_chains(1, CHAIN_WORDS), "answer", "coconut", 15, 0)
    problems = [ChainProblems(0, 4, (2,), "train")[index] for index in range(4)]
    plain = CurriculumConfig(max_latent_stage=2, uniform_prob=0.5, question_hidden=0.5)
    config = replace(plain, variational=BOUND)

    def batch(config, number):
        return curriculum_batch(problems, 1, config, layout, 9, np.random.default_rng((0, 1, number)))

    first, again, other = batch(config, 0), batch(config, 0), batch(config, 1)
    np.testing.assert_array_equal(first.noise_seeds, again.noise_seeds)
    assert len({*map(int, first.noise_seeds), *map(int, other.noise_seeds)}) == 8
    bare = batch(plain, 0)
    assert bare.noise_seeds is None
    for name in ("num_thoughts", "tokens", "hidden"):
        np.testing.assert_array_equal(getattr(first, name), getattr(bare, name))


SAMPLED = {
    "phases": ("curriculum",), "thoughts__noise": "learned", "thoughts__normalised": True,
    "curriculum__variational__kl": 0.1, "curriculum__variational__std": 0.25,
}  # fmt: skip


def test_a_killed_run_ends_with_the_same_bits_and_is_sampled_from_its_prior(tmp_path, monkeypatch):
    run = tiny(**SAMPLED)
    skip_evaluations(monkeypatch.setattr)
    with monkeypatch.context() as patch:
        copied = copier(patch.setattr, tmp_path / "whole", tmp_path / "cut")
        watch_batches(patch.setattr, lambda taken: copied() if taken == 8 else None)
        train(run, tmp_path / "whole", io.StringIO())
    with Checkpoints.reader(tmp_path / "cut") as checkpoints:
        assert checkpoints.metadata()["progress"]["stage"] == 1 and checkpoints.latest_step == 6
    train(run, tmp_path / "cut", io.StringIO())
    whole, cut = (SavedReasoner.find(tmp_path / name) for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole.params(), cut.params())
    assert np.abs(np.asarray(whole.params()["navigator"]["posterior_shift"][...])).max() > 0
    model = LongShot.from_pretrained(tmp_path / "whole")
    rms = whole.sidecar(whole.params()).thought_rms
    assert 0.01 < rms < 1 and model.model.sigma == 0.25
    assert float(model.model.temperatures.thought_std) == pytest.approx(0.25 * rms)
