"""How a command ends: on Ctrl-C at any moment, and for a user without a home folder."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from child_process import skip_without

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_nothing_slow_is_imported_before_the_guard(script):
    """`run_command` turns Ctrl-C into exit code 130, but not for the imports at the top of a script."""
    modules = set()
    for node in ast.parse(script.read_text()).body:
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    assert modules - sys.stdlib_module_names - {"collections.abc"} == {"longshot_jax.errors"}


def test_ctrl_c_during_the_imports_is_one_sentence():
    """The signal comes as soon as the import of jax has begun."""
    command = [sys.executable, "-v", str(ROOT / "scripts" / "train.py"), "--config", str(ROOT / "configs" / "tiny.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def interrupted() -> tuple[int, str]:
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "import 'jax" in line:
                    process.send_signal(signal.SIGINT)
                    break
            rest = process.stderr.read()
        return process.returncode, rest

    code, rest = interrupted()
    if code == -signal.SIGSEGV:  # the signal came while jaxlib's own library began, which does not survive it
        code, rest = interrupted()
    said = [line for line in rest.splitlines() if not line.startswith(("#", "import ")) and line.strip()]
    assert code == 130 and "Traceback" not in rest, rest[-2000:]
    assert "interrupted: start the same command again to continue" in said, said[-20:]


def test_a_user_without_a_home_may_train(tmp_path):
    """`docker run -u 12345`: no HOME and no entry of the user. Refused here for its lengths, the last check of a start."""
    as_user = ["unshare", "--user", "--map-user=12345", "env", "--unset=HOME", "--unset=JAX_COMPILATION_CACHE_DIR"]
    skip_without(as_user, "this system gives no user another number")
    script, config = ROOT / "scripts" / "train.py", ROOT / "configs" / "tiny.py"
    done = subprocess.run(
        [*as_user, sys.executable, script, "--config", config, "--workdir", "run", "--config.data.prompt_length=9"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and "config.data.prompt_length is 9" in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(("raised", "code"), [("UserError('x')", 2), ("KeyboardInterrupt", 130)])
def test_no_thread_that_waits_keeps_a_failed_command_alive(raised, code):
    program = f"""if True:
        import threading, longshot_jax.errors
        from longshot_jax.errors import UserError, run_command
        longshot_jax.errors._GRACE = 0.2
        def main():
            threading.Thread(target=threading.Event().wait, args=(60,)).start()
            print("printed")
            raise {raised}
        run_command(main)
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == code and done.stdout == "printed\n" and done.stderr.count("\n") == 1


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_ends_a_command_without_a_word(lines):
    """One line is written when the command ends, the many while it runs."""
    body = f"from longshot_jax.errors import run_command\nrun_command(lambda: print('line\\n' * {lines}))"
    command = [sys.executable, "-c", body]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141
