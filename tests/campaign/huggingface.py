"""Hugging Face folders: config.json, safetensors and index; read again with struct, json and NumPy alone."""

import json
import math
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from huggingface_folders import CONFIG, SCALING, hf_tensors

from campaign.damage import ODD_VALUES, damaged_bytes, damaged_json, has_duplicates, written_json
from campaign.judging import Case, first, same
from longshot_jax.model.huggingface import load_weights, read_config
from longshot_jax.model.llama import Llama, LlamaConfig

Files = dict[str, bytes]
_DTYPES = {
    "F32": np.dtype(np.float32),
    "I32": np.dtype(np.int32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_INDEX = "model.safetensors.index.json"
# Keys of a Llama's config.json that change no computation; then Hugging Face's defaults of the keys that change it.
_IDLE = {"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
         "use_cache": True, "transformers_version": "5.0.0", "initializer_range": 0.02, "pad_token_id": None}  # fmt: skip
_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_SHAPE = {"hidden_size": 8, "head_dim": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
_TOKENS = (1, 4, 2, 9, 3)
_TENSOR_ODDS = (*ODD_VALUES, "F64", "I32", "F16", "BF16", "F32", [8], [8, 8], [0, 8], [11, 8], [0, 32], [-1, 4])


class HuggingFaceFolders:
    name, share = "huggingface", 0.09

    def __init__(self, folder: Path) -> None:
        del folder
        self.bases = [
            (tied, scaled, dtype, _base(tied, scaled, dtype, sharded))
            for tied, scaled, dtype, sharded in [
                (False, False, "F32", False), (True, True, "BF16", True), (False, True, "F16", True), (True, False, "F32", False),
            ]
        ]  # fmt: skip

    def case(self, rng: random.Random, folder: Path) -> Case:
        *kind, base = rng.choice(self.bases)
        files = dict(base)
        what, harmless = "undamaged", True
        weights = [name for name in files if name.endswith(".safetensors")]
        how = rng.choice(["none", "config", "config", "config", "header", "tensors", "bytes", "bytes", "index", "file"])
        if how == "config":
            what, content = damaged_json(rng, json.loads(files["config.json"]))
            files["config.json"], harmless = written_json(rng, content).encode(), False
        elif how == "header":
            name = rng.choice(weights)
            header, body = split(files[name])
            what, header = damaged_json(rng, header, _TENSOR_ODDS)
            files[name], harmless = joined(header, body), False
        elif how == "tensors":
            name = rng.choice(weights)
            what, files[name] = _other_tensors(rng, files[name])
            harmless = False
        elif how == "index" and _INDEX in files:
            odd = (*ODD_VALUES, *weights, "../model.safetensors", "config.json", "/dev/null")
            what, content = damaged_json(rng, json.loads(files[_INDEX]), odd)
            files[_INDEX], harmless = written_json(rng, content).encode(), False
        elif how == "file":
            name = rng.choice(list(files))
            what, harmless = f"{name} missing", False
            del files[name]
        elif how != "none":
            name = rng.choice(list(files))
            what, files[name] = damaged_bytes(rng, files[name])
            what, harmless = f"{name}: {what}", False
        for name, content in files.items():
            (folder / name).write_bytes(content)

        def read() -> tuple[LlamaConfig, nnx.State]:
            config = read_config(folder)
            return config, load_weights(folder, config)

        with_logits = rng.random() < 0.02
        names = ("config.json", *weights, _INDEX, "model.safetensors", str(folder))
        return Case(f"{kind}, {how}: {what}", read, lambda result: _wrong(*result, files, with_logits), names, harmless)


def _base(tied: bool, scaled: bool, dtype: str, sharded: bool) -> Files:
    content = CONFIG | _SHAPE | _IDLE | {"tie_word_embeddings": tied}
    content["rope_scaling"] = {"rope_type": "llama3", **SCALING} if scaled else None
    tensors = {name: tensor.astype(_DTYPES[dtype]) for name, tensor in hf_tensors(content).items()}
    files = {"config.json": json.dumps(content).encode(), "generation_config.json": b"{}"}
    if not sharded:
        return files | {"model.safetensors": _safetensors(tensors)}
    placed, names = {}, list(tensors)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        files[file] = _safetensors({name: tensors[name] for name in part})
        placed |= dict.fromkeys(part, file)
    return files | {_INDEX: json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}).encode()}


def _safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, tensor in tensors.items():
        dtype = next((key for key, value in _DTYPES.items() if value == tensor.dtype), "F64")
        header[name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + tensor.nbytes],
        }
        body += tensor.tobytes()
    return joined(header, body)


def joined(header: Any, body: bytes) -> bytes:
    """A safetensors file of a header and the bytes of all tensors."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def split(content: bytes) -> tuple[Any, bytes]:
    """Header and bytes of all tensors of a safetensors file."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def tensors_of(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file; raises anything for a broken one."""
    header, body = split(content)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = np.frombuffer(body[begin:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def _other_tensors(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    tensors = tensors_of(content)
    name, kind = (
        rng.choice(list(tensors)),
        rng.choice(["lost", "added", "shape", "float64", "values", "order", "inv_freq"]),
    )
    if kind == "lost":
        del tensors[name]
    elif kind == "added":
        tensors[name + ".bias"] = tensors[name]
    elif kind == "inv_freq":
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    elif kind == "shape":
        tensors[name] = tensors[name].reshape(-1) if rng.random() < 0.5 else tensors[name][:-1]
    elif kind == "float64":
        tensors[name] = tensors[name].astype(np.float64)
    elif kind == "values":
        tensors[name] = tensors[name] * np.asarray(rng.choice([0, 2, -1, math.nan, math.inf]), tensors[name].dtype)
    else:
        tensors = dict(sorted(tensors.items(), key=lambda _: rng.random()))
    return f"{name}: {kind}", _safetensors(tensors)


def _wrong(config: LlamaConfig, state: nnx.State, files: Files, with_logits: bool) -> str | None:
    """Compares a model that was read with what its files say."""
    text = files["config.json"].decode("utf-8-sig")
    content = json.loads(text)
    try:
        if "model.safetensors" in files:
            tensors = tensors_of(files["model.safetensors"])
        else:
            placed = json.loads(files[_INDEX].decode("utf-8-sig"))["weight_map"]
            tensors = {}
            for file in set(placed.values()):
                tensors |= tensors_of(files[file])
            if any(name not in tensors_of(files[file]) for name, file in placed.items()):
                return "read, but the index places a tensor where it is not"
    except Exception as error:
        return f"read, but the weights are broken: {type(error).__name__} {error}"
    fault = _wrong_config(config, content)
    if fault:
        return fault + (" (a key stands twice)" if has_duplicates(text) else "")
    flat = {path: np.asarray(leaf) for path, leaf in _paths(state).items()}
    expected = _expected(content, tensors)
    unlike = [path for path in expected if path not in flat or not _equal(flat[path], expected[path])]
    fault = first(same(sorted(flat), sorted(expected), "the set of weights"), f"{unlike} differ" if unlike else None)
    finite = all(np.isfinite(value).all() and np.abs(value).max() < 1e4 for value in expected.values())
    if fault or not finite or not with_logits:
        return fault
    found, wanted = (
        _logits(config, state),
        _numpy_logits(content, {k: v.astype(np.float64) for k, v in tensors.items()}),
    )
    error = float(np.abs(found - wanted).max() / (1e-6 + np.abs(wanted).max()))
    return None if error < 1e-4 else f"logits are {error:.2e} off"


def _wrong_config(config: LlamaConfig, content: dict[str, Any]) -> str | None:
    given = _DEFAULTS | {key: value for key, value in content.items() if value is not None}
    given.setdefault("num_key_value_heads", given["num_attention_heads"])
    given.setdefault("head_dim", given["hidden_size"] // given["num_attention_heads"])
    rope = given.get("rope_scaling") or given.get("rope_parameters") or {}
    given |= {key: rope[key] for key in ("rope_theta",) if key in rope}
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "max_position_embeddings")  # fmt: skip
    faults = [same(getattr(config, key), given[key], f"config.json's {key}") for key in keys]
    faults += [f"{key} is {getattr(config, key)}" for key in keys if not math.isfinite(getattr(config, key))]
    for key, only in {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}.items():
        faults.append(same(given.get(key, only), only, f"config.json's {key}"))
    scaling, kind = config.rope_scaling, rope.get("rope_type", rope.get("type", "default"))
    if (scaling is None) != (kind == "default"):
        faults.append(f"the rotary scaling is {scaling}, but config.json says {kind!r}")
    if scaling is not None:
        faults += [same(getattr(scaling, key), rope.get(key), f"rope_scaling.{key}") for key in SCALING]
        faults += [f"rope_scaling.{key} is {rope[key]}" for key in SCALING if not math.isfinite(getattr(scaling, key))]
    return first(*faults)


def _paths(state: nnx.State) -> dict[str, Any]:
    return {
        ".".join(step.key for step in path if isinstance(step, jax.tree_util.DictKey)): leaf
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def _equal(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and found.tobytes() == expected.astype(found.dtype).tobytes()


def _heads(content: dict[str, Any]) -> tuple[int, int, int]:
    heads = content["num_attention_heads"]
    groups, size = (
        content.get("num_key_value_heads") or heads,
        content.get("head_dim") or content["hidden_size"] // heads,
    )
    return heads, groups, size


def _expected(content: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The package's weights, written out from the tensors by hand."""
    (heads, groups, size), width, layers = _heads(content), content["hidden_size"], content["num_hidden_layers"]

    def stack(name: str, turn: Any) -> np.ndarray:
        return np.stack([turn(tensors[f"model.layers.{n}.{name}.weight"]) for n in range(layers)])

    def project(count: int) -> Any:
        return lambda tensor: tensor.reshape(count, size, width).transpose(2, 0, 1)

    found = {
        "embedding": tensors["model.embed_tokens.weight"],
        "final_norm": tensors["model.norm.weight"],
        "layers.attention_norm": stack("input_layernorm", lambda tensor: tensor),
        "layers.mlp_norm": stack("post_attention_layernorm", lambda tensor: tensor),
        "layers.query": stack("self_attn.q_proj", project(heads)),
        "layers.key": stack("self_attn.k_proj", project(groups)),
        "layers.value": stack("self_attn.v_proj", project(groups)),
        "layers.output": stack("self_attn.o_proj", lambda tensor: tensor.T.reshape(heads, size, width)),
        "layers.gate": stack("mlp.gate_proj", np.transpose),
        "layers.up": stack("mlp.up_proj", np.transpose),
        "layers.down": stack("mlp.down_proj", np.transpose),
    }
    return found if content.get("tie_word_embeddings") else found | {"head": tensors["lm_head.weight"]}


@cache
def _program(config: LlamaConfig) -> Any:
    graphdef = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))[0]

    def logits(state: nnx.State, tokens: jax.Array) -> jax.Array:
        llama, length = nnx.merge(graphdef, state), tokens.shape[1]
        hidden, _ = llama(llama.embed(tokens), jnp.arange(length)[None], jnp.ones((1, length), bool))
        return llama.logits(hidden)

    return jax.jit(logits)


def _logits(config: LlamaConfig, state: nnx.State) -> np.ndarray:
    return np.asarray(_program(config)(state, jnp.asarray([_TOKENS])))[0]


def _numpy_logits(content: dict[str, Any], tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Logits [P, V] of the Llama in the files, in float64, from the description of the architecture."""
    (heads, groups, size), eps = _heads(content), content.get("rms_norm_eps", 1e-6)
    rope = content.get("rope_scaling") or content.get("rope_parameters") or {}
    theta = rope.get("rope_theta", content.get("rope_theta", 10_000.0))
    frequency = theta ** -(np.arange(0, size, 2) / size)
    if rope.get("rope_type", "default") == "llama3":
        old, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = np.clip((old * frequency / (2 * np.pi) - low) / (high - low), 0, 1)
        frequency = frequency * (smooth + (1 - smooth) / rope["factor"])
    angles = np.arange(len(_TOKENS))[:, None] * np.concatenate([frequency, frequency])
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * tensors[name + ".weight"]

    def turned(x: np.ndarray) -> np.ndarray:
        return x * cosine + np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1) * sine

    x = tensors["model.embed_tokens.weight"][list(_TOKENS)]
    for layer in range(content["num_hidden_layers"]):

        def matrix(name: str, layer: int = layer) -> np.ndarray:
            return tensors[f"model.layers.{layer}.{name}.weight"].T

        inside = norm(x, f"model.layers.{layer}.input_layernorm")
        query = turned((inside @ matrix("self_attn.q_proj")).reshape(-1, heads, size))
        key = turned((inside @ matrix("self_attn.k_proj")).reshape(-1, groups, size)).repeat(heads // groups, 1)
        value = (inside @ matrix("self_attn.v_proj")).reshape(-1, groups, size).repeat(heads // groups, 1)
        scores = np.einsum("qhc,phc->hqp", query, key) / np.sqrt(size)
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.einsum("hqp,phc->qhc", weights, value).reshape(len(x), -1) @ matrix("self_attn.o_proj")
        inside = norm(x, f"model.layers.{layer}.post_attention_layernorm")
        gate = inside @ matrix("mlp.gate_proj")
        x = x + (gate / (1 + np.exp(-gate)) * (inside @ matrix("mlp.up_proj"))) @ matrix("mlp.down_proj")
    table = tensors["model.embed_tokens.weight" if content.get("tie_word_embeddings") else "lm_head.weight"]
    return norm(x, "model.norm") @ table.T
