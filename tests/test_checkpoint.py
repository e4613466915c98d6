"""Checkpoints: bit-exact, placed as asked, kept by age and quality, and refused where they do not fit."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_states import abstract, bits, make_state
from child_process import run_script

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.errors import UserError


@pytest.mark.parametrize("make_template", [abstract, lambda state: jax.tree.map(jnp.zeros_like, state)])
def test_state_comes_back_bit_for_bit(tmp_path, make_template):
    state = make_state()
    metadata = {"phase": "ppo", "input": {"epoch": 2, "position": 17}, "note": None, "pair": (1, 2)}
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        assert checkpoints.save(3, state, metadata, 0.5)
    template = make_template(make_state(seed=5)) if make_template is abstract else make_state(seed=5)
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        restored, restored_metadata = checkpoints.restore(template, "latest")
    assert bits(restored) == bits(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert restored_metadata == {**metadata, "pair": [1, 2]}
    assert bool((jax.random.bits(restored.key, (4,)) == jax.random.bits(state.key, (4,))).all())
    assert bool((jax.random.bits(restored.keys[1]) == jax.random.bits(state.keys[1])).all())


def test_saved_state_is_the_one_before_a_donated_update(tmp_path):
    """The buffers of the saved state are given to the next update while the writer is still at work."""
    update = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 1.5 + 1, tree), donate_argnums=0)
    state = {"w": jnp.ones((512, 512)), "b": jnp.arange(65_536, dtype=jnp.float32)}
    expected = {}
    with Checkpoints(tmp_path, keep_last=10, keep_best=0) as checkpoints:
        for step in range(4):
            expected[step] = bits(state)
            checkpoints.save(step, state, {})
            for _ in range(3):
                state = update(state)
        for step in range(4):
            assert bits(checkpoints.restore(state, step)[0]) == expected[step]


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_what_a_kill_after_the_last_save_left_is_removed(tmp_path):
    metrics = {1: 0.9, 2: 0.1, 3: None, 4: 0.2, 5: None}
    with Checkpoints(tmp_path, keep_last=5, keep_best=0) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, {"w": jnp.ones(3)}, {"step": step}, metric)
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        assert checkpoints.steps == [1, 2, 3, 4, 5]
        checkpoints.remove_surplus()
        assert checkpoints.steps == [1, 4, 5]
        checkpoints.remove_surplus()
        assert checkpoints.restore({"w": jnp.zeros(3)})[1] == {"step": 5} and checkpoints.best_step == 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()) == ["1", "4", "5"]


def test_part_of_the_state_is_restored_without_reading_the_rest(tmp_path):
    state = make_state()
    moments = jax.random.normal(jax.random.key(0), (1500, 1000))  # 6 MB that do not compress
    with Checkpoints(tmp_path, 1, 1) as checkpoints:
        checkpoints.save(1, {"params": state.params, "moments": moments}, {"phase": "x"}, 0.1)
    with Checkpoints.reader(tmp_path) as checkpoints:
        if Path("/proc/self/io").exists():
            before = bytes_read()
            checkpoints.restore_partial(abstract(state.params), "params")
            between = bytes_read()
            checkpoints.restore({"params": state.params, "moments": moments})
            assert between - before < 1_000_000 < 4_000_000 < bytes_read() - between
        params, metadata = checkpoints.restore_partial(abstract(state.params), "params")
        assert bits(params) == bits(state.params)
        assert metadata == {"phase": "x"}
        one, _ = checkpoints.restore_partial(abstract(state.params["half"]), "params.half", "latest")
        assert bits(one) == bits(state.params["half"])
        assert checkpoints.metadata(1) == {"phase": "x"}
        with pytest.raises(UserError, match=r"has params\.half, which the model lacks"):
            checkpoints.restore_partial({k: v for k, v in state.params.items() if k != "half"}, "params")


def test_restores_onto_the_templates_shardings(tmp_path):
    done = run_script(
        """
        import sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P, SingleDeviceSharding
        from longshot_jax.checkpoints.checkpoint import Checkpoints

        jax.config.update("jax_num_cpu_devices", 4)
        mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        key = jax.random.key(0)
        state = {"w": jax.random.normal(key, (8, 4)), "keys": jax.random.split(key, 4), "one": jnp.float32(3)}
        specs = {"w": P("fsdp"), "keys": P("data"), "one": P()}
        put = lambda tree, specs: {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in tree.items()}
        sharded = put(state, specs)
        other = {"w": P("data", "fsdp"), "keys": P(), "one": P()}
        with Checkpoints(sys.argv[1], 1, 1) as checkpoints:
            checkpoints.save(1, sharded, {})
            template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=NamedSharding(mesh, other[k]))
                        for k, v in state.items()}
            moved, _ = checkpoints.restore(template, "latest")
            same, _ = checkpoints.restore(sharded, "latest")
            alone, _ = checkpoints.restore(state, "latest")
        data = lambda tree: {**tree, "keys": jax.random.key_data(tree["keys"])}
        for name in state:
            assert moved[name].sharding.is_equivalent_to(template[name].sharding, moved[name].ndim), name
            assert same[name].sharding.is_equivalent_to(sharded[name].sharding, same[name].ndim), name
            assert len(alone[name].devices()) == 1, name
            for tree in (moved, same, alone):
                assert np.array_equal(np.asarray(data(tree)[name]), np.asarray(data(state)[name])), name
        print("all placed")
        """,
        tmp_path,
    )
    assert "all placed" in done.stdout, done.stderr


def test_keeps_the_last_and_the_best(tmp_path):
    metrics = {1: 0.1, 2: 0.9, 3: None, 4: float("nan"), 5: 0.5, 6: 0.2, 7: 0.3}
    with Checkpoints(tmp_path, keep_last=2, keep_best=2) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, {"w": jnp.full((3,), step, jnp.float32)}, {"step": step}, metric)
        assert checkpoints.steps == [2, 5, 6, 7]
        assert (checkpoints.latest_step, checkpoints.best_step) == (7, 2)
        assert not checkpoints.save(5, {"w": jnp.zeros(3)}, {})
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [2, 5, 6, 7]
    with Checkpoints(tmp_path, keep_last=2, keep_best=2) as checkpoints:  # metrics are read back from disk
        assert checkpoints.best_step == 2
        state, metadata = checkpoints.restore({"w": jnp.zeros(3)}, "best")
        assert metadata == {"step": 2} and state["w"].tolist() == [2.0] * 3
        assert checkpoints.restore({"w": jnp.zeros(3)}, 5)[0]["w"].tolist() == [5.0] * 3
        checkpoints.save(8, {"w": jnp.full((3,), 8.0)}, {}, 0.95)
        assert checkpoints.steps == [2, 7, 8]


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "metrics", "kept", "best"),
    [
        (2, 1, [None, None, None, None], [3, 4], None),  # without any metric by age alone
        (1, 2, [None, None, None, None], [3, 4], None),  # the newest fill the places of the best that are free
        (1, 2, [0.5, None, None, None], [1, 4], 1),
        (1, 2, [0.3, 0.3, 0.3, None], [2, 3, 4], 3),  # of equals the newest
        (1, 0, [0.3, 0.3, 0.3, None], [4], None),
    ],
)
def test_ties_and_missing_metrics(tmp_path, keep_last, keep_best, metrics, kept, best):
    for step, metric in enumerate(metrics, 1):
        with Checkpoints(tmp_path, keep_last, keep_best) as checkpoints:  # metrics are those on disk
            checkpoints.save(step, {"w": jnp.zeros(3)}, {}, metric)
            steps, best_step = checkpoints.steps, checkpoints.best_step
    assert (steps, best_step) == (kept, best)


def test_what_is_not_there_is_said_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="workdir"):
        Checkpoints.reader(tmp_path)
    with pytest.raises(UserError, match="keep_last"):
        Checkpoints(tmp_path, 0, 0)
    with Checkpoints(tmp_path, 1, 1) as checkpoints:
        assert checkpoints.latest_step is None and checkpoints.best_step is None and checkpoints.steps == []
        with pytest.raises(UserError, match="no complete checkpoint"):
            checkpoints.restore({"w": jnp.zeros(1)})
        checkpoints.save(1, {"w": jnp.zeros(1)}, {})
        with pytest.raises(UserError, match="metric"):
            checkpoints.restore({"w": jnp.zeros(1)}, "best")
        with pytest.raises(UserError, match=r"step 9.*\[1\]"):
            checkpoints.restore({"w": jnp.zeros(1)}, 9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: {**p, "b": jnp.zeros((4, 3))}, r"^b is float32\[3, 4\].*float32\[4, 3\] here"),
        (lambda p: {**p, "b": jnp.zeros((3, 4), jnp.bfloat16)}, r"^b is float32.*bfloat16"),
        (lambda p: {**p, "extra": jnp.zeros(1)}, "The model has extra"),
        (lambda p: {"a": p["a"], "k": p["k"]}, "has b, which the model lacks"),
        (lambda p: {**p, "k": jax.random.key(0, impl="rbg")}, r"^k is key<fry>.*key<rbg>"),
    ],
)
def test_another_template_names_the_first_array_that_differs(tmp_path, change, words):
    params = {"a": jnp.zeros((0,)), "b": jnp.zeros((3, 4)), "k": jax.random.key(1)}
    with Checkpoints(tmp_path, 1, 1) as checkpoints:
        checkpoints.save(1, params, {})
        with pytest.raises(UserError, match=words) as raised:
            checkpoints.restore(change(params))
        assert "step 1" in str(raised.value) and str(tmp_path) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_bug_is_not_dressed_as_a_users_mistake(tmp_path):
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        with pytest.raises(TypeError, match="JSON"):
            checkpoints.save(1, {"w": jnp.zeros(3)}, {"array": jnp.zeros(2)})
        with pytest.raises(TypeError, match="w is int64"):
            checkpoints.save(1, {"w": np.arange(3)}, {})
        with pytest.raises(ValueError, match=r"a\.b"):
            checkpoints.save(1, {"a.b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}}, {})
        assert checkpoints.steps == []


def test_unusable_checkpoint_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        Checkpoints(tmp_path / "file", 1, 1)
