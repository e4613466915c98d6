"""The library's tokenizer of a folder, or of a model on the hub, with the ids that its tokenizer.json describes.

Version 5 of transformers builds the normalizer and the pre-tokenizer anew from the class that tokenizer_config.json names,
and leaves out those of tokenizer.json. Digits are then grouped otherwise than the model was trained with, and nothing says
so. `PreTrainedTokenizerFast` takes the file as it is, and special tokens and the template from tokenizer_config.json.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from longshot_jax.data.tokenizer_files import NAMES, TokenizerFiles, files_of
from longshot_jax.errors import UserError

FILE, MODEL, PAIR = "tokenizer.json", "tokenizer.model", ("vocab.json", "merges.txt")
_AS_IN_THE_FILE = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes without special tokens of their own


def library() -> ModuleType:
    """Imports transformers (seconds, so on first use) without its advice to install PyTorch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


def files_about(place: str, local: bool) -> list[Path]:
    """The files of a folder, or of a model on the hub, about its tokens."""
    if Path(place).is_dir():
        return files_of(Path(place))
    return [file for name in NAMES if (file := _fetched(place, name, local))]


def library_tokenizer(place: str, local: bool, files: TokenizerFiles) -> Any:
    """The tokenizer of a folder or hub name; whatever the library raises if it cannot be loaded.

    `files` are the contents of `files_about`. Raises a UserError for a folder with a SentencePiece model alone: the library
    reads it only with another package, and then without the parts of tokenizer.json.
    """
    transformers, folder = library(), Path(place)
    from_file = (folder / FILE).exists() if folder.is_dir() else _fetched(place, FILE, local) is not None
    if from_file:
        return _from_file(transformers, place, local, files)
    # AutoTokenizer cannot identify a folder with GPT-2's two files and no config.
    pair = folder.is_dir() and all((folder / name).exists() for name in PAIR)
    if not pair and (folder / MODEL).exists():
        raise UserError(
            f"{folder} has {MODEL} but no {FILE}, which alone is read: put the {FILE} of the same model there, from where "
            "the model was published"
        )
    loader = transformers.GPT2Tokenizer if pair else transformers.AutoTokenizer
    return loader.from_pretrained(place, local_files_only=local, trust_remote_code=False)


def _from_file(transformers: ModuleType, place: str, local: bool, files: TokenizerFiles) -> Any:
    """The tokenizer of tokenizer.json, with the special tokens that a class such as Llama's has where no file names any."""
    options, settings = {"local_files_only": local, "trust_remote_code": False}, files.settings or {}
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(place, **options)
    whole = settings.get("tokenizer_class") in _AS_IN_THE_FILE or None not in (tokenizer.bos_token, tokenizer.eos_token)
    if whole and "auto_map" not in settings:
        return tokenizer
    # This refuses a class of the folder's own code, which may read the file otherwise.
    theirs = transformers.AutoTokenizer.from_pretrained(place, **options).special_tokens_map
    known = tokenizer.get_vocab()
    added = {name: word for name, word in theirs.items() if getattr(tokenizer, name) is None and word in known}
    return transformers.PreTrainedTokenizerFast.from_pretrained(place, **options, **added) if added else tokenizer


def _fetched(place: str, name: str, local: bool) -> Path | None:
    """A file of a model on the hub; None if it has none, or if it is out of reach."""
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(place, name, local_files_only=local, **quiet)
    return None if file is None else Path(file)
