"""What a model's folder says about its tokens besides tokenizer.json, carried from where a model came to where it goes.

The library writes a tokenizer in the form of its own version, which programs on transformers 4 cannot read, and leaves
out settings of other programs. So what came in goes out: tokenizer_config.json with the new tokens added to it,
special_tokens_map.json, generation_config.json, and the token ids of config.json.

The same files say which tokens end a text: those at which a model stops, and the one that training writes. A chat model
often has several: Llama 3 Instruct ends its turn with `<|eot_id|>` and a document with `<|end_of_text|>`. transformers
stops at `eos_token_id` of generation_config.json, and without that file at that of config.json; only where neither names
one is it the tokenizer's own end token.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longshot_jax.data.chat_template import ChatTemplate
from longshot_jax.errors import UserError
from longshot_jax.files import read_json

GENERATION_CONFIG = "generation_config.json"
SETTINGS, SPECIALS = "tokenizer_config.json", "special_tokens_map.json"
MODEL = "config.json"
NAMES = (GENERATION_CONFIG, MODEL, SETTINGS, SPECIALS)
TOKEN_IDS = _, _END, _ = "bos_token_id", "eos_token_id", "pad_token_id"
# Settings that only say how the library itself found or made the tokenizer; auto_map names code that is not carried.
_OF_THE_LIBRARY = ("auto_map", "backend", "is_local", "local_files_only", "name_or_path", "tokenizer_file")
_ANSWER = "18"  # any text that a chat template leaves as it is


@dataclass(frozen=True)
class TokenizerFiles:
    """Contents of a folder's files about tokens; None where the folder has no such file.

    `token_ids` are those of `TOKEN_IDS` that the folder's config.json has.
    """

    settings: dict[str, Any] | None = None
    specials: dict[str, Any] | None = None
    generation: dict[str, Any] | None = None
    token_ids: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Iterable[Path]) -> "TokenizerFiles":
        """Reads those of `files` that are known by name; a UserError for one that is no JSON object."""
        contents = {file.name: read_json(file, advice="copy it again from its source") for file in files}
        model = contents.get(MODEL, {})
        ids = {key: model[key] for key in TOKEN_IDS if key in model}
        return cls(contents.get(SETTINGS), contents.get(SPECIALS), contents.get(GENERATION_CONFIG), ids)

    def ending_with(self, token_ids: dict[str, Any], end: int) -> "TokenizerFiles":
        """The same, in which other programs find `end`, with which training ends an answer.

        Files that name it already stay as they are; otherwise they get the ids of the tokenizer, `token_ids`.
        """
        told = (self.generation or {}).get(_END)
        told = self.token_ids.get(_END) if told is None else told
        if end in (told if isinstance(told, list) else [told]):
            return self
        if self.generation is None and not self.token_ids:
            return replace(self, generation={name: id for name, id in token_ids.items() if id is not None})
        named = {_END: token_ids[_END]}
        ids = self.token_ids | named if self.token_ids else {}
        return replace(self, generation=(self.generation or {}) | named, token_ids=ids)

    def write(self, folder: Path, tokenizer: Any = None) -> None:
        """Writes the files into `folder`, with the settings of what `tokenizer.save_pretrained(folder)` wrote there.

        Without a tokenizer there are no settings. The ids of config.json are written only where no config.json stands,
        that is beside a run's tokenizer and not beside a model. An OSError if the folder cannot be written.
        """
        contents = {SPECIALS: self.specials, GENERATION_CONFIG: self.generation}
        if tokenizer is not None:
            contents[SETTINGS] = self._settings_for(tokenizer, folder / SETTINGS)
        if self.token_ids and not (folder / MODEL).exists():
            contents[MODEL] = {"model_type": "llama", **self.token_ids}
        for name, content in contents.items():
            if content is not None:
                folder.mkdir(parents=True, exist_ok=True)
                text = json.dumps(content, indent=2, ensure_ascii=False)
                (folder / name).write_text(text + "\n", encoding="utf-8")

    def _settings_for(self, tokenizer: Any, written: Path) -> dict[str, Any]:
        """tokenizer_config.json as it came, or else as the library wrote it, with the tokenizer's template and tokens."""
        settings = _readable(self.settings or json.loads(written.read_text(encoding="utf-8")))
        template = getattr(tokenizer, "chat_template", None)
        if "chat_template" in settings and isinstance(template, str):
            settings["chat_template"] = template
        elif template is None:
            settings.pop("chat_template", None)
        if "added_tokens_decoder" in settings:
            new = {str(id): token.__getstate__() for id, token in tokenizer.added_tokens_decoder.items()}
            settings["added_tokens_decoder"] = new | settings["added_tokens_decoder"]
        return settings


def files_of(folder: Path) -> list[Path]:
    """Those files of a folder that `TokenizerFiles` reads; first those that may name end tokens, in transformers' order."""
    return [file for name in NAMES if (file := folder / name).exists()]


def _readable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a tokenizer in a form that transformers 4 and 5 read."""
    settings = {key: value for key, value in settings.items() if key not in _OF_THE_LIBRARY}
    # This class takes tokenizer.json as it is. Of another, transformers builds parts anew (Llama's, by `legacy`), and that
    # of version 5, TokenizersBackend, is unknown to version 4.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):  # an object in version 4
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def find_end_tokens(tokenizer: Any, files: Sequence[Path], template: ChatTemplate | None) -> tuple[int, ...]:
    """Ids of all tokens that end a text; the first is the one that ends a training answer.

    Args:
      tokenizer: a transformers tokenizer.
      files: JSON files that may have `eos_token_id`, an id or a list. The first that names an end token counts; null is
        no value, and neither is a token of ordinary text, such as the 2 that a Llama's config.json has by default.
      template: the model's chat template, if it has one.

    Returns nothing if there is no end token at all. Raises a UserError that names the file for a value that is neither an
    id nor a list of ids, and for an id that the tokenizer does not have.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    own = tokenizer.eos_token_id
    for file in files:
        ids = dict.fromkeys(id for id in _end_ids(file, tokenizer) if id in special)
        if ids:
            written = _ends_a_turn(tokenizer, ids, template) if template else None
            if written is None:
                written = own if own in ids else next(iter(ids))
            return (written, *(id for id in ids if id != written))
    return () if own is None else (int(own),)


def end_token_setting(ends: tuple[int, ...]) -> int | list[int]:
    """End tokens as `eos_token_id` of a config.json or generation_config.json."""
    return ends[0] if len(ends) == 1 else list(ends)


def _end_ids(file: Path, tokenizer: Any) -> list[int]:
    content = read_json(file, advice="copy it again from where the model was published")
    value = content.get(_END)
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    if not ids or any(type(id) is not int for id in ids):  # a bool is an int too
        raise UserError(f"{file}: {_END} must be the id of a token, or a list of ids, not {value!r}")
    known = set(tokenizer.get_vocab().values())
    for id in ids:
        if id not in known:
            raise UserError(
                f"{file}: {_END} {id} is no token of the tokenizer, whose ids go up to {max(known)}: correct it, or put the "
                "model's own tokenizer there"
            )
    return ids


def _ends_a_turn(tokenizer: Any, ids: dict[int, None], template: ChatTemplate) -> int | None:
    """The one of `ids` that the chat template writes after an assistant's answer; None without one.

    An instruct model was trained to write it there, so answers that it is trained on end in it too.
    """
    after = template.render_turn("?", _ANSWER).rpartition(_ANSWER)[2]
    return next((id for id in tokenizer.encode(after, add_special_tokens=False) if id in ids), None)
