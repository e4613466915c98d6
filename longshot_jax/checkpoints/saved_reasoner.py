"""The reasoner in a checkpoint: the settings of its run, and its parameters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from longshot_jax.checkpoints.checkpoint import Checkpoints, Which
from longshot_jax.checkpoints.frozen_source import FrozenSource, split_frozen
from longshot_jax.checkpoints.run_folder import read_settings
from longshot_jax.checkpoints.sidecar import Sidecar, empty_memory
from longshot_jax.config import RunConfig, parse_config
from longshot_jax.errors import UserError
from longshot_jax.files import local_path
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import shardings, with_sharding
from longshot_jax.model.storage import merge_states
from longshot_jax.thoughts.reasoner import is_trainable, make_reasoner

# In a checkpoint's metadata.
CODE, DATA, TRAINED_ON = "code", "data", "trained_on"


@dataclass(frozen=True)
class SavedReasoner:
    """The reasoner of the checkpoint of `step` in a run folder.

    `run` has the default settings for a backbone alone, as `convert.py from-hf` writes it.
    """

    folder: Path
    step: int
    metadata: dict[str, Any]
    run: RunConfig
    backbone: LlamaConfig

    @classmethod
    def find(cls, folder: str | Path, which: Which | None = None) -> "SavedReasoner":
        """Finds a checkpoint; None is the best, or the newest if none has a metric.

        Raises a UserError if the folder holds no such checkpoint, or the checkpoint has no backbone.
        """
        folder = local_path(folder, "the run folder")
        with Checkpoints.reader(folder) as checkpoints:
            if which is None:
                which = "latest" if checkpoints.best_step is None else checkpoints.best_step
            step = checkpoints.step_of(which)  # a run at work may write another before the rest is read
            metadata = checkpoints.metadata(step)
        if "backbone" not in metadata or "backbone_path" not in metadata:
            raise UserError(f"{folder} holds no model: give the folder of a run.")
        run = parse_config(metadata["config"]) if "config" in metadata else RunConfig()
        return cls(folder, step, metadata, run, LlamaConfig.from_json(metadata["backbone"]))

    @property
    def is_backbone_alone(self) -> bool:
        """Whether the checkpoint has no navigator."""
        return "config" not in self.metadata

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Training problems of the run, and of each earlier run that its parameters started from."""
        return tuple(self.metadata.get(TRAINED_ON) or (() if self.is_backbone_alone else (self.run.data.train,)))

    @property
    def frozen_source(self) -> FrozenSource | None:
        """The folder of the frozen weights that the checkpoint does not hold; None if it holds all.

        config.json of the run folder may name a new place. Raises a UserError if the folder is not there.
        """
        named = read_settings(self.folder) if (self.folder / "config.json").exists() else self.run
        return FrozenSource.find(self.metadata, self.run, named, self.folder)

    def sidecar(self, params: nnx.State) -> Sidecar:
        """Everything of the reasoner except its backbone; `params` are the result of `self.params`."""
        run, phase = self.run, self.metadata["phase"]
        rms, memory = 1.0, jax.eval_shape(lambda: empty_memory(run, phase))
        with Checkpoints.reader(self.folder) as checkpoints:
            if phase == "ppo" or run.samples_thoughts(phase):
                scalar = jax.ShapeDtypeStruct((), jnp.float32)
                rms = float(checkpoints.restore_partial(scalar, "thought_rms", self.step)[0])
            if memory is not None:
                memory, _ = checkpoints.restore_partial(memory, "memory", self.step)
        stage = (
            None if phase == "ppo" else run.supervised(phase).stages[self.metadata.get("progress", {}).get("stage", -1)]
        )
        return Sidecar(run, phase, self.metadata["step"], rms, memory, params["navigator"], stage, self.trained_on)

    def params(self, mesh: Mesh | None = None) -> nnx.State:
        """The reasoner's parameters, or `backbone` alone, as stored, on the devices of `mesh` or on the host.

        Raises a UserError if the checkpoint is damaged or does not fit its own settings, or if the frozen weights that
        it belongs to are not there or are others.
        """
        source, outside = self.frozen_source, None
        abstract = nnx.split(nnx.eval_shape(lambda: make_reasoner(self.run, self.backbone)))[1]
        if self.is_backbone_alone:
            parts = {self.metadata["backbone_path"]: abstract["backbone"]}
        else:
            chosen = is_trainable(self.run.trainable(self.metadata["phase"]))
            parts = dict(zip(("trainable", "frozen"), nnx.split_state(abstract, chosen, ...), strict=True))
        if source is not None:
            parts["frozen"], outside = split_frozen(parts["frozen"])

        def placed(part: nnx.State) -> nnx.State:
            places = jax.tree.map(lambda _: _host(), part) if mesh is None else shardings(part, mesh)
            return with_sharding(part, places)

        restored = []
        with Checkpoints.reader(self.folder) as checkpoints:
            for path, part in parts.items():
                if jax.tree.leaves(part):
                    restored.append(checkpoints.restore_partial(placed(part), path, self.step)[0])
        if source is not None and outside is not None:
            weights = source.load(self.backbone, self.run.model.weight_dtype, placed(outside), self.folder)
            restored.append(merge_states(backbone=weights))
        return merge_states(backbone=restored[0]) if self.is_backbone_alone else nnx.merge_state(*restored)


def _host() -> SingleDeviceSharding:
    """The host, which may hold more than an accelerator; the first local device where JAX may not use the host."""
    try:
        return SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return SingleDeviceSharding(jax.local_devices()[0])
