"""`config.json` of a Hugging Face Llama, to and from `LlamaConfig`.

Every key is read, has to have the value that this package computes with, is known to change no logit, or is an error
that names it, so that no model loads and then answers slightly wrongly. Keys that are left out or null have the defaults
of transformers' `LlamaConfig`.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longshot_jax.errors import UserError, shown
from longshot_jax.files import read_json
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.rope import RopeScaling

# Whole numbers that are read, each with the largest that is believed: a damaged number must not start a day's work.
_COUNTS = {
    "vocab_size": 100_000_000, "hidden_size": 1_000_000, "intermediate_size": 10_000_000, "num_hidden_layers": 10_000,
    "num_attention_heads": 100_000, "num_key_value_heads": 100_000, "head_dim": 100_000,
    "max_position_embeddings": 2**31 - 1, "original_max_position_embeddings": 2**31 - 1,
}  # fmt: skip
# Other numbers that are read, with their largest: each must be finite and not 0 in float32.
_REALS = {
    "rms_norm_eps": 1e6, "rope_theta": 1e30,
    "factor": 1e9, "low_freq_factor": 1e9, "high_freq_factor": 1e9,
}  # fmt: skip
_LEAST = 1e-30
_READ = {*_COUNTS, "rms_norm_eps", "rope_theta", "model_type", "tie_word_embeddings", "rope_scaling", "rope_parameters"}

# Keys that change the computation, here or in a program that honours them, each with the values that change nothing.
# Null changes nothing either, nor does an empty list or object where there is no such value.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    **dict.fromkeys(["attention_bias", "mlp_bias", "qkv_bias", "bias", "use_bias"], (False,)),
    **dict.fromkeys(["partial_rotary_factor", "rotary_pct", "logits_scaling", "logit_scale"], (1.0,)),
    **dict.fromkeys(["embedding_multiplier", "residual_multiplier", "scale_emb", "mup_multiplier"], (1.0,)),
    **dict.fromkeys(["rope_interleaved", "no_rope_layers", "no_rope_layer_interval", "alibi", "use_alibi"], (False,)),
    **dict.fromkeys(["qk_norm", "use_qk_norm", "qk_layernorm", "clip_qkv", "use_sliding_window"], (False,)),
    **dict.fromkeys(["final_logit_softcapping", "attn_logit_softcapping", "attention_multiplier"], ()),
    **dict.fromkeys(["sliding_window", "attention_chunk_size", "query_pre_attn_scalar", "per_layer_config"], ()),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"], (0,)),
    **dict.fromkeys(["chunk_size_feed_forward", "cross_attention_hidden_size"], (0,)),
    **dict.fromkeys(["is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"], (False,)),
    **dict.fromkeys(["pruned_heads", "auto_map", "quantization_config", "quantization", "compression_config"], ()),
    "layer_types": ("full_attention",),
}  # fmt: skip
_PER_LAYER = {"layer_types", "no_rope_layers"}  # may be lists of such values

# Keys that change no logit of these weights.
_IRRELEVANT = {
    # where the file comes from
    "architectures", "name_or_path", "transformers_version", "transformers.js_config", "unsloth_fixed",
    "unsloth_version", "is_llama_config", "tokenizer_class", "model_name", "license",
    # how weights are stored and the work is done; pretraining_tp cuts products into sums of the same terms
    "torch_dtype", "dtype", "use_bfloat16", "use_cache", "pretraining_tp", "attn_implementation", "use_flash_attn",
    "use_flash_attention", "flash_attn", "torchscript", "gradient_checkpointing", "use_memory_efficient_attention",
    "output_attentions", "output_hidden_states", "return_dict", "tie_last_hidden_states", "tf_legacy_loss",
    "cache_implementation", "model_parallel", "max_window_layers",
    # of training alone
    "initializer_range", "attention_dropout", "attn_dropout", "attn_pdrop", "hidden_dropout", "hidden_dropout_prob",
    "resid_pdrop", "embd_pdrop", "layer_dropout", "router_aux_loss_coef", "label_smoothing",
    # lengths that are told beside max_position_embeddings
    "max_sequence_length", "max_seq_len", "max_seq_length", "seq_length", "model_max_length",
    # sizes from which Meta's own files compute intermediate_size
    "multiple_of", "ffn_dim_multiplier",
    # of other heads than the language model's
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
    "classifier_dropout", "is_decoder",
    # token ids, which the tokenizer's files tell as well
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id",
    "end_token_id", "prefix",
    # of generation, from before generation_config.json
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff",
    "eta_cutoff", "repetition_penalty", "encoder_repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "output_logits",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "penalty_alpha",
    "renormalize_logits", "guidance_scale", "low_memory", "max_time", "stop_strings", "watermarking_config",
    "token_healing", "generation_config",
}  # fmt: skip

_ADVICE = {
    "auto_map": "it names program code of the folder, which is never run; remove the key if the model is a plain Llama",
    **dict.fromkeys(
        ["attention_bias", "mlp_bias", "qkv_bias", "bias", "use_bias"],
        "layers with biases cannot be loaded; give another model",
    ),
    **dict.fromkeys(
        ["quantization_config", "quantization", "compression_config"],
        "quantised weights cannot be read; give the folder of the model before its quantisation",
    ),
}
_ROPE = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings",
}  # fmt: skip


def read_config(folder: str | Path) -> LlamaConfig:
    """Shape of the Llama in a Hugging Face directory.

    Rotary settings may be `rope_theta` with `rope_scaling`, or `rope_parameters` as in transformers 5. Raises a
    UserError if the file is missing or damaged, lacks a key, has a value that is not supported (another model type,
    biases, another activation or rotary scaling, quantised weights), or a key that is not known here.
    """
    file = Path(folder) / "config.json"
    content = read_json(file, advice="give a folder that holds a Hugging Face Llama, copied whole from its source")
    content = {key: value for key, value in content.items() if value is not None}  # null: as if left out
    if content.get("use_sliding_window") is False:  # then transformers ignores the window
        content.pop("sliding_window", None)
    if "model_type" not in content and "phases" in content:
        raise UserError(f"{file} is that of a run, not of a model: name the folder as config.initialize_from")
    if content.get("model_type") != "llama":
        raise UserError(
            f"{file}: model_type is {shown(content.get('model_type'))}, but only 'llama' can be loaded: give the "
            "folder of a Llama"
        )
    _check_keys(content, file)
    hidden_size, heads = _count(content, "hidden_size", file), _count(content, "num_attention_heads", file)
    kv_heads = _count(content, "num_key_value_heads", file, heads)
    if heads % kv_heads:
        raise UserError(f"{file}: num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}")
    if "head_dim" not in content and hidden_size % heads:
        raise UserError(f"{file}: hidden_size {hidden_size} must be a multiple of num_attention_heads {heads}")
    head_dim = _count(content, "head_dim", file, hidden_size // heads)
    if head_dim % 2:
        raise UserError(f"{file}: head_dim {head_dim} must be even, because rotary positions rotate pairs")
    tied = content.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise UserError(f"{file}: tie_word_embeddings must be true or false, not {shown(tied)}")
    positions = _count(content, "max_position_embeddings", file, 2048)
    theta, scaling = _read_rope(content, positions, file)
    return LlamaConfig(
        vocab_size=_count(content, "vocab_size", file),
        hidden_size=hidden_size,
        intermediate_size=_count(content, "intermediate_size", file),
        num_hidden_layers=_count(content, "num_hidden_layers", file),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=_real(content, "rms_norm_eps", file, 1e-6),
        tie_word_embeddings=tied,
        max_position_embeddings=positions,
    )


def config_json(config: LlamaConfig, dtype: str, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `config.json`; rotary settings have the older form, which all versions of transformers read.

    `token_ids` are the values of the keys `bos_token_id`, `eos_token_id` and `pad_token_id`, null where they are missing.
    """
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **asdict(config),
        "rope_scaling": scaling and {"rope_type": "llama3", **asdict(scaling)},
        # null if unknown: without the keys, transformers would use Llama 2's ids.
        **{key: token_ids.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "torch_dtype": dtype,
    }


def _check_keys(content: Mapping[str, Any], file: Path) -> None:
    """Raises a UserError for a key that is not known, or whose value would change what is computed."""
    unknown = [key for key in content if not (key in _READ | _IRRELEVANT | _NEUTRAL.keys() or key.startswith("_"))]
    if unknown:
        named = ", ".join(shown(key) for key in unknown[:5])
        raise UserError(
            f"{file} has a key that is not known here and may change what the model computes ({named}): remove it from "
            "the file if the model does not need it"
        )
    for key, neutral in _NEUTRAL.items():
        value = content.get(key)
        # A list with a value for each layer is read entry by entry; an empty list or table says nothing.
        if isinstance(value, list) and key in _PER_LAYER:
            entries = value
        else:
            entries = [] if not neutral and value in ([], {}) else [value]
        if value is not None and not all(entry in neutral for entry in entries):
            supported = " or ".join(map(repr, neutral)) or "null"
            advice = (
                f"only {supported} can be loaded; give another model, or remove the key if the model does not need it"
            )
            raise UserError(f"{file}: {key} is {shown(value)}, but {_ADVICE.get(key, advice)}")


def _read_rope(content: Mapping[str, Any], positions: int, file: Path) -> tuple[float, RopeScaling | None]:
    """Base of the rotary frequencies and their scaling, from either form of the settings.

    As in transformers 5: `rope_scaling` stands above `rope_parameters`, the object's rope_theta above the file's, but the
    file's original_max_position_embeddings above the object's.
    """
    key = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"
    rope = content.get(key) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{file}: {key} must be an object or null, not {shown(rope)}")
    rope = {name: value for name, value in rope.items() if value is not None}
    for name in rope.keys() - _ROPE:
        raise UserError(
            f"{file}: {key} has the key {shown(name)}, which is not known here and may change what the model computes: "
            "remove it from the file if the model does not need it"
        )
    theta = _real(rope if "rope_theta" in rope else content, "rope_theta", file, 10_000.0)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{file}: {key}.partial_rotary_factor is not 1, but only 1 can be loaded; give another model")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default" or (kind == "linear" and rope.get("factor") == 1.0):
        return theta, None
    if kind != "llama3":
        raise UserError(
            f"{file}: {key}.rope_type is {shown(kind)}, but only 'llama3' and 'default' can be loaded; give another model"
        )
    length = "original_max_position_embeddings"
    scaling = RopeScaling(
        factor=_real(rope, "factor", file, inside=f"{key}."),
        low_freq_factor=_real(rope, "low_freq_factor", file, inside=f"{key}."),
        high_freq_factor=_real(rope, "high_freq_factor", file, inside=f"{key}."),
        original_max_position_embeddings=_count(content, length, file)
        if length in content
        else _count(rope, length, file, positions, inside=f"{key}."),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UserError(f"{file}: {key}.high_freq_factor must be greater than {key}.low_freq_factor")
    return theta, scaling


def _count(content: Mapping[str, Any], key: str, file: Path, default: int | None = None, inside: str = "") -> int:
    """The whole number at `key`, which may be written as 64.0; a UserError if it is missing without a default."""
    value, largest = _given(content, key, file, default, inside), _COUNTS[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise UserError(f"{file}: {inside}{key} must be a whole number from 1 to {largest}, not {shown(value)}")
    return value


def _real(content: Mapping[str, Any], key: str, file: Path, default: float | None = None, inside: str = "") -> float:
    """The positive number at `key`; a UserError if it is missing without a default."""
    value, largest = _given(content, key, file, default, inside), _REALS[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _LEAST <= value <= largest:
        raise UserError(f"{file}: {inside}{key} must be a number from {_LEAST:g} to {largest:g}, not {shown(value)}")
    return float(value)


def _given(content: Mapping[str, Any], key: str, file: Path, default: Any, inside: str) -> Any:
    value = content.get(key, default)
    if value is None:
        raise UserError(f"{file}: the key {inside}{key} is missing: copy the file again from its source")
    return value
