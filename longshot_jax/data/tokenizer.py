"""Text to token ids and back: a Hugging Face fast tokenizer with the three latent special tokens."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshot_jax.data.chains import CHAIN_WORDS
from longshot_jax.data.chat_template import ChatTemplate, only_template, stored_template
from longshot_jax.data.hub import hub_reachable
from longshot_jax.data.tokenizer_checks import check_new, check_round_trip, check_vocabulary
from longshot_jax.data.tokenizer_files import TOKEN_IDS, TokenizerFiles, end_token_setting, find_end_tokens
from longshot_jax.data.tokenizer_source import FILE, MODEL, PAIR, files_about, library, library_tokenizer
from longshot_jax.errors import UserError, first_line
from longshot_jax.files import local_path

if TYPE_CHECKING:
    import tokenizers

START_LATENT, LATENT, END_LATENT = "<|start-latent|>", "<|latent|>", "<|end-latent|>"
LATENT_TOKENS = (START_LATENT, LATENT, END_LATENT)
# What each means in text: a new line, a pause, the mark before an answer.
_MEANINGS = ("\n", "...", "###")
_PAD, _END = "<|pad|>", "<|end-of-text|>"  # of tokenizers built here
_RESERVED = re.compile(r"<\|reserved_special_token_(\d+)\|>")  # Llama 3's spare rows
_BYTES = 256
_CACHED = 2**16  # texts whose ids are kept: grouping and batching read each twice, and files come again every epoch


class Tokenizer:
    """A tokenizer with its special ids.

    `tokenizer` is a transformers fast tokenizer; `name` is for error messages; `configs` are the JSON files
    beside it (`data.tokenizer_files`). Raises UserError if there is no end token.

    Attributes:
      ends: ids of all tokens that end a text. end: the first of them, which is written at the end of a training answer:
        what an instruct model writes after its turn (Llama 3: `<|eot_id|>`), otherwise the tokenizer's end-of-text token.
      pad: padding id. It is `end` if the tokenizer has no padding token, so masks and lengths mark real tokens; never
        compare ids with `pad`.
      start_latent, latent, end_latent: COCONUT's tokens: the three lowest-numbered reserved tokens of a Llama 3
        tokenizer, so that the embedding needs no new rows; otherwise added tokens.
      meanings: id of each latent token that the model has not trained -> id of a token that means it in text, from whose
        embedding it starts. From a row that means nothing, an answer's marker is not predicted for dozens of updates.
      came_with_latents: whether the files had the latent tokens by their own names, as this package writes them.
      token_ids: ids for a model's config.json: those of the folder it came from, otherwise those of the tokenizer.
      vocabulary_size: embedding rows, rounded up to a multiple of `multiple`, so that the mesh divides them.
    """

    def __init__(
        self, tokenizer: Any, name: str, multiple: int = 1, configs: Sequence[Path] = (), chat_template: str = "model"
    ):
        self._chat_template = _chat_template(tokenizer, name, chat_template)
        self.ends = find_end_tokens(tokenizer, configs, self._chat_template)
        if not self.ends:
            raise UserError(f"tokenizer {name} has no end token: set eos_token in its tokenizer_config.json")
        if multiple < 1:
            raise UserError(f"the vocabulary's multiple must be at least 1, not {multiple}")
        self._tokenizer = tokenizer
        own = (tokenizer.bos_token_id, end_token_setting(self.ends), tokenizer.pad_token_id)
        token_ids: dict[str, Any] = dict(zip(TOKEN_IDS, own, strict=True))
        self._files = TokenizerFiles.read(configs).ending_with(token_ids, self.ends[0])
        self.token_ids = token_ids | self._files.token_ids
        self.name = name
        spellings, known = _latent_spellings(tokenizer, self.ends), set(tokenizer.get_vocab())
        self.came_with_latents = known.issuperset(LATENT_TOKENS)
        tokenizer.add_tokens(list(spellings), special_tokens=True)  # known ones keep their ids
        vocabulary = tokenizer.get_vocab()
        check_new(vocabulary, spellings, name)
        check_vocabulary(tokenizer, vocabulary, name)
        self._rows = max(vocabulary.values()) + 1
        self._rows_without_latents = (
            max((id for word, id in vocabulary.items() if word not in LATENT_TOKENS), default=-1) + 1
        )
        self._respelled = {
            ours: theirs for ours, theirs in zip(LATENT_TOKENS, spellings, strict=True) if ours != theirs
        }
        self.start_latent, self.latent, self.end_latent = (int(vocabulary[word]) for word in spellings)
        untrained = {word for word in spellings if word not in known or _RESERVED.fullmatch(word)}
        self.meanings = {
            int(vocabulary[word]): id
            for word, text in zip(spellings, _MEANINGS, strict=True)
            if word in untrained and (id := _last_id(tokenizer, text)) is not None
        }
        self.end = self.ends[0]
        self.pad = self.end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.vocabulary_size = -(-self._rows // multiple) * multiple
        self._alphabet = _alphabet(tokenizer)
        self._before = _added_before(tokenizer, "x" if self._alphabet is None else next(iter(self._alphabet), ""))
        added = tokenizer.added_tokens_decoder.items()
        self._ids, self._prompt_ids = lru_cache(_CACHED)(self._encode), lru_cache(_CACHED)(self._encode_question)
        self._special = {*tokenizer.all_special_ids, *(id for id, token in added if token.special)}

    @classmethod
    def load(cls, folder_or_name: str, multiple: int = 1, chat_template: str = "model") -> "Tokenizer":
        """Loads a folder's tokenizer (tokenizer.json, or vocab.json and merges.txt), or that of a model on the hub.

        `chat_template` is `data.chat_template`; another than the model's own is saved in its place.

        Raises UserError if the folder or its tokenizer is missing, if the tokenizer is broken, or if the hub is out of
        reach and the name is not in the download cache.
        """
        folder = local_path(folder_or_name, "the tokenizer")
        is_folder = folder.is_dir()
        files = {path.name for path in folder.iterdir()} if is_folder else set()
        if is_folder and not files & {FILE, MODEL} and not files.issuperset(PAIR):
            raise UserError(f"{folder} has no tokenizer: put a tokenizer.json, or vocab.json and merges.txt, there")
        if not is_folder and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", folder_or_name, re.ASCII):
            raise UserError(f"there is no tokenizer folder {folder_or_name}: give a folder or a model's hub name")
        offline = not is_folder and not hub_reachable()
        local = is_folder or offline
        place = str(folder) if is_folder else folder_or_name
        file, template = stored_template(folder)
        if template:
            only_template(template, str(file))  # before transformers, which fails on some without naming the file
        try:
            files = files_about(place, local)
            # A broken one is named before the library meets it.
            tokenizer = library_tokenizer(place, local, TokenizerFiles.read(files))
            if tokenizer.chat_template is None:
                tokenizer.chat_template = template
            tokens = cls(tokenizer, place, multiple, files, chat_template)
            if tokens._alphabet is None:  # the chains' drops white space on purpose, and refuses what it cannot spell
                check_round_trip(tokens.encode, tokens.decode, place)
            return tokens
        except UserError:
            raise
        except BaseException as error:  # of many types, from two libraries; a panic in Rust is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if offline:
                raise UserError(
                    f"tokenizer {place} is neither a folder nor in the download cache, and the hub is out of reach: "
                    "give a local folder"
                ) from None
            if "trust_remote_code" in str(error):
                raise UserError(
                    f"the tokenizer in {place} needs program code that auto_map names in its tokenizer_config.json, which is "
                    "never run: put a tokenizer.json there and remove auto_map"
                ) from None
            raise UserError(
                f"the tokenizer in {place} cannot be loaded ({first_line(error)}): fix or replace it"
            ) from None

    @classmethod
    def find(cls, folder: str | Path) -> "Tokenizer | None":
        """The tokenizer in a folder, or None if the folder has none. Raises UserError as `load` does."""
        folder, names = local_path(folder, "the tokenizer"), (FILE, MODEL, PAIR[0])
        return cls.load(str(folder)) if any((folder / name).exists() for name in names) else None

    @classmethod
    def for_chains(cls, multiple: int = 1, words: Sequence[str] = CHAIN_WORDS) -> "Tokenizer":
        """The tokenizer of generated chains (or of another alphabet): a token a character, white space dropped."""
        import tokenizers

        rows = {word: number for number, word in enumerate([*words, _PAD, _END, *LATENT_TOKENS])}
        model = tokenizers.Tokenizer(tokenizers.models.WordLevel(rows))
        model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.WhitespaceSplit(),
                tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated"),
            ]
        )
        model.decoder = tokenizers.decoders.Fuse()
        return cls(_wrap(model), "of single characters", multiple)

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocabulary_size: int, multiple: int = 1) -> "Tokenizer":
        """Trains a byte-level BPE of at most `vocabulary_size` tokens, special ones included, on `texts`.

        Digits are never merged: numbers as single tokens cannot be calculated with. Raises UserError if
        `vocabulary_size` is below 261: the 256 bytes and 5 special tokens.
        """
        least = _BYTES + 2 + len(LATENT_TOKENS)
        if vocabulary_size < least:
            raise UserError(f"config.data.bpe_vocabulary is {vocabulary_size}: it must be at least {least}")
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
        """Writes the tokenizer to `folder` in the form that `load`, transformers 4 and transformers 5 read.

        Beside it stands what its own folder says about tokens (`data.tokenizer_files`). Raises a UserError on failure.
        """
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._tokenizer.save_pretrained(str(folder))
            self._files.write(Path(folder), self._tokenizer)
        except Exception as error:  # the Rust library raises a plain Exception even for a full disk
            raise UserError(f"{folder} cannot be written ({first_line(error)}): choose another folder") from None

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without added tokens; COCONUT's names of the latent tokens are recognised in it.

        Raises UserError for a lone surrogate, and for a character that the chains' tokenizer does not have.
        """
        return list(self._ids(text))

    def _encode(self, text: str) -> tuple[int, ...]:
        for ours, theirs in self._respelled.items():
            text = text.replace(ours, theirs)
        try:
            text.encode()
            return tuple(self._tokenizer.encode(text, add_special_tokens=False))
        except UnicodeEncodeError:
            raise UserError(f"{text[:60]!r} holds half a character (a lone surrogate): remove it") from None
        except Exception as error:
            if "Missing [UNK]" not in str(error):
                raise
        raise UserError(
            f"tokenizer {self.name} knows only {''.join(sorted(self._alphabet or ()))}, which cannot spell "
            f"{text[:60]!r}: take config.data.tokenizer 'bpe' for problems in words"
        )

    def check_spelling(self, text: str) -> None:
        """Raises UserError for a character outside the vocabulary; cheap if there is none."""
        if self._alphabet is not None and not self._alphabet.issuperset(text):
            self.encode(text)  # accepts white space and special tokens

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens and vocabulary padding."""
        plain = [int(id) for id in ids if id not in self._special and 0 <= id < self._rows]
        return self._tokenizer.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def spell(self, token: int) -> str:
        """One token as text: special tokens by name, vocabulary padding by number."""
        if token in self._special and token < self._rows:
            return self._tokenizer.convert_ids_to_tokens(int(token))
        return self.decode([token]) if 0 <= token < self._rows else f"<{token}>"

    def decode_literally(self, ids: Sequence[int]) -> str:
        """The text of `ids`, with special tokens and vocabulary padding as `spell` writes them."""
        parts, plain = [], []
        for id in map(int, ids):
            if id in self._special or not 0 <= id < self._rows:
                parts += [self.decode(plain), self.spell(id)]
                plain = []
            else:
                plain.append(id)
        return "".join([*parts, self.decode(plain)])

    def encode_question(self, question: str) -> list[int]:
        """The prompt: the chat template for an instruct model, otherwise the question and a newline as in COCONUT.

        A template that asks for today's date gets 26 Jul 2024, in that form. A template writes its own beginning-of-text
        token; without a template it comes first if the tokenizer itself puts it before a text. Raises UserError if the
        template fails on the question, or takes seconds or hundreds of megabytes for it.
        """
        return list(self._prompt_ids(question))

    def _encode_question(self, question: str) -> tuple[int, ...]:
        if self._chat_template:
            return self._encode(self._chat_template.render(question))
        return (*self._before, *self._encode(question + "\n"))

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token by its spelling in the files, latent tokens included."""
        return self._tokenizer.get_vocab()

    def check_fits(self, vocabulary_rows: int, *, latents_beyond: bool = False) -> None:
        """Raises UserError unless an embedding of `vocabulary_rows` rows covers every token.

        With `latents_beyond` latent tokens of COCONUT's names need none: they are added to a model.
        """
        rows = self._rows_without_latents if latents_beyond else self._rows
        if rows > vocabulary_rows:
            raise UserError(
                f"tokenizer {self.name} has ids up to {rows - 1} but the model's embedding has only "
                f"{vocabulary_rows} rows: give the model's own tokenizer, or enlarge the embedding to {rows} rows"
            )


def _wrap(model: "tokenizers.Tokenizer") -> Any:
    return library().PreTrainedTokenizerFast(tokenizer_object=model, eos_token=_END, pad_token=_PAD)


def _chat_template(tokenizer: Any, name: str, choice: str) -> ChatTemplate | None:
    """The chosen chat template, checked, and set as that of `tokenizer` if it is not its own; None without one."""
    key, specials = "config.data.chat_template", tokenizer.special_tokens_map
    if choice == "none":
        tokenizer.chat_template = None
    if choice not in ("model", "minimal", "none"):
        file = local_path(choice, key)
        try:
            tokenizer.chat_template = file.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{key}: {choice} cannot be read ({first_line(error)}): give model, minimal, none or the path of a template"
            ) from None
        return ChatTemplate(tokenizer.chat_template, specials, str(file))
    template = getattr(tokenizer, "chat_template", None)
    if template in (None, "", {}):
        if choice == "minimal":
            raise UserError(f"{key} is minimal, but tokenizer {name} has no chat template: set it to none")
        return None
    file = str(stored_template(Path(name))[0]) if Path(name).is_dir() else f"tokenizer {name}"
    chosen = ChatTemplate(only_template(template, file), specials, file)
    if choice == "minimal":
        tokenizer.chat_template = chosen.shortened()
        return ChatTemplate(tokenizer.chat_template, specials, f"{key} minimal, of {file}")
    return chosen


def _alphabet(tokenizer: Any) -> frozenset[str] | None:
    """The single-character words of a word-level tokenizer without an unknown token; None for any other tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if type(getattr(backend, "model", None)).__name__ != "WordLevel" or tokenizer.unk_token_id is not None:
        return None
    return frozenset(word for word in tokenizer.get_vocab() if len(word) == 1)


def _added_before(tokenizer: Any, text: str) -> list[int]:
    """The ids that the tokenizer itself puts before a text, such as the beginning-of-text token of Llama."""
    ids, alone = tokenizer.encode(text), tokenizer.encode(text, add_special_tokens=False)
    starts = range(len(ids) - len(alone) + 1)
    return ids[: next((at for at in starts if ids[at : at + len(alone)] == alone), 0)]


def _last_id(tokenizer: Any, text: str) -> int | None:
    """The last id of a text; None if the tokenizer cannot spell it."""
    try:
        ids = tokenizer.encode(text, add_special_tokens=False)
    except Exception:  # a word-level vocabulary
        return None
    return int(ids[-1]) if ids else None


def _latent_spellings(tokenizer: Any, ends: Sequence[int]) -> tuple[str, ...]:
    """The spellings of the three latent tokens in `tokenizer`: their own names, or reserved tokens without a use."""
    vocabulary = tokenizer.get_vocab()
    if any(word in vocabulary for word in LATENT_TOKENS):
        return LATENT_TOKENS
    taken = {*tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens(list(ends))}
    template = str(getattr(tokenizer, "chat_template", None))
    reserved = [(int(found[1]), word) for word in vocabulary if (found := _RESERVED.fullmatch(word))]
    free = [word for _, word in sorted(reserved) if word not in taken and word not in template]
    return tuple(free[:3]) if len(free) >= 3 else LATENT_TOKENS
