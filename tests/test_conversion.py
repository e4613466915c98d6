"""`scripts/convert.py`: there and back without a changed bit, and one sentence where it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from longshot_jax.conversion import from_hf, llama_from_json, llama_to_json
from longshot_jax.data.tokens import Tokens
from longshot_jax.errors import UserError
from longshot_jax.export import to_hf
from longshot_jax.model.huggingface import read_config
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.rope import RopeScaling

ROOT = Path(__file__).parents[1]
LLAMA = Path(__file__).parent / "fixtures" / "golden_llama3"


def with_tokenizer(folder: Path, words: int) -> tuple[Path, Tokens]:
    """The fixture's weights, of 96 rows, beside a tokenizer of so many words and the latent tokens."""
    import tokenizers
    import transformers

    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((LLAMA / name).read_bytes())
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"w{number}": number for number in range(words)})
    )
    tokens = Tokens(transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="w0"), "of a test")
    tokens.save(folder)
    return folder, Tokens.load(str(folder))


def test_there_and_back_changes_no_bit(tmp_path):
    from_hf(LLAMA, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "out")
    before, after = load_file(LLAMA / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    assert read_config(tmp_path / "out") == read_config(LLAMA)


def test_embeddings_grow_to_the_tokenizer_and_it_travels_along(tmp_path):
    folder, tokens = with_tokenizer(tmp_path / "llama", 96)
    from_hf(folder, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "out", "bfloat16")
    assert read_config(tmp_path / "out").vocab_size == tokens.vocabulary_size == 99
    exported = Tokens.load(str(tmp_path / "out"))
    assert exported.latent == tokens.latent
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == tokens.end


def test_another_models_tokenizer_is_refused(tmp_path):
    folder, _ = with_tokenizer(tmp_path / "llama", 97)
    with pytest.raises(UserError, match=r"ids up to 99 but the model's embedding has only 99 rows"):
        from_hf(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shape_survives_json():
    config = LlamaConfig(9, 8, 12, 1, 2, 1, 4, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64))
    assert llama_from_json(json.loads(json.dumps(llama_to_json(config)))) == config


def test_earlier_checkpoints_are_not_touched(tmp_path):
    from_hf(LLAMA, tmp_path / "run")
    with pytest.raises(UserError, match="already holds checkpoints"):
        from_hf(LLAMA, tmp_path / "run")
    with pytest.raises(UserError, match="holds no checkpoints"):
        to_hf(LLAMA, tmp_path / "out")


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path):
    result = subprocess.run(
        [sys.executable, "scripts/convert.py", "from-hf", str(tmp_path), str(tmp_path / "run")],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2
    assert result.stderr.strip() == (
        f"error: {tmp_path}/config.json is missing; give a folder that holds a Hugging Face Llama"
    )
    assert not (tmp_path / "run").exists()
