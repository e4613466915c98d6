"""What a trained reasoner is besides its Llama, in one file beside the Llama's Hugging Face weights.

`longshot.safetensors` holds the navigator (stop and value heads included), the memory bank and the rms of thoughts, and
in its metadata the settings of the run, its stage and step, as JSON. The latent tokens are in the tokenizer. Programs
that know nothing of it, such as `transformers`, do not read the file.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from longshot_jax.config import RunConfig, parse_config
from longshot_jax.errors import UserError
from longshot_jax.model.huggingface import METADATA
from longshot_jax.thoughts.memory import MemoryBank, empty_bank
from longshot_jax.thoughts.navigator import Navigator, NavigatorConfig

FILE = "longshot.safetensors"
_SETTINGS = "trained"


@dataclass(frozen=True)
class Companion:
    """How a reasoner was trained, and what of it is not its Llama.

    Attributes:
      run: settings; stage, step: where in the run.
      thought_rms: of noise-free thoughts at the start of PPO; 1 before.
      memory: the bank, or None.
      navigator: weights.
    """

    run: RunConfig
    stage: str
    step: int
    thought_rms: float
    memory: MemoryBank | None
    navigator: nnx.State

    def write(self, folder: Path) -> None:
        """Writes the file into a folder."""
        arrays = {name: np.asarray(leaf) for name, leaf in _named(self._arrays()).items()}
        trained = {"config": asdict(self.run), "stage": self.stage, "step": self.step}
        save_file(arrays, folder / FILE, METADATA | {_SETTINGS: json.dumps(trained)})

    def _arrays(self) -> dict[str, Any]:
        rms = jnp.asarray(self.thought_rms, jnp.float32)
        return {"navigator": self.navigator, "memory": self.memory, "thought_rms": rms}


def read_companion(folder: Path, hidden_size: int) -> Companion | None:
    """The file in a folder; None where there is none.

    Raises:
      UserError: it is damaged, or does not fit its settings or a Llama of this size.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            trained = json.loads((opened.metadata() or {})[_SETTINGS])
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}
            stage, step, config = trained["stage"], trained["step"], trained["config"]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error}): export the run again, or remove it.") from None
    run = parse_config(config)
    template = jax.eval_shape(lambda: _template(run, stage, hidden_size))
    wanted = _named(template)
    for name in sorted(wanted.keys() | arrays.keys()):
        here = list(wanted[name].shape) if name in wanted else "nothing"
        there = list(arrays[name].shape) if name in arrays else "nothing"
        if here != there:
            raise UserError(
                f"{file}: {name} is {there}, but its settings and a Llama of width {hidden_size} ask for {here}: it "
                "belongs to another Llama."
            )
    leaves = [jnp.asarray(arrays[name]) for name in wanted]
    parts = jax.tree.unflatten(jax.tree.structure(template), leaves)
    rms = float(parts["thought_rms"])
    return Companion(run, stage, step, rms, parts["memory"], parts["navigator"])


def exported_run(run: RunConfig, dtype: str | None) -> RunConfig:
    """The settings of an exported run: its Llama is plain; arithmetic in `dtype`, or as in the run."""
    model = replace(
        run.model, weight_dtype=dtype or "float32", compute_dtype=dtype or run.model.compute_dtype
    )
    whole = {name: replace(getattr(run, name), trainable="all") for name in ("curriculum", "ppo")}
    return replace(run, model=model, **whole)


def same_kind(theirs: NavigatorConfig, ours: NavigatorConfig) -> bool:
    """Whether weights of one navigator serve the other: the first logit of stopping is no property of them."""
    return replace(theirs, stop_bias=ours.stop_bias) == ours


def empty_memory(run: RunConfig, stage: str) -> MemoryBank | None:
    """The bank with which a stage starts, or None."""
    slots = run.ppo.memory_slots if stage == "ppo" else 0
    return empty_bank(slots, run.thoughts.reasoning_dim) if slots else None


def _template(run: RunConfig, stage: str, hidden_size: int) -> dict[str, Any]:
    navigator = nnx.split(Navigator(run.thoughts, hidden_size, nnx.Rngs(0)))[1]
    return {"navigator": navigator, "memory": empty_memory(run, stage), "thought_rms": jnp.ones(())}


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by their path, names joined by dots, without the step from a variable to its value."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
