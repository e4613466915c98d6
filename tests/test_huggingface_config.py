"""The config.json of a Hugging Face folder: what is read from it, and what is refused."""

import json

import pytest
from huggingface_folders import CONFIG, SCALING, write

from longshot_jax.errors import UserError
from longshot_jax.model.huggingface import read_config
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.rope import RopeScaling


def test_config_is_read(tmp_path):
    assert read_config(write(tmp_path)) == LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=64,
    )


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "llama3"} | SCALING},
        {"rope_theta": 1e4, "rope_scaling": {"type": "llama3"} | SCALING},
        {"rope_theta": ..., "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4} | SCALING},
    ],
    ids=["rope_scaling", "older type", "rope_parameters"],
)
def test_scaled_rope_is_read_in_every_spelling(tmp_path, rope):
    config = read_config(write(tmp_path, **rope))
    assert (config.rope_theta, config.rope_scaling) == (1e4, RopeScaling(8.0, 1.0, 4.0, 32))


def test_unscaled_rope_parameters_and_defaults(tmp_path):
    config = read_config(
        write(tmp_path, rope_theta=..., rope_scaling=..., rope_parameters={"rope_type": "default", "rope_theta": 7e3})
    )
    assert (config.rope_theta, config.rope_scaling) == (7e3, None)
    write(tmp_path, head_dim=2)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["head_dim"], content["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert (read_config(tmp_path).head_dim, read_config(tmp_path).tie_word_embeddings) == (2, False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": ...}, "key hidden_size is missing"),
        ({"num_key_value_heads": ...}, "key num_key_value_heads is missing"),
        ({"rms_norm_eps": ...}, "key rms_norm_eps is missing"),
        ({"rope_theta": ...}, "key rope_theta is missing"),
        ({"hidden_size": "8"}, "hidden_size must be a positive whole number, not '8'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive whole number, not 0"),
        ({"vocab_size": True}, "vocab_size must be a positive whole number, not True"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple of num_key_value_heads 3"),
        ({"head_dim": 5}, "head_dim 5 must be even"),
        ({"head_dim": ..., "hidden_size": 9}, "hidden_size 9 must be a multiple of num_attention_heads 4"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type is 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor is missing"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
        (
            {"rope_scaling": {"rope_type": "llama3"} | SCALING | {"high_freq_factor": 1.0}},
            "rope_scaling.high_freq_factor must be greater",
        ),
    ],
)
def test_config_that_cannot_be_honoured_is_refused(tmp_path, changes, words):
    content = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize(("text", "words"), [("{", "not valid JSON"), ("[]", "does not hold a JSON object")])
def test_broken_config_is_refused(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"elsewhere/config\.json does not exist: give a folder"):
        read_config(tmp_path / "elsewhere")
