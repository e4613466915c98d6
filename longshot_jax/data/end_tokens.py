"""The tokens that end a text: those at which a model stops, and the one that training writes.

A chat model often has several: Llama 3 Instruct ends its turn with `<|eot_id|>` and a document with `<|end_of_text|>`.
transformers stops at `eos_token_id` of generation_config.json, and without that file at that of config.json; only
where neither names one is it the tokenizer's own end token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longshot_jax.data.chat_template import ChatTemplate
from longshot_jax.errors import UserError
from longshot_jax.files import read_json

GENERATION_CONFIG = "generation_config.json"
_KEY = "eos_token_id"
_ANSWER = "18"  # any text that a chat template leaves as it is


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
        ids = dict.fromkeys(id for id in _read(file, tokenizer) if id in special)
        if ids:
            written = _ends_a_turn(tokenizer, ids, template) if template else None
            if written is None:
                written = own if own in ids else next(iter(ids))
            return (written, *(id for id in ids if id != written))
    return () if own is None else (int(own),)


def end_token_setting(ends: tuple[int, ...]) -> int | list[int]:
    """End tokens as `eos_token_id` of a config.json or generation_config.json."""
    return ends[0] if len(ends) == 1 else list(ends)


def _read(file: Path, tokenizer: Any) -> list[int]:
    content = read_json(file, advice="copy it again from where the model was published")
    value = content.get(_KEY)
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    if not ids or any(type(id) is not int for id in ids):  # a bool is an int too
        raise UserError(f"{file}: {_KEY} must be the id of a token, or a list of ids, not {value!r}")
    known = set(tokenizer.get_vocab().values())
    for id in ids:
        if id not in known:
            raise UserError(
                f"{file}: {_KEY} {id} is no token of the tokenizer, whose ids go up to {max(known)}: correct it, or put the "
                "model's own tokenizer there"
            )
    return ids


def _ends_a_turn(tokenizer: Any, ids: dict[int, None], template: ChatTemplate) -> int | None:
    """The one of `ids` that the chat template writes after an assistant's answer; None without one.

    An instruct model was trained to write it there, so answers that it is trained on end in it too.
    """
    after = template.render_turn("?", _ANSWER).rpartition(_ANSWER)[2]
    return next((id for id in tokenizer.encode(after, add_special_tokens=False) if id in ids), None)
