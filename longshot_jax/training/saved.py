"""The reasoner in a checkpoint: how its run made it, and its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from longshot_jax.config import RunConfig, parse_config
from longshot_jax.conversion import llama_from_json
from longshot_jax.errors import UserError
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.model.sharding import placed, shardings
from longshot_jax.model.storage import joined
from longshot_jax.thoughts.navigator import Reasoner
from longshot_jax.training.checkpoint import Checkpoints, Which
from longshot_jax.training.companion import Companion, empty_memory
from longshot_jax.training.optimizer import is_trainable


def make_reasoner(run: RunConfig, llama: LlamaConfig) -> Reasoner:
    """The reasoner of a run with random weights, around a Llama of the given shape."""
    rngs, model = nnx.Rngs(run.seed), run.model
    backbone = Llama(
        llama,
        rngs,
        compute_dtype=jnp.dtype(model.compute_dtype),
        weight_dtype=jnp.dtype(model.weight_dtype),
        remat=model.remat,
        remat_keeps=model.remat_keeps,
        attention=model.attention,
        lora=run.lora,
    )
    return Reasoner(backbone, run.thoughts, rngs)


@dataclass(frozen=True)
class SavedReasoner:
    """What a checkpoint says of its reasoner.

    Attributes:
      folder: of the run. which: the checkpoint. host: its JSON part.
      run: its settings; the defaults for a Llama alone, which `convert.py from-hf` writes.
      llama: its shape.
    """

    folder: Path
    which: Which
    host: dict[str, Any]
    run: RunConfig
    llama: LlamaConfig

    @classmethod
    def find(cls, folder: str | Path, which: Which | None = None) -> "SavedReasoner":
        """The checkpoint asked for; None is the best, or the newest where none has a metric.

        Raises:
          UserError: the folder holds no such checkpoint, or one without a Llama.
        """
        with Checkpoints.reader(folder) as checkpoints:
            if which is None:
                which = "latest" if checkpoints.best_step is None else checkpoints.best_step
            host = checkpoints.host(which)
        if "llama" not in host or "llama_path" not in host:
            raise UserError(f"{folder} holds no Llama: give the folder of a run.")
        run = parse_config(host["config"]) if "config" in host else RunConfig()
        return cls(Path(folder), which, host, run, llama_from_json(host["llama"]))

    @property
    def is_llama_alone(self) -> bool:
        """Whether the checkpoint has no navigator."""
        return "config" not in self.host

    def companion(self, weights: nnx.State) -> Companion:
        """All of the reasoner that is not its Llama; `weights` are those of this checkpoint."""
        run, stage = self.run, self.host["stage"]
        rms, memory = 1.0, jax.eval_shape(lambda: empty_memory(run, stage))
        with Checkpoints.reader(self.folder) as checkpoints:
            if stage == "ppo":
                scalar = jax.ShapeDtypeStruct((), jnp.float32)
                rms = float(checkpoints.restore_partial(scalar, "thought_rms", self.which)[0])
            if memory is not None:
                memory, _ = checkpoints.restore_partial(memory, "memory", self.which)
        return Companion(run, stage, self.host["step"], rms, memory, weights["navigator"])

    def weights(self, mesh: Mesh | None = None) -> nnx.State:
        """The reasoner's weights, or `llama` alone, on the devices of a mesh, else on the first local one.

        Raises:
          UserError: the checkpoint is damaged or does not fit its own settings.
        """
        abstract = nnx.split(nnx.eval_shape(lambda: make_reasoner(self.run, self.llama)))[1]
        if self.is_llama_alone:
            parts = {self.host["llama_path"]: abstract["llama"]}
        else:
            chosen = is_trainable(self.run.trainable(self.host["stage"]))
            parts = dict(zip(("trainable", "frozen"), nnx.split_state(abstract, chosen, ...), strict=True))
        read = {}
        with Checkpoints.reader(self.folder) as checkpoints:
            for name, part in parts.items():
                if not jax.tree.leaves(part):
                    continue
                if mesh is not None:
                    part = placed(part, shardings(part, mesh))
                read[name], _ = checkpoints.restore_partial(part, name, self.which)
        if self.is_llama_alone:
            return joined(llama=read[self.host["llama_path"]])
        return nnx.merge_state(*read.values())
