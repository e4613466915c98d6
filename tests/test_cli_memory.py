"""Commands start again with huge pages where Linux gives them on request, and only such commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from longshot_jax.cli import use_huge_pages
if "notebook" in sys.argv:  # other arguments than those of the process
    sys.argv = ["train.py"]
if "hidden" in sys.argv:  # as where the loader takes the variable away
    os.environ.pop("GLIBC_TUNABLES", None)
use_huge_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""
ASKED = "glibc.malloc.hugetlb=1"
MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ON_REQUEST = MODES.exists() and "[madvise]" in MODES.read_text()


def run(command, tunables=None, text=None):
    """Process id, output and errors of a command that does not see the tests' own value."""
    own = ("GLIBC_TUNABLES", "LONGSHOT_STARTED_AGAIN")
    env = {key: value for key, value in os.environ.items() if key not in own}
    env |= {"PYTHONPATH": str(Path(__file__).parents[1])} | ({"GLIBC_TUNABLES": tunables} if tunables else {})
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    return process.pid, *process.communicate(text, timeout=60)


@pytest.mark.parametrize(
    ("flags", "tunables", "arguments", "expected"),
    [
        ([], None, ["--config", "a b"], ASKED),
        (["-W", "error", "-X", "utf8"], None, ["x"], ASKED),
        ([], "glibc.malloc.check=0", [], f"glibc.malloc.check=0:{ASKED}"),
        ([], "glibc.malloc.hugetlb=0", ["x"], "glibc.malloc.hugetlb=0"),
        (["-m", "cProfile", "-o", os.devnull], None, ["x"], "None"),
        ([], None, ["notebook"], "None"),
        ([], None, ["hidden"], "None"),
    ],
)
def test_a_command_asks_for_huge_pages_in_the_same_process(tmp_path, flags, tunables, arguments, expected):
    script = tmp_path / "command.py"
    script.write_text(SCRIPT)
    number, output, errors = run([sys.executable, *flags, script, *arguments], tunables)
    kept = [] if "notebook" in arguments else arguments
    if not ON_REQUEST:  # nothing to ask for: the command runs as it was started
        expected = str(tunables)
    assert (output.strip(), errors) == (f"{number} {expected} {kept}", "")


def test_a_program_on_standard_input_runs_to_its_end():
    number, output, errors = run([sys.executable, "-"], text=SCRIPT)
    assert (output.strip(), errors) == (f"{number} None []", "")


def test_the_installed_command_asks_too(tmp_path):
    command = tmp_path / "longshot"
    command.write_text(
        "import os\nfrom longshot_jax.cli import main\nprint(os.environ.get('GLIBC_TUNABLES'), flush=True)\nmain()\n"
    )
    _, output, errors = run([sys.executable, command, "--help"])
    seen = output.splitlines()
    assert seen[0] == "None" and (seen[1] == ASKED) == ON_REQUEST and not errors
