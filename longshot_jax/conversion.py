"""Hugging Face directories to checkpoints of this package, and back.

A converted checkpoint is step 0 of a run folder that holds the weights of the Llama alone: no navigator, no
optimizer. Its JSON part, like that of any run that can be exported, has two keys for this file:

- `llama`: the fields of `LlamaConfig`;
- `llama_path`: where the Llama's weights stand in the saved state, names joined by dots (`trainable.llama` where
  the backbone is trained, `frozen.llama` where it is not).

The tokenizer, with the latent tokens in it, stands in the folder `tokenizer` beside the checkpoints.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from longshot_jax.data.tokens import LATENT_TOKENS, Tokens
from longshot_jax.errors import UserError
from longshot_jax.model.huggingface import load_weights, read_config, save_weights
from longshot_jax.model.huggingface_layout import abstract_state
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.rope import RopeScaling
from longshot_jax.training.checkpoint import Checkpoints

_TRAINED = "trainable.llama"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def llama_to_json(config: LlamaConfig) -> dict[str, Any]:
    """A Llama's shape as JSON, for the checkpoint's `llama`."""
    return asdict(config)


def llama_from_json(content: dict[str, Any]) -> LlamaConfig:
    """The inverse of `llama_to_json`."""
    fields: dict[str, Any] = dict(content)
    if fields["rope_scaling"] is not None:
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    return LlamaConfig(**fields)


def from_hf(folder: str | Path, out: str | Path) -> None:
    """Writes the Llama in a Hugging Face directory as a checkpoint into a new run folder.

    Rows are added to the embeddings where the tokenizer with its latent tokens needs them; without a tokenizer in
    the directory the weights are taken as they are.

    Raises:
      UserError: the directory cannot be read, its tokenizer is another model's, or `out` already holds checkpoints or cannot be written.
    """
    folder, out = Path(folder), Path(out)
    if (out / "checkpoints").exists():
        raise UserError(f"{out} already holds checkpoints; choose a new folder")
    config = read_config(folder)
    tokens = _tokens_in(folder)
    if tokens:
        # Only the latent tokens may lie beyond the model's own rows: otherwise it is another model's tokenizer.
        tokens.check_fits(config.vocab_size + len(LATENT_TOKENS))
    rows = max(config.vocab_size, tokens.vocabulary_size) if tokens else config.vocab_size
    weights = load_weights(folder, config, embedding_rows=rows)
    host = {"llama": llama_to_json(replace(config, vocab_size=rows)), "llama_path": _TRAINED}
    if tokens:
        tokens.save(out / "tokenizer")  # first: a checkpoint is there only once all is
    with Checkpoints(out, keep_last=1, keep_best=0) as checkpoints:
        checkpoints.save(0, {"trainable": {"llama": weights}}, host)


def to_hf(checkpoint: str | Path, folder: str | Path, dtype: str = "float32") -> None:
    """Writes the best (else the newest) checkpoint's Llama as a Hugging Face directory, tokenizer included.

    Raises:
      UserError: the checkpoint cannot be read or holds no Llama, or the folder cannot be written.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    with Checkpoints.reader(checkpoint) as checkpoints:
        which = "latest" if checkpoints.best_step is None else "best"
        host = checkpoints.host(which)
        if "llama" not in host or "llama_path" not in host:
            raise UserError(f"{checkpoint} holds no Llama that could be exported; give the folder of a run")
        config = llama_from_json(host["llama"])
        template: nnx.State[Any, Any] = abstract_state(config, jnp.dtype(host.get("llama_dtype", "float32")))
        weights, _ = checkpoints.restore_partial(template, host["llama_path"], which)
    tokens = _tokens_in(checkpoint / "tokenizer")
    save_weights(weights, config, folder, dtype=dtype, eos_token_id=tokens.end if tokens else None)
    if tokens:
        tokens.save(folder)


def _tokens_in(folder: Path) -> Tokens | None:
    """The tokenizer in a folder, None where there is none."""
    return Tokens.load(str(folder)) if any((folder / name).exists() for name in _TOKENIZER_FILES) else None
