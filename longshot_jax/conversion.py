"""Hugging Face directories to checkpoints of this package; `export` goes back.

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

from longshot_jax.data.tokens import LATENT_TOKENS, Tokens
from longshot_jax.errors import UserError
from longshot_jax.model.huggingface import load_weights, read_config
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.rope import RopeScaling
from longshot_jax.training.checkpoint import Checkpoints

_TRAINED = "trainable.llama"


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
    tokens = Tokens.find(folder)
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
