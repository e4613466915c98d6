"""A run that starts from another one takes what means the same there, and says what it does not take."""

import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import PPO, save_run
from tiny_run import Stopped, moved, skip_evaluations, stop_before_iterations, stub_updates, tiny

from longshot_jax.checkpoints.initialize import (
    Difference,
    abstract_reasoner,
    build_reasoner,
    shape_of_other_run,
    weights_in_common,
)
from longshot_jax.checkpoints.saved_reasoner import SavedReasoner
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.model.sharding import make_mesh
from longshot_jax.thoughts.navigator import Navigator
from longshot_jax.thoughts.reads.history import History
from longshot_jax.train import train

D, R = 16, 8
BASE = NavigatorConfig("hidden", True, reasoning_dim=R, heads=2, roles=3, join=True, max_trajectories=3)
CRITIC, COUNT = {"value_in", "value_out", "value_bias"}, {"count_weight", "count_bias"}
HAS = {"stop_weight", "stop_bias", "role_table", "feedback_scale", "feedback_projection", *CRITIC, *COUNT}
NOISE = {"noise_weight", "noise_bias", "posterior_in", "posterior_summary", "posterior_shift", "posterior_noise"}
READS = {"state_in", "memory_out", "cross_attention"}


def navigator(config: NavigatorConfig, seed: int, trained: bool = False) -> Navigator:
    """With `trained`, no weight has a value that a navigator starts with."""
    made = Navigator(config, D, nnx.Rngs(seed))
    if trained:
        graphdef, state = nnx.split(made)
        leaves, structure = jax.tree.flatten(state)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
        made = nnx.merge(graphdef, jax.tree.unflatten(structure, moved))
    return made


def in_common(theirs: Navigator, ours: Navigator) -> nnx.State:
    return weights_in_common(theirs.config, nnx.split(theirs)[1], ours.config, nnx.split(ours)[1])


@pytest.mark.parametrize(
    ("theirs", "ours", "kept"),
    [
        ({}, {}, HAS),
        ({}, {"stop_bias": 2.0, "step_embeddings": 2, "memory_top": 1}, HAS),
        ({"max_trajectories": 0}, {}, HAS - COUNT),
        # As many choices, 2 to 4, which mean other numbers than 1 to 3.
        ({}, {"join": False, "max_trajectories": 4}, HAS - COUNT),
        ({}, {"roles": 2}, HAS - {"role_table"}),
        ({}, {"reasoning_dim": 4}, HAS - CRITIC),
        ({"cross_attention": True}, {"cross_attention": True}, HAS | READS),
        ({"cross_attention": True}, {}, HAS),
        ({"cross_attention": True}, {"cross_attention": True, "heads": 4}, HAS),
        ({"cross_attention": True}, {"cross_attention": True, "graph": "own"}, HAS),
        ({}, {"cross_attention": True}, HAS),
        ({}, {"noise": "learned"}, HAS),
        ({"noise": "learned"}, {"noise": "learned"}, HAS | NOISE),
        ({}, {"normalised": False}, set()),
        ({}, {"feedback": "navigator"}, set()),
        ({"feedback": "navigator"}, {"feedback": "navigator", "reasoning_dim": 4}, set()),
    ],
)
def test_weights_that_mean_the_same_are_taken(theirs: dict, ours: dict, kept: set[str]):
    trained = navigator(replace(BASE, **theirs), 0, trained=True)
    taken = in_common(trained, navigator(replace(BASE, **ours), 1))
    assert set(taken) == kept
    weights = nnx.split(trained)[1]
    for name in kept:
        jax.tree.map(np.testing.assert_array_equal, taken[name], weights[name])


READING = st.fixed_dictionaries(
    {
        "graph": st.sampled_from(["off", "own", "all"]),
        "cross_attention": st.booleans(),
        "graph_layers": st.sampled_from([1, 2]),
        "heads": st.sampled_from([2, 4]),
        "step_embeddings": st.sampled_from([0, 3]),
    }
)


@pytest.mark.slow
@settings(max_examples=8)
@given(feedback=st.sampled_from(["hidden", "navigator"]), reads=READING)
def test_what_is_added_changes_no_thought(feedback: str, reads: dict):
    """From a navigator without reads to one with any."""
    plain = replace(BASE, feedback=feedback)
    theirs = navigator(plain, 0, trained=True)
    ours = navigator(replace(plain, **reads), 1)
    nnx.update(ours, in_common(theirs, ours))
    np.testing.assert_allclose(thoughts(ours), thoughts(theirs), rtol=1e-5, atol=1e-5)


def test_reads_that_change_are_silent_at_first():
    for feedback in ("hidden", "navigator"):
        plain = replace(BASE, feedback=feedback)
        reading = replace(plain, graph="own", cross_attention=True)
        theirs = navigator(reading, 0, trained=True)
        for change in ({"heads": 4}, {"graph": "all", "heads": 4}, {"graph_layers": 2, "cross_attention": False}):
            ours, without = navigator(replace(reading, **change), 1), navigator(plain, 2)
            nnx.update(ours, in_common(theirs, ours))
            nnx.update(without, in_common(theirs, without))
            np.testing.assert_allclose(thoughts(ours), thoughts(without), rtol=1e-5, atol=1e-5)
        same = navigator(reading, 1)
        nnx.update(same, in_common(theirs, same))
        np.testing.assert_array_equal(thoughts(same), thoughts(theirs))


def test_learned_noise_starts_as_that_of_all_thoughts():
    theirs, ours = navigator(BASE, 0, trained=True), navigator(replace(BASE, noise="learned"), 1)
    nnx.update(ours, in_common(theirs, ours))
    np.testing.assert_array_equal(thoughts(ours), thoughts(theirs))
    hidden = jax.random.normal(jax.random.key(0), (3, D))
    np.testing.assert_array_equal(ours.noise_std(hidden, 0.2), theirs.noise_std(hidden, 0.2))
    trained = navigator(replace(BASE, noise="learned"), 2, trained=True)
    assert np.ptp(trained.noise_std(hidden, 0.2)) > 0.01
    np.testing.assert_array_equal(trained.noise_std(hidden, 0.0), 0.0)


def thoughts(model: Navigator) -> np.ndarray:
    """The thoughts of two trajectories of three questions, which have two earlier ones each to read."""
    size = R if model.config.in_reasoning_space else D
    keys = jax.random.split(jax.random.key(7), 3)
    past = History(
        jax.random.normal(keys[0], (3, 2, 3, size)), jax.random.normal(keys[1], (3, 2, 3)), jnp.ones((3, 2, 3), bool)
    )
    hidden, steps = jax.random.normal(keys[2], (3, 2, 1, D)), jnp.array([2])
    return np.asarray(model.action_mean(hidden, None, past if model.config.reads_history else None, steps))


THREADS = {"thoughts__roles": 3, "thoughts__join": True, "thoughts__normalised": True, "data__train": "threads",
           "data__test": "threads", "data__tokenizer": "threads", "data__threads": (1, 2, 3), "data__operations": (1,),
           "data__prompt_length": 30, "data__answer_length": 8}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run with three roles, a joined answer and step embeddings, in which no weight is as it began."""
    run = tiny(phases=("curriculum",), thoughts__step_embeddings=2, **THREADS)
    with pytest.MonkeyPatch.context() as patch:
        stub_updates(patch.setattr, change=moved)
        skip_evaluations(patch.setattr)
        return train(run, tmp_path_factory.mktemp("start") / "run", io.StringIO()).workdir


def test_a_run_with_one_head_more_goes_on_with_the_others(start, tmp_path, monkeypatch):
    chosen = {"thoughts__max_trajectories": 3, "ppo__num_trajectories": 3, "ppo__shared_reward": True}
    shown = io.StringIO()
    stop_before_iterations(monkeypatch.setattr)
    with pytest.raises(Stopped):
        train(tiny(phases=("ppo",), initialize_from=str(start), **THREADS, **chosen), tmp_path / "run", shown)
    said = "Initialised: count_bias, count_weight; left out: step_table."
    assert f"The navigator is not wholly that of {start}. {said}" in shown.getvalue()
    theirs, ours = (SavedReasoner.find(folder).params() for folder in (start, tmp_path / "run"))
    assert set(ours["navigator"]) == set(theirs["navigator"]) - {"step_table"} | COUNT
    for name in set(ours["navigator"]) - COUNT:
        jax.tree.map(np.testing.assert_array_equal, ours["navigator"][name], theirs["navigator"][name])
    jax.tree.map(np.testing.assert_array_equal, ours["backbone"], theirs["backbone"])


def test_new_roles_have_the_size_of_the_embeddings_and_nothing_differs_where_all_fits(start):
    tokenizer = Tokenizer.load(str(start / "tokenizer"))
    for roles, difference in ((3, Difference()), (4, Difference(("role_table",), ("role_table",)))):
        settings = THREADS | {"thoughts__step_embeddings": 2, "thoughts__roles": roles, "ppo__num_trajectories": roles}
        run = tiny(phases=("ppo",), initialize_from=str(start), **settings)
        abstract = abstract_reasoner(run, tokenizer, make_mesh(run.mesh), None)
        params, found = build_reasoner(run, abstract, None)
        assert found == difference
    table = np.asarray(params["backbone"]["embedding"][...])
    assert params["navigator"]["role_table"].shape[0] == 4
    np.testing.assert_allclose(rms(params["navigator"]["role_table"][...]), rms(table), rtol=1e-5)


def rms(array) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(array)))))


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_adapters_are_not_merged_into_weights_that_would_round_them_away(tmp_path, dtype):
    lora = {"curriculum__trainable": "lora", "model__weight_dtype": dtype, "phases": ("curriculum",)}
    save_run(tmp_path / "run", tiny(**lora), "curriculum")
    start = {"initialize_from": str(tmp_path / "run")}
    assert shape_of_other_run(tiny(**lora, **start)).hidden_size == 16
    none = {"phases": ("ppo",), "ppo__trainable": "navigator", "ppo__gradient": "none"}
    for other in ({"model__lora__rank": 2}, none):
        with pytest.raises(UserError, match=r"would round away what the adapters of .* learned"):
            shape_of_other_run(tiny(**lora | other, **start))
    assert shape_of_other_run(tiny(**lora | none | {"model__weight_dtype": "float32"}, **start)).hidden_size == 16


def test_a_memory_bank_that_is_left_out_is_named(tmp_path):
    save_run(tmp_path / "run", PPO, "ppo")
    run = replace(PPO, initialize_from=str(tmp_path / "run"))
    tokenizer = Tokenizer.load(str(tmp_path / "run" / "tokenizer"))
    abstract = abstract_reasoner(run, tokenizer, make_mesh(run.mesh), None)
    assert build_reasoner(run, abstract, None)[1] == Difference(left_out=("the memory bank",))
