"""The training loop: both phases end to end, exact resume, no recompilation, the guard, refusals."""

import gc
import io
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from metric_entries import entries_and_tags, tags_of
from tiny_run import Stopped, copier, skip_evaluations, stop_before_iterations, stub_updates, tiny, watch_batches

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.pretrained import load_pretrained
from longshot_jax.curriculum import loop as curriculum_loop
from longshot_jax.curriculum import update as curriculum_programs
from longshot_jax.curriculum.loop import Position
from longshot_jax.errors import UserError
from longshot_jax.model.sharding import make_mesh
from longshot_jax.ppo.loop import PPOLoop
from longshot_jax.train import train
from longshot_jax.training.schedules import anneal


def contents(folder):
    """Fingerprints of the newest checkpoint's arrays, and its JSON without times."""
    with Checkpoints.reader(folder) as checkpoints:
        metadata, arrays = checkpoints._read_metadata(checkpoints.steps[-1])
    prints = {name: array.get("fingerprint") for name, array in arrays.items()}
    return prints, {key: metadata[key] for key in ("phase", "step", "best")}


def steps_of(folder):
    with Checkpoints.reader(folder) as checkpoints:
        return checkpoints.steps


_LIVE_BYTES: list[int] = []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run, and what it printed; on its way the bytes of all arrays are counted before every batch.

    Beside it lies `killed`, a copy before the fifth batch of PPO, after moments were saved.
    """
    here, stream = tmp_path_factory.mktemp("run"), io.StringIO()
    folder = here / "whole"
    gc.collect()  # what earlier tests of this process left
    before = {id(array) for array in jax.live_arrays()}

    def count(taken: int) -> None:
        _LIVE_BYTES.append(sum(array.nbytes for array in jax.live_arrays() if id(array) not in before))
        if taken == 12 + 5:
            copied()

    with pytest.MonkeyPatch.context() as patch:
        copied = copier(patch.setattr, folder, here / "killed")
        watch_batches(patch.setattr, count)
        result = train(tiny(), folder, stream)
    return folder, result, stream.getvalue()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps(finished):
    """Before a batch there may be three states at most: the run's, an evaluation's, one that is being written."""
    del finished
    assert len(_LIVE_BYTES) == 12 + 6
    for phase in (_LIVE_BYTES[:12], _LIVE_BYTES[12:]):
        assert max(phase) < 4 * min(phase), phase


def test_both_phases_run_and_are_reported(finished):
    folder, result, printed = finished
    assert result.phases["curriculum"]["updates"] == 12 and result.phases["curriculum"]["sequences"] == 192
    assert result.phases["ppo"]["updates"] == 12 and result.phases["ppo"]["sequences"] == 96
    assert 0 <= result.best_accuracy <= 1
    for text in ("curriculum stage 2: 4/4", "ppo: 6/6", "validation", "best of ppo"):
        assert text in printed
    assert json.loads((folder / "config.json").read_text())["curriculum"]["max_steps_per_stage"] == 4
    assert (folder / "tokenizer" / "tokenizer.json").exists()
    with Checkpoints.reader(folder) as checkpoints:
        assert checkpoints.best_step == result.best_step
        metadata = checkpoints.metadata()
    assert metadata["phase"] == "ppo" and metadata["backbone_path"] == "trainable.backbone"
    assert metadata["step"] == 12 + 1 + 1 + 6  # the curriculum's end and the start of PPO have checkpoints of their own


def test_everything_is_on_tensorboard(finished):
    folder, *_ = finished
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    tags = events.Tags()
    wanted = {
        "curriculum/loss", "curriculum/gradient_norm", "ppo/loss", "ppo/value_loss", "ppo/kl", "ppo/stop_entropy",
        "ppo/tokens/ratio", "ppo/thoughts/clip_fraction", "reward/correct", "reward/total", "rollout/thoughts",
        "rollout/accuracy_with_2_thoughts", "evaluation/accuracy", "evaluation/accuracy_of_1_steps",
        "temperature/thought_std", "reward/std", "reward/equal_questions", "ppo/sampler_difference", "time/evaluation",
    }  # fmt: skip
    assert wanted <= set(tags["scalars"])
    assert entries_and_tags(tags_of(folder / "tensorboard"))[1] == set(), "tags that docs/metrics.md does not explain"
    for name in ("time/rollout", "time/rewards", "time/update", "speed/tokens_per_second", "speed/thoughts_per_second"):
        assert [event.step for event in events.Scalars(name)] == list(range(15, 21))
        assert all(event.value > 0 for event in events.Scalars(name))
    assert all(event.value < 1e-4 for event in events.Scalars("ppo/sampler_difference"))
    assert {"rollout/thoughts_taken", "reward/distribution"} <= set(tags["histograms"])
    # Of the curriculum too: its stages 1 and 2 take thoughts.
    assert [event.step for event in events.Histograms("evaluation/thought_norms")][:2] == [8, 12]
    assert [event.step for event in events.Scalars("curriculum/loss")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("ppo/loss")] == list(range(15, 21))
    assert any("samples" in tag for tag in tags["tensors"])
    assert any("evaluation/thoughts" in tag for tag in tags["tensors"])
    assert "evaluation/stop_probabilities" in tags["images"]


def test_finished_run_started_again_changes_nothing(finished):
    folder, result, _ = finished
    before, steps = contents(folder), steps_of(folder)
    # As a kill between the last save and the removal of an older checkpoint leaves it.
    shutil.copytree(folder / "checkpoints" / str(steps[-1]), folder / "checkpoints" / "1")
    stream = io.StringIO()
    again = train(tiny(), folder, stream)
    assert contents(folder) == before and steps_of(folder) == steps
    assert again.phases == result.phases and "best of " in stream.getvalue()


def test_another_config_is_refused_and_harms_nothing(finished):
    folder, *_ = finished
    before = contents(folder)
    with pytest.raises(UserError, match=r"another config: ppo\.iterations \(stored 6, now 7\)"):
        train(tiny(ppo__iterations=7), folder, io.StringIO())
    assert contents(folder) == before


def test_a_killed_run_ends_with_the_same_bits(finished, tmp_path):
    folder, *_ = finished
    shutil.copytree(folder.parent / "killed", tmp_path / "run")
    with Checkpoints.reader(tmp_path / "run") as checkpoints:
        assert checkpoints.metadata()["phase"] == "ppo" and checkpoints.metadata()["progress"]["iteration"] == 3
    train(tiny(), tmp_path / "run", io.StringIO())
    assert contents(tmp_path / "run") == contents(folder)


@pytest.mark.slow
@pytest.mark.parametrize("batches", [7, 17])  # in the second stage of the curriculum; in PPO, after moments were saved
def test_interrupted_run_ends_with_the_same_bits(finished, tmp_path, monkeypatch, batches):
    folder, *_ = finished

    def stop(taken: int) -> None:
        if taken == batches:
            raise Stopped

    watch_batches(monkeypatch.setattr, stop)
    with pytest.raises(Stopped):
        train(tiny(), tmp_path, io.StringIO())
    train(tiny(), tmp_path, io.StringIO())
    assert contents(tmp_path) == contents(folder)


def count_compilations(run, folder):
    compiled = []

    def listen(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(run, folder, io.StringIO())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(compiled)


@pytest.mark.law
@pytest.mark.slow
def test_longer_runs_compile_nothing_more(finished, tmp_path):
    # Twice as many updates of each kind: more batches, evaluations and checkpoints, and a second epoch.
    short = count_compilations(tiny(), tmp_path / "short")
    more = tiny(ppo__iterations=12, curriculum__max_steps_per_stage=8, data__generated_train=96)
    assert short > 0 and count_compilations(more, tmp_path / "long") == short


def test_non_finite_updates_are_skipped_and_end_the_run(tmp_path, monkeypatch):
    make = curriculum_programs.curriculum_update

    def poisoned(*args, **options):
        update = make(*args, **options)

        def after_five(state, batch):
            broken = jax.tree.map(lambda x: jax.numpy.where(state.step >= 5, jax.numpy.nan, x), state.trainable)
            new, metrics = update(state.replace(trainable=broken), batch)
            kept = jax.tree.map(lambda a, b: jax.numpy.where(metrics["skipped"] > 0, b, a), new, state)
            return kept.replace(step=new.step, skipped=new.skipped, skipped_total=new.skipped_total), metrics

        return after_five

    monkeypatch.setattr(curriculum_programs, "curriculum_update", poisoned)
    skip_evaluations(monkeypatch.setattr)
    with pytest.raises(UserError, match=r"3 updates in a row were skipped .*the checkpoint of step 6 is intact"):
        train(tiny(phases=("curriculum",), curriculum__max_skipped=3), tmp_path, io.StringIO())
    with Checkpoints.reader(tmp_path) as checkpoints:
        metadata = checkpoints.metadata()
    assert metadata["step"] == 6 and metadata["progress"]["pending"]["skipped"] == 1


@pytest.mark.slow
def test_frozen_backbone_has_no_moments_and_does_not_move(tmp_path, monkeypatch):
    skip_evaluations(monkeypatch.setattr)
    run = tiny(phases=("ppo",), ppo__trainable="navigator", ppo__iterations=2, thoughts__feedback="navigator")
    train(run, tmp_path, io.StringIO())
    with Checkpoints.reader(tmp_path) as checkpoints:
        first, last = (checkpoints._read_metadata(step)[1] for step in (1, 3))
    moved = {name for name in first if first[name].get("fingerprint") != last[name].get("fingerprint")}
    assert not any(name.startswith("frozen") for name in moved)
    assert any(name.startswith("trainable.navigator.direction") for name in moved)
    assert any(name.startswith("frozen.backbone") for name in first)
    # `inner_states.backbone` is the optimizer's group of that name, which holds counts alone here.
    own = [name.replace("inner_states.backbone.", "") for name in first if not name.startswith("frozen")]
    assert not any("backbone" in name for name in own)
    assert any(name.startswith("optimizer") and "navigator.direction" in name for name in own)


def test_run_starts_from_another_runs_weights(finished, tmp_path, monkeypatch):
    folder, result, _ = finished
    stop_before_iterations(monkeypatch.setattr)
    with pytest.raises(Stopped):
        train(tiny(phases=("ppo",), initialize_from=str(folder)), tmp_path, io.StringIO())
    with Checkpoints.reader(folder) as old, Checkpoints.reader(tmp_path) as new:
        theirs = old._read_metadata(result.best_step)[1]
        ours = new._read_metadata(new.steps[-1])[1]
    names = [name for name in theirs if name.startswith("trainable.")]
    assert len(names) > 10
    assert all(theirs[name]["fingerprint"] == ours[name]["fingerprint"] for name in names)


def test_too_long_prompt_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match=r"prompt has 15 tokens but config\.data\.prompt_length is 14"):
        train(tiny(data__prompt_length=14), tmp_path, io.StringIO())
    assert not (tmp_path / "checkpoints").exists()
    rows = [
        {"question": "a=1 a?", "steps": [], "answer": "1"},
        {"question": "a=1 b=a+1 b?", "steps": ["2"], "answer": "2" * 9},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    named = str(tmp_path / "rows.json")
    with pytest.raises(UserError, match=r"rows\.json, problem 2: steps and answer have 12 tokens"):
        train(tiny(data__train=named, data__validation="chains"), tmp_path / "run", io.StringIO())


def test_running_loss_and_annealing():
    position = Position()
    for loss in (1.0, float("nan"), 0.0):
        position.count_loss(loss)
    assert position.running_loss == pytest.approx(0.95)
    np.testing.assert_allclose(anneal((1.5, 0.5), "linear", 3), [1.5, 1.0, 0.5])
    np.testing.assert_allclose(anneal((0.2, 0.0), "cosine", 4), [0.2, 0.15, 0.05, 0.0], atol=1e-7)
    np.testing.assert_allclose(anneal((0.3, 0.3), "constant", 2), [0.3, 0.3])
    for kind in ("linear", "cosine", "constant"):
        np.testing.assert_allclose(anneal((1.5, 1.5 if kind == "constant" else 0.5), kind, 1), [1.5])


def test_a_stage_ends_early_at_its_loss(tmp_path, monkeypatch):
    # Any loss is below this: a stage ends as soon as its running loss counts.
    stub_updates(monkeypatch.setattr, loss=98.0)
    skip_evaluations(monkeypatch.setattr)
    result = train(
        tiny(phases=("curriculum",), curriculum__stage_loss=99.0, curriculum__max_steps_per_stage=25,
             checkpoint__every=50),
        tmp_path, io.StringIO(),
    )  # fmt: skip
    assert result.phases["curriculum"]["updates"] == 21 + 21 + 25


@pytest.mark.parametrize(("reset", "moments"), [(False, [0, 1, 2, 3]), (True, [0, 1, 0, 1])], ids=str)
def test_a_stage_keeps_the_moments_or_starts_with_new_ones(tmp_path, monkeypatch, reset, moments):
    """COCONUT's recipes reset the optimizer with every stage. Each update adds one to every moment."""
    seen = []

    def grown(state):
        seen.append(float(max(leaf.max() for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim)))
        return replace(state, optimizer=jax.tree.map(lambda x: x + 1 if x.ndim else x, state.optimizer))

    stub_updates(monkeypatch.setattr, change=grown)
    skip_evaluations(monkeypatch.setattr)
    run = tiny(
        phases=("curriculum",), curriculum__stages=(0, 1), curriculum__max_steps_per_stage=2,
        curriculum__reset_optimizer=reset, checkpoint__every=50,
    )  # fmt: skip
    train(run, tmp_path, io.StringIO())
    assert seen == moments


def test_the_unit_of_noise_is_measured_even_where_no_question_thinks_at_first(tmp_path, monkeypatch):
    few = {"ppo__target_thoughts": (0,), "ppo__target_iterations": 1, "ppo__iterations": 1}
    run = tiny(phases=("ppo",), thoughts__feedback="vocabulary", evaluation__every_iterations=0, **few)
    stop_before_iterations(monkeypatch.setattr, measured=True)
    with pytest.raises(Stopped):
        train(run, tmp_path, io.StringIO())
    model = load_pretrained(tmp_path, which="latest")
    table = nnx.merge(model.graphdef, *model.params).backbone.embedding[...]
    unit = float(model.temperatures.thought_std) / run.ppo.thought_std[0]
    assert 0 < unit < 2 * float(jnp.sqrt(jnp.mean(table**2)))  # a mean of embeddings, of rms 0.02 and not 1


def test_an_ensemble_draws_one_number_of_thoughts_for_all_its_trajectories():
    config = replace(tiny().ppo, target_thoughts=(0, 1, 2), target_iterations=2, questions=40)
    for ensemble in (False, True):
        loop = SimpleNamespace(
            config=replace(config, ensemble=ensemble),
            context=SimpleNamespace(
                run=tiny(),
                mesh=make_mesh(tiny().mesh),
                layout=SimpleNamespace(prompts=lambda _: (np.zeros((40, 3), np.int32), np.ones((40, 3), bool))),
            ),
            programs=SimpleNamespace(shape=SimpleNamespace(adaptive=False)),
        )
        lengths = PPOLoop.make_questions(loop, 0, [])  # a function of settings and prompts
        drawn = np.asarray(lengths.lengths.max_thoughts)
        assert set(drawn.ravel().tolist()) == {0, 1, 2} and (drawn == drawn[:, :1]).all() == ensemble


@pytest.mark.slow
def test_every_role_is_taught_where_answers_are_not_joined(tmp_path, monkeypatch):
    seen = []
    place = curriculum_loop.place_batch
    monkeypatch.setattr(
        curriculum_loop, "place_batch", lambda batch, mesh: seen.append(batch.roles) or place(batch, mesh)
    )
    skip_evaluations(monkeypatch.setattr)
    train(tiny(phases=("curriculum",), thoughts__roles=3, curriculum__stages=(1,)), tmp_path / "run")
    assert {role for roles in seen for role in roles.tolist()} == {0, 1, 2}


def test_a_stage_says_what_limited_it(tmp_path, monkeypatch):
    skip_evaluations(monkeypatch.setattr)
    few = {"phases": ("curriculum",), "curriculum__stages": (0,), "data__generated_train": 32}
    for name, settings, limit in (
        ("updates", {"curriculum__epochs_per_stage": 3}, "after 4 updates, its limit, max_steps_per_stage 4"),
        ("passes", {}, "after 2 updates, its limit, epochs_per_stage 1"),
    ):
        stream = io.StringIO()
        train(tiny(**few, **settings), tmp_path / name, stream)
        assert limit in stream.getvalue()


def test_sequences_beyond_the_models_context_are_warned_of(tmp_path):
    golden, told = "tests/fixtures/golden_llama3", {}  # 256 positions

    def stop(*_):
        raise Stopped

    for length in (249, 250):
        run = tiny(model__source=golden, phases=("curriculum",), data__prompt_length=length, data__tokenizer="chains")
        stream = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            watch_batches(patch.setattr, stop)
            train(run, tmp_path / str(length), stream)
        told[length] = stream.getvalue()
    assert "may take" not in told[249]
    assert "prompt, thoughts and answer may take 257 positions, and the model is made for 256" in told[250]
