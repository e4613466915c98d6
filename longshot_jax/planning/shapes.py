"""The shape of a run's Llama without its weights: a plan needs no download."""

import re
from dataclasses import replace
from pathlib import Path

from longshot_jax.config import RunConfig
from longshot_jax.data.tokens import Tokens
from longshot_jax.errors import UserError
from longshot_jax.model.huggingface_config import read_config
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.training.setup import llama_from_scratch, shape_of_other_run


def _llama3(hidden: int, inner: int, layers: int, heads: int, head_dim: int = 128, tied: bool = False):
    return LlamaConfig(128_256, hidden, inner, layers, heads, 8, head_dim, tie_word_embeddings=tied)


# "The Llama 3 Herd of Models" (arXiv:2407.21783), table 3, for 8B and 70B, which 3, 3.1 and 3.3 share; the model
# cards' config.json for the feed-forward width and for Llama 3.2. What scales rotary positions has no size.
PUBLISHED = {
    "1B": _llama3(2048, 8192, 16, 32, head_dim=64, tied=True),
    "3B": _llama3(3072, 8192, 28, 24, tied=True),
    "8B": _llama3(4096, 14_336, 32, 32),
    "70B": _llama3(8192, 28_672, 80, 64),
}
_NAME = re.compile(r"meta-llama/(?:Meta-)?Llama-3(?:\.[123])?-(\d+B)(?:-Instruct)?")


def planned_llama(run: RunConfig) -> LlamaConfig:
    """Shape of the run's Llama: from scratch, of another run, of a local directory, or as published.

    Rows of the embedding table are rounded up to a multiple of `mesh.tensor`, as training does. A tokenizer that
    brings its own latent tokens adds at most three rows, which a plan does not see.

    Raises:
      UserError: the shape is not known without the hub.
    """
    if run.initialize_from:
        return shape_of_other_run(run)
    source = run.model.source
    if source == "scratch":
        return llama_from_scratch(run, _vocabulary(run))
    if Path(source).expanduser().is_dir():
        llama = read_config(Path(source).expanduser())
    else:
        found = _NAME.fullmatch(source)
        if found is None or found[1] not in PUBLISHED:
            raise UserError(
                f"the shape of config.model.source {source!r} is not known here: give a local folder with its "
                f"config.json, or a meta-llama name of a Llama 3 of {', '.join(PUBLISHED)}."
            )
        llama = PUBLISHED[found[1]]
    multiple = run.mesh.tensor
    return replace(llama, vocab_size=-(-llama.vocab_size // multiple) * multiple)


def _vocabulary(run: RunConfig) -> int:
    kind, multiple = run.data.tokenizer, run.mesh.tensor
    if kind == "bpe":
        return -(-run.data.bpe_vocabulary // multiple) * multiple
    if kind == "chains":
        return Tokens.for_chains(multiple).vocabulary_size
    if kind == "model":
        raise UserError(
            "config.data.tokenizer is 'model', but config.model.source is 'scratch', which has no tokenizer: "
            "set it to 'bpe', 'chains', a folder or a hub name."
        )
    return Tokens.load(kind, multiple).vocabulary_size
