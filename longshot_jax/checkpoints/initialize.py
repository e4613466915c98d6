"""A run's initial parameters: from scratch, from a Hugging Face directory, or from another run."""

import math
import os
from collections.abc import Container, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

from longshot_jax.checkpoints.frozen_source import FrozenSource, described, load_backbone
from longshot_jax.checkpoints.saved_reasoner import SavedReasoner
from longshot_jax.checkpoints.sidecar import FILE as SIDECAR
from longshot_jax.checkpoints.sidecar import LATENT_ROWS, TRAINED, read_sidecar, settings_of_export
from longshot_jax.config import RunConfig
from longshot_jax.config.declarations import flatten
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.model.huggingface import read_config
from longshot_jax.model.huggingface.stored_tensors import stored_marks
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.lora import is_adapter
from longshot_jax.model.sharding import with_sharding
from longshot_jax.model.storage import cast_like, merge_states, plain_weights
from longshot_jax.thoughts.reasoner import AbstractReasoner, make_reasoner, match_scale

_SMALLER = "lower the sizes in config.model and config.thoughts"


def abstract_reasoner(
    run: RunConfig, tokenizer: Tokenizer, mesh: Mesh, folder: Path | None, stored: LlamaConfig | None = None
) -> AbstractReasoner:
    """The structure of the run's reasoner, without allocating it.

    `folder` is that of `model_folder`; `stored` is the shape of the backbone in the checkpoint of a run that goes on.

    Raises a UserError if the model's config cannot be read or does not fit the tokenizer or the mesh, or if its
    parameters alone exceed the memory of the devices.
    """
    if stored is not None:
        backbone = stored
        tokenizer.check_fits(backbone.vocab_size)
    elif folder is not None:
        backbone, multiple = read_config(folder), run.mesh.tensor
        rows = embedding_rows(backbone.vocab_size, tokenizer)
        backbone = replace(backbone, vocab_size=-(-rows // multiple) * multiple)
    else:
        from_scratch = not run.initialize_from
        backbone = shape_from_scratch(run, tokenizer.vocabulary_size) if from_scratch else shape_of_other_run(run)
        tokenizer.check_fits(backbone.vocab_size)
    try:
        abstract = AbstractReasoner.of(run, backbone, mesh)
    except (NotImplementedError, OverflowError):  # JAX counts the elements of an array in 64 bits
        raise UserError(f"a parameter has more than 2**63 elements: {_SMALLER}.") from None
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract.params))
    available = _memory(mesh)
    if needed > available:
        raise UserError(
            f"the parameters take {needed / 2**30:,.0f} GiB, and the devices of config.mesh have "
            f"{available / 2**30:,.0f} GiB: {_SMALLER}, or use more devices."
        )
    return abstract


def _memory(mesh: Mesh) -> float:
    """Bytes of memory of all devices of a mesh; infinite if they do not tell."""
    devices = list(mesh.devices.flat)
    if devices[0].platform == "cpu":  # the devices of a process share its machine
        return float(jax.process_count() * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    local = next(device for device in devices if device.process_index == jax.process_index())
    return len(devices) * float((local.memory_stats() or {}).get("bytes_limit", math.inf))


def embedding_rows(vocab_size: int, tokenizer: Tokenizer | None) -> int:
    """Embedding rows of a Hugging Face model: its `vocab_size`, and more if the tokenizer's latent tokens need them."""
    if tokenizer is None:
        return vocab_size
    # Only the latent tokens may lie beyond the model's rows: otherwise the tokenizer belongs to another model.
    tokenizer.check_fits(vocab_size, latents_beyond=True)
    return max(vocab_size, tokenizer.vocabulary_size)


def copied_rows(folder: Path | None, tokenizer: Tokenizer | None) -> dict[int, int]:
    """Rows of the latent tokens that a Hugging Face directory has not trained -> rows from which they start.

    Llama 3's latent tokens are reserved tokens, of which the tokenizer alone does not tell whether they are trained.
    """
    if folder is None or tokenizer is None or not tokenizer.meanings or latent_rows_trained(folder):
        return {}
    return dict(tokenizer.meanings)


def latent_rows_trained(folder: Path) -> bool:
    """Whether the weights in a Hugging Face directory come from a run, which trained the rows of the latent tokens."""
    return (folder / SIDECAR).exists() or stored_marks(folder).get(LATENT_ROWS) == TRAINED


def shape_of_other_run(run: RunConfig) -> LlamaConfig:
    """Shape of the backbone of the run that `initialize_from` names.

    Raises a UserError if its adapters would be merged into weights of few bits, whose steps are larger than what adapters learn.
    """
    other = SavedReasoner.find(run.initialize_from)
    if other.run.lora not in (None, run.lora) and run.model.weight_dtype != "float32":
        raise UserError(
            f"config.model.weight_dtype {run.model.weight_dtype!r} would round away what the adapters of {run.initialize_from} "
            "learned, which are merged because this run has others or none: set it to 'float32', or keep config.model.lora "
            "and a phase that trains it."
        )
    return other.backbone


def other_layout(run: RunConfig, folder: Path | None) -> str:
    """What must be said of a new run whose weights were trained with texts of another form; "" if nothing.

    `folder` is that of `model_folder`.
    """
    if run.initialize_from:
        other = SavedReasoner.find(run.initialize_from)
        theirs = None if other.is_backbone_alone else other.run
    else:
        theirs = None if folder is None else settings_of_export(folder)
    if theirs is None:
        return ""
    ours, before = flatten(asdict(run)), flatten(asdict(theirs))
    names = ("markers", "data.instruction", "data.chat_template")
    changed = [
        f"config.{name} is {ours[name]!r} and was {before[name]!r}" for name in names if ours[name] != before[name]
    ]
    return f"the weights were trained with texts of another form: {', '.join(changed)}" if changed else ""


def shape_from_scratch(run: RunConfig, vocabulary_size: int) -> LlamaConfig:
    """Shape of the backbone that `config.model` describes; a UserError if the heads do not divide it."""
    shape = run.model
    heads = shape.num_attention_heads
    if shape.hidden_size % (2 * heads):
        raise UserError(
            f"config.model.hidden_size {shape.hidden_size} is not a multiple of 2 x config.model.num_attention_heads "
            f"(2 x {heads}): rotary positions rotate pairs of each head's dimensions."
        )
    kv_heads = shape.num_key_value_heads or heads
    if heads % kv_heads:
        raise UserError(
            f"config.model.num_attention_heads {heads} is not a multiple of config.model.num_key_value_heads {kv_heads}."
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


def trained_before(run: RunConfig, abstract: AbstractReasoner, folder: Path | None) -> tuple[str, ...]:
    """Training problems of the runs that the result of `build_reasoner` comes from, as far as their folders tell."""
    if run.initialize_from:
        return SavedReasoner.find(run.initialize_from).trained_on
    sidecar = None if folder is None else read_sidecar(folder, abstract.backbone.hidden_size)
    return () if sidecar is None else sidecar.trained_on


class Difference(NamedTuple):
    """What of a navigator a run does not take from the trained one that it starts from: names of weights, and the memory."""

    initialised: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def build_reasoner(
    run: RunConfig, abstract: AbstractReasoner, folder: Path | None, rows: Mapping[int, int] | None = None
) -> tuple[nnx.State, Difference]:
    """Initial parameters of the run's reasoner on their devices; a UserError if they cannot be read or do not fit.

    `rows` is the result of `copied_rows`. The difference is empty where there is no trained navigator to start from.
    """
    if run.initialize_from:
        given, trained = _params_of_other_run(run, abstract)
    else:
        given, trained = (nnx.State({}), ()) if folder is None else _params_of_folder(folder, run, abstract, rows)
    known = {path for path, _ in nnx.to_flat_state(given)}
    kept = set(given["navigator"]) if "navigator" in given else set()
    wanted = set(abstract.params["navigator"])

    def missing(path: tuple, _: Any) -> bool:
        return path not in known

    # Given parameters are not initialised: the compiler drops values that are not returned.
    fresh = jax.jit(
        lambda: nnx.split(make_reasoner(run, abstract.backbone), missing, ...)[1],
        out_shardings=nnx.split_state(abstract.placement, missing, ...)[0],
    )()
    params = nnx.merge_state(given, fresh)
    difference = Difference(
        *(tuple(sorted(names)) for names in (wanted - kept, set(trained) - kept)) if trained else ()
    )
    if _has_bank(run, folder):
        difference = difference._replace(left_out=(*difference.left_out, "the memory bank"))
    if not known or not wanted - kept:
        return params, difference

    def fit(params: nnx.State) -> nnx.State:
        reasoner = nnx.merge(abstract.graphdef, params)
        match_scale(reasoner, wanted - kept)
        return nnx.split(reasoner)[1]

    return jax.jit(fit, donate_argnums=0, out_shardings=abstract.placement)(params), difference


_READS = ("memory_top", "graph", "graph_neighbours", "graph_layers", "cross_attention", "heads", "reasoning_dim")
# Settings of `thoughts` that a weight's meaning depends on, besides those that all depend on.
_DEPENDS_ON = {
    "value_in": ("reasoning_dim",),
    "value_out": ("reasoning_dim",),
    "value_bias": ("reasoning_dim",),
    "count_weight": ("max_trajectories", "fewest_trajectories"),
    "count_bias": ("max_trajectories", "fewest_trajectories"),
    "step_table": ("step_embeddings",),
    "role_table": ("roles",),
    **dict.fromkeys(("posterior_in", "posterior_summary", "posterior_shift", "posterior_noise"), ("reasoning_dim",)),
    "graph": ("graph", "graph_layers", "heads"),
    "cross_attention": ("heads",),
}
# In the embedding space what is read goes through one projection: with a trained one, a new read would not be silent.
_DEPENDS_ON_IF_HIDDEN = dict.fromkeys(("state_in", "memory_out", "graph", "cross_attention"), _READS)


def weights_in_common(
    theirs: NavigatorConfig, weights: nnx.State, ours: NavigatorConfig, wanted: Container[str]
) -> nnx.State:
    """The weights of another navigator that mean the same in ours; empty if thoughts are made in another way.

    What is left to initialisation changes no thought, except for roles.

    Args:
      weights: of the other navigator. wanted: names of the weights of ours.
    """

    def same(*names: str) -> bool:
        return all(getattr(theirs, name) == getattr(ours, name) for name in names)

    space = ("reasoning_dim",) if ours.in_reasoning_space else ()
    if not same("feedback", "normalised", *space):
        return nnx.State({})
    depends_on = _DEPENDS_ON if ours.in_reasoning_space else _DEPENDS_ON | _DEPENDS_ON_IF_HIDDEN
    return nnx.State(
        {name: part for name, part in weights.items() if name in wanted and same(*depends_on.get(name, ()))}
    )


def _params_of_folder(
    folder: Path, run: RunConfig, abstract: AbstractReasoner, rows: Mapping[int, int] | None
) -> tuple[nnx.State, tuple[str, ...]]:
    """The backbone in a Hugging Face directory and what fits of an exported run's navigator; the names of all its weights."""
    sidecar = read_sidecar(folder, abstract.backbone.hidden_size)
    backbone = load_backbone(folder, abstract.backbone, run.model.weight_dtype, _without_adapters(abstract), rows)
    if sidecar is None:
        return merge_states(backbone=backbone), ()
    wanted, places = abstract.params["navigator"], abstract.placement["navigator"]
    navigator = weights_in_common(sidecar.run.thoughts, sidecar.navigator, run.thoughts, wanted)
    navigator = jax.device_put(navigator, nnx.State({name: places[name] for name in navigator}))
    return merge_states(backbone=backbone, navigator=navigator), tuple(sidecar.navigator)


def _params_of_other_run(run: RunConfig, abstract: AbstractReasoner) -> tuple[nnx.State, tuple[str, ...]]:
    """The backbone of another run and what fits of its navigator; the names of all the navigator's weights.

    Adapters are kept if this run has the same LoRA settings, and merged into the backbone's matrices otherwise.
    """
    other = SavedReasoner.find(run.initialize_from)
    if other.is_backbone_alone:
        dtype = run.model.weight_dtype
        backbone = load_backbone(other.folder, abstract.backbone, dtype, _without_adapters(abstract))
        return merge_states(backbone=backbone), ()
    params = other.params(jax.tree.leaves(abstract.placement)[0].mesh)
    backbone, same_adapters = params["backbone"], other.run.lora == run.lora
    if not _same_backbone(run, other.run):
        places, merged = abstract.placement["backbone"], None
        if not same_adapters:
            places, merged = nnx.split_state(places, is_adapter, ...)[1], other.run.lora

        def convert(theirs: nnx.State) -> nnx.State:
            adapters, _ = nnx.split_state(theirs, is_adapter, ...)
            plain = cast_like(plain_weights(theirs, merged), abstract.params["backbone"])
            return nnx.merge_state(plain, adapters) if same_adapters else plain

        backbone = jax.jit(convert, out_shardings=places)(backbone)
    theirs, wanted = params["navigator"], abstract.params["navigator"]
    navigator = weights_in_common(other.run.thoughts, theirs, run.thoughts, wanted)
    return merge_states(backbone=backbone, navigator=navigator), tuple(theirs)


def _has_bank(run: RunConfig, folder: Path | None) -> bool:
    """Whether thoughts of the run that this one starts from read a memory bank; PPO begins with an empty one."""
    if run.initialize_from:
        other = SavedReasoner.find(run.initialize_from)
        trained = None if other.is_backbone_alone or other.metadata["phase"] != "ppo" else other.run
    else:
        sidecar = None if folder is None else read_sidecar(folder, read_config(folder).hidden_size)
        trained = None if sidecar is None or sidecar.memory is None else sidecar.run
    return trained is not None and trained.ppo.memory_slots > 0 and trained.thoughts.reads_bank


def _same_backbone(run: RunConfig, other: RunConfig) -> bool:
    """Whether a run that starts from another has the weights of its backbone, bit for bit, besides adapters."""
    return other.lora in (None, run.lora) and other.model.weight_dtype == run.model.weight_dtype


def _without_adapters(abstract: AbstractReasoner) -> nnx.State:
    """The backbone's parameters besides adapters, as shapes with shardings."""
    placed = with_sharding(abstract.params["backbone"], abstract.placement["backbone"])
    return nnx.split_state(placed, is_adapter, ...)[1]


def frozen_source(
    run: RunConfig, folder: Path | None, params: nnx.State, rows: Mapping[int, int] | None = None
) -> FrozenSource | None:
    """What the checkpoints of a new run name instead of holding frozen weights; None if nothing else holds them.

    Args:
      folder: that of `model_folder`. params: result of `build_reasoner`. rows: result of `copied_rows`.
    """
    if run.trainable(run.phases[0]) == "all":
        return None
    if folder is not None:
        backbone = nnx.split_state(params["backbone"], is_adapter, ...)[1]
        given = tuple((rows or {}).items())
        return FrozenSource(folder.absolute(), "model.source", described(folder, backbone), given)
    if not run.initialize_from:
        return None
    other = SavedReasoner.find(run.initialize_from)
    if other.is_backbone_alone:
        return FrozenSource(other.folder.absolute(), "initialize_from", described(other.folder))
    # The other run goes on, and removes checkpoints: only what its own checkpoints name stays.
    source = other.frozen_source if _same_backbone(run, other.run) else None
    return source and replace(source, setting="model.source")
