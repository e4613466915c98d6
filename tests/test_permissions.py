"""What the operating system refuses to read is not called damaged or missing: it may be intact."""

import errno
from pathlib import Path

import jax.numpy as jnp
import pytest
from child_process import obeying_permissions, run_script
from run_folders import PPO, save_run

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.convert import to_hf
from longshot_jax.errors import UserError
from longshot_jax.files import is_there

pytestmark = pytest.mark.slow

# Takes the permissions of one path after another, and prints what `attempt` says then.
REFUSED = """
    import os, sys
    from pathlib import Path
    from longshot_jax.errors import UserError

    def refused(path, *attempts):
        mode = path.stat().st_mode & 0o777
        path.chmod(0)
        for attempt in attempts:
            try:
                attempt()
                print("NOTHING", path)
            except UserError as error:
                print("SENTENCE", path, str(error).replace(chr(10), "|"))
            except Exception as error:
                print("TRACEBACK", path, repr(error))
        path.chmod(mode)

    folder = Path(sys.argv[1])
"""


def sentences(body: str, folder: Path) -> list[str]:
    """What `body` prints after `REFUSED`; a failure unless each attempt ends in a sentence."""
    done = run_script(REFUSED + body, folder, prefix=obeying_permissions())
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith(("SENTENCE", "NOTHING", "TRACEBACK"))]
    assert said and all(line.startswith("SENTENCE") for line in said), said
    return said


def test_a_checkpoint_without_permission_is_not_damaged(tmp_path):
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(3, {"w": jnp.ones((64, 64))}, {})
    said = sentences(
        """
    import jax.numpy as jnp
    from longshot_jax.checkpoints.checkpoint import Checkpoints
    step = folder / "checkpoints" / "3"
    with Checkpoints.reader(folder) as checkpoints:
        refused(step, checkpoints.metadata)
        for path in (step / "metadata", step / "metadata" / "metadata"):
            refused(path, checkpoints.metadata)
        state = step / "state"
        for path in (state, state / "_METADATA", state / "manifest.ocdbt", next((state / "d").iterdir())):
            refused(path, lambda: checkpoints.restore({"w": jnp.ones((64, 64))}))
    """,
        tmp_path,
    )
    assert len(said) == 7
    for line in said:
        assert "The checkpoint of step 3 in" in line and str(tmp_path) in line, line
        assert line.endswith("cannot be read (Permission denied): fix its permissions."), line


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error.*may be intact: see to its disk"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle.*see to its disk"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files.*ulimit -n"),
        (ValueError("Error reading x: [os_error_code='5']"), "Input/output error"),
        (ValueError("DEADLINE_EXCEEDED: too slow"), "timed out"),
    ],
    ids=str,
)
def test_a_disk_that_does_not_answer_damages_no_checkpoint(tmp_path, monkeypatch, raised, words):
    state = {"w": jnp.ones(4)}
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(3, state, {})

    def fail(*_, **__):
        raise ValueError("some library's words") from raised

    with Checkpoints.reader(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        for read in (checkpoints.metadata, lambda: checkpoints.restore(state)):
            with pytest.raises(UserError, match=rf"^The checkpoint of step 3 in .* cannot be read \(.*{words}") as told:
                read()
            assert "remove" not in str(told.value) and "\n" not in str(told.value)


def test_an_export_without_permission_is_neither_damaged_nor_missing(tmp_path):
    save_run(tmp_path / "run", PPO, "ppo")
    to_hf(tmp_path / "run", tmp_path / "export")
    said = sentences(
        """
    from longshot_jax import LongShot
    for name in ("longshot.safetensors", "model.safetensors"):
        refused(folder / name, lambda: LongShot.from_pretrained(folder))
    """,
        tmp_path / "export",
    )
    for name, line in zip(("longshot", "model"), said, strict=True):
        file = tmp_path / "export" / f"{name}.safetensors"
        assert line.endswith(f" {file} cannot be read (Permission denied): fix its permissions."), line


def test_a_folder_that_may_not_be_entered_is_a_sentence(tmp_path):
    save_run(tmp_path / "run", PPO, "ppo")
    to_hf(tmp_path / "run", tmp_path / "export")
    (tmp_path / "far").mkdir()
    said = sentences(
        """
    from pathlib import Path
    from longshot_jax.checkpoints.convert import from_hf, to_hf
    from longshot_jax.checkpoints.frozen_source import KEY, FrozenSource
    from longshot_jax.checkpoints.pretrained import load_pretrained
    from longshot_jax.config import RunConfig, default_config, parse_config
    from longshot_jax.data.tokenizer import Tokenizer
    from longshot_jax.train import _is_folder, train

    def training(workdir, **changes):
        config = default_config()
        config.update(changes)
        return lambda: train(parse_config(config), workdir)

    run, export, new = folder / "run", folder / "export", folder / "new"
    refused(
        run,
        lambda: load_pretrained(run),
        lambda: to_hf(run, new),
        training(run),
        training(new, initialize_from=str(run)),
    )
    refused(run / "tokenizer", lambda: load_pretrained(run), lambda: Tokenizer.find(run / "tokenizer"))
    refused(run / "checkpoints", lambda: load_pretrained(run), training(run))
    refused(run / "checkpoints" / "7", lambda: load_pretrained(run), training(run))
    refused(export, lambda: load_pretrained(export), lambda: from_hf(export, new), lambda: to_hf(run, export))
    for place in (folder / "far", folder / "far" / "weights"):
        metadata = {KEY: {"folder": str(place), "setting": "initialize_from", "arrays": {}}}
        settings = RunConfig(initialize_from=str(place))
        refused(folder / "far", lambda: FrozenSource.find(metadata, settings, settings, run))
    (folder / "far").chmod(0)
    assert not _is_folder(str(folder / "far" / "weights")) and not _is_folder("")
    """,
        tmp_path,
    )
    (tmp_path / "far").chmod(0o700)
    assert len(said) == 15 and [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]
    for line in said:
        words = ("may not be entered: fix its permissions", "cannot be used", "cannot be read", "cannot be written")
        assert str(tmp_path) in line and any(word in line for word in words), line


def test_what_is_no_file_is_left_to_its_reader(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    assert is_there(tmp_path / "file") and is_there(tmp_path)
    assert not any(is_there(tmp_path / name) for name in ("link", "none", "file/none"))
