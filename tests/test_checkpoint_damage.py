"""Checkpoints are never harmed by a kill, a full disk or a damaged file: the one before stays and serves."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from checkpoint_states import bits
from child_process import run_script

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.named_arrays import fingerprint_of
from longshot_jax.errors import UserError

pytestmark = pytest.mark.slow


def data_file(folder: Path, step: int) -> Path:
    files = [file for file in (folder / "checkpoints" / str(step) / "state").rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def damage_flip(folder: Path, step: int) -> None:
    file = data_file(folder, step)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def metadata_file(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / str(step) / "metadata" / "metadata"


def damage_metadata(folder: Path, step: int) -> None:
    os.truncate(metadata_file(folder, step), 40)


def damage_description(folder: Path, step: int) -> None:
    """The array is there, but orbax's own description has another name for it."""
    file = folder / "checkpoints" / str(step) / "state" / "_METADATA"
    file.write_text(file.read_text().replace('"key": "w"', '"key": "v"'))


@pytest.mark.parametrize(
    "damage",
    [
        damage_flip,
        damage_description,
        damage_metadata,
        lambda folder, step: os.truncate(data_file(folder, step), data_file(folder, step).stat().st_size // 2),
        lambda folder, step: data_file(folder, step).unlink(),
        lambda folder, step: shutil.rmtree(folder / "checkpoints" / str(step) / "state"),
        lambda folder, step: os.truncate(folder / "checkpoints" / str(step) / "state" / "_METADATA", 20),
    ],
    ids=["one bit", "array renamed", "metadata cut", "data cut", "data removed", "state removed", "index cut"],
)
def test_damaged_checkpoint_is_refused_and_the_earlier_one_serves(tmp_path, damage):
    first, second = ({"w": jax.random.uniform(jax.random.key(i), (64, 64))} for i in range(2))
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        checkpoints.save(1, first, {})
        checkpoints.save(2, second, {})
    damage(tmp_path, 2)
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        with pytest.raises(UserError, match=r"step 2 in .* is damaged") as raised:
            checkpoints.restore(first)
        assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
        assert bits(checkpoints.restore(first, 1)[0]) == bits(first)


def test_a_checkpoint_that_a_run_removes_while_it_is_read_is_not_damaged(tmp_path):
    state = {"w": jnp.ones(4)}
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(1, state, {})
    with Checkpoints.reader(tmp_path) as checkpoints:
        shutil.rmtree(tmp_path / "checkpoints" / "1")
        with pytest.raises(
            UserError, match=r"step 1 in .* was removed while it was read: start the same command again"
        ):
            checkpoints.restore(state)


def change_rate(content: dict) -> None:
    content["metadata"]["config"]["ppo"]["learning_rate"] = 1e-3


def change_shape(content: dict) -> None:
    content["arrays"]["w"]["shape"] = [5]


def lose_version(content: dict) -> None:
    del content["version"]


def lose_fingerprint(content: dict) -> None:
    del content["fingerprint"]


@pytest.mark.parametrize(
    "change",
    [
        change_rate,
        change_shape,
        lambda content: content.update(version=0),
        lambda content: content.update(version="1"),
        lambda content: content["metadata"].update(extra=None),
        lose_version,
        lose_fingerprint,
    ],
    ids=["learning rate", "shape", "version before", "version as text", "more", "no version", "no fingerprint"],
)
def test_one_changed_value_in_the_metadata_is_refused(tmp_path, change):
    """The file is valid JSON of the right form, and would be read by anything that trusted it."""
    state, metadata = {"w": jnp.ones(4)}, {"step": 2, "config": {"ppo": {"learning_rate": 1e-4}}}
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        checkpoints.save(1, state, metadata)
        checkpoints.save(2, state, metadata)
    file = metadata_file(tmp_path, 2)
    content = json.loads(file.read_text())
    # The same content with its keys in another order and other spaces is the same metadata.
    file.write_text(json.dumps(content, sort_keys=True, indent=2))
    with Checkpoints.reader(tmp_path) as checkpoints:
        assert checkpoints.metadata(2) == metadata
    change(content)
    file.write_text(json.dumps(content))
    with Checkpoints.reader(tmp_path) as checkpoints:
        for read in (lambda: checkpoints.metadata(2), lambda: checkpoints.restore(state, 2)):
            with pytest.raises(
                UserError, match=r"^The checkpoint of step 2 in .* is damaged \(.*\): remove "
            ) as raised:
                read()
            said = str(raised.value)
            assert str(tmp_path / "checkpoints" / "2") in said and "\n" not in said
        assert checkpoints.metadata(1) == metadata and bits(checkpoints.restore(state, 1)[0]) == bits(state)


@pytest.mark.parametrize("change", [lambda content: content, lambda _: {"entries": []}], ids=["same form", "another"])
def test_metadata_of_a_later_version_is_refused_in_a_sentence(tmp_path, change):
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(3, {"w": jnp.ones(4)}, {})
    file = metadata_file(tmp_path, 3)
    file.write_text(json.dumps({**change(json.loads(file.read_text())), "version": 2}))
    with Checkpoints.reader(tmp_path) as checkpoints:
        for read in (checkpoints.metadata, lambda: checkpoints.restore({"w": jnp.ones(4)})):
            with pytest.raises(
                UserError, match=r"step 3 in .* has version 2, .* reads versions up to 1: use "
            ) as raised:
                read()
            assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_any_single_changed_element_changes_the_fingerprint():
    array = jax.random.uniform(jax.random.key(0), (5, 7))
    prints = {int(fingerprint_of(array))}
    for row in range(5):
        for column in range(7):
            prints.add(int(fingerprint_of(array.at[row, column].add(1e-6))))
    prints.add(int(fingerprint_of(array[::-1])))
    prints.add(int(fingerprint_of(array.at[0, 0].set(array[0, 1]).at[0, 1].set(array[0, 0]))))  # two swapped
    assert len(prints) == 5 * 7 + 3


SAVE_TWICE = """
    import os, signal, sys, time
    import jax, jax.numpy as jnp
    from longshot_jax.checkpoints.checkpoint import Checkpoints
    def state(seed):
        return {"w": jax.random.uniform(jax.random.key(seed), (2048, 2048)), "key": jax.random.key(seed)}
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
    # As soon as the background writer has begun: on a busy machine that can take a while.
    until = time.monotonic() + 60
    while not any(name.startswith("2") for name in os.listdir(checkpoints.folder)) and time.monotonic() < until:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL and "saving" in done.stdout, done.stderr
    leftovers = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("2")]
    template = {"w": jnp.zeros((2048, 2048)), "key": jax.random.key(0)}
    with Checkpoints.reader(tmp_path) as checkpoints:
        assert checkpoints.steps == [1], f"the kill came too late or the half-written one counts: {leftovers}"
        restored, metadata = checkpoints.restore(template)
    assert leftovers, "the kill came before anything was written, so the test showed nothing"
    assert metadata == {"step": 1}
    expected = {"w": jax.random.uniform(jax.random.key(1), (2048, 2048)), "key": jax.random.key(1)}
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
    restored, metadata = checkpoints.restore(state(3))
    print("left", checkpoints.steps, metadata, bool((restored["w"] == state(1)["w"]).all()))
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


@pytest.mark.parametrize("limit", ["size=24m", "nr_inodes=30"])
def test_full_disk(tmp_path, limit):
    """One sentence, its exit code, and an end at once, though a thread of the writer may wait for minutes."""
    inside = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    mount = f'mount -t tmpfs -o {limit} tmpfs {tmp_path} && exec "$0" "$@"'
    try:
        possible = subprocess.run([*inside, mount, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("this system lets no user mount a small file system of its own")
    done = run_script(
        SAVE_TWICE
        + """
    from longshot_jax.errors import run_command
    def main():
        try:
            with checkpoints:
                checkpoints.save(2, state(2), {"step": 2})
        finally:
            with Checkpoints.reader(sys.argv[1]) as reopened:
                restored, metadata = reopened.restore(state(3))
                print("left", reopened.steps, metadata, bool((restored["w"] == state(1)["w"]).all()))
    run_command(main)
        """,
        tmp_path,
        prefix=(*inside, mount),
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: The checkpoint of step 2 could not be written") and "is full" in done.stderr
    assert "left [1] {'step': 1} True" in done.stdout


def test_a_folder_that_is_gone_ends_in_one_sentence(tmp_path):
    done = run_script(
        SAVE_TWICE
        + """
    from longshot_jax.errors import run_command
    def main():
        with checkpoints:
            os.rename(sys.argv[1], sys.argv[1] + ".gone")
            open(sys.argv[1], "w").close()  # so that no writer makes it anew
            checkpoints.save(2, state(2), {"step": 2})
    run_command(main)
        """,
        tmp_path / "run",
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "run/checkpoints (Not a directory); no earlier checkpoint exists: see to that folder" in done.stderr
    with Checkpoints.reader(tmp_path / "run.gone") as checkpoints:
        assert checkpoints.steps == [1]


def test_a_folder_removed_during_a_save_ends_in_one_sentence(tmp_path):
    """Many arrays: each has a write of its own, and each of them fails in its own thread."""
    done = run_script(
        """
    import os, shutil, sys, time
    import jax.numpy as jnp
    from longshot_jax.checkpoints.checkpoint import Checkpoints
    from longshot_jax.errors import run_command
    def main():
        with Checkpoints(sys.argv[1], 1, 0) as checkpoints:
            checkpoints.save(2, {f"w{i}": jnp.full((64, 64), i) for i in range(60)}, {})
            # As soon as the background writer has begun: on a busy machine that can take a while.
            while not any(name.startswith("2") for name in os.listdir(checkpoints.folder)):
                time.sleep(0.001)
            while True:
                shutil.rmtree(sys.argv[1], ignore_errors=True)
                checkpoints.save(3, {f"w{i}": jnp.full((64, 64), i) for i in range(60)}, {})
    run_command(main)
        """,
        tmp_path / "run",
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "could not be written" in done.stderr and "see to that folder" in done.stderr


def test_writes_that_a_failed_save_never_began_are_not_reported(tmp_path):
    """Whether one is left depends on the threads, so this test leaves one. Coroutines of the user's own are reported."""
    done = run_script(
        SAVE_TWICE
        + """
    from longshot_jax.errors import run_command
    async def write_fragment(): ...
    async def own_reward(): ...
    def main():
        global kept
        own_reward()
        with checkpoints:
            os.rename(sys.argv[1], sys.argv[1] + ".gone")
            open(sys.argv[1], "w").close()
            kept = write_fragment()
            checkpoints.save(2, state(2), {"step": 2})
            checkpoints.wait()
    run_command(main)
        """,
        tmp_path / "run",
    )
    assert done.returncode == 2 and "could not be written" in done.stderr, done.stderr
    assert "write_fragment" not in done.stderr and "coroutine 'own_reward' was never awaited" in done.stderr


def test_ctrl_c_during_a_save_is_one_sentence_and_the_save_is_complete(tmp_path):
    done = run_script(
        SAVE_TWICE
        + """
    from longshot_jax.errors import run_command
    def main():
        with checkpoints:
            checkpoints.save(2, state(2), {"step": 2})
            os.kill(os.getpid(), signal.SIGINT)
            checkpoints.wait()
    run_command(main)
        """,
        tmp_path,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "interrupted: start the same command again to continue\n"
    with Checkpoints.reader(tmp_path) as checkpoints:
        assert checkpoints.steps == [2]


def test_a_wait_that_the_clock_ended_is_not_called_a_full_disk(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, 1, 0) as checkpoints:

        def fail_late(*_: object) -> None:
            raise RuntimeError("commit failed") from TimeoutError("Timeout waiting for key 'x'")

        monkeypatch.setattr(checkpoints._manager, "_finalize", fail_late)
        checkpoints.save(1, {"w": jnp.zeros(3)}, {})
        with pytest.raises(UserError, match=r"a wait timed out: Timeout waiting for key 'x'.* check that the clock"):
            checkpoints.wait()


def test_error_at_once_and_later_are_the_same_sentence(tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(3)}, {})
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager._checkpointer, "save", lambda *a, **k: (_ for _ in ()).throw(full))
            with pytest.raises(UserError, match=r"step 2 could .* disk is full\); .*step 1 is intact"):
                checkpoints.save(2, {"w": jnp.zeros(3)}, {})
        with monkeypatch.context() as patch:

            def fail_late(*_: object) -> None:
                raise RuntimeError("commit failed") from full

            patch.setattr(checkpoints._manager, "_finalize", fail_late)
            checkpoints.save(3, {"w": jnp.zeros(3)}, {})
            with pytest.raises(UserError, match=r"step 3 could .* disk is full"):
                checkpoints.save(4, {"w": jnp.zeros(3)}, {})
