"""A model's end tokens: where they are read, what ends at them, and that a run and an export keep them."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import END, QUICK, VOCABULARY, ragged_prompts, small_reasoner
from published_tokenizers import LLAMA3, LLAMA3_TEMPLATE, byte_level, config, write_json
from safetensors.numpy import save_file
from tiny_run import tiny

from longshot_jax import LongShot
from longshot_jax.checkpoints.convert import from_hf, to_hf
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.evaluation.batches import answer_texts
from longshot_jax.ppo.loop import PPOLoop
from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.think import encode, think_given
from longshot_jax.train import train

ANSWER, LENGTH = "18", 6


def instruct(folder, in_config=257, **generation):
    """A Llama 3 Instruct that answers everything with 18 and `<|eom_id|>`, then writes `!` for ever.

    `<|end_of_text|>` (257) is the tokenizer's end token, `<|eot_id|>` (260) that of a turn, and `<|eom_id|>` is 261.
    """
    ids = byte_level(folder, [*LLAMA3, "<|eom_id|>"], "<|begin_of_text|>")
    write_json(
        folder,
        "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        chat_template=LLAMA3_TEMPLATE,
    )
    rows = max(ids.values()) + 1
    shape = config(
        ids, hidden_size=rows + rows % 2, num_attention_heads=1, num_key_value_heads=1, eos_token_id=in_config
    )
    # No layer does anything: the next token depends on the last one.
    size, zeros = shape["hidden_size"], np.zeros
    layer = {
        **{f"self_attn.{name}_proj": zeros((size, size)) for name in "qkvo"},
        **{f"mlp.{name}_proj": zeros((8, size)) for name in ("gate", "up")},
        "mlp.down_proj": zeros((size, 8)),
        **{f"{name}_layernorm": np.ones(size) for name in ("input", "post_attention")},
    }
    head, chain = zeros((rows, size)), [ids[word] for word in ("Ċ", *ANSWER, "<|eom_id|>", "!", "!")]
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
    return instruct(tmp_path_factory.mktemp("llama"), eos_token_id=[257, 261, 260])


def test_generation_ends_at_each(folder):
    found = LongShot.from_pretrained(folder).generate("How many?", return_all_trajectories=True, answer_length=LENGTH)
    assert found.answer == ANSWER and found.trajectories[0].finished


@pytest.mark.slow
def test_ppo_ends_and_rewards_at_each(folder, tmp_path, monkeypatch):
    lines = (json.dumps({"question": f"How many? {n}", "answer": f"#### {ANSWER}"}) for n in range(16))
    problems = tmp_path / "problems.jsonl"
    problems.write_text("\n".join(lines))
    settings = {"model__source": str(folder), "data__tokenizer": "model", "data__train": str(problems)}
    settings |= {"data__validation": str(problems), "data__prompt_length": 64, "curriculum__mode": "cot"}
    run, outcomes, seen = (
        tiny(phases=("ppo",), ppo__max_thoughts=0, ppo__iterations=1, **settings),
        [],
        PPOLoop._outcomes,
    )
    monkeypatch.setattr(PPOLoop, "_outcomes", lambda *given: outcomes.append(seen(*given)) or outcomes[-1])
    result = train(run, tmp_path / "run", io.StringIO())
    assert outcomes[0].ended.all() and outcomes[0].correct.all() and result.best_accuracy == 1
    assert Tokenizer.load(str(tmp_path / "run" / "tokenizer")).ends == (260, 257, 261)


@pytest.mark.slow
def test_an_answer_is_that_of_transformers(folder):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    turn = [{"role": "user", "content": "How many?"}]
    prompt = theirs.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    out = model.generate(prompt, max_new_tokens=LENGTH, do_sample=False, pad_token_id=257)[0, prompt.shape[1] :]
    ours = LongShot.from_pretrained(folder).generate("How many?", answer_length=LENGTH)
    assert ours == theirs.decode(out, skip_special_tokens=True) == ANSWER


def test_an_answer_is_written_with_the_end_of_a_turn_and_read_up_to_any_end(folder):
    tokens = Tokenizer.load(str(folder))
    assert tokens.ends == (260, 257, 261) and tokens.end == 260
    layout = Layout(tokens, "coconut", "coconut", 64)
    written = layout.answer(Problem("?", (), ANSWER))
    assert written[-1] == 260
    eight, strange = tokens.encode("8")[0], tokens.encode("!")[0]
    texts = answer_texts(np.array([[[eight, end, strange] for end in (260, 257, 261, 258)]]), layout)
    assert texts == [["8", "8", "8", "8<|start_header_id|>! <|unfinished|>"]]


def test_a_run_and_its_export_keep_them(folder, tmp_path):
    import transformers

    from_hf(folder, tmp_path / "run")
    assert Tokenizer.load(str(tmp_path / "run" / "tokenizer")).ends == (260, 257, 261)
    to_hf(tmp_path / "run", tmp_path / "out")
    given = json.loads((folder / "config.json").read_text())["eos_token_id"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == given  # as it came
    theirs = transformers.LlamaConfig.from_pretrained(str(tmp_path / "out"))
    assert transformers.GenerationConfig.from_model_config(theirs).eos_token_id == given
    assert Tokenizer.load(str(tmp_path / "out")).ends == (260, 257, 261)


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


@pytest.mark.parametrize("value", [[], "257", 257.0, True, [257, None], 262, [257, -1]])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_a_wrong_value_is_named_with_its_file(tmp_path, value, file):
    write_json(instruct(tmp_path), file, eos_token_id=value)
    with pytest.raises(UserError, match=rf"{file}: eos_token_id (must be the id of a token|262|-1) ?"):
        Tokenizer.load(str(tmp_path))


def test_decoding_ends_at_each_and_is_the_same_up_to_there():
    """Where every token is an end token, an answer is the first one; what follows is filled with the first end token."""
    reasoner, (prompt, mask) = small_reasoner(seed=3), ragged_prompts([3, 6], 6)
    every = (END, *(token for token in range(VOCABULARY) if token != END))

    def decode():
        encoded = encode(reasoner, prompt, mask)
        thoughts = think_given(reasoner, encoded, jnp.zeros((2, 1, 1, 8)), jnp.ones((2, 1), jnp.int32))
        given = reasoner, encoded, thoughts, (7,)
        return [decode_answers(*given, ends, LENGTH, jnp.float32(1), None) for ends in ((END,), every)]

    one, two = jax.device_get(jax.jit(decode, compiler_options=QUICK)())
    assert one.mask[0, 0, 1] and one.tokens[0, 0, 0] != END
    assert two.ended.all() and two.mask.tolist() == 2 * [[[True, *(LENGTH - 1) * [False]]]]
    assert (two.tokens[..., 0] == one.tokens[..., 0]).all() and (two.tokens[..., 1:] == END).all()
    for before, after in zip(jax.tree.leaves(one.scores), jax.tree.leaves(two.scores), strict=True):
        np.testing.assert_array_equal(after[..., 0], before[..., 0])
        assert not after[..., 1:].any()
