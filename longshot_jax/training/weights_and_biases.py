"""Weights & Biases beside TensorBoard, for runs with `config.logger = "wandb"`: settings and scalars."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from longshot_jax.config import RunConfig
from longshot_jax.errors import UserError, first_line
from longshot_jax.training.tensorboard import Log

_STEP = "step"


@contextmanager
def weights_and_biases(run: RunConfig, workdir: Path) -> Iterator[Log | None]:
    """Starts a run there, with `resume="auto"`: W&B goes on with the run of a training that was interrupted in this folder.

    Yields a function of a step and its scalars; None on all processes but the first, and for another logger. Project,
    entity and mode are those of the environment variables WANDB_PROJECT (default `longshot`), WANDB_ENTITY and
    WANDB_MODE. Raises UserError if the package or a login is missing.
    """
    if run.logger != "wandb" or jax.process_index():
        yield None
        return
    try:
        wandb: Any = importlib.import_module("wandb")  # an extra, which a type checker need not find
    except ImportError:
        raise UserError(
            "config.logger 'wandb' needs the package wandb, which is not installed: pip install wandb, or set "
            "it to 'tensorboard'."
        ) from None
    try:
        started: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "longshot"),
            name=workdir.name,
            dir=workdir,
            config=asdict(run),
            resume="auto",
        )
    except (wandb.errors.Error, ValueError) as error:  # the latter of its settings
        raise UserError(
            f"config.logger 'wandb' cannot start ({first_line(error)}): log in with `wandb login`, set WANDB_MODE=offline, "
            "or set it to 'tensorboard'."
        ) from error
    # A continued run logs some steps again, which W&B's own counter does not allow.
    started.define_metric("*", step_metric=_STEP)
    with started:
        yield lambda step, values: started.log({_STEP: step, **values})
