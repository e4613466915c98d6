"""Commands start again with huge pages where Linux gives them on request, and only such commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from longshot_jax.cli import use_huge_pages
if "as_module" in sys.argv:  # as a notebook has it: other arguments than those of the process
    sys.argv = ["train.py"]
use_huge_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""
MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ON_REQUEST = MODES.exists() and "[madvise]" in MODES.read_text()


@pytest.mark.skipif(not ON_REQUEST, reason="huge pages are not given on request here")
@pytest.mark.parametrize(
    ("tunables", "arguments", "expected"),
    [
        (None, ["--config", "a b"], "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=0", [], "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", ["x"], "glibc.malloc.hugetlb=0"),
        (None, ["as_module"], "None"),
    ],
)
def test_a_command_asks_for_huge_pages_in_the_same_process(tmp_path, tunables, arguments, expected):
    script = tmp_path / "command.py"
    script.write_text(SCRIPT)
    env = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    env |= {"PYTHONPATH": str(Path(__file__).parents[1])} | ({"GLIBC_TUNABLES": tunables} if tunables else {})
    process = subprocess.Popen(
        [sys.executable, script, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output, errors = process.communicate(timeout=60)
    kept = [] if "as_module" in arguments else arguments
    assert (output.strip(), errors) == (f"{process.pid} {expected} {kept}", "")
