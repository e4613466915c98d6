"""Text to token ids and back: a Hugging Face fast tokenizer with the three special tokens of latent thought."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshot_jax.data.chains import chain_words
from longshot_jax.data.hub import hub_reachable
from longshot_jax.errors import UserError

if TYPE_CHECKING:
    import tokenizers

START_LATENT, LATENT, END_LATENT = "<|start-latent|>", "<|latent|>", "<|end-latent|>"
LATENT_TOKENS = (START_LATENT, LATENT, END_LATENT)
_PAD, _END = "<|pad|>", "<|end-of-text|>"  # of the tokenizers made here
_RESERVED = re.compile(r"<\|reserved_special_token_(\d+)\|>")  # Llama 3's spare rows
_BYTES = 256
# Templates such as Llama 3.2's write today's date into a prompt. Here it is always the date that they fall back on, so
# that a run, and an evaluation next year, see the same prompts.
_DATE = "26 Jul 2024"
_FIXED_DATE = "{%- macro strftime_now(format) -%}" + _DATE + "{%- endmacro -%}"


class Tokens:
    """A tokenizer with its special ids.

    tokenizer: a transformers fast tokenizer. name: what error messages call it. multiple: what vocabulary_size is
    rounded up to a multiple of, so that the mesh divides the embedding's rows.

    pad, end: the padding and end-of-text ids. A tokenizer without padding pads with its end token: what is real is
    told by masks and lengths alone, never by comparing ids with `pad`.
    start_latent, latent, end_latent: COCONUT's tokens. Where the tokenizer has Llama 3's reserved tokens these are
    the three lowest-numbered of them, so that the model's embedding needs no new rows; otherwise they are added.
    vocabulary_size: embedding rows that this tokenizer asks for.

    Errors: UserError for a tokenizer without an end token.
    """

    def __init__(self, tokenizer: Any, name: str, multiple: int = 1):
        if tokenizer.eos_token_id is None:
            raise UserError(f"tokenizer {name} has no end token: set eos_token in its tokenizer_config.json")
        if multiple < 1:
            raise UserError(f"the vocabulary's multiple must be at least 1, not {multiple}")
        self._tokenizer = tokenizer
        self.name = name
        spellings = _latent_spellings(tokenizer)
        tokenizer.add_tokens(list(spellings), special_tokens=True)  # known ones keep their ids
        vocabulary = tokenizer.get_vocab()
        self._rows = max(vocabulary.values()) + 1
        self._respelled = {
            ours: theirs for ours, theirs in zip(LATENT_TOKENS, spellings, strict=True) if ours != theirs
        }
        self.start_latent, self.latent, self.end_latent = (int(vocabulary[word]) for word in spellings)
        self.end = int(tokenizer.eos_token_id)
        self.pad = self.end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.vocabulary_size = -(-self._rows // multiple) * multiple
        self._chat_template = _chat_template(tokenizer)
        self._alphabet = _alphabet(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(id for id, token in added if token.special)}

    @classmethod
    def load(cls, folder_or_name: str, multiple: int = 1) -> "Tokens":
        """The tokenizer in a folder (tokenizer.json, or vocab.json and merges.txt), or of a model on the hub.

        Errors: UserError for a folder that is missing, has no tokenizer or a broken one, and for a hub name that
        cannot be reached and was not downloaded before.
        """
        folder = Path(folder_or_name).expanduser()
        is_folder = folder.is_dir()
        files = {path.name for path in folder.iterdir()} if is_folder else set()
        bare = "tokenizer.json" not in files and {"vocab.json", "merges.txt"} <= files
        if is_folder and not bare and not files & {"tokenizer.json", "tokenizer.model"}:
            raise UserError(
                f"{folder} has no tokenizer: put a tokenizer.json, or vocab.json and merges.txt, there"
            )
        if not is_folder and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", folder_or_name, re.ASCII):
            raise UserError(
                f"there is no tokenizer folder {folder_or_name}: give a folder or a model's hub name"
            )
        offline = not is_folder and not hub_reachable()
        import transformers  # takes seconds, so only here

        # A folder with GPT-2's two files and no config does not say what it is.
        loader = transformers.GPT2Tokenizer if bare else transformers.AutoTokenizer
        place = str(folder) if is_folder else folder_or_name
        try:
            tokenizer = loader.from_pretrained(place, local_files_only=is_folder or offline)
        except (
            Exception
        ) as error:  # many kinds, from two libraries: each means that there is no usable tokenizer
            if offline:
                raise UserError(
                    f"tokenizer {place} is neither a folder nor in the download cache, and the hub is out of reach: "
                    "give a local folder"
                ) from None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"the tokenizer in {place} cannot be loaded ({reason}): mend or replace it"
            ) from None
        return cls(tokenizer, place, multiple)

    @classmethod
    def find(cls, folder: str | Path) -> "Tokens | None":
        """The tokenizer in a folder, None where there is none. Errors: as `load`."""
        names = ("tokenizer.json", "tokenizer.model", "vocab.json")
        return cls.load(str(folder)) if any((Path(folder) / name).exists() for name in names) else None

    @classmethod
    def for_chains(cls, multiple: int = 1) -> "Tokens":
        """The tokenizer of the generated chains: one token a character, white space dropped."""
        import tokenizers

        words = {word: number for number, word in enumerate([*chain_words(), _PAD, _END, *LATENT_TOKENS])}
        model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words))
        model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.WhitespaceSplit(),
                tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated"),
            ]
        )
        model.decoder = tokenizers.decoders.Fuse()
        return cls(_wrap(model), "of the chains", multiple)

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocabulary_size: int, multiple: int = 1) -> "Tokens":
        """A byte-level BPE learned from `texts`, of at most `vocabulary_size` tokens, special ones included.

        Every digit is a token of its own: numbers that merge into one token cannot be calculated with.

        Errors: UserError if the size leaves no room for the 256 bytes and 5 special tokens.
        """
        least = _BYTES + 2 + len(LATENT_TOKENS)
        if vocabulary_size < least:
            raise UserError(f"vocabulary_size must be at least {least}, not {vocabulary_size}")
        import tokenizers

        model = tokenizers.Tokenizer(tokenizers.models.BPE())
        model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Digits(individual_digits=True),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        model.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[_PAD, _END, *LATENT_TOKENS],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model.train_from_iterator(texts, trainer)
        return cls(_wrap(model), f"trained here with {vocabulary_size} tokens", multiple)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer to `folder` so that load (and transformers) reads it back. UserError if it cannot."""
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._tokenizer.save_pretrained(str(folder))
        except Exception as error:  # the library in Rust has no kinds of errors: a full disk is a plain one
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{folder} cannot be written ({reason}): choose another place") from None

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; nothing is added. The three latent tokens may stand in it by COCONUT's names.

        Errors: UserError for a character outside the vocabulary, which only the chains' tokenizer has, and for half of one.
        """
        for ours, theirs in self._respelled.items():
            text = text.replace(ours, theirs)
        try:
            text.encode()
            return self._tokenizer.encode(text, add_special_tokens=False)
        except UnicodeEncodeError:
            raise UserError(f"{text[:60]!r} holds half a character (a lone surrogate): remove it") from None
        except Exception as error:
            if "Missing [UNK]" not in str(error):
                raise
        raise UserError(
            f"tokenizer {self.name} knows only {''.join(chain_words())}, which cannot spell {text[:60]!r}"
        )

    def check_spelling(self, text: str) -> None:
        """UserError for a character outside the vocabulary; costs next to nothing where all are inside."""
        if self._alphabet is not None and not self._alphabet.issuperset(text):
            self.encode(text)  # which knows white space and special tokens

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens, and without ids of the rows that only pad the vocabulary."""
        plain = [int(id) for id in ids if id not in self._special and 0 <= id < self._rows]
        return self._tokenizer.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def spell(self, token: int) -> str:
        """One token as it can be shown: special tokens by their names, rows that only pad the vocabulary by number."""
        if token in self._special and token < self._rows:
            return self._tokenizer.convert_ids_to_tokens(int(token))
        return self.decode([token]) if 0 <= token < self._rows else f"<{token}>"

    def decode_literally(self, ids: Sequence[int]) -> str:
        """The text of `ids` in which nothing is left out: what is not text stands there as `spell` shows it."""
        parts, plain = [], []
        for id in map(int, ids):
            if id in self._special or not 0 <= id < self._rows:
                parts += [self.decode(plain), self.spell(id)]
                plain = []
            else:
                plain.append(id)
        return "".join([*parts, self.decode(plain)])

    def encode_question(self, question: str) -> list[int]:
        """The prompt: the chat template's for an instruct model, otherwise COCONUT's, the question and a newline.

        A template that asks for today's date is given 26 Jul 2024, in that form.
        The tokenizer's beginning-of-text token comes first, once. A tokenizer that uses its end token as such
        (GPT-2) gets none, as in COCONUT.
        """
        if self._chat_template:
            prompt = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                chat_template=self._chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
        else:
            prompt = question + "\n"
        ids = self.encode(prompt)
        begin = self._tokenizer.bos_token_id
        if begin is not None and begin != self.end and ids[:1] != [begin]:
            ids = [int(begin), *ids]
        return ids

    def check_fits(self, vocabulary_rows: int) -> None:
        """UserError unless every token of this tokenizer has a row in an embedding of `vocabulary_rows` rows."""
        if self._rows > vocabulary_rows:
            raise UserError(
                f"tokenizer {self.name} has ids up to {self._rows - 1} but the model's embedding has only "
                f"{vocabulary_rows} rows: give the model's own tokenizer, or enlarge the embedding to {self._rows} rows"
            )


def _wrap(model: "tokenizers.Tokenizer") -> Any:
    import transformers  # takes seconds, so only here

    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token=_END, pad_token=_PAD)


def _chat_template(tokenizer: Any) -> str | None:
    """The chat template of an instruct model, in which today is always the same day; None where there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    template = tokenizer.get_chat_template()
    return _FIXED_DATE + template if "strftime_now" in template else template


def _alphabet(tokenizer: Any) -> frozenset[str] | None:
    """The characters that a tokenizer of whole words, such as the chains', can spell; None: any, one way or another."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if type(getattr(backend, "model", None)).__name__ != "WordLevel" or tokenizer.unk_token_id is not None:
        return None
    return frozenset(word for word in tokenizer.get_vocab() if len(word) == 1)


def _latent_spellings(tokenizer: Any) -> tuple[str, ...]:
    """The tokens of `tokenizer` that stand for the three latent ones: their own names, or reserved tokens."""
    vocabulary = tokenizer.get_vocab()
    if any(word in vocabulary for word in LATENT_TOKENS):
        return LATENT_TOKENS
    taken = {tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token}
    reserved = [(int(found[1]), word) for word in vocabulary if (found := _RESERVED.fullmatch(word))]
    free = [word for _, word in sorted(reserved) if word not in taken]
    return tuple(free[:3]) if len(free) >= 3 else LATENT_TOKENS
