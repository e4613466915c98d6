"""Freed memory stays with the process: the second use of a large block costs no page faults."""

import sys

import pytest
from child_process import run_script

CHILD = """
import resource, sys
import numpy as np
from longshot_jax.cli import keep_freed_memory
from longshot_jax.config import default_config, parse_config

config = default_config()
config.model.source = "folder" if sys.argv[1] == "pretrained" else "scratch"
if sys.argv[1] != "free":
    assert keep_freed_memory(parse_config(config)) == (sys.argv[1] == "keep")

def touch():
    np.empty(64 * 2**20, np.uint8).fill(1)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's: elsewhere keep_freed_memory does nothing")
def test_freed_memory_is_used_again_except_by_a_pretrained_model(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    faults = {how: int(run_script(CHILD, how).stdout) for how in ("keep", "free", "pretrained")}
    # 64 MB are 16,384 pages; where the system gives out huge pages they are fewer in all.
    assert faults["keep"] < 100 < faults["free"] or faults["keep"] < faults["free"] / 10
    assert faults["pretrained"] > faults["free"] / 2
