"""Prompts and end tokens of published Llamas are those of transformers, with and without a chat template."""

import pytest
import transformers
from published_tokenizers import STYLES, write_json, write_style

from longshot_jax.data.tokenizer import Tokenizer

QUESTION = "Tom has 3 red apples.\nHow many?"


@pytest.mark.parametrize("style", STYLES)
def test_prompt_and_end_tokens_are_those_of_transformers(tmp_path, style):
    ids = write_style(tmp_path, style)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    if theirs.chat_template:
        expected = theirs.apply_chat_template(
            [{"role": "user", "content": QUESTION}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
            date_string="26 Jul 2024",
        )
    else:
        expected = theirs(QUESTION + "\n")["input_ids"]
    if (tmp_path / "generation_config.json").exists():
        generation = transformers.GenerationConfig.from_pretrained(str(tmp_path))
    else:
        model = transformers.LlamaConfig.from_pretrained(str(tmp_path))
        generation = transformers.GenerationConfig.from_model_config(model)
    stops = generation.eos_token_id
    tokens = Tokenizer.load(str(tmp_path))
    assert tokens.encode_question(QUESTION) == expected
    assert sorted(tokens.ends) == sorted(stops if isinstance(stops, list) else [stops])
    assert tokens.end == tokens.ends[0] == ids[STYLES[style][-1]]
    tokens.save(tmp_path / "run")
    stored = Tokenizer.load(str(tmp_path / "run"))
    assert stored.ends == tokens.ends and stored.encode_question(QUESTION) == expected


def test_an_end_token_is_no_latent_token_even_if_its_name_is_reserved(tmp_path):
    """Nor is a reserved token that the chat template writes: it is in use."""
    from huggingface_folders import LLAMA, LLAMA_SPECIALS, llama_files

    template = "{% for m in messages %}{{ m['content'] }}<|reserved_special_token_1|>{% endfor %}"
    llama_files(tmp_path, [*LLAMA_SPECIALS, "<|reserved_special_token_4|>"], template, **LLAMA)
    write_json(tmp_path, "generation_config.json", eos_token_id=[264, 258])  # 258 is number 0
    tokens = Tokenizer.load(str(tmp_path))
    assert [tokens.start_latent, tokens.latent, tokens.end_latent] == [261, 262, 265]  # numbers 2, 3 and 4
