"""What a model's folder says about its tokens comes out of a conversion as it went in; code of a folder is never run."""

import builtins
import json
import os
import subprocess
from pathlib import Path

import pytest
from huggingface_folders import CONFIG, LLAMA, LLAMA_SPECIALS, hf_tensors, llama_files, write

from longshot_jax.checkpoints.convert import from_hf, to_hf
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}"
ROWS = 256 + len(LLAMA_SPECIALS)
END, TURN = 257, ROWS - 1  # <|end_of_text|>, <|eot_id|>
GENERATION = {"bos_token_id": 256, "eos_token_id": [END, TURN], "temperature": 0.6, "transformers_version": "4.57.6"}
IDS = {"bos_token_id": 256, "eos_token_id": [END, TURN], "pad_token_id": END}
SPECIALS = {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|eot_id|>", "lstrip": False}}


def content(file: Path):
    return json.loads(file.read_text(encoding="utf-8"))


def change(file: Path, **changes) -> None:
    file.write_text(json.dumps(content(file) | changes))


def model(folder: Path) -> Path:
    """A random Llama with the tokenizer files of an instruct model, as transformers 5 writes them."""
    write(folder, vocab_size=ROWS, **IDS)
    llama_files(folder, LLAMA_SPECIALS, TEMPLATE, additional_special_tokens=["<|start_header_id|>"], **LLAMA)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIALS))
    return folder


def sentencepiece_model(folder: Path) -> Path:
    """One in the form of Llama 2: a space is a character of its own, other characters are bytes, and `<s>` comes first."""
    import tokenizers

    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz?",
    ]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {w: n for n, w in enumerate(words)}, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens(words[:3])
    write(folder, vocab_size=len(words), bos_token_id=1, eos_token_id=2)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | named))
    return folder


def there_and_back(folder: Path, out: Path) -> Path:
    from_hf(folder, out / "run")
    to_hf(out / "run", out / "export")
    return out / "export"


def test_what_came_in_goes_out(tmp_path):
    source = model(tmp_path / "source")
    out = there_and_back(source, tmp_path)
    assert content(out / "generation_config.json") == GENERATION
    assert content(out / "special_tokens_map.json") == SPECIALS
    assert {key: content(out / "config.json")[key] for key in IDS} == IDS
    before, after = Tokenizer.load(str(source)), Tokenizer.load(str(out))
    assert (out / "chat_template.jinja").read_text() == TEMPLATE
    assert before.encode_question("a b?") == after.encode_question("a b?")
    assert before.latent == after.latent
    settings = content(out / "tokenizer_config.json")
    assert content(source / "tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # a class that transformers 4 has, too
    assert settings["additional_special_tokens"] == ["<|start_header_id|>"] and "extra_special_tokens" not in settings


def test_settings_of_other_programs_and_the_template_in_them_are_kept(tmp_path):
    source = sentencepiece_model(tmp_path / "source")
    out = there_and_back(source, tmp_path)
    settings, before = content(out / "tokenizer_config.json"), content(source / "tokenizer_config.json")
    assert settings == before | {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert before["add_bos_token"] and before["chat_template"]
    assert not (out / "generation_config.json").exists()
    ids = content(out / "config.json")
    assert (ids["bos_token_id"], ids["eos_token_id"], ids["pad_token_id"]) == (1, 2, None)


def test_a_model_without_a_tokenizer_keeps_its_token_ids_and_generation_settings(tmp_path):
    source = model(tmp_path / "source")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (source / name).unlink()
    out = there_and_back(source, tmp_path)
    assert content(out / "generation_config.json") == GENERATION
    assert {key: content(out / "config.json")[key] for key in IDS} == IDS


def test_it_travels_from_run_to_run(tmp_path):
    Tokenizer.load(str(model(tmp_path / "source"))).save(tmp_path / "first")
    Tokenizer.load(str(tmp_path / "first")).save(tmp_path / "second")
    assert {file.name for file in (tmp_path / "first").iterdir()} >= {"generation_config.json", "config.json"}
    for file in (tmp_path / "first").iterdir():
        assert file.read_text() == (tmp_path / "second" / file.name).read_text(), file.name
    assert Tokenizer.load(str(tmp_path / "second")).token_ids == IDS


def test_an_export_of_a_tokenizer_made_here_names_its_tokens(tmp_path):
    tokens = Tokenizer.train_bpe(["a=1 b=2"], 270)
    assert tokens.token_ids == {"bos_token_id": None, "eos_token_id": tokens.end, "pad_token_id": tokens.pad}
    tokens.save(tmp_path)
    assert content(tmp_path / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_broken_file_is_named(tmp_path):
    (model(tmp_path) / "special_tokens_map.json").write_text("{")
    with pytest.raises(UserError, match=r"special_tokens_map\.json is not valid JSON .*copy it again from its source"):
        Tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_code_of_a_folder_is_never_run(tmp_path, monkeypatch, file):
    """Not even where `y` stands on standard input."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    folder, trace = model(tmp_path / "model"), tmp_path / "trace"
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w')\nclass Tokens: pass\nclass Config: pass\n")
    if file == "config.json":
        (folder / file).write_text(json.dumps(IDS))  # a setting that is old by now would be a warning
        change(folder / file, model_type="new", auto_map={"AutoConfig": "code.Config", "AutoTokenizer": "code.Tokens"})
        assert Tokenizer.load(str(folder)).encode("a") == Tokenizer.load(str(model(tmp_path / "plain"))).encode("a")
    else:
        change(folder / file, tokenizer_class="Tokens", auto_map={"AutoTokenizer": ["code.Tokens", None]})
        with pytest.raises(
            UserError, match=r"program code that auto_map names .* never run: put a tokenizer\.json"
        ) as error:
            Tokenizer.load(str(folder))
        assert "trust_remote_code" not in str(error.value)
    assert not trace.exists()


READER = """
import json, sys
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
folder, question = sys.argv[1:]
tokens, model = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
generation = GenerationConfig.from_pretrained(folder) if "generation" in folder else None
print(json.dumps({
    "class": type(tokens).__name__,
    "ids": tokens.encode(question), "plain": tokens.encode(question, add_special_tokens=False),
    "text": tokens.decode(tokens.encode(question), skip_special_tokens=True),
    "template": tokens.get_chat_template() if tokens.chat_template else None,
    "latent": tokens.convert_tokens_to_ids(sys.argv[2][-1:]),
    "eos": model.eos_token_id, "stops": generation and generation.eos_token_id, "theta": model.rope_theta,
    "width": model.hidden_size, "layers": model.num_hidden_layers,
}))
"""


@pytest.mark.skipif("LONGSHOT_TRANSFORMERS4" not in os.environ, reason="needs the environment of `make test-versions`")
@pytest.mark.parametrize("kind", ["generation", "sentencepiece"])
def test_transformers_4_reads_an_export_as_this_version_does(tmp_path, kind):
    source = (model if kind == "generation" else sentencepiece_model)(tmp_path / f"{kind}_source")
    out = there_and_back(source, tmp_path / kind)
    question = "what is a b?"
    command = [os.environ["LONGSHOT_TRANSFORMERS4"], "-c", READER, str(out), question]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    theirs, tokens = json.loads(result.stdout.splitlines()[-1]), Tokenizer.load(str(out))
    assert theirs["plain"] == tokens.encode(question)
    assert theirs["text"].strip() == question == tokens.decode(theirs["ids"]).strip()
    assert theirs["template"] == TEMPLATE
    assert theirs["eos"] == content(source / "config.json")["eos_token_id"]
    assert theirs["stops"] == (GENERATION["eos_token_id"] if kind == "generation" else None)
    assert (theirs["theta"], theirs["width"], theirs["layers"]) == (CONFIG["rope_theta"], 8, 2)
    assert theirs["ids"][:1] == ([1] if kind == "sentencepiece" else theirs["plain"][:1])
    assert len(hf_tensors(CONFIG)) > 2
