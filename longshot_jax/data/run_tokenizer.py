"""The tokenizer of a run's settings, and whether the weights that the run starts from were trained with it."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from longshot_jax.config.run import RunConfig
from longshot_jax.data.problems import GeneratedProblems, Problem
from longshot_jax.data.sources import ALPHABETS, GENERATORS
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.data.tokenizer_checks import no_model_tokenizer
from longshot_jax.errors import UserError
from longshot_jax.files import has_folder, local_path, replacing_folder

_BPE_PROBLEMS = 20_000
_BPE_OWN_PROBLEMS = 2_000  # some tasks of reasoning-gym take a tenth of a second each


def build_tokenizer(
    run: RunConfig, workdir: str | Path, problems: Sequence[Problem], model_folder: Path | None, resumed: bool
) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names; a UserError if it is missing or cannot be loaded.

    If the run folder has a checkpoint (`resumed`), its stored tokenizer is loaded. `bpe` and `model` are the tokenizer of
    the `initialize_from` run, if there is one; otherwise `bpe` is trained on `problems`, and `model` is read from
    `model_folder`.
    """
    folder, kind, multiple = Path(workdir) / "tokenizer", run.data.tokenizer, run.mesh.tensor
    start, template = _start(run), run.data.chat_template
    if (kind in ALPHABETS or kind == "bpe") and template != "model":
        raise UserError(
            f"config.data.chat_template is {template!r}, but config.data.tokenizer {kind!r} has no chat template: set "
            "config.data.chat_template to 'model', which takes the tokenizer as it is."
        )
    if kind in ALPHABETS:
        return Tokenizer.for_chains(multiple, ALPHABETS[kind])
    if resumed:
        if not folder.is_dir():
            raise UserError(
                f"{folder} is missing, and the checkpoints beside it need it: restore it, or choose another --workdir."
            )
        return Tokenizer.load(str(folder), multiple)
    if kind in ("bpe", "model") and start is not None and has_folder(start / "checkpoints"):
        previous = start / "tokenizer"
        if not has_folder(previous):  # another one, trained here, would read rows of other tokens
            raise UserError(
                f"{previous} is missing, and the embedding in {start} was trained with it, if there was one: restore it, or "
                "name a folder with the same tokenizer as config.data.tokenizer."
            )
        return Tokenizer.load(str(previous), multiple, template)  # its ids index the loaded embedding
    if kind == "bpe":
        quick = run.data.train in GENERATORS or not isinstance(problems, GeneratedProblems)
        stride = max(len(problems) // (_BPE_PROBLEMS if quick else _BPE_OWN_PROBLEMS), 1)
        some = (problems[index] for index in range(0, len(problems), stride))
        texts = ("\n".join([each.question, *each.steps, f"### {each.answer}"]) for each in some)
        return Tokenizer.train_bpe(texts, run.data.bpe_vocabulary, multiple)
    if kind == "model":
        if model_folder is None:
            raise no_model_tokenizer()
        return Tokenizer.load(str(model_folder), multiple, template)
    return Tokenizer.load(kind, multiple, template)


def foreign_tokenizer(run: RunConfig, tokenizer: Tokenizer, model_folder: Path | None) -> str:
    """What must be said of a new run whose weights were trained with a tokenizer of other ids; "" if nothing.

    Runs may combine them on purpose (a Llama that learns the generated chains from a word for each character), so this is
    no error. Weights without a readable tokenizer beside them are not compared.
    """
    start = _start(run)
    place = model_folder if start is None else start / "tokenizer"
    stored = None
    with suppress(UserError):  # one that cannot be read is no fault of a run that does not use it
        stored = place and Tokenizer.find(place)
    if stored is None:
        return ""
    ours, theirs = tokenizer.vocabulary, stored.vocabulary
    others = sum(theirs.get(word) != id for word, id in ours.items())
    if not others:
        return ""
    setting = "model.source" if start is None else "initialize_from"
    return (
        f"config.data.tokenizer {run.data.tokenizer!r} gives {others:,} of its {len(ours):,} tokens other ids than the "
        f"tokenizer in {place}, with which the weights of config.{setting} were trained, so they start from rows of other "
        "tokens: unless you mean that, set config.data.tokenizer to 'model'"
    )


def _start(run: RunConfig) -> Path | None:
    """The folder of the run that this one starts from."""
    return local_path(run.initialize_from, "config.initialize_from") if run.initialize_from else None


def store_tokenizer(tokenizer: Tokenizer, workdir: str | Path) -> None:
    """Writes a new run's tokenizer to `workdir/tokenizer`, for evaluation and export; a UserError on failure.

    Atomically replaces the tokenizer that an earlier start without a checkpoint may have written.
    """
    with replacing_folder(Path(workdir) / "tokenizer", "fix its permissions, or choose another --workdir") as part:
        tokenizer.save(part)
