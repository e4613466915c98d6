"""A run as a Hugging Face directory: the Llama for everyone, and beside it what makes it think."""

from pathlib import Path

import jax.numpy as jnp

from longshot_jax.data.tokens import Tokens
from longshot_jax.model.huggingface import save_weights
from longshot_jax.model.storage import plain_weights
from longshot_jax.training.saved import SavedReasoner


def to_hf(checkpoint: str | Path, folder: str | Path, dtype: str = "float32") -> None:
    """Writes the best (else the newest) checkpoint as a Hugging Face directory, tokenizer included.

    `transformers` loads the Llama, adapters merged into its matrices. Navigator, memory bank and stop head lie in a
    file of their own beside it (`training.companion`), with which the directory thinks as the run did.

    Args:
      checkpoint: a run folder.
      folder: new, empty, or an earlier export.
      dtype: of the Llama's tensors, float32 or bfloat16.

    Raises:
      UserError: the checkpoint cannot be read or holds no Llama, or the folder cannot be written.
    """
    saved = SavedReasoner.find(checkpoint)
    weights = saved.weights()
    llama = plain_weights(weights["llama"], saved.run.lora, jnp.dtype(dtype))
    companion = None if saved.is_llama_alone else saved.companion(weights)
    tokens = Tokens.find(Path(checkpoint) / "tokenizer")

    def write_beside(partial: Path) -> None:
        if companion is not None:
            companion.write(partial)
        if tokens is not None:
            tokens.save(partial)

    save_weights(
        llama,
        saved.llama,
        folder,
        dtype=dtype,
        eos_token_id=tokens.end if tokens else None,
        beside=write_beside,
    )
