"""Tokenizers: the chains', trained ones, GPT-2's two files, Llama 3's reserved tokens, and what cannot be loaded."""

import json
import time

import pytest
from huggingface_folders import LLAMA, LLAMA_SPECIALS, llama_files
from hypothesis import given, settings
from hypothesis import strategies as st
from published_tokenizers import byte_level, write_json

from longshot_jax.data.chains import CHAIN_WORDS, ChainProblems
from longshot_jax.data.problems import load_problems
from longshot_jax.data.prosqa import ProsQAProblems
from longshot_jax.data.tokenizer import END_LATENT, LATENT, START_LATENT, Tokenizer
from longshot_jax.errors import UserError

TEXTS = [problem.question for problem in ProsQAProblems(seed=0, count=40)]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}: {{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train_bpe(TEXTS, 400)


def gpt2_files(folder):
    """The two files of a byte-level BPE, as GPT-2's are published: bytes, two merges, <|endoftext|>."""
    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*letters, "lo", "Ġlo", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nl o\nĠ lo\n", encoding="utf-8")
    return str(folder)


def special_ids(tokens):
    return [tokens.start_latent, tokens.latent, tokens.end_latent, tokens.end, tokens.pad]


def test_chains_spell_one_token_a_character():
    tokens = Tokenizer.for_chains()
    ids = tokens.encode("b=3 d=b+4\na=d*7 a?")
    assert len(ids) == 15 and tokens.decode(ids) == "b=3d=b+4a=d*7a?"
    assert [tokens.decode([id]) for id in tokens.encode("".join(CHAIN_WORDS))] == list(CHAIN_WORDS)
    assert len(set(special_ids(tokens))) == 5 and tokens.vocabulary_size == 29 + 5
    assert tokens.encode_question("a=1 a?") == tokens.encode("a=1a?")  # white space vanishes
    assert tokens.encode("") == []
    with pytest.raises(UserError, match="cannot spell 'x=3'"):
        tokens.encode("x=3")


def test_chain_problems_fit_the_chain_tokenizer():
    tokens = Tokenizer.for_chains()
    for problem in ChainProblems(0, 100, (1, 4, 9), distractors=2):
        assert tokens.decode(tokens.encode_question(problem.question)) == problem.question.replace(" ", "")
        assert all(len(tokens.encode(text)) == 1 for text in (*problem.steps, problem.answer))


def test_spelling_is_checked_by_characters():
    tokens = Tokenizer.for_chains()
    tokens.check_spelling(f"a=1 {LATENT}\nb?")
    with pytest.raises(UserError, match="cannot spell 'x=3'"):
        tokens.check_spelling("x=3")


def test_half_a_character(trained):
    for tokens in (Tokenizer.for_chains(), trained):
        with pytest.raises(UserError, match="half a character"):
            tokens.encode("b=3 \ud800")


def test_latent_names_in_a_text(trained):
    for tokens in (Tokenizer.for_chains(), trained):
        assert tokens.encode(START_LATENT + LATENT + LATENT + END_LATENT) == [
            tokens.start_latent,
            tokens.latent,
            tokens.latent,
            tokens.end_latent,
        ]


@settings(max_examples=60)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(lambda text: "<|" not in text))
def test_trained_bytes_round_trip(trained, text):
    assert trained.decode(trained.encode(text)) == text


def test_trained_vocabulary(trained):
    assert 256 + 5 < trained.vocabulary_size <= 400
    assert len(set(special_ids(trained))) == 5
    words = sum(len(trained.encode(text)) for text in TEXTS)
    assert words < 0.5 * sum(len(text) for text in TEXTS)
    with pytest.raises(UserError, match="at least 261"):
        Tokenizer.train_bpe(TEXTS, 260)


def test_decode_skips_special_and_padding_rows(trained):
    ids = trained.encode("Tom is a lempus.")
    around = [trained.start_latent, trained.latent, *ids, trained.end, trained.pad, trained.vocabulary_size, 10**6, -1]
    assert trained.decode(around) == "Tom is a lempus."


def test_vocabulary_is_padded_to_a_multiple(tmp_path, trained):
    assert Tokenizer.for_chains(multiple=16).vocabulary_size == 48
    assert Tokenizer.for_chains(multiple=17).vocabulary_size == 34
    trained.save(tmp_path)
    assert Tokenizer.load(str(tmp_path), multiple=128).vocabulary_size == 512
    with pytest.raises(UserError, match="multiple"):
        Tokenizer.for_chains(multiple=0)


@pytest.mark.parametrize("kind", ["chains", "trained", "gpt2", "llama"])
def test_saved_and_loaded_is_the_same(tmp_path, kind, trained):
    (tmp_path / "given").mkdir()
    makers = {
        "chains": Tokenizer.for_chains,
        "trained": lambda: trained,
        "gpt2": lambda: Tokenizer.load(gpt2_files(tmp_path / "given")),
        "llama": lambda: Tokenizer.load(llama_files(tmp_path / "given", LLAMA_SPECIALS, TEMPLATE, **LLAMA)),
    }
    tokens = makers[kind]()
    tokens.save(tmp_path / "a" / "b")
    again = Tokenizer.load(str(tmp_path / "a" / "b"))
    assert special_ids(again) == special_ids(tokens)
    assert again.vocabulary_size == tokens.vocabulary_size
    text = "a=3 b=a*7 b?" + LATENT
    assert again.encode(text) == tokens.encode(text)
    assert again.encode_question("a=3 a?") == tokens.encode_question("a=3 a?")
    assert again.decode(again.encode(text)) == tokens.decode(tokens.encode(text))


@pytest.mark.parametrize(
    "date",
    [
        # Llama 3.2's way, and a template that asks whatever it was told.
        "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}{{ date_string }}",
        "{{ strftime_now('%d %b %Y') }}",
    ],
)
def test_a_template_that_asks_for_today_is_told_a_fixed_day(tmp_path, date):
    tokens = Tokenizer.load(llama_files(tmp_path, LLAMA_SPECIALS, date + TEMPLATE, **LLAMA))
    assert tokens.decode(tokens.encode_question("a?")) == "26 Jul 2024user: a?assistant: "
    tokens.save(tmp_path / "copy")  # the template itself is not changed
    assert (tmp_path / "copy" / "chat_template.jinja").read_text() == date + TEMPLATE


def test_gpt2_files_without_config(tmp_path):
    tokens = Tokenizer.load(gpt2_files(tmp_path))
    assert tokens.end == 258 and tokens.pad == tokens.end  # pads with the end token, having no other
    assert [tokens.start_latent, tokens.latent, tokens.end_latent] == [259, 260, 261]
    assert tokens.encode("lo lo") == [256, 257]
    assert tokens.encode_question("lo") == [256, *tokens.encode("\n")]  # no end token in front of a prompt


def test_llama_reserved_tokens_need_no_new_rows(tmp_path):
    tokens = Tokenizer.load(llama_files(tmp_path, LLAMA_SPECIALS, **LLAMA))
    assert [tokens.start_latent, tokens.latent, tokens.end_latent] == [258, 259, 261]  # numbers 0, 1 and 2
    assert tokens.vocabulary_size == 256 + len(LLAMA_SPECIALS)
    assert tokens.end == 264 and tokens.pad == tokens.end
    assert tokens.encode("a" + LATENT) == [*tokens.encode("a"), tokens.latent]
    assert tokens.decode([*tokens.encode("hi"), tokens.latent]) == "hi"
    assert tokens.encode_question("a") == tokens.encode("a\n")  # begin-of-text exists, and is not put before a text


def test_reserved_tokens_are_rows_of_the_model(tmp_path):
    """Nothing is added, so a tokenizer with as many as three ids too many is that of another model."""
    tokens = Tokenizer.load(llama_files(tmp_path, LLAMA_SPECIALS, **LLAMA))
    tokens.check_fits(tokens.vocabulary_size, latents_beyond=True)
    with pytest.raises(UserError, match="the model's own tokenizer"):
        tokens.check_fits(tokens.vocabulary_size - 1, latents_beyond=True)


def test_llama_padding_on_a_reserved_token_is_left_alone(tmp_path):
    tokens = Tokenizer.load(llama_files(tmp_path, LLAMA_SPECIALS, pad_token="<|reserved_special_token_0|>", **LLAMA))
    assert tokens.pad == 258
    assert [tokens.start_latent, tokens.latent, tokens.end_latent] == [259, 261, 262]


def test_too_few_reserved_tokens_are_not_used(tmp_path):
    specials = ["<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    tokens = Tokenizer.load(llama_files(tmp_path, specials, eos_token="<|end_of_text|>"))
    assert [tokens.start_latent, tokens.latent, tokens.end_latent] == [259, 260, 261]


def test_chat_template_begins_once(tmp_path):
    tokens = Tokenizer.load(llama_files(tmp_path, LLAMA_SPECIALS, TEMPLATE, **LLAMA))
    ids = tokens.encode_question("How many?")
    assert ids.count(256) == 1 and ids[0] == 256
    assert tokens.decode(ids) == "user: How many?assistant: "
    (tmp_path / "b").mkdir()
    bare = Tokenizer.load(
        llama_files(tmp_path / "b", LLAMA_SPECIALS, TEMPLATE.removeprefix("{{ bos_token }}"), **LLAMA)
    )
    assert bare.encode_question("How many?") == ids[1:]  # as the template says
    mine = tmp_path / "mine.jinja"
    mine.write_text(TEMPLATE, encoding="utf-8-sig")  # as some editors write it
    assert Tokenizer.load(str(tmp_path / "b"), 1, str(mine)).encode_question("How many?") == ids


def test_check_fits():
    tokens = Tokenizer.for_chains(multiple=64)
    tokens.check_fits(34)  # the padded rows need not exist in the model
    with pytest.raises(UserError, match=r"ids up to 33 .* only 33 rows.*own tokenizer"):
        tokens.check_fits(33)
    tokens.check_fits(31, latents_beyond=True)
    with pytest.raises(UserError, match=r"ids up to 30 .* only 30 rows.* enlarge the embedding to 31 rows"):
        tokens.check_fits(30, latents_beyond=True)


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer"):
        Tokenizer.load(str(tmp_path))
    with pytest.raises(UserError, match="no tokenizer folder"):
        Tokenizer.load(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="has no tokenizer"):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        Tokenizer.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_text_that_does_not_come_back_is_refused(tmp_path):
    """As with a library version that builds Llama 2's tokenizer from the byte-level files of R1-Distill."""
    folder = llama_files(tmp_path, LLAMA_SPECIALS, **LLAMA)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    for change, lost in (
        ({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": ""}}, "'Tomhas3redapples"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "\n"}, "content": " "}}, "apples and buys"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": "0"}}, "'Tom has 0 red"),
        ({"decoder": None}, "'T o m"),
    ):
        file.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=f"tokenizer in {tmp_path} does not give a text back: .* becomes .*{lost}"):
            Tokenizer.load(folder)
    file.write_text(json.dumps(content | {"normalizer": {"type": "Lowercase"}}))
    assert Tokenizer.load(folder).decode(Tokenizer.load(folder).encode("Tom has 3")) == "tom has 3"


def test_a_new_token_that_would_take_the_id_of_another_is_refused(tmp_path):
    byte_level(tmp_path, ["<|end|>"], holes=True)
    write_json(tmp_path, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", eos_token="<|end|>")
    with pytest.raises(UserError, match=r"'\S+' and the new token '<\|.*\|>' the same id 2\d\d: number its"):
        Tokenizer.load(str(tmp_path))


def test_files_that_do_not_fit_together(tmp_path):
    folder = gpt2_files(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nx y\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot be loaded \(.*`xy` out of vocabulary"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    "normalizer, reason",
    [
        ({"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "Precompiled: Error"),  # while loading
        ({"type": "Prepend", "prepend": ""}, "index out of bounds"),  # at the first text
    ],
)
def test_a_panic_in_rust_is_one_sentence(tmp_path, normalizer, reason):
    """Which is no Exception, so that it would pass every handler of errors."""
    folder = llama_files(tmp_path, LLAMA_SPECIALS, **LLAMA)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": normalizer}))
    with pytest.raises(
        UserError, match=rf"the tokenizer in {tmp_path} cannot be loaded \({reason}.*\): fix or replace"
    ):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda words: words.pop("s"),
            "no token for the byte 's', so texts would lose it|the same id 255",
        ),  # that of the next
        (lambda words: words.update(a=words["b"]), "gives '[ab]' and '[ab]' the same id"),
    ],
    ids=["byte", "id"],
)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_vocabulary_that_loses_or_confuses_characters_is_refused(tmp_path, kind, change, sentence):
    gpt2_files(tmp_path) if kind == "gpt2" else llama_files(tmp_path, LLAMA_SPECIALS, **LLAMA)
    file = tmp_path / ("vocab.json" if kind == "gpt2" else "tokenizer.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content if kind == "gpt2" else content["model"]["vocab"])
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        Tokenizer.load(str(tmp_path))


def test_bytes_that_no_text_has_may_be_missing(tmp_path):
    """SmolLM2's vocabulary lacks 21 of them."""
    llama_files(tmp_path, LLAMA_SPECIALS, **LLAMA)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    for character in "ÀÁñòõ":  # how the library writes the bytes C0, C1, F1, F2, F5
        words[f"no {character}"] = words.pop(character)
    file.write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer.load(str(tmp_path)).decode(Tokenizer.load(str(tmp_path)).encode("À ñ 😀")) == "À ñ 😀"


def test_untrained_latent_tokens_have_a_meaning_and_trained_ones_keep_theirs(tmp_path):
    """Added and reserved tokens start from tokens that mean them in text; those of a tokenizer stored here do not."""
    for specials in (LLAMA_SPECIALS, LLAMA_SPECIALS[:2]):
        tokens = Tokenizer.load(
            llama_files(tmp_path, specials, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
        )
        said = {tokens.start_latent: "\n", tokens.latent: ".", tokens.end_latent: "#"}
        assert {id: tokens.spell(origin) for id, origin in tokens.meanings.items()} == said
    tokens.save(tmp_path / "stored")
    assert Tokenizer.load(str(tmp_path / "stored")).meanings == {}


def test_no_end_token(tmp_path):
    with pytest.raises(UserError, match="has no end token"):
        Tokenizer.load(llama_files(tmp_path, LLAMA_SPECIALS))


def test_hub_name_without_network_fails_quickly(monkeypatch):
    import transformers  # noqa: F401  (its import is not what is timed)

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(UserError, match="out of reach"):
        Tokenizer.load("someone/no-such-model")
    assert time.monotonic() - began < 20


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Tokenizer.for_chains().save(tmp_path / "file")
    tokens = Tokenizer.for_chains()
    tokens._tokenizer.save_pretrained = lambda _: (_ for _ in ()).throw(Exception("No space left on device"))
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        tokens.save(tmp_path / "full")  # the library in Rust raises nothing more precise


def test_real_gpt2(shared_data):
    tokens = Tokenizer.load(str(shared_data / "tokenizers/gpt2"), multiple=64)
    assert tokens.end == 50256 and tokens.encode("Hello world") == [15496, 995]
    assert [tokens.start_latent, tokens.latent, tokens.end_latent] == [50257, 50258, 50259]
    assert tokens.vocabulary_size == 50304
    with pytest.raises(UserError, match="50257 rows"):
        tokens.check_fits(50257)
    files = ("gsm8k_aug/test.txt", "prosqa/prosqa_valid.json", "prontoqa/prontoqa.json")
    for file in files:
        for problem in load_problems(str(shared_data / file))[:150]:
            for text in (problem.question, problem.answer, *problem.steps):
                assert tokens.decode(tokens.encode(text)) == text
