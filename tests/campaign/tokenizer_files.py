"""Tokenizers of four kinds with damaged files: what is loaded must spell every text back, with sound special tokens."""

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import tokenizers
from huggingface_folders import LLAMA, LLAMA_SPECIALS, llama_files

from campaign.damage import ODD_VALUES, damaged_bytes, damaged_json, damaged_text, written_json
from campaign.judging import Case, first, same
from longshot_jax.data.prosqa import ProsQAProblems
from longshot_jax.data.tokenizer import LATENT_TOKENS, Tokenizer

Files = dict[str, bytes]
_TEXTS = ("Tom is a lempus. Is 3 + 4 = 7?", "### -12,5 %", " a\n\n  b\t<c> {x}", "Ünïcode 漢字 🙂 e\u0301", "lo lo Lo")
_CHAIN = "b=3d=b+4a=d*7a?"
_PIECES = ("\n", " ", "a b\n", "Ġ", "#version: 0.2\n", "l o\n", "\u2028", "🙂", '"', ",", "{", "null", "1")
_ODDS = (*ODD_VALUES, "<|eot_id|>", "<unk>", "BPE", "WordPiece", "Lowercase", {"type": "Lowercase"}, {"type": "NFKC"},
         {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Whitespace"}, "Ġ", "LlamaTokenizer", "GPT2Tokenizer")  # fmt: skip


class TokenizerFiles:
    name, share = "tokenizers", 0.18

    def __init__(self, folder: Path) -> None:
        texts = [problem.question for problem in ProsQAProblems(seed=0, count=20)]
        Tokenizer.train_bpe(texts, 300).save(folder / "trained")
        Tokenizer.for_chains().save(folder / "chains")
        llama_files(folder / "llama", LLAMA_SPECIALS, **LLAMA)
        gpt2_files(folder / "gpt2")
        self.bases = {path.name: files_of(path) for path in sorted(folder.iterdir())}
        self.ids = {name: _ids(Tokenizer.load(str(folder / name)), name) for name in self.bases}

    def case(self, rng: random.Random, folder: Path) -> Case:
        base = rng.choice(sorted(self.bases))
        files, what, harmless = dict(self.bases[base]), "undamaged", True
        name = rng.choice(sorted(files))
        how = rng.choice(["none", "json", "json", "json", "bytes", "bytes", "text", "missing"])
        if how == "json" and name.endswith(".json"):
            what, content = _other_json(rng, json.loads(files[name]))
            files[name] = written_json(rng, content).encode()
        elif how == "missing":
            del files[name]
        elif how == "text":
            what, text = damaged_text(rng, files[name].decode(), _PIECES)
            files[name] = text.encode()
        elif how != "none":
            what, files[name] = damaged_bytes(rng, files[name])
        harmless = how == "none"
        for file, data in files.items():
            (folder / file).write_bytes(data)

        def wrong(tokenizer: Tokenizer) -> str | None:
            fault = unsound(tokenizer, base, folder / "tokenizer.json")
            return fault or (same(_ids(tokenizer, base), self.ids[base], "the ids") if harmless else None)

        return Case(
            f"{base}, {name}, {how}: {what}", lambda: Tokenizer.load(str(folder)), wrong, (str(folder),), harmless
        )


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def gpt2_files(folder: Path) -> None:
    """The two files of a byte-level BPE, as GPT-2's are published."""
    folder.mkdir()
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*letters, "lo", "Ġlo", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nl o\nĠ lo\n", encoding="utf-8")


def _other_json(rng: random.Random, content: Any) -> tuple[str, Any]:
    """Damage mostly outside of the vocabulary, which has most of the values."""
    model = content.get("model")
    if not isinstance(model, dict) or rng.random() < 0.25:
        return damaged_json(rng, content, _ODDS)
    vocabulary = model.pop("vocab")
    what, content = damaged_json(rng, content, _ODDS)
    if isinstance(content.get("model"), dict):
        content["model"].setdefault("vocab", vocabulary)
    return what, content


def _texts(base: str) -> tuple[str, ...]:
    return (_CHAIN,) if base == "chains" else _TEXTS


def _ids(tokenizer: Tokenizer, base: str) -> list[list[int]]:
    return [tokenizer.encode(text) for text in _texts(base)]


def _normal(text: str) -> str:
    """What every tokenizer keeps: some write in lower case, compose accents (NFC, NFKC), or drop white space around."""
    return unicodedata.normalize("NFKC", text.strip()).casefold()


def unsound(tokenizer: Tokenizer, base: str, file: Path) -> str | None:
    """What is wrong with a tokenizer by its own behaviour, and by the tokenizers library on its file."""
    latent = (tokenizer.start_latent, tokenizer.latent, tokenizer.end_latent)
    faults = [
        None if len({*latent, tokenizer.end}) == 4 else f"latent tokens {latent} and end {tokenizer.end} coincide"
    ]
    for name, id in zip(LATENT_TOKENS, latent, strict=True):
        faults.append(same(tokenizer.encode(name), [id], f"the ids of {name}"))
    whole = tokenizers.Tokenizer.from_file(str(file)) if file.exists() else None
    for text in _texts(base):
        ids = tokenizer.encode(text)
        faults.append(same(_normal(tokenizer.decode(ids)), _normal(text), "a decoded text"))
        if any(not 0 <= id < tokenizer.vocabulary_size for id in ids) or {*latent, tokenizer.end} & {*ids}:
            faults.append(f"{text!r} has the ids {ids}: outside of the vocabulary, or special")
        if whole is not None:
            faults.append(
                same(ids, whole.encode(text, add_special_tokens=False).ids, "ids beside the tokenizers library's")
            )
    return first(*faults)
