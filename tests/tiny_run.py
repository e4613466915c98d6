"""The smallest run of both phases, for tests."""

import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.config import RunConfig, default_config, parse_config
from longshot_jax.data.loader import prefetched


class Stopped(Exception):
    """A test has seen enough of a run."""


def tiny(**overrides) -> RunConfig:
    """One layer of width 16; 12 supervised updates in 3 stages, then 6 iterations of PPO."""
    config = default_config()
    model, data, curriculum, ppo = config.model, config.data, config.curriculum, config.ppo
    model.hidden_size, model.intermediate_size = 16, 32
    model.num_hidden_layers, model.num_attention_heads = 1, 2
    config.markers = "answer"
    data.operations, data.prompt_length, data.generated_train, data.answer_length = (1, 2), 15, 512, 5
    curriculum.stages, curriculum.max_latent_stage, curriculum.batch_size = (0, 1, 2), 2, 16
    curriculum.max_steps_per_stage = 4
    ppo.iterations, ppo.questions, ppo.num_trajectories, ppo.max_thoughts = 6, 8, 2, 2
    ppo.epochs, ppo.minibatches = 1, 2
    ppo.optimizer.learning_rate = 1e-3
    config.evaluation.every, config.evaluation.every_iterations = 0, 3
    config.evaluation.questions, config.evaluation.batch_size = 16, 16
    config.checkpoint.every = 3
    for key, value in overrides.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return parse_config(config)


def skip_evaluations(patch: Callable[[Any, str, Any], None], stage_ends: bool = False) -> None:
    """Leaves out what training measures, whose programs take longer to compile than a few updates; accuracies are 0.

    With `stage_ends`, what is measured at the end of a stage stays, but for accuracies.
    """
    from longshot_jax.curriculum.loop import CurriculumLoop
    from longshot_jax.curriculum.stability import StageEnd
    from longshot_jax.evaluation.validation import Validation
    from longshot_jax.ppo.loop import PPOLoop

    for loop in (CurriculumLoop, PPOLoop):
        patch(loop, "_evaluate", lambda *_: 0.0)
    if stage_ends:
        patch(Validation, "__call__", lambda *_, **__: {"accuracy": 0.0})
    else:
        patch(StageEnd, "__call__", lambda *_: {})


def stub_updates(
    patch: Callable[[Any, str, Any], None], loss: float = 1.0, change: Callable[[Any], Any] = lambda state: state
) -> None:
    """Updates do nothing but `change` the state, have this loss, and are not compiled."""
    metrics = {"loss": loss, "token_accuracy": 0.0, "thoughts": 0.0, "skipped": 0, "skipped_in_a_row": 0}
    for name in ("curriculum", "ppo"):
        update = sys.modules[f"longshot_jax.{name}.update"]
        patch(update, "jit_update", lambda *_: lambda state, *_: (change(state), dict(metrics)))


def moved(state: Any) -> Any:
    """A state whose trained weights are all others."""
    return replace(state, trainable=jax.tree.map(lambda x: x + 0.01, state.trainable))


def stop_before_iterations(patch: Callable[[Any, str, Any], None], measured: bool = False) -> None:
    """A run of PPO ends with its first checkpoint, which is written before the first iteration, and raises `Stopped`.

    Only if `measured` are the thoughts measured before that.
    """
    from longshot_jax.ppo.loop import PPOLoop

    def stop(*_):
        raise Stopped

    skip_evaluations(patch)
    patch(PPOLoop, "_iteration", stop)
    if not measured:
        patch(PPOLoop, "_measure_thoughts", lambda loop, state, first: state)


def watch_batches(patch: Callable[[Any, str, Any], None], seen: Callable[[int], None]) -> None:
    """Calls `seen(n)` for the n-th batch, counted from 1, that training asks for, in all phases together.

    `patch` is `setattr` or that of pytest's monkeypatch.
    """
    taken = 0

    @contextmanager
    def watched(items, first):
        def count(batch):
            nonlocal taken
            taken += 1
            seen(taken)
            return batch

        with prefetched(items, first) as batches:
            yield map(count, batches)

    for name in ("curriculum", "ppo"):
        patch(sys.modules[f"longshot_jax.{name}.loop"], "prefetched", watched)


def copier(patch: Callable[[Any, str, Any], None], folder: Path, copy: Path) -> Callable[[], None]:
    """A function that copies the folder of a run in progress, as a kill between two checkpoints leaves it."""
    seen, save = [], Checkpoints.save

    def watched(checkpoints, *given):
        seen.append(checkpoints)
        return save(checkpoints, *given)

    def copied():
        seen[-1].wait()  # a half-written checkpoint would be left out
        shutil.copytree(folder, copy)

    patch(Checkpoints, "save", watched)
    return copied
