"""Logits of `transformers` on the same weights, both ways. PyTorch is the oracle and nothing else.

Tiny random models of each Llama 3 generation; the rotary scaling is tested beyond the original context length,
where an unscaled model would differ.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from longshot_jax.model.huggingface import load_weights, read_config, save_weights
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.model.rope import RopeScaling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

LENGTH = 200
ORIGINAL_CONTEXT = 64
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
}


def scaled(factor: float) -> dict:
    return {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    }


GENERATIONS = {
    "llama3": {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
    "llama3.1": {"num_attention_heads": 6, "num_key_value_heads": 2, "rope_parameters": scaled(8.0)},
    "llama3.2": {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "rope_parameters": scaled(32.0),
        "tie_word_embeddings": True,
    },
    "all heads": {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
    "one key head, wide": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_parameters": scaled(8.0),
    },
}


@pytest.fixture(scope="module", params=GENERATIONS, ids=str)
def theirs(request, tmp_path_factory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A saved random model, token ids [2, S], and its logits [2, S, V]."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE, **GENERATIONS[request.param])
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (2, LENGTH))
    return folder, tokens, their_logits(folder, tokens)


def their_logits(folder: Path, tokens: np.ndarray, dtype=torch.float32) -> np.ndarray:
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.float().numpy()


def our_logits(state: nnx.State, config: LlamaConfig, tokens: np.ndarray, dtype=jnp.float32) -> np.ndarray:
    graph = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0), compute_dtype=dtype)))[0]

    @jax.jit
    def forward(state, tokens):
        backbone = nnx.merge(graph, state)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, _ = backbone(backbone.embed(tokens), positions, jnp.ones(tokens.shape, bool))
        return backbone.logits(hidden)

    return np.asarray(forward(state, jnp.asarray(tokens, jnp.int32)))


def test_float32_logits_are_equal(theirs):
    folder, tokens, logits = theirs
    config = read_config(folder)
    assert np.abs(logits).max() > 1
    result = our_logits(load_weights(folder, config), config, tokens)
    np.testing.assert_allclose(result, logits, atol=1e-4, rtol=0)


def test_scaling_matters_at_this_length(theirs):
    """Without the scaling, or with another base, the bound above would be missed by far."""
    folder, tokens, logits = theirs
    config = read_config(folder)
    state = load_weights(folder, config)
    if config.rope_scaling is None:
        wrong = replace(config, rope_theta=1_000_000.0)
    else:
        wrong = replace(config, rope_scaling=None)
        halved = replace(config.rope_scaling, factor=config.rope_scaling.factor / 2)
        other = our_logits(state, replace(config, rope_scaling=halved), tokens)
        assert np.abs(other - logits)[:, ORIGINAL_CONTEXT:].max() > 1e-3
    assert np.abs(our_logits(state, wrong, tokens) - logits).max() > 1e-2


def test_bfloat16_is_as_near_to_float32_as_theirs(theirs):
    """Rounding differs with the order of operations; ours may stray at most half as far again as theirs."""
    folder, tokens, logits = theirs
    config = read_config(folder)
    ours = our_logits(load_weights(folder, config, jnp.bfloat16), config, tokens, jnp.bfloat16)
    torchs = their_logits(folder, tokens, torch.bfloat16)
    error = np.sqrt(np.mean((ours - logits) ** 2))
    their_error = np.sqrt(np.mean((torchs - logits) ** 2))
    assert 0 < error < 1.5 * their_error
    assert error < 0.03 * np.sqrt(np.mean(logits**2))


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 50_000], ids=["single", "sharded"])
def test_what_is_written_loads_with_equal_logits(theirs, tmp_path, shard_bytes):
    folder, tokens, logits = theirs
    config = read_config(folder)
    save_weights(load_weights(folder, config), config, tmp_path / "out", shard_bytes=shard_bytes)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard_bytes == 50_000)
    np.testing.assert_array_equal(their_logits(tmp_path / "out", tokens), logits)


def test_what_is_written_in_bfloat16_loads_as_bfloat16(theirs, tmp_path):
    folder, tokens, _ = theirs
    config = read_config(folder)
    save_weights(load_weights(folder, config), config, tmp_path / "out", dtype=jnp.bfloat16)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    np.testing.assert_array_equal(
        their_logits(tmp_path / "out", tokens, torch.bfloat16), their_logits(folder, tokens, torch.bfloat16)
    )


def test_fresh_weights_of_ours_give_equal_logits_there(tmp_path):
    """Nothing of theirs on the way: our own initialisation, grown rows, and the scaling through `config.json`."""
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, ORIGINAL_CONTEXT),
    )
    state = jax.jit(lambda: nnx.split(Llama(config, nnx.Rngs(1)))[1])()
    save_weights(state, config, tmp_path / "first")
    grown = replace(config, vocab_size=64)
    state = load_weights(tmp_path / "first", config, embedding_rows=64)
    save_weights(state, grown, tmp_path / "second")
    tokens = np.random.default_rng(1).integers(0, 64, (2, LENGTH))
    np.testing.assert_allclose(
        their_logits(tmp_path / "second", tokens), our_logits(state, grown, tokens), atol=1e-4, rtol=0
    )
