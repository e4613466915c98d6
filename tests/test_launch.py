"""The environment that the launch files and docs/performance.md name is one that today's JAX starts with."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "performance.md").read_text()
TABLE = GUIDE[GUIDE.index("\n## XLA flags") :].split("\n## ", 2)[1]
FILES = {name: (ROOT / "launch" / name).read_text() for name in ("slurm.sh", "kubernetes.yaml")}
VARIABLE = re.compile(r"\b((?:XLA|JAX)_[A-Z_]+)=([^`\s,;]+)`")


def test_flags_are_known():
    """An unknown flag ends the process."""
    flags = re.findall(r"`(--xla_\w+)=([^`\s]+)`", TABLE)
    assert flags
    settings = dict(VARIABLE.findall(TABLE))
    assert settings["JAX_OPTIMIZATION_LEVEL"] and settings["XLA_CLIENT_MEM_FRACTION"]

    def start(flags: str) -> subprocess.CompletedProcess:
        environment = os.environ | settings | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        program = "import jax; print(jax.config.jax_optimization_level, len(jax.devices()))"
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)

    named = start(" ".join(f"{name}={value}" for name, value in flags))
    assert named.stdout.split() == ["O1", "1"], named.stderr
    assert start("--xla_gpu_no_such_flag=true").returncode


def test_launch_files_set_what_the_guide_names():
    for name, text in FILES.items():
        for variable, value in VARIABLE.findall(TABLE):
            assert variable in text and value in text, f"launch/{name} does not set {variable}={value}"
        code = "\n".join(line.partition("#")[0] for line in text.splitlines())
        assert "XLA_PYTHON_CLIENT_MEM_FRACTION=" not in code and "XLA_PYTHON_CLIENT_MEM_FRACTION," not in code
