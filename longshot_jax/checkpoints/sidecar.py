"""The parts of a trained reasoner besides its backbone, in one file beside the backbone's Hugging Face weights.

`longshot.safetensors` holds the navigator (with its stop and value heads), the memory bank and the rms of thoughts; its
metadata holds the run's settings, phase and step as JSON. The latent tokens are in the tokenizer. Other programs, such
as `transformers`, ignore the file.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from longshot_jax.checkpoints.named_arrays import current_name, named_arrays
from longshot_jax.config import RunConfig, parse_config
from longshot_jax.config.run import Phase
from longshot_jax.errors import UserError, first_line
from longshot_jax.files import is_there
from longshot_jax.model.huggingface.stored_tensors import write_tensors
from longshot_jax.model.huggingface.weights import METADATA
from longshot_jax.thoughts.navigator import Navigator
from longshot_jax.thoughts.reads.memory_bank import MemoryBank, empty_bank

FILE = "longshot.safetensors"
_SETTINGS = "trained"
# What an export says in the metadata of its backbone's weights, where it stays with them: whether the rows of the latent
# tokens are trained, and which file belongs beside the weights. Earlier exports say neither.
LATENT_ROWS, BESIDE = "latent_rows", "beside"
TRAINED, UNTRAINED, NOTHING = "trained", "untrained", "nothing"


@dataclass(frozen=True)
class Sidecar:
    """How a reasoner was trained, and its parts besides the backbone.

    `thought_rms` is the rms of noise-free thoughts at the start of PPO or in a curriculum that samples them, else 1. `stage` is that of a supervised
    phase at the checkpoint; None after PPO. `trained_on` are the training problems of all its runs.
    """

    run: RunConfig
    phase: str
    step: int
    thought_rms: float
    memory: MemoryBank | None
    navigator: nnx.State
    stage: int | None = None
    trained_on: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Writes the file `FILE` into `folder`, which holds the backbone."""
        rms = jnp.asarray(self.thought_rms, jnp.float32)
        parts = {"navigator": self.navigator, "memory": self.memory, "thought_rms": rms}
        arrays = {name: np.asarray(leaf) for name, leaf in _named(parts).items()}
        trained = {"config": asdict(self.run), "phase": self.phase, "step": self.step, "stage": self.stage}
        trained["trained_on"] = list(self.trained_on)
        write_tensors(arrays, folder / FILE, METADATA | {_SETTINGS: json.dumps(trained)})


def read_sidecar(folder: Path, hidden_size: int) -> Sidecar | None:
    """Reads the file `FILE` in `folder`; None if there is none.

    Raises a UserError if it cannot be read, is damaged, or does not fit its settings or a backbone of this hidden size.
    """
    file = folder / FILE
    if not is_there(file):
        return None
    with _opened(file) as (opened, trained):
        arrays = {current_name(name): opened.get_tensor(name) for name in opened.keys()}
        # Older exports name the phase `stage`.
        phase, step = trained.get("phase") or trained["stage"], trained["step"]
        run = parse_config(trained["config"])
        if phase not in get_args(Phase):
            raise ValueError(f"its phase is {str(phase)[:40]!r}")
        if type(step) is not int or step < 0:
            raise ValueError(f"its step is {str(step)[:40]!r}")
        # Older exports do not say which stage of the curriculum was the last one trained.
        stage = None if phase == "ppo" else trained.get("stage", run.supervised(phase).stages[-1])
        if stage is not None and (type(stage) is not int or stage < 0):
            raise ValueError(f"its stage is {str(stage)[:40]!r}")

    def empty_parts() -> dict[str, Any]:
        navigator = nnx.split(Navigator(run.thoughts, hidden_size, nnx.Rngs(0)))[1]
        return {"navigator": navigator, "memory": empty_memory(run, phase), "thought_rms": jnp.ones(())}

    template = jax.eval_shape(empty_parts)
    wanted = _named(template)
    for name in sorted(wanted.keys() | arrays.keys()):
        leaves = wanted.get(name), arrays.get(name)
        here, there = ("nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)
        if here != there:
            raise UserError(
                f"{file}: {name} is {there}, but its settings and a backbone of width {hidden_size} ask for {here}: it "
                "belongs to another model."
            )
    parts = jax.tree.unflatten(jax.tree.structure(template), [jnp.asarray(arrays[name]) for name in wanted])
    trained_on = tuple(map(str, trained.get("trained_on") or (run.data.train,)))
    rms = float(parts["thought_rms"])
    return Sidecar(run, phase, step, rms, parts["memory"], parts["navigator"], stage, trained_on)


def settings_of_export(folder: Path) -> RunConfig | None:
    """Settings of the run in the file `FILE` of a folder, without its arrays; None if there is no such file.

    Raises a UserError if it cannot be read or is damaged.
    """
    file = folder / FILE
    if not is_there(file):
        return None
    with _opened(file) as (_, trained):
        return parse_config(trained["config"])


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The file's arrays and metadata; a UserError names it for whatever they lack, in the block too."""
    try:
        with safe_open(file, framework="numpy") as opened:
            yield opened, json.loads((opened.metadata() or {})[_SETTINGS])
    except KeyError as error:
        raise _damaged(file, f"its metadata lack {error}") from None
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise _damaged(file, first_line(error)) from None


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file} is damaged ({reason}): export the run again, or remove it.")


def exported_run(run: RunConfig, dtype: str) -> RunConfig:
    """Settings of an exported run: a plain backbone, stored and computed in `dtype`."""
    model = replace(run.model, weight_dtype=dtype, compute_dtype=dtype)
    whole = {name: replace(getattr(run, name), trainable="all") for name in get_args(Phase)}
    return replace(run, model=model, **whole)


def empty_memory(run: RunConfig, phase: str) -> MemoryBank | None:
    """The memory bank at the start of a phase, or None."""
    slots = run.ppo.memory_slots if phase == "ppo" else 0
    return empty_bank(slots, run.thoughts.reasoning_dim) if slots else None


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by path, without the component from an NNX variable to its value."""
    return {name.removesuffix(".value"): leaf for name, leaf in named_arrays(tree).items()}
