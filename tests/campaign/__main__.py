"""Thousands of damaged inputs: each is refused in a sentence that names the place, or read right.

    PYTHONPATH=tests python -m campaign [--seed 0] [--inputs 10000] [--only KIND] [--index I]

An input depends on the seed, its kind and its index alone. A failure is printed with the options that repeat it. The
last line is a summary; the exit code is 1 after any failure.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax

from campaign.checkpoints import CheckpointFiles
from campaign.configs import Configs
from campaign.data_files import DataFiles
from campaign.exports import Exports
from campaign.huggingface import HuggingFaceFolders
from campaign.judging import Kind, Tally, judge
from campaign.templates import Templates
from campaign.tokenizer_files import TokenizerFiles

KINDS: tuple[type[Kind], ...] = (
    DataFiles, Configs, HuggingFaceFolders, TokenizerFiles, Templates, CheckpointFiles, Exports,
)  # fmt: skip
_SHOWN = 40  # failures of a kind that are printed


def campaign(kind: type[Kind], seed: int, indices: range, folder: Path) -> Tally:
    """Judges inputs of one kind; `folder` is an empty folder for their files."""
    (folder / "base").mkdir(parents=True)
    made, tally = kind(folder / "base"), Tally()
    for index in indices:
        judge(made, seed, index, folder, tally)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs in all")
    parser.add_argument("--only", choices=[kind.name for kind in KINDS], help="one kind")
    parser.add_argument("--index", type=int, help="one input of that kind")
    options = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)
    sys.unraisablehook = lambda _: None  # reads that go on after one has failed find nothing to report to
    began, whole = time.monotonic(), Tally()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        for kind in KINDS:
            if options.only not in (None, kind.name):
                continue
            indices = range(round(options.inputs * kind.share))
            if options.index is not None:
                indices = range(options.index, options.index + 1)
            tally = campaign(kind, options.seed, indices, Path(folder) / kind.name)
            for failure in tally.failures[:_SHOWN]:
                print(f"FAILURE {failure}")
            print(tally.line(kind.name), flush=True)
            whole.add(tally)
    whole.seconds = time.monotonic() - began
    print(f"{whole.line('all')}; seed {options.seed}")
    return int(bool(whole.failures))


if __name__ == "__main__":
    sys.exit(main())
