"""`config.json` of a Hugging Face Llama, to and from `LlamaConfig`.

A setting that this package would compute differently is an error that names its key, so that no model loads and then
answers slightly wrongly.
"""

from pathlib import Path
from typing import Any, TypeVar

from longshot_jax.errors import UserError, shown
from longshot_jax.files import read_json
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.rope import RopeScaling

_Number = TypeVar("_Number", int, float)

# Keys that change the computation, each with the only supported value.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0}


def read_config(folder: str | Path) -> LlamaConfig:
    """Shape of the Llama in a Hugging Face directory.

    Rotary settings may be `rope_theta` with `rope_scaling`, or `rope_parameters` as in transformers 5. Raises a
    UserError if the file is missing or damaged, lacks a key, or has an unsupported setting (another model type, biases,
    another activation or rotary scaling).
    """
    file = Path(folder) / "config.json"
    content = read_json(file, advice="give a folder that holds a Hugging Face Llama, copied whole from its source")
    if content.get("model_type") != "llama":
        raise UserError(f"{file}: model_type is {shown(content.get('model_type'))}, but only 'llama' can be loaded")
    for key, value in _FIXED.items():
        if content.get(key, value) != value:
            raise UserError(f"{file}: {key} is {shown(content[key])}, but only {value!r} can be loaded")

    def count(key: str) -> int:
        return _number(content, key, int, file)

    hidden_size, heads, kv_heads = (count("hidden_size"), count("num_attention_heads"), count("num_key_value_heads"))
    if heads % kv_heads:
        raise UserError(f"{file}: num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}")
    if content.get("head_dim") is None and hidden_size % heads:
        raise UserError(f"{file}: hidden_size {hidden_size} must be a multiple of num_attention_heads {heads}")
    head_dim = hidden_size // heads if content.get("head_dim") is None else count("head_dim")
    if head_dim % 2:
        raise UserError(f"{file}: head_dim {head_dim} must be even, because rotary positions rotate pairs")
    tied = content.get("tie_word_embeddings", False)  # Hugging Face's default for a Llama
    if not isinstance(tied, bool):
        raise UserError(f"{file}: tie_word_embeddings must be true or false, not {shown(tied)}")
    theta, scaling = _read_rope(content, file)
    return LlamaConfig(
        vocab_size=count("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=count("intermediate_size"),
        num_hidden_layers=count("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=_number(content, "rms_norm_eps", float, file),
        tie_word_embeddings=tied,
        max_position_embeddings=count("max_position_embeddings"),
    )


def config_json(
    config: LlamaConfig, dtype: str, bos_token_id: int | None, eos_token_id: int | list[int] | None
) -> dict[str, Any]:
    """The content of `config.json`; rotary settings have the older form, which all versions of transformers read."""
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        },
        "tie_word_embeddings": config.tie_word_embeddings,
        # null if unknown: without the keys, transformers would use Llama 2's ids.
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "torch_dtype": dtype,
    }


def _read_rope(content: dict[str, Any], file: Path) -> tuple[float, RopeScaling | None]:
    """Base of the rotary frequencies and their scaling, from either form of the settings."""
    key = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"
    rope = content.get(key) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{file}: {key} must be an object or null, not {shown(rope)}")
    theta = _number(rope if "rope_theta" in rope else content, "rope_theta", float, file)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{file}: {key}.partial_rotary_factor is not 1, but only 1 can be loaded")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"{file}: {key}.rope_type is {shown(kind)}, but only 'llama3' and 'default' can be loaded")
    scaling = RopeScaling(
        factor=_number(rope, "factor", float, file, key),
        low_freq_factor=_number(rope, "low_freq_factor", float, file, key),
        high_freq_factor=_number(rope, "high_freq_factor", float, file, key),
        original_max_position_embeddings=_number(rope, "original_max_position_embeddings", int, file, key),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UserError(f"{file}: {key}.high_freq_factor must be greater than {key}.low_freq_factor")
    return theta, scaling


def _number(content: dict[str, Any], key: str, kind: type[_Number], file: Path, inside: str | None = None) -> _Number:
    """The positive number at `key`, an integer if `kind` is int."""
    name = f"{inside}.{key}" if inside else key
    if content.get(key) is None:
        raise UserError(f"{file}: the key {name} is missing")
    value = content[key]
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or value <= 0:
        whole = "whole " if kind is int else ""
        raise UserError(f"{file}: {name} must be a positive {whole}number, not {shown(value)}")
    return kind(value)
