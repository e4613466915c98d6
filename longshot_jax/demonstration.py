"""The whole method on the generated chains, arm by arm: what `make demo` runs.

Every arm is an ordinary run of `scripts/train.py` with `configs/tiny.py`, so that what the demo shows can be repeated
by hand. Two lanes run side by side, one core each, because models this small gain nothing from a second core:

    cot ─▶ coconut ─▶ ppo                first lane
    no_cot ─▶ pause (after cot) ─▶ continued (after coconut)      second lane

`coconut` and `pause` start from `cot`, as COCONUT starts from a model trained on text steps. `ppo` and `continued`
start from `coconut`: one goes on with rewards, the other with labels, for the same number of sequences.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshot_jax.data.chains import write_chains
from longshot_jax.errors import UserError

OPERATIONS = (1, 2, 3, 4)
QUESTIONS = 1000
_HELD_OUT_SEED = 20_000  # of the test files; the run's seed moves on from it
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
      name: of the arm and of its run folder.
      title: in the table.
      starts_from: the arm whose weights it starts from, or None.
      overrides: of `configs/tiny.py`.
    """

    name: str
    title: str
    starts_from: str | None
    overrides: Mapping[str, Any]


def arms() -> dict[str, Arm]:
    """The arms by name; what they share is in `configs/tiny.py`."""
    supervised = {"stages": ("curriculum",)}
    return {
        arm.name: arm
        for arm in (
            Arm(
                "no_cot",
                "no CoT: the answer directly",
                None,
                {**supervised, "curriculum.mode": "no_cot", "curriculum.stages": (0,)},
            ),
            Arm(
                "cot",
                "text CoT",
                None,
                {**supervised, "curriculum.mode": "cot", "curriculum.stages": (0,)},
            ),
            Arm(
                "pause",
                "pause tokens, same curriculum",
                "cot",
                {
                    **supervised,
                    "curriculum.mode": "pause",
                    "curriculum.stages": (1, 2, 3, 4),
                    "curriculum.max_steps_per_stage": 300,
                },
            ),
            Arm("coconut", "COCONUT curriculum", "cot", supervised),
            Arm(
                "continued",
                "curriculum continued, PPO's compute",
                "coconut",
                {
                    **supervised,
                    "curriculum.stages": (4,),
                    "curriculum.last_stage_loss": 0.0,
                },
            ),
            Arm("ppo", "PPO", "coconut", {"stages": ("ppo",)}),
        )
    }


LANES = (("cot", "coconut", "ppo"), ("no_cot", "pause", "continued"))
ROWS = ("no_cot", "pause", "cot", "coconut", "continued", "ppo")
