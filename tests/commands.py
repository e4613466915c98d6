"""The commands of scripts/, run in this process: starting one takes seconds."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import longshot_jax.cli
import longshot_jax.train
from longshot_jax.config import RunConfig

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "configs" / "tiny.py")


def start(script: str, *arguments: object) -> int:
    """Runs a script of scripts/; its exit code."""
    old, sys.argv = sys.argv, [script, *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    finally:
        sys.argv = old
    return int(ended.value.code or 0)


def requested_training(*arguments: object) -> tuple[RunConfig, Path]:
    """Settings and run folder with which scripts/train.py would train."""
    requested: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(longshot_jax.train, "train", lambda *given: requested.append(given))
        # The process and its caches belong to the other tests too.
        patch.setattr(longshot_jax.cli, "cache_compilations", lambda: None)
        assert start("train.py", *arguments) == 0
    ((run, folder),) = requested
    return run, Path(folder)
