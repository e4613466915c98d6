"""Hugging Face directories to checkpoints of this package, and runs to Hugging Face directories.

A converted checkpoint is step 0 of a run folder and holds the backbone's parameters alone: no navigator, no optimizer.
Like that of every run that can be exported, its metadata has the keys `backbone` (fields of `LlamaConfig`) and
`backbone_path` (path of the backbone's parameters in the saved state: `trainable.backbone` or `frozen.backbone`). The
tokenizer, including the latent tokens, is in the folder `tokenizer` beside the checkpoints.
"""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from longshot_jax.checkpoints.checkpoint import Checkpoints, Which
from longshot_jax.checkpoints.initialize import copied_rows, embedding_rows, latent_rows_trained
from longshot_jax.checkpoints.run_folder import prepare_workdir
from longshot_jax.checkpoints.saved_reasoner import TRAINED_ON, SavedReasoner
from longshot_jax.checkpoints.sidecar import BESIDE, FILE, LATENT_ROWS, NOTHING, TRAINED, UNTRAINED, read_sidecar
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.data.tokenizer_files import TokenizerFiles, files_of
from longshot_jax.errors import UserError
from longshot_jax.files import local_path, unwritable
from longshot_jax.model.huggingface import load_weights, read_config, save_weights
from longshot_jax.model.huggingface.weights import refuse_foreign
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.storage import float_dtype, plain_weights

_TRAINED = "trainable.backbone"


def from_hf(folder: str | Path, out: str | Path) -> bool:
    """Writes the Llama in a Hugging Face directory as a checkpoint into a new run folder, the Llama alone.

    Returns whether the directory is an export of a run, whose navigator is left out.

    The embedding table is extended for the latent tokens of the tokenizer; without a tokenizer it is copied unchanged.
    generation_config.json and the token ids of config.json go into the folder `tokenizer`, from where `to_hf` writes them.

    Raises:
      UserError: the directory cannot be read, its tokenizer belongs to another model, or `out` holds a tokenizer or
        checkpoints, or cannot be written.
    """
    folder, out = local_path(folder, "DIR"), local_path(out, "OUT")
    _refuse_taken(out)  # before the folder is made and locked
    config = read_config(folder)
    tokenizer = Tokenizer.find(folder)
    rows = embedding_rows(config.vocab_size, tokenizer)
    with prepare_workdir(out, "choose a new folder"):
        _refuse_taken(out)  # by another conversion that has ended meanwhile
        return _convert(folder, out, config, tokenizer, rows)


def _refuse_taken(out: Path) -> None:
    for name in ("checkpoints", "tokenizer"):
        if os.path.lexists(out / name):
            raise UserError(f"{out} already holds {name}; choose a new folder")


def _convert(folder: Path, out: Path, config: LlamaConfig, tokenizer: Tokenizer | None, rows: int) -> bool:
    """Writes tokenizer and checkpoint into a run folder that is locked; returns whether a navigator was left out."""
    starts = copied_rows(folder, tokenizer)
    params = load_weights(folder, config, embedding_rows=rows, copied_rows=starts)
    metadata: dict[str, Any] = {"backbone": asdict(replace(config, vocab_size=rows)), "backbone_path": _TRAINED}
    metadata[LATENT_ROWS] = TRAINED if latent_rows_trained(folder) else UNTRAINED
    if sidecar := read_sidecar(folder, config.hidden_size):  # an export of a run
        metadata[TRAINED_ON] = list(sidecar.trained_on)
    # Before the checkpoint, so that a folder with a checkpoint is complete.
    if tokenizer:
        tokenizer.save(out / "tokenizer")
    else:
        try:
            TokenizerFiles.read(files_of(folder)).write(out / "tokenizer")
        except OSError as error:
            raise unwritable(out, error, "choose another folder") from None
    with Checkpoints(out, keep_last=1, keep_best=0) as checkpoints:
        if not checkpoints.save(0, {"trainable": {"backbone": params}}, metadata):
            raise UserError(f"{out} already holds checkpoints; choose a new folder")
    return sidecar is not None


def to_hf(
    checkpoint: str | Path, folder: str | Path, dtype: str = "float32", which: Which | None = None
) -> SavedReasoner:
    """Writes a checkpoint as a Hugging Face directory with its tokenizer; returns what it read.

    `transformers` loads the backbone, with adapters merged into its matrices. Navigator and memory bank are in a
    separate file (`checkpoints.sidecar`); `load_pretrained` restores the whole reasoner from the directory. README.md,
    tokenizer.model and LICENSE of an earlier export stay as they are.

    Args:
      checkpoint: run folder.
      folder: new, empty, or an earlier export.
      dtype: dtype of the backbone's tensors, float32 or bfloat16, by name or short name (`fp32`, `bf16`).
      which: the checkpoint; None is the best, or the newest if none has a metric.

    Raises:
      UserError: the checkpoint cannot be read or holds no model, or the folder cannot be written.
    """
    checkpoint, folder = local_path(checkpoint, "CKPT"), local_path(folder, "DIR").resolve()
    dtype = float_dtype(dtype)
    saved = SavedReasoner.find(checkpoint, which)
    refuse_foreign(folder)
    source = saved.frozen_source
    if source is not None and source.folder.resolve() == folder:
        raise UserError(
            f"{folder} holds the frozen weights that the checkpoints in {checkpoint} need; choose another folder"
        )
    if saved.is_backbone_alone and (folder / FILE).exists():
        raise UserError(
            f"{folder} holds an export with a navigator ({FILE}), and {checkpoint} a Llama without one, which would replace "
            "it; choose another folder"
        )
    params = saved.params()
    backbone = plain_weights(params["backbone"], saved.run.lora, jnp.dtype(dtype))
    sidecar = None if saved.is_backbone_alone else saved.sidecar(params)
    tokenizer = Tokenizer.find(checkpoint / "tokenizer")
    alone = TokenizerFiles.read(files_of(checkpoint / "tokenizer"))
    marks = {BESIDE: NOTHING if sidecar is None else FILE}
    if (
        latent_rows := saved.metadata.get(LATENT_ROWS) if sidecar is None else TRAINED
    ):  # earlier conversions do not know
        marks[LATENT_ROWS] = latent_rows

    def write_beside(partial: Path) -> None:
        if sidecar is not None:
            sidecar.write(partial)
        if tokenizer is not None:
            tokenizer.save(partial)
        else:
            alone.write(partial)

    save_weights(
        backbone,
        saved.backbone,
        folder,
        dtype=dtype,
        token_ids=tokenizer.token_ids if tokenizer else alone.token_ids,
        beside=write_beside,
        marks=marks,
    )
    return saved
