"""What is checked of a tokenizer that was not made here: its vocabulary, that it gives a text back, that new tokens are new."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from longshot_jax.errors import UserError

_SENTENCE = "Tom has 3 red apples\nand buys 12 or 4567890 green ones"


def check_round_trip(encode: Callable[[str], list[int]], decode: Callable[[list[int]], str], name: str) -> None:
    """Raises a UserError if a text loses its spaces, line breaks or digits between `encode` and `decode`.

    That happens without a word where a library builds another tokenizer than the files describe. Letters may change (a
    tokenizer may write all in lower case), and white space around the text may.
    """
    back = decode(encode(_SENTENCE))
    if _skeleton(back) != _skeleton(_SENTENCE):
        raise UserError(
            f"the tokenizer in {name} does not give a text back: {_SENTENCE!r} becomes {back[:80]!r}. Compare its "
            "tokenizer_class with its tokenizer.json, install another version of transformers, or replace it"
        )


# Their UTF-8 has every byte of a text. Control characters, planes 4 to 15, which are not assigned, and bytes that no UTF-8
# has are left out: published vocabularies lack some (SmolLM2's the bytes 04, C0 and F1, among others).
_CHARACTERS = "\t\n\r" + "".join(
    map(chr, (*range(32, 127), *range(0xA0, 0x800), *range(0x800, 0xD800, 0x800), 0xE000, 0xF000, 0x10000, 0xE0020))
)


def check_vocabulary(tokenizer: Any, vocabulary: dict[str, int], name: str) -> None:
    """Raises a UserError if two tokens have one id, or if a byte-level tokenizer lacks a byte.

    The library would decode one token as the other, and drop the characters with that byte from every text.
    """
    advice = "copy its files again from their source"
    words: dict[int, str] = {}
    for word, id in vocabulary.items():
        if words.setdefault(id, word) != word:
            raise UserError(f"tokenizer {name} gives {words[id]!r} and {word!r} the same id {id}: {advice}")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [] if backend is None else [backend.pre_tokenizer, backend.normalizer]
    if any(b'"ByteLevel"' in part.__getstate__() for part in parts if part is not None):
        from tokenizers.pre_tokenizers import ByteLevel

        spelled = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(_CHARACTERS)
        if lost := sorted({*spelled[0][0]} - vocabulary.keys()):
            raise UserError(f"tokenizer {name} has no token for the byte {lost[0]!r}, so texts would lose it: {advice}")


def check_new(vocabulary: dict[str, int], words: Sequence[str], name: str) -> None:
    """Raises a UserError if one of `words` has the id of another word, as in a vocabulary with unused ids between."""
    used = Counter(vocabulary.values())
    for word in words:
        if used[vocabulary[word]] > 1:
            other = next(each for each, id in vocabulary.items() if id == vocabulary[word] and each != word)
            raise UserError(
                f"tokenizer {name} would give its token {other!r} and the new token {word!r} the same id "
                f"{vocabulary[word]}: number its vocabulary from 0 without gaps"
            )


def _skeleton(text: str) -> str:
    return re.sub(r"[^\s\d]+", "x", text.strip())


def no_model_tokenizer() -> UserError:
    """The error for `data.tokenizer` `model` combined with `model.source` `scratch`."""
    return UserError(
        "config.data.tokenizer is 'model', but config.model.source is 'scratch', which has no tokenizer: set it to "
        "'bpe', 'chains', a folder or a hub name."
    )
