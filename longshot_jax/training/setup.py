"""From a run's settings to its weights: a Llama from scratch, from a Hugging Face directory, or from another run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from longshot_jax.config import RunConfig
from longshot_jax.data.hub import hub_reachable
from longshot_jax.data.tokens import Tokens
from longshot_jax.errors import UserError
from longshot_jax.model.fused_attention import check_attention
from longshot_jax.model.huggingface import load_weights, read_config
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.lora import check_rank, is_adapter
from longshot_jax.model.sharding import shardings
from longshot_jax.model.storage import joined, like, plain_weights
from longshot_jax.thoughts.navigator import match_feedback_scale
from longshot_jax.training.companion import read_companion, same_kind
from longshot_jax.training.saved import SavedReasoner, make_reasoner

_LATENT_TOKENS = 3


@dataclass(frozen=True)
class Blueprint:
    """A reasoner before its weights exist.

    Attributes:
      llama: shape of the Llama, embedding rows included.
      graph: structure of the `Reasoner`.
      abstract: shapes and dtypes of its weights.
      placement: their shardings.
    """

    llama: LlamaConfig
    graph: nnx.GraphDef
    abstract: nnx.State
    placement: nnx.State


def model_folder(run: RunConfig) -> Path | None:
    """The Hugging Face directory with the weights, fetched from the hub where it is a name; None from scratch.

    Raises:
      UserError: it is no directory, and the hub cannot be reached or does not know it.
    """
    source = run.model.source
    if source == "scratch" or run.initialize_from:
        return None
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(
            f"config.model.source {source!r} is no directory: give a Hugging Face directory, a hub name, or 'scratch'."
        )
    import huggingface_hub  # takes a second, so only here

    offline = not hub_reachable()
    try:
        fetched = huggingface_hub.snapshot_download(
            source, allow_patterns=["*.json", "*.safetensors", "*.jinja"], local_files_only=offline
        )
    except Exception as error:  # of many kinds; each means that there are no weights
        reason = "the hub is out of reach and it was not downloaded before" if offline else _first_line(error)
        raise UserError(
            f"config.model.source {source!r} is no directory, and {reason}: give a local Hugging Face directory."
        ) from None
    return Path(fetched)


def draw(run: RunConfig, tokens: Tokens, mesh: Mesh, folder: Path | None) -> Blueprint:
    """The shape of the run's reasoner; nothing is allocated.

    Raises:
      UserError: the model's config cannot be read, the tokenizer does not fit it, or the mesh does not divide it.
    """
    llama = _llama_config(run, tokens, folder)
    if not (run.initialize_from or folder):
        tokens.check_fits(llama.vocab_size)
    return blueprint_of(run, llama, mesh)


def blueprint_of(run: RunConfig, llama: LlamaConfig, mesh: Mesh) -> Blueprint:
    """The run's reasoner around a Llama of a known shape; nothing is allocated.

    Raises:
      UserError: the mesh does not divide a weight, its devices cannot run the attention that is set, or an adapter's
        rank is more than its matrix has.
    """
    platform = mesh.devices.flat[0].platform
    check_attention(run.model.attention, platform, run.model.compute_dtype, llama.head_dim)
    if run.lora is not None:
        check_rank(run.lora, llama.matrices)
    reasoner = nnx.eval_shape(lambda: make_reasoner(run, llama))
    graph, abstract = nnx.split(reasoner)
    return Blueprint(llama, graph, abstract, shardings(abstract, mesh))


def _llama_config(run: RunConfig, tokens: Tokens, folder: Path | None) -> LlamaConfig:
    if run.initialize_from:
        llama = shape_of_other_run(run)
        tokens.check_fits(llama.vocab_size)
        return llama
    if folder is not None:
        llama = read_config(folder)
        # Only the latent tokens may lie beyond the model's own rows: otherwise it is another model's tokenizer.
        tokens.check_fits(llama.vocab_size + _LATENT_TOKENS)
        rows = max(llama.vocab_size, tokens.vocabulary_size)
        multiple = run.mesh.tensor
        return replace(llama, vocab_size=-(-rows // multiple) * multiple)
    return llama_from_scratch(run, tokens.vocabulary_size)


def shape_of_other_run(run: RunConfig) -> LlamaConfig:
    """The Llama of the run that `initialize_from` means."""
    return SavedReasoner.find(run.initialize_from).llama


def llama_from_scratch(run: RunConfig, vocabulary_size: int) -> LlamaConfig:
    """The Llama that `config.model` describes; a UserError for heads that do not divide."""
    shape = run.model
    heads = shape.num_attention_heads
    if shape.hidden_size % (2 * heads):
        raise UserError(
            f"config.model.hidden_size {shape.hidden_size} is not a multiple of 2 x num_attention_heads "
            f"(2 x {heads}): rotary positions turn pairs of each head."
        )
    kv_heads = shape.num_key_value_heads or heads
    if heads % kv_heads:
        raise UserError(
            f"config.model.num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}."
        )
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=shape.hidden_size // heads,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=shape.tie_word_embeddings,
    )


def build_reasoner(run: RunConfig, blueprint: Blueprint, folder: Path | None) -> nnx.State:
    """All weights of the run's reasoner at its start, each on its devices.

    Raises:
      UserError: weights cannot be read or do not fit.
    """
    given = nnx.State({})
    if run.initialize_from:
        given = _weights_of_other_run(run, blueprint)
    elif folder is not None:
        given = _weights_in(folder, run, blueprint)
    known = {path for path, _ in nnx.to_flat_state(given)}

    def missing(path: tuple, _: Any) -> bool:
        return path not in known

    # Nothing of what is given is computed: the compiler drops what is not returned.
    fresh = jax.jit(
        lambda: nnx.split(make_reasoner(run, blueprint.llama), missing, ...)[1],
        out_shardings=nnx.split_state(blueprint.placement, missing, ...)[0],
    )()
    weights = nnx.merge_state(given, fresh)
    if not known or "navigator" in given:
        return weights

    def fit(weights: nnx.State) -> nnx.State:
        reasoner = nnx.merge(blueprint.graph, weights)
        match_feedback_scale(reasoner)
        return nnx.split(reasoner)[1]

    return jax.jit(fit, donate_argnums=0, out_shardings=blueprint.placement)(weights)


def _weights_in(folder: Path, run: RunConfig, blueprint: Blueprint) -> nnx.State:
    """The Llama in a Hugging Face directory, and the navigator of an exported run where it is of the same kind."""
    companion = read_companion(folder, blueprint.llama.hidden_size)
    llama = load_weights(
        folder,
        replace(blueprint.llama, vocab_size=read_config(folder).vocab_size),
        jnp.dtype(run.model.weight_dtype),
        embedding_rows=blueprint.llama.vocab_size,
        sharding=nnx.split_state(blueprint.placement["llama"], is_adapter, ...)[1],
    )
    if companion is None or not same_kind(companion.run.thoughts, run.thoughts):
        return joined(llama=llama)
    navigator = jax.device_put(companion.navigator, blueprint.placement["navigator"])
    return joined(llama=llama, navigator=navigator)


def random_weights(run: RunConfig, blueprint: Blueprint) -> nnx.State:
    """Weights from scratch, made where they belong."""
    start = jax.jit(
        lambda: nnx.split(make_reasoner(run, blueprint.llama))[1], out_shardings=blueprint.placement
    )
    return start()


def _weights_of_other_run(run: RunConfig, blueprint: Blueprint) -> nnx.State:
    """The Llama of another run, and its navigator where it is of the same kind.

    Adapters come along where ours are the same, and are merged into the Llama's matrices where not.
    """
    other = SavedReasoner.find(run.initialize_from)
    weights = other.weights(jax.tree.leaves(blueprint.placement)[0].mesh)
    llama, same_adapters = weights["llama"], other.run.lora == run.lora
    if not same_adapters or other.run.model.weight_dtype != run.model.weight_dtype:
        merging, ours = None if same_adapters else other.run.lora, blueprint.abstract["llama"]

        def convert(theirs: nnx.State) -> nnx.State:
            adapters, _ = nnx.split_state(theirs, is_adapter, ...)
            plain = like(plain_weights(theirs, merging), ours)
            return nnx.merge_state(plain, adapters) if same_adapters else plain

        places = blueprint.placement["llama"]
        if not same_adapters:
            places = nnx.split_state(places, is_adapter, ...)[1]
        llama = jax.jit(convert, out_shardings=places)(llama)
    given = {"llama": llama}
    if not other.is_llama_alone and same_kind(other.run.thoughts, run.thoughts):
        given["navigator"] = weights["navigator"]
    return joined(**given)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
