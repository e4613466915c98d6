"""Checkpoints: bit-exact, kept by age and quality, and never harmed by a kill, a full disk or a damaged file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, struct

from longshot_jax.errors import UserError
from longshot_jax.training.checkpoint import Checkpoints, KeepLastAndBest
from longshot_jax.training.fingerprint import fingerprint_of
from longshot_jax.training.workdir import (
    check_same_config,
    config_differences,
    prepare_workdir,
    read_config,
    write_config,
)


@struct.dataclass
class RunState:
    """A state with every kind of leaf that a run has."""

    params: Any
    model: Any
    optimizer: Any
    reference: Any
    step: jax.Array
    key: jax.Array
    keys: jax.Array
    empty: jax.Array
    name: str = struct.field(pytree_node=False, default="static")


def make_state(seed: int = 0, width: int = 8) -> RunState:
    params = {
        "layers": [jax.random.normal(jax.random.key(seed + i), (width, 4)) for i in range(2)],
        "half": jnp.linspace(-1, 1, 7, dtype=jnp.bfloat16),
        "odd": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45], jnp.float32),
        "mask": jnp.array([True, False, True]),
        "small": jnp.array([-3, 4], jnp.int8),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(
        {"w": params["layers"][0]}
    )
    return RunState(
        params=params,
        model=nnx.state(nnx.Linear(width, 4, rngs=nnx.Rngs(seed))),
        optimizer=jax.tree.map(lambda leaf: leaf + 1, optimizer),
        reference=None,
        step=jnp.int32(seed),
        key=jax.random.key(seed + 7),
        keys=jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        empty=jnp.zeros((0, 3)),
    )


def bits(tree: Any) -> list[tuple]:
    """Everything that makes two arrays the same array, NaN payloads and signed zeros included."""
    rows = []
    for leaf in jax.tree.leaves(tree):
        words = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        rows.append((str(leaf.dtype), leaf.shape, np.asarray(words).tobytes()))
    return rows


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def run_script(body: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(Path(__file__).parents[1]))
    command = [*prefix, sys.executable, "-c", textwrap.dedent(body), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def data_file(folder: Path, step: int) -> Path:
    files = [file for file in (folder / "checkpoints" / str(step) / "state").rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("make_template", [abstract, lambda state: jax.tree.map(jnp.zeros_like, state)])
def test_state_comes_back_bit_for_bit(tmp_path, make_template):
    state = make_state()
    host = {"stage": "ppo", "input": {"epoch": 2, "position": 17}, "note": None, "pair": (1, 2)}
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        assert checkpoints.save(3, state, host, 0.5)
    template = make_template(make_state(seed=5)) if make_template is abstract else make_state(seed=5)
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        restored, restored_host = checkpoints.restore(template, "latest")
    assert bits(restored) == bits(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert restored_host == {**host, "pair": [1, 2]}
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


def test_part_of_the_state_is_restored_without_reading_the_rest(tmp_path):
    state = make_state()
    moments = jax.random.normal(jax.random.key(0), (1500, 1000))  # 6 MB that do not compress
    with Checkpoints(tmp_path, 1, 1) as checkpoints:
        checkpoints.save(1, {"params": state.params, "moments": moments}, {"stage": "x"}, 0.1)
    with Checkpoints.reader(tmp_path) as checkpoints:
        if Path("/proc/self/io").exists():
            before = bytes_read()
            checkpoints.restore_partial(abstract(state.params), "params")
            between = bytes_read()
            checkpoints.restore({"params": state.params, "moments": moments})
            assert between - before < 1_000_000 < 4_000_000 < bytes_read() - between
        params, host = checkpoints.restore_partial(abstract(state.params), "params")
        assert bits(params) == bits(state.params)
        assert host == {"stage": "x"}
        one, _ = checkpoints.restore_partial(abstract(state.params["half"]), "params.half", "latest")
        assert bits(one) == bits(state.params["half"])
        assert checkpoints.host(1) == {"stage": "x"}
        with pytest.raises(UserError, match=r"has params\.half, which the model lacks"):
            checkpoints.restore_partial({k: v for k, v in state.params.items() if k != "half"}, "params")


def test_restores_onto_the_templates_shardings(tmp_path):
    done = run_script(
        """
        import sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P, SingleDeviceSharding
        from longshot_jax.training.checkpoint import Checkpoints

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
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [
        2,
        5,
        6,
        7,
    ]
    with Checkpoints(tmp_path, keep_last=2, keep_best=2) as checkpoints:  # metrics are read back from disk
        assert checkpoints.best_step == 2
        state, host = checkpoints.restore({"w": jnp.zeros(3)}, "best")
        assert host == {"step": 2} and state["w"].tolist() == [2.0] * 3
        assert checkpoints.restore({"w": jnp.zeros(3)}, 5)[0]["w"].tolist() == [5.0] * 3
        checkpoints.save(8, {"w": jnp.full((3,), 8.0)}, {}, 0.95)
        assert checkpoints.steps == [2, 7, 8]


def test_keeping_without_any_metric_is_by_age_alone():
    class Info:
        def __init__(self, metrics: dict | None):
            self.metrics = metrics

    keep = KeepLastAndBest(last=1, best=2)
    assert keep.should_preserve([Info({}), Info(None), Info({})], context=None) == [False, False, True]
    ranked = [Info({"metric": 0.3}), Info({"metric": 0.3}), Info({"metric": 0.3}), Info({})]
    assert keep.should_preserve(ranked, context=None) == [False, True, True, True]
    assert KeepLastAndBest(1, 0).should_preserve(ranked, context=None) == [False, False, False, True]


def test_what_is_not_there_is_said_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="workdir"):
        Checkpoints.reader(tmp_path)
    with pytest.raises(UserError, match="keep_last"):
        Checkpoints(tmp_path, 0, 0)
    with Checkpoints(tmp_path, 1, 1) as checkpoints:
        assert checkpoints.latest_step is None and checkpoints.best_step is None and checkpoints.steps == []
        with pytest.raises(UserError, match="no whole checkpoint"):
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


def damage_flip(folder: Path, step: int) -> None:
    file = data_file(folder, step)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def damage_host(folder: Path, step: int) -> None:
    os.truncate(folder / "checkpoints" / str(step) / "host" / "metadata", 40)


@pytest.mark.parametrize(
    "damage",
    [
        damage_flip,
        damage_host,
        lambda folder, step: os.truncate(
            data_file(folder, step), data_file(folder, step).stat().st_size // 2
        ),
        lambda folder, step: data_file(folder, step).unlink(),
        lambda folder, step: shutil.rmtree(folder / "checkpoints" / str(step) / "state"),
        lambda folder, step: os.truncate(folder / "checkpoints" / str(step) / "state" / "_METADATA", 20),
    ],
    ids=["one bit", "host part cut", "data cut", "data removed", "state removed", "metadata cut"],
)
def test_damaged_checkpoint_is_refused_and_the_earlier_one_serves(tmp_path, damage):
    first, second = ({"w": jax.random.normal(jax.random.key(i), (64, 64))} for i in range(2))
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        checkpoints.save(1, first, {})
        checkpoints.save(2, second, {})
    damage(tmp_path, 2)
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        with pytest.raises(UserError, match=r"step 2 in .* is damaged") as raised:
            checkpoints.restore(first)
        assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
        assert bits(checkpoints.restore(first, 1)[0]) == bits(first)


def test_any_single_changed_element_changes_the_fingerprint():
    array = jax.random.normal(jax.random.key(0), (5, 7))
    prints = {int(fingerprint_of(array))}
    for row in range(5):
        for column in range(7):
            prints.add(int(fingerprint_of(array.at[row, column].add(1e-6))))
    prints.add(int(fingerprint_of(array[::-1])))
    prints.add(int(fingerprint_of(array.at[0, 0].set(array[0, 1]).at[0, 1].set(array[0, 0]))))  # two swapped
    assert len(prints) == 5 * 7 + 3


SAVE_TWICE = """
    import os, signal, sys
    import jax, jax.numpy as jnp
    from longshot_jax.training.checkpoint import Checkpoints
    def state(seed):
        return {"w": jax.random.normal(jax.random.key(seed), (2048, 2048)), "key": jax.random.key(seed)}
    checkpoints = Checkpoints(sys.argv[1], keep_last=1, keep_best=0)
    checkpoints.save(1, state(1), {"step": 1})
    checkpoints.wait()
"""


def test_kill_in_the_middle_of_a_save_leaves_the_previous_one(tmp_path):
    # keep_last=1: the moment at which a careless order of writing and deleting would lose both.
    done = run_script(
        SAVE_TWICE
        + """
    checkpoints.save(2, state(2), {"step": 2})
    print("saving", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL and "saving" in done.stdout, done.stderr
    leftovers = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("2")]
    template = {"w": jnp.zeros((2048, 2048)), "key": jax.random.key(0)}
    with Checkpoints.reader(tmp_path) as checkpoints:
        assert checkpoints.steps == [1], f"the kill came too late or the half-written one counts: {leftovers}"
        restored, host = checkpoints.restore(template)
    assert leftovers, "the kill came before anything was written, so the test showed nothing"
    assert host == {"step": 1}
    expected = {"w": jax.random.normal(jax.random.key(1), (2048, 2048)), "key": jax.random.key(1)}
    assert bits(restored) == bits(expected)
    # Reading has cleaned nothing up: the folder might be that of a run which is at work.
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("2")] == leftovers
    with Checkpoints(tmp_path, 1, 0) as checkpoints:  # the next run writes over what was left
        checkpoints.save(2, template, {"step": 2})
        assert checkpoints.steps == [2]
        assert checkpoints.restore(template)[1] == {"step": 2}
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name[0].isdigit())
    assert left == ["2"]


def test_refused_write_in_the_background_ends_in_one_sentence(tmp_path):
    # A limit on file size makes the real writer fail in its own thread, without root and without a full disk.
    done = run_script(
        SAVE_TWICE
        + """
    import resource
    from longshot_jax.errors import UserError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    try:
        checkpoints.save(2, state(2), {"step": 2})
        print("save returned")
        checkpoints.wait()
        print("nothing raised")
    except UserError as error:
        print("SENTENCE", error)
    restored, host = checkpoints.restore(state(3))
    print("left", checkpoints.steps, host, bool((restored["w"] == state(1)["w"]).all()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoints.save(3, state(3), {"step": 3})  # space is back: the same object goes on
    print("then", checkpoints.steps)
    checkpoints.close()
        """,
        tmp_path,
    )
    assert "save returned" in done.stdout and "nothing raised" not in done.stdout, done.stdout + done.stderr
    sentence = next(line for line in done.stdout.splitlines() if line.startswith("SENTENCE"))
    assert "disk is full" in sentence and "step 2" in sentence and "step 1 is intact" in sentence
    assert str(tmp_path) in sentence
    assert "left [1] {'step': 1} True" in done.stdout
    assert "then [3]" in done.stdout, done.stdout + done.stderr


def test_full_disk(tmp_path):
    inside = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    mount = f'mount -t tmpfs -o size=24m tmpfs {tmp_path} && exec "$0" "$@"'
    try:
        possible = subprocess.run([*inside, mount, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("this system lets no user mount a small file system of its own")
    done = run_script(
        SAVE_TWICE
        + """
    from longshot_jax.errors import UserError
    try:
        with checkpoints:
            checkpoints.save(2, state(2), {"step": 2})
    except UserError as error:
        print("SENTENCE", error)
    reopened = Checkpoints(sys.argv[1], keep_last=1, keep_best=0)
    restored, host = reopened.restore(state(3))
    print("left", reopened.steps, host, bool((restored["w"] == state(1)["w"]).all()))
        """,
        tmp_path,
        prefix=(*inside, mount),
    )
    assert "SENTENCE The checkpoint of step 2 could not be written" in done.stdout, done.stdout + done.stderr
    assert "the disk is full" in done.stdout and "left [1] {'step': 1} True" in done.stdout


def test_error_at_once_and_later_are_the_same_sentence(tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(3)}, {})
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(
                checkpoints._manager._checkpointer, "save", lambda *a, **k: (_ for _ in ()).throw(full)
            )
            with pytest.raises(UserError, match=r"step 2 could .* disk is full\); .*step 1 is intact"):
                checkpoints.save(2, {"w": jnp.zeros(3)}, {})
        with monkeypatch.context() as patch:

            def fail_late(*_: object) -> None:
                raise RuntimeError("commit failed") from full

            patch.setattr(checkpoints._manager, "_finalize", fail_late)
            checkpoints.save(3, {"w": jnp.zeros(3)}, {})
            with pytest.raises(UserError, match=r"step 3 could .* disk is full"):
                checkpoints.save(4, {"w": jnp.zeros(3)}, {})


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


def test_config_differences_by_dotted_key():
    stored = {
        "seed": 1,
        "ppo": {"clip": 0.2, "epochs": 2},
        "log": {"every": 5},
        "steps": [1, 2],
        "gone": None,
    }
    current = {
        "seed": 1,
        "ppo": {"clip": 0.3, "epochs": 2},
        "log": {"every": 9},
        "steps": (1, 2),
        "new": True,
    }
    assert config_differences(stored, current, {"log"}) == [
        "gone (stored null, now (absent))",
        "new (stored (absent), now true)",
        "ppo.clip (stored 0.2, now 0.3)",
    ]
    assert config_differences(stored, stored) == []
    assert config_differences({"a": 1}, {"a": True}) == ["a (stored 1, now true)"]
    assert config_differences({"log": 1}, {"log": 2}, {"lo"}) == ["log (stored 1, now 2)"]
    check_same_config("runs/x", stored, stored)
    with pytest.raises(UserError, match=r"runs/x.*log\.every.*ppo\.clip.*--workdir") as raised:
        check_same_config("runs/x", stored, current)
    assert "\n" not in str(raised.value)


def test_config_beside_the_checkpoints(tmp_path):
    config = {"seed": 1, "ppo": {"clip": 0.2}, "stages": ["curriculum", "ppo"]}
    write_config(tmp_path, config)
    assert read_config(tmp_path) == config == json.loads((tmp_path / "config.json").read_text())
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    for content, words in [("{", "not valid JSON"), ("[1]", "JSON object")]:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=words):
            read_config(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be written"):
        write_config(tmp_path / "nowhere", config)


def test_one_run_writes_one_workdir(tmp_path):
    path = tmp_path / "runs" / "x"
    with prepare_workdir(path) as lock:
        assert lock.path == path and path.is_dir()
        with pytest.raises(UserError, match=rf"process {os.getpid()}\) is writing to .*runs/x"):
            prepare_workdir(path)
    prepare_workdir(path).close()


def test_lock_of_a_killed_run_is_stale(tmp_path):
    done = run_script(
        """
        import os, signal, sys
        from longshot_jax.training.workdir import prepare_workdir
        lock = prepare_workdir(sys.argv[1])
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL and (tmp_path / ".lock").exists()
    prepare_workdir(tmp_path).close()


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/longshot")):
        with pytest.raises(UserError, match=rf"{path} cannot be written"):
            prepare_workdir(path)
    assert (tmp_path / "file").read_text() == "mine"
