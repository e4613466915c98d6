"""Folders as Hugging Face publishes Llama in, written with random weights, and comparison of what is read from them."""

import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from longshot_jax.model.huggingface import load_weights, read_config

CONFIG = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}

SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

FIRST_QUERY = "model.layers.0.self_attn.q_proj.weight"


def hf_tensors(content: dict) -> dict[str, np.ndarray]:
    """Random tensors with the names and [out, in] shapes of `LlamaForCausalLM`."""
    hidden, inner, vocab = (content[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    heads = content["num_attention_heads"] * content["head_dim"]
    kv_heads = content["num_key_value_heads"] * content["head_dim"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not content["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(content["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (heads, hidden),
            "self_attn.k_proj": (kv_heads, hidden),
            "self_attn.v_proj": (kv_heads, hidden),
            "self_attn.o_proj": (hidden, heads),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, tensors: dict[str, np.ndarray] | None = None, **changes) -> Path:
    """A checkpoint in one file; a change to None removes the key from `config.json`."""
    content = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    save_file(hf_tensors(CONFIG | changes) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def write_sharded(folder: Path) -> dict[str, np.ndarray]:
    """The same in two files with an index."""
    tensors = hf_tensors(CONFIG)
    write(folder, tensors)
    (folder / "model.safetensors").unlink()
    placed = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        placed |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return tensors


def load(folder: Path, *arguments, **options) -> nnx.State:
    return load_weights(folder, read_config(folder), *arguments, **options)


def leaves(state: nnx.State) -> dict[str, jax.Array]:
    return {
        ".".join(step.key for step in path if hasattr(step, "key")): leaf
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def assert_equal(state: nnx.State, other: nnx.State) -> None:
    assert jax.tree.structure(state) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, state, other)


def llama_files(folder, specials, chat_template=None, **named):
    """A folder like Llama 3's, small: bytes, then special tokens."""
    import tokenizers
    import transformers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.Tokenizer(tokenizers.models.BPE({word: n for n, word in enumerate(letters)}, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(specials)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=model, **named)
    wrapped.chat_template = chat_template
    wrapped.save_pretrained(str(folder))
    return str(folder)


LLAMA_SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{n}|>" for n in (0, 1, 10, 2, 3)),
    "<|start_header_id|>",
    "<|eot_id|>",
]
LLAMA = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
