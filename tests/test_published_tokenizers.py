"""Published Llamas: the ids of tokenizer.json, whatever its class; prompts and end tokens of transformers."""

import pytest
import tokenizers
import transformers
from published_tokenizers import LETTERS, STYLES, saved, write_json, write_style
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError

QUESTION = "Tom has 3 red apples.\nHow many?"


@pytest.mark.parametrize("style", STYLES)
def test_prompt_and_end_tokens_are_those_of_transformers(tmp_path, style):
    ids = write_style(tmp_path, style)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path), local_files_only=True)
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


TEXTS = (
    "12+345 = 1234567",
    "What is 12+345?\nTom has  3 apples\n\n",
    "  lead",
    "a\n b",
    "<s>Tom</s> Tom 12",
    "Tom's café ü 日本 12 ²½ $1,234.56",
)
CLASSES = ("LlamaTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast", None)


def in_bytes(before):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("1", "2"), ("3", "4"), ("12", "34"), ("Ġ", "1"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("Ċ", "T")]
    words = {word: number for number, word in enumerate([*letters, *map("".join, pairs)])}
    model = tokenizers.Tokenizer(models.BPE(words, pairs))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer, model.decoder = pre_tokenizers.Sequence([before, level]), decoders.ByteLevel()
    return model


def in_pieces(pre_tokenizer, normalizer=None):
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, "▁T", "▁a", "12", "▁▁"]
    pairs = [("▁", "T"), ("▁", "a"), ("1", "2"), ("▁", "▁")]
    words = {word: number for number, word in enumerate(pieces)}
    model = tokenizers.Tokenizer(models.BPE(words, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    model.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        model.normalizer = normalizer
    model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return model


LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
IN_THE_FILE = {
    "digits in groups of three": lambda: in_bytes(pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")),
    "single digits": lambda: in_bytes(pre_tokenizers.Digits(individual_digits=True)),
    "pieces, single digits": lambda: in_pieces(pre_tokenizers.Digits(individual_digits=True), LLAMA2),
    "pieces, no space before": lambda: in_pieces(pre_tokenizers.Metaspace(prepend_scheme="never", split=False)),
}


@pytest.mark.parametrize("kind", IN_THE_FILE)
@pytest.mark.parametrize("named", CLASSES)
def test_ids_are_those_of_the_file(tmp_path, kind, named):
    """transformers 5 builds the parts of a class anew, and leaves out those of the file; nothing else tells the user."""
    saved(tmp_path, IN_THE_FILE[kind](), ["<s>", "</s>"], "<s>")
    file = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ends = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    write_json(tmp_path, "tokenizer_config.json", **ends, **({"tokenizer_class": named} if named else {}))
    write_json(tmp_path, "config.json", model_type="llama")
    tokens = Tokenizer.load(str(tmp_path))
    tokens.save(tmp_path / "run")
    stored = Tokenizer.load(str(tmp_path / "run"))
    for text in TEXTS:
        ids = file.encode(text, add_special_tokens=False).ids
        assert tokens.encode(text) == stored.encode(text) == ids
        prompt = file.encode(text + "\n").ids
        assert tokens.encode_question(text) == stored.encode_question(text) == prompt


def test_a_run_keeps_the_ids_that_it_was_trained_with(tmp_path):
    """Those of the tokenizer in its folder, even where an earlier version built that from the class."""
    saved(tmp_path, IN_THE_FILE["digits in groups of three"](), ["<s>", "</s>"], "<s>")
    write_json(tmp_path, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", bos_token="<s>", eos_token="</s>")
    write_json(tmp_path, "config.json", model_type="llama")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs.encode("1234", add_special_tokens=False) != Tokenizer.load(str(tmp_path)).encode("1234")
    Tokenizer(theirs, "built from the class").save(tmp_path / "run")
    stored = Tokenizer.load(str(tmp_path / "run"))
    for text in TEXTS:
        assert stored.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_special_tokens_of_a_class_hold_where_no_file_names_any(tmp_path):
    ids = write_style(tmp_path, "llama2")
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).unlink()
    write_json(tmp_path, "tokenizer_config.json", tokenizer_class="LlamaTokenizer", add_bos_token=True)
    tokens = Tokenizer.load(str(tmp_path))
    assert tokens.ends == (ids["</s>"],) and tokens.encode_question("a")[0] == ids["<s>"]


def test_a_sentencepiece_model_alone_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x05abc")
    write_json(tmp_path, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    with pytest.raises(
        UserError, match=r"has tokenizer\.model but no tokenizer\.json, which alone is read: put the tokenizer\.json of"
    ):
        Tokenizer.load(str(tmp_path))


def test_an_end_token_is_no_latent_token_even_if_its_name_is_reserved(tmp_path):
    """Nor is a reserved token that the chat template writes: it is in use."""
    from huggingface_folders import LLAMA, LLAMA_SPECIALS, llama_files

    template = "{% for m in messages %}{{ m['content'] }}<|reserved_special_token_1|>{% endfor %}"
    llama_files(tmp_path, [*LLAMA_SPECIALS, "<|reserved_special_token_4|>"], template, **LLAMA)
    write_json(tmp_path, "generation_config.json", eos_token_id=[264, 258])  # 258 is number 0
    tokens = Tokenizer.load(str(tmp_path))
    assert [tokens.start_latent, tokens.latent, tokens.end_latent] == [261, 262, 265]  # numbers 2, 3 and 4
