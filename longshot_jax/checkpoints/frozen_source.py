"""Weights outside of a run: the folder that a backbone came from, and frozen weights that a checkpoint names.

A checkpoint of a run whose backbone was frozen from its start holds no weights that lie in a folder of their own: a
Hugging Face directory, or weights that `convert.py from-hf` wrote. It names the folder, and the fingerprint of every
array in it. Adapters and navigator are of use over these weights alone, so others are refused, wherever they lie.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.named_arrays import describe, named_arrays
from longshot_jax.config import RunConfig
from longshot_jax.config.declarations import flatten
from longshot_jax.data.hub import hub_reachable
from longshot_jax.errors import UserError, first_line, shown
from longshot_jax.files import has_folder, local_path
from longshot_jax.model.huggingface import load_weights, read_config
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.lora import is_adapter
from longshot_jax.model.storage import cast_like, merge_states

KEY = "frozen_source"  # in a checkpoint's metadata


def model_folder(run: RunConfig) -> Path | None:
    """The Hugging Face directory of `model.source`, downloaded if that is a hub name; None if the run does not use it.

    Raises a UserError if the source is neither a directory nor a hub name, if its download fails, or if its config.json is
    not that of a Llama.
    """
    if run.model.source == "scratch" or run.initialize_from:
        return None
    folder = _source_folder(run.model.source)
    read_config(folder)  # before the tokenizer, which may not load where the model is of another kind
    return folder


# Not the weights a second time, which some models have in folders or in Meta's form.
_FETCHED = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]


def is_hub_name(source: str) -> bool:
    """Whether `model.source` may be a name on the hub; a relative path with one slash may be too."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def _source_folder(source: str) -> Path:
    """The directory that `model.source` names, downloaded if it is a hub name."""
    folder = local_path(source, "config.model.source")
    if folder.is_dir():
        return folder
    if not is_hub_name(source):
        raise UserError(
            f"config.model.source {shown(source)} is not a directory: give a Hugging Face folder (if it was moved, its new "
            "place, also to continue a run), a hub name or 'scratch'."
        )
    import huggingface_hub  # takes a second to import

    offline = not hub_reachable()
    fetch = partial(huggingface_hub.snapshot_download, source, local_files_only=offline)
    try:
        first = fetch(allow_patterns=["config.json"])
        read_config(first)  # before gigabytes of a model that cannot be read
        fetched = fetch(allow_patterns=_FETCHED, ignore_patterns=["*/*", "consolidated*", "adapter_*"])
    except UserError:
        raise
    except Exception as error:  # of many types
        reason = "the hub is out of reach and it was not downloaded before" if offline else first_line(error)
        raise UserError(
            f"config.model.source {shown(source)} is not a directory, and {reason}: give a local Hugging Face directory."
        ) from None
    return Path(fetched)


@dataclass(frozen=True)
class FrozenSource:
    """The folder of a run's frozen weights.

    Attributes:
      folder: absolute path.
      setting: the setting that names the folder, `model.source` or `initialize_from`.
      arrays: shape, dtype and fingerprint of each array, by name: of a Hugging Face directory as it is read, quantised if
        the run's backbone is; of converted weights as they are stored.
      copied_rows: (row, stored row) of the tokens that were added, see `load_weights`.
    """

    folder: Path
    setting: str
    arrays: Mapping[str, Any]
    copied_rows: tuple[tuple[int, int], ...] = ()

    @classmethod
    def find(cls, metadata: Mapping[str, Any], stored: RunConfig, named: RunConfig, run: Path) -> "FrozenSource | None":
        """The folder that a checkpoint names, at its present place; None if the checkpoint holds all of its weights.

        Args:
          metadata: of the checkpoint. stored: settings in it.
          named: present settings. A setting that differs there names the folder's new place.
          run: the run folder, for errors.

        Raises a UserError if the folder is not there.
        """
        if KEY not in metadata:
            return None
        source = cls(**metadata[KEY] | {"folder": Path(metadata[KEY]["folder"])})
        before, now = (flatten(settings)[source.setting] for settings in (stored, named))
        # One that may not be entered is named below, unless there is another.
        if now == before and os.access(source.folder, os.X_OK) and source.folder.is_dir():
            return source
        try:  # a hub name is downloaded again
            named_here = source.setting == "model.source"
            place = _source_folder(now) if named_here else local_path(now, f"config.{source.setting}")
        except UserError:
            if now != before:
                raise
            place = local_path(source.folder, f"config.{source.setting}")
        if not place.is_dir():
            raise UserError(
                f"{run} does not hold the frozen weights that its checkpoints belong to, and there is no folder {place}: "
                f"{source._advice(run)}."
            )
        return replace(source, folder=place.absolute())

    def to_json(self) -> dict[str, Any]:
        """The entry `KEY` of a checkpoint's metadata."""
        return asdict(self) | {"folder": str(self.folder)}

    def load(self, backbone: LlamaConfig, dtype: str, abstract: nnx.State, run: Path) -> nnx.State:
        """Reads the weights and compares them with what the checkpoint says.

        Args:
          backbone: shape in the checkpoint. dtype, abstract: see `load_backbone`.
          run: the run folder, for errors.

        Raises a UserError if the folder cannot be read, or holds another model or other weights.
        """
        theirs = _shape_in(self.folder)
        if not _is_converted(self.folder) and theirs.vocab_size < backbone.vocab_size:
            theirs = replace(theirs, vocab_size=backbone.vocab_size)  # rows for latent tokens are added
        ours, found = asdict(backbone), asdict(theirs)
        changed = [f"{name} is {found[name]} and was {ours[name]}" for name in ours if found[name] != ours[name]]
        if not changed:
            state = load_backbone(self.folder, backbone, dtype, abstract, dict(self.copied_rows))
            now = described(self.folder, state)
            changed = [f"{name} has other values" for name in self.arrays if now.get(name) != self.arrays[name]]
        if changed:
            raise UserError(
                f"The weights in {self.folder} are not the frozen weights that the checkpoints in {run} belong to "
                f"({changed[0]}): {self._advice(run)}."
            )
        return state

    def _advice(self, run: Path) -> str:
        return (
            f"bring them back, or name the folder that holds them as config.{self.setting}, on the command line of a "
            f"training and in {run / 'config.json'} for all other commands"
        )


def split_frozen(frozen: nnx.State) -> tuple[nnx.State, nnx.State]:
    """Of a reasoner's frozen parameters, those that a checkpoint holds (adapters), and the backbone's weights."""
    held, outside = nnx.split_state(frozen, is_adapter, ...)
    return held, outside["backbone"]


def join_frozen(held: nnx.State, backbone: nnx.State) -> nnx.State:
    """The inverse of `split_frozen`."""
    return nnx.merge_state(held, merge_states(backbone=backbone))


def load_backbone(
    folder: Path, backbone: LlamaConfig, dtype: str, abstract: nnx.State, copied_rows: Mapping[int, int] | None = None
) -> nnx.State:
    """The backbone in a Hugging Face directory or in a folder of converted weights; a UserError if it cannot be read.

    Args:
      backbone: its shape, with all embedding rows.
      dtype: `model.weight_dtype`.
      abstract: parameters of the result, without adapters, with their shardings; without, the default device.
      copied_rows: see `load_weights`; converted weights were made with them.
    """
    placed = jax.tree.leaves(abstract)[0].sharding is not None
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract) if placed else None
    if not _is_converted(folder):
        stored = replace(backbone, vocab_size=read_config(folder).vocab_size)
        rows = {"embedding_rows": backbone.vocab_size, "copied_rows": copied_rows}
        return load_weights(folder, stored, jnp.dtype(dtype), **rows, sharding=places)

    def wide(variable: nnx.Variable) -> nnx.Variable:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), variable)

    plain = {path: wide(leaf) for path, leaf in nnx.to_flat_state(abstract) if not str(path[-1]).endswith("_scale")}
    with Checkpoints.reader(folder) as checkpoints:
        path = checkpoints.metadata()["backbone_path"]
        state, _ = checkpoints.restore_partial(nnx.from_flat_state(plain), path, "latest")
    if dtype == "float32":
        return state
    return jax.jit(lambda state: cast_like(state, abstract), out_shardings=places)(state)


def described(folder: Path, loaded: nnx.State | None = None) -> dict[str, Any]:
    """Shape, dtype and fingerprint of the arrays in a folder; `loaded` is what was read from a Hugging Face directory."""
    if _is_converted(folder):
        with Checkpoints.reader(folder) as checkpoints:
            found = checkpoints.arrays(checkpoints.metadata()["backbone_path"])
    else:
        found = {name: describe(leaf, fingerprint=True) for name, leaf in named_arrays(loaded).items()}
    return {name.removesuffix(".value"): entry for name, entry in found.items()}


def _is_converted(folder: Path) -> bool:
    return has_folder(folder / "checkpoints")


def _shape_in(folder: Path) -> LlamaConfig:
    """The shape of the backbone in a folder; a UserError if it holds none, or a run in place of converted weights."""
    if not _is_converted(folder):
        return read_config(folder)
    with Checkpoints.reader(folder) as checkpoints:
        metadata = checkpoints.metadata()
    if "config" in metadata or "backbone" not in metadata:
        raise UserError(f"{folder} holds a run: give the folder of converted weights or a Hugging Face directory.")
    return LlamaConfig.from_json(metadata["backbone"])
