"""The shape of a run's backbone, without downloading its parameters."""

import re
from dataclasses import replace

from longshot_jax.checkpoints.initialize import shape_from_scratch, shape_of_other_run
from longshot_jax.config import RunConfig
from longshot_jax.data.sources import ALPHABETS
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.data.tokenizer_checks import no_model_tokenizer
from longshot_jax.errors import UserError, shown
from longshot_jax.files import local_path
from longshot_jax.model.huggingface.config import read_config
from longshot_jax.model.llama import LlamaConfig


def _llama3(hidden: int, inner: int, layers: int, heads: int, head_dim: int = 128, tied: bool = False):
    return LlamaConfig(128_256, hidden, inner, layers, heads, 8, head_dim, tie_word_embeddings=tied)


# 8B and 70B, the same in 3, 3.1 and 3.3: "The Llama 3 Herd of Models" (arXiv:2407.21783), table 3. Feed-forward widths
# and Llama 3.2: config.json of the model cards. The scaling of rotary positions does not change sizes.
PUBLISHED = {
    "1B": _llama3(2048, 8192, 16, 32, head_dim=64, tied=True),
    "3B": _llama3(3072, 8192, 28, 24, tied=True),
    "8B": _llama3(4096, 14_336, 32, 32),
    "70B": _llama3(8192, 28_672, 80, 64),
}
_SMOLLM2 = re.compile(r"HuggingFaceTB/SmolLM2-135M(?:-Instruct)?")
_SMOLLM2_135M = LlamaConfig(49_152, 576, 1536, 30, 9, 3, 64, tie_word_embeddings=True)  # arXiv:2502.02737
_NAME = re.compile(r"meta-llama/(?:Meta-)?Llama-3(?:\.[123])?-(\d+B)(?:-Instruct)?")


def planned_backbone(run: RunConfig) -> LlamaConfig:
    """Shape of the run's backbone: from scratch, of another run, of a local directory, or as published.

    The vocabulary is rounded up to a multiple of `mesh.tensor`, as in training. A plan ignores up to three rows that a
    tokenizer adds for its latent tokens. Raises UserError if the shape is not known without the hub.
    """
    if run.initialize_from:
        return shape_of_other_run(run)
    source = run.model.source
    if source == "scratch":
        return shape_from_scratch(run, _vocabulary(run))
    if (folder := local_path(source, "config.model.source")).is_dir():
        backbone = read_config(folder)
    elif _SMOLLM2.fullmatch(source):
        backbone = _SMOLLM2_135M
    else:
        found = _NAME.fullmatch(source)
        if found is None or found[1] not in PUBLISHED:
            raise UserError(
                f"the shape of config.model.source {shown(source)} is not known here: give a local folder with its "
                f"config.json, or a meta-llama name of a Llama 3 of {', '.join(PUBLISHED)}."
            )
        backbone = PUBLISHED[found[1]]
    multiple = run.mesh.tensor
    return replace(backbone, vocab_size=-(-backbone.vocab_size // multiple) * multiple)


def _vocabulary(run: RunConfig) -> int:
    kind, multiple = run.data.tokenizer, run.mesh.tensor
    if kind == "bpe":
        return -(-run.data.bpe_vocabulary // multiple) * multiple
    if kind in ALPHABETS:
        return Tokenizer.for_chains(multiple, ALPHABETS[kind]).vocabulary_size
    if kind == "model":
        raise no_model_tokenizer()
    return Tokenizer.load(kind, multiple).vocabulary_size
