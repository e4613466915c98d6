"""Small folders with the tokenizer files of published Llamas: the same kinds, settings and templates, fewer tokens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!#<>|[]/+-=*"


def byte_level(folder: Path, specials: Sequence[str], before: str = "", holes: bool = False) -> dict[str, int]:
    """tokenizer.json of a byte-level BPE (Llama 3, R1-Distill); `before` is the token that it puts before a text."""
    words = {word: number for number, word in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    if holes:
        words |= {"ab": 257, "cd": 259}
    model = tokenizers.Tokenizer(models.BPE(words, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return saved(folder, model, specials, before)


def sentencepiece(folder: Path, specials: Sequence[str], before: str = "") -> dict[str, int]:
    """tokenizer.json of a SentencePiece BPE with bytes for unknown letters (Llama 1 and 2, Yi)."""
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, "▁T", "▁a"]
    words = {word: number for number, word in enumerate(pieces)}
    merges = [("▁", "T"), ("▁", "a")]
    model = tokenizers.Tokenizer(models.BPE(words, merges, unk_token=specials[0], fuse_unk=True, byte_fallback=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return saved(folder, model, specials, before)


def saved(folder: Path, model: tokenizers.Tokenizer, specials: Sequence[str], before: str) -> dict[str, int]:
    """Writes tokenizer.json with special tokens, of which `before` comes before a text; returns the ids."""
    model.add_special_tokens([tokenizers.AddedToken(word, special=True, normalized=False) for word in specials])
    if before:
        id = model.token_to_id(before)
        model.post_processor = processors.TemplateProcessing(
            single=f"{before} $A", pair=f"{before} $A {before} $B", special_tokens=[(before, id)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    return model.get_vocab()


def write_json(folder: Path, name: str, **content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def config(ids: dict[str, int], **changes: Any) -> dict[str, Any]:
    """config.json of a tiny Llama with a row for each token."""
    return {
        "model_type": "llama",
        "vocab_size": max(ids.values()) + 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    } | changes


LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_TURN = "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
_TURNS = "{% for m in messages %}" + _TURN + "{% endfor %}"
_NEXT = "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
LLAMA3_TEMPLATE = "{{ bos_token }}" + _TURNS + _NEXT
_DATED = (
    "{{ bos_token }}{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n<|eot_id|>" + _TURNS + _NEXT
)
_GUARD = (
    "{{ bos_token }}<|start_header_id|>user<|end_header_id|>\n\nTask: is the last message safe?\n"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
_LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
    "{% else %}<｜Assistant｜>{{ m['content'] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)

_PIECES, _YI = ["<unk>", "<s>", "</s>"], ["<unk>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_R1_WORDS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
_LLAMA_CLASS = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "add_eos_token": False, "legacy": True}
_LLAMA2_CLASS = _LLAMA_CLASS | {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
_YI_CLASS = _LLAMA_CLASS | {"bos_token": "<|startoftext|>", "add_bos_token": False}
_FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>"}
_R1_CLASS = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False, "legacy": True}

# Style: kind of tokenizer, its special tokens, whether it puts the first token before a text, tokenizer_config.json, its
# template, the end tokens of config.json and of generation_config.json (None: no such file), the one that a turn ends in.
STYLES: dict[str, tuple[Any, ...]] = {
    "llama1": (sentencepiece, _PIECES, "<s>", _LLAMA2_CLASS, None, "</s>", "</s>", "</s>"),
    "llama2": (sentencepiece, _PIECES, "<s>", _LLAMA2_CLASS, _LLAMA2, "</s>", "</s>", "</s>"),
    "llama3, first": (
        *(byte_level, LLAMA3, "<|begin_of_text|>", _FAST | {"eos_token": "<|end_of_text|>"}, LLAMA3_TEMPLATE),
        *("<|end_of_text|>", ["<|end_of_text|>", "<|eot_id|>"], "<|eot_id|>"),
    ),
    "llama3, list in config": (
        *(byte_level, LLAMA3, "<|begin_of_text|>", _FAST | {"eos_token": "<|end_of_text|>"}, LLAMA3_TEMPLATE),
        *(["<|end_of_text|>", "<|eot_id|>"], None, "<|eot_id|>"),
    ),
    "llama3, base": (
        *(byte_level, LLAMA3, "<|begin_of_text|>", _FAST | {"eos_token": "<|end_of_text|>"}, None),
        *("<|end_of_text|>", "<|end_of_text|>", "<|end_of_text|>"),
    ),
    "llama3.1": (
        *(
            byte_level,
            [*LLAMA3, "<|eom_id|>"],
            "<|begin_of_text|>",
            _FAST | {"eos_token": "<|eot_id|>"},
            LLAMA3_TEMPLATE,
        ),
        *(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],) * 2,
        "<|eot_id|>",
    ),
    "llama3.2": (
        *(byte_level, [*LLAMA3, "<|eom_id|>"], "<|begin_of_text|>", _FAST | {"eos_token": "<|eot_id|>"}, _DATED),
        *(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],) * 2,
        "<|eot_id|>",
    ),
    "tinyllama": (sentencepiece, _PIECES, "<s>", _LLAMA2_CLASS, _ZEPHYR, "</s>", "</s>", "</s>"),
    "vicuna": (sentencepiece, _PIECES, "<s>", _LLAMA2_CLASS, None, "</s>", "</s>", "</s>"),
    "yi, base": (sentencepiece, _YI, "", _YI_CLASS | {"eos_token": "<|endoftext|>"}, None, *("<|endoftext|>",) * 3),
    "yi, chat": (
        *(sentencepiece, _YI, "", _YI_CLASS | {"eos_token": "<|im_end|>"}, _CHATML),
        *("<|endoftext|>", "<|im_end|>", "<|im_end|>"),
    ),
    "r1-distill": (
        *(byte_level, _R1_WORDS, _R1_WORDS[0]),
        *(_R1_CLASS | {"bos_token": _R1_WORDS[0], "eos_token": _R1_WORDS[1]}, _R1, *(_R1_WORDS[1],) * 3),
    ),
    "llama-guard": (
        *(byte_level, LLAMA3, "<|begin_of_text|>", _FAST | {"eos_token": "<|eot_id|>"}, _GUARD),
        *("<|eot_id|>", ["<|end_of_text|>", "<|eot_id|>"], "<|eot_id|>"),
    ),
}


def write_style(folder: Path, style: str) -> dict[str, int]:
    """Writes the folder, without weights; returns the ids of its tokens."""
    kind, specials, before, settings, template, in_config, in_generation, _ = STYLES[style]
    ids = kind(folder, specials, before)
    write_json(folder, "tokenizer_config.json", **settings, **({"chat_template": template} if template else {}))

    def numbers(words: Any) -> Any:
        return ids[words] if isinstance(words, str) else [ids[word] for word in words]

    write_json(folder, "config.json", **config(ids, eos_token_id=numbers(in_config)))
    if in_generation is not None:
        write_json(folder, "generation_config.json", eos_token_id=numbers(in_generation))
    return ids
