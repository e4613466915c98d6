"""A model's end tokens: where they are read, what ends at them, and that a run and an export keep them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import END, QUICK, ragged_prompts, small_reasoner
from published_tokenizers import LLAMA3, LLAMA3_TEMPLATE, byte_level, config, write_json
from safetensors.numpy import save_file

from longshot_jax import LongShot
from longshot_jax.checkpoints.convert import from_hf, to_hf
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.evaluation.batches import answer_texts
from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.think import encode, think_given

ANSWER, LENGTH = "18", 6


def instruct(folder, in_config=257, **generation):
    """A Llama 3 Instruct that answers everything with 18 and its end of turn, then `!` for ever; two end tokens."""
    ids = byte_level(folder, LLAMA3, "<|begin_of_text|>")
    write_json(
        folder,
        "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        chat_template=LLAMA3_TEMPLATE,
    )
    rows = max(ids.values()) + 1
    shape = config(ids, hidden_size=rows + 3, num_attention_heads=1, num_key_value_heads=1, eos_token_id=in_config)
    # No layer does anything: the next token depends on the last one.
    size, zeros = shape["hidden_size"], np.zeros
    layer = {
        **{f"self_attn.{name}_proj": zeros((size, size)) for name in "qkvo"},
        **{f"mlp.{name}_proj": zeros((8, size)) for name in ("gate", "up")},
        "mlp.down_proj": zeros((size, 8)),
        **{f"{name}_layernorm": np.ones(size) for name in ("input", "post_attention")},
    }
    head, chain = zeros((rows, size)), [ids[word] for word in ("Ċ", *ANSWER, "<|eot_id|>", "!", "!")]
    head[chain[1:], chain[:-1]] = 10
    tensors = {"model.embed_tokens": np.eye(rows, size), "model.norm": np.ones(size), "lm_head": head}
    tensors |= {f"model.layers.0.{name}": tensor for name, tensor in layer.items()}
    save_file({f"{name}.weight": t.astype(np.float32) for name, t in tensors.items()}, folder / "model.safetensors")
    write_json(folder, "config.json", **shape)
    if generation:
        write_json(folder, "generation_config.json", **generation)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return instruct(tmp_path_factory.mktemp("llama") / "first", eos_token_id=[257, 260])


def test_generation_and_evaluation_end_at_each(folder):
    model = LongShot.from_pretrained(folder)
    found = model.generate("How many?", return_all_trajectories=True, answer_length=LENGTH)
    assert found.answer == ANSWER and found.trajectories[0].finished
    results = model.evaluate([Problem("How many?", (), ANSWER)] * 2, num_trajectories=0, controls=False)
    assert results["accuracy"] == 1


def test_an_answer_is_written_with_the_end_of_a_turn_and_read_up_to_any_end(folder):
    tokens = Tokenizer.load(str(folder))
    assert tokens.ends == (260, 257) and tokens.end == 260
    layout = Layout(tokens, "coconut", "coconut", 64)
    written = layout.answer(Problem("?", (), ANSWER))
    assert written[-1] == 260
    eight, strange = tokens.encode("8")[0], tokens.encode("!")[0]
    texts = answer_texts(np.array([[[eight, end, strange] for end in (260, 257, 258)]]), layout)
    assert texts == [["8", "8", "8<|start_header_id|>! <|unfinished|>"]]


def test_a_run_and_its_export_keep_them(folder, tmp_path):
    import transformers

    from_hf(folder, tmp_path / "run")
    assert Tokenizer.load(str(tmp_path / "run" / "tokenizer")).ends == (260, 257)
    to_hf(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [260, 257]
    assert transformers.GenerationConfig.from_pretrained(str(tmp_path / "out")).eos_token_id == [260, 257]
    assert Tokenizer.load(str(tmp_path / "out")).ends == (260, 257)


@pytest.mark.parametrize(
    "in_config, generation, ends",
    [
        ([257, 260], {}, (260, 257)),
        (257, {"eos_token_id": 260}, (260,)),  # generation_config.json comes first
        ([260], {"eos_token_id": None}, (260,)),
        ([260, 257], {"temperature": 0.6}, (260, 257)),
        (None, {}, (257,)),  # the tokenizer's
        (2, {}, (257,)),  # a letter of this tokenizer, and Llama's id in a config.json that was written without one
    ],
)
def test_where_they_are_read(tmp_path, in_config, generation, ends):
    assert Tokenizer.load(str(instruct(tmp_path, in_config, **generation))).ends == ends


@pytest.mark.parametrize("value", [[], "257", 257.0, True, [257, None], 261, [257, -1]])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_a_wrong_value_is_named_with_its_file(tmp_path, value, file):
    write_json(instruct(tmp_path), file, eos_token_id=value)
    with pytest.raises(UserError, match=rf"{file}: eos_token_id (must be the id of a token|261|-1) ?"):
        Tokenizer.load(str(tmp_path))


def test_decoding_ends_at_each_and_is_the_same_up_to_there():
    reasoner, (prompt, mask) = small_reasoner(seed=3), ragged_prompts([3, 6], 6)

    @jax.jit
    def prepared():
        encoded = encode(reasoner, prompt, mask)
        return encoded, think_given(reasoner, encoded, jnp.zeros((2, 1, 1, 8)), jnp.ones((2, 1), jnp.int32))

    def decode(*ends):
        run = lambda: decode_answers(reasoner, *prepared(), (7,), ends, LENGTH, jnp.float32(1), None)  # noqa: E731
        return jax.device_get(jax.jit(run, compiler_options=QUICK)())

    one = decode(END)
    second = int(one.tokens[0, 0, 0])
    assert second != END and one.mask[0, 0, 1]
    two = decode(END, second)
    assert two.ended[0, 0] and two.mask[0, 0].tolist() == [True, *(LENGTH - 1) * [False]]
    assert two.tokens[0, 0].tolist() == [second, *(LENGTH - 1) * [END]]
    for before, after in zip(jax.tree.leaves(one.scores), jax.tree.leaves(two.scores), strict=True):
        assert after[0, 0, 0] == before[0, 0, 0] and not after[0, 0, 1:].any()
