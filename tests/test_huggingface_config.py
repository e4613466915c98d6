"""The config.json of a Hugging Face folder: what is read from it, and what is refused."""

import json
import math

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


@pytest.mark.parametrize("absent", [..., None], ids=["left out", "null"])
def test_what_is_left_out_has_the_defaults_of_transformers(tmp_path, absent):
    """Folders of Llama 1 and 2 have no rope_theta, and those of multi-head models may have no num_key_value_heads."""
    import transformers

    names = ("rope_theta", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
    content = CONFIG | dict.fromkeys(names, absent) | {"hidden_size": 8.0}
    content = {key: value for key, value in content.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config, theirs = read_config(tmp_path), transformers.LlamaConfig(num_attention_heads=4)
    assert config.rope_theta == theirs.rope_parameters["rope_theta"] == 10_000.0
    assert config.num_key_value_heads == theirs.num_key_value_heads == 4
    for name in names[2:]:
        assert getattr(config, name) == getattr(theirs, name)
    assert config.hidden_size == 8 and type(config.hidden_size) is int


@pytest.mark.parametrize(("inside", "outside", "used"), [(32, 16, 16), (32, None, 32), (32.0, ..., 32), (..., ..., 64)])
def test_the_original_context_is_what_transformers_takes(tmp_path, inside, outside, used):
    import transformers

    scaling = {"rope_type": "llama3"} | SCALING | {"original_max_position_embeddings": inside}
    scaling = {key: value for key, value in scaling.items() if value is not ...}
    config = read_config(write(tmp_path, rope_scaling=scaling, original_max_position_embeddings=outside))
    assert config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, used)
    if outside is not None:
        content = json.loads((tmp_path / "config.json").read_text())
        theirs = transformers.LlamaConfig(**content)
        theirs.standardize_rope_params()  # as its model does
        assert theirs.rope_parameters["original_max_position_embeddings"] == used


def test_keys_of_public_folders_are_known(tmp_path):
    """All keys of transformers' LlamaConfig, and those of published Llamas that it does not have."""
    import transformers

    theirs = transformers.LlamaConfig(head_dim=6, num_attention_heads=4).to_dict()
    ours = {
        "_name_or_path": "meta-llama/x", "_attn_implementation_autoset": True, "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16", "transformers_version": "4.57.6", "unsloth_fixed": True, "is_llama_config": True,
        "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}, "max_sequence_length": 2048,
        "pretraining_tp": 2, "attention_dropout": 0.1, "hidden_act": "swish", "use_cache": False, "temperature": 0.6,
        "quantization_config": None, "layer_types": ["full_attention"] * 2, "pad_token_id": -1,
        "rope_scaling": {"type": "linear", "factor": 1.0}, "logits_scaling": 1, "num_experts": 0, "vendor_key": None,
        "pruned_heads": {}, "rope_parameters": None, "sliding_window": 4096, "use_sliding_window": False,
    }  # fmt: skip
    before = read_config(write(tmp_path))
    (tmp_path / "config.json").write_text(
        json.dumps(theirs | CONFIG | ours), encoding="utf-8-sig"
    )  # as some editors do
    assert read_config(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        (
            {"model_type": None, "phases": ["ppo"]},
            "that of a run, not of a model: name the folder as config.initialize_from",
        ),
        (
            {"attention_bias": True},
            "attention_bias is True, but layers with biases cannot be loaded; give another model",
        ),
        ({"sliding_window": 8, "use_sliding_window": True}, "use_sliding_window is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_act": ["silu"]}, "hidden_act is ['silu']"),
        ({"attention_bias": []}, "attention_bias is"),
        ({"hidden_size": ...}, "key hidden_size is missing"),
        ({"hidden_size": "8"}, "hidden_size must be a whole number from 1 to 1000000, not '8'"),
        ({"hidden_size": 8.5}, "hidden_size must be a whole number from 1 to 1000000, not 8.5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1 to 10000, not 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 10000, not 1000000000"),
        ({"vocab_size": -(10**400)}, "vocab_size must be a whole number from 1 to 100000000, not -1000"),
        ({"vocab_size": True}, "vocab_size must be a whole number from 1 to 100000000, not True"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a number from 1e-30 to 1e+06, not nan"),
        ({"rms_norm_eps": True}, "rms_norm_eps must be a number from 1e-30 to 1e+06, not True"),
        ({"rope_theta": math.inf}, "rope_theta must be a number from 1e-30 to 1e+30, not inf"),
        ({"rope_theta": 10**400}, "rope_theta must be a number from 1e-30 to 1e+30, not 1000"),
        ({"rope_theta": -1e4}, "rope_theta must be a number from 1e-30 to 1e+30, not -10000.0"),
        (
            {"rope_scaling": {"rope_type": "llama3"} | SCALING | {"factor": math.nan}},
            "rope_scaling.factor must be a number",
        ),
        ({"rope_scaling": {"rope_type": "llama3"} | SCALING | {"mscale": 2.0}}, "rope_scaling has the key 'mscale'"),
        ({"quantization_config": {"quant_method": "awq"}}, "give the folder of the model before its quantisation"),
        (
            {"auto_map": {"AutoModelForCausalLM": "code.Model"}},
            "it names program code of the folder, which is never run",
        ),
        ({"sliding_window": 8}, "sliding_window is 8, but only null can be loaded"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0, but only 1.0 can be loaded"),
        (
            {"use_qk_norm": True},
            "use_qk_norm is True, but only False can be loaded; give another model, or remove the key",
        ),
        ({"rope_interleaved": True}, "rope_interleaved is True"),
        (
            {"is_causal": False, "x": 1},
            "not known here and may change what the model computes ('is_causal', 'x'): remove",
        ),
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "does not hold a JSON object"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
    ids=["half", "list", "deep", "5000 digits"],
)
def test_broken_config_is_refused(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"elsewhere/config\.json does not exist: give a folder"):
        read_config(tmp_path / "elsewhere")
