"""From a run's settings to its problems, its tokenizer and the check that every problem fits."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from longshot_jax.config import RunConfig
from longshot_jax.data.chains import ChainProblems, Split
from longshot_jax.data.examples import Layout
from longshot_jax.data.problems import Problem, load_problems
from longshot_jax.data.prosqa import ProsQAProblems
from longshot_jax.data.tokens import Tokens
from longshot_jax.errors import UserError

# Held-out problems are the same whatever the seed of the run, so that runs can be compared.
_VALIDATION_SEED, _TEST_SEED = 7_000_003, 7_000_019
_TRAIN_SHARE, _MOST_KEPT = 10, 500  # of training problems, kept for validation
_GENERATED = ("chains", "prosqa")
_BPE_PROBLEMS = 20_000
_FIRST_CHECKED = 64  # of generated problems; the others are checked as they are made


def train_and_validation_problems(run: RunConfig) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """The problems to train on, and those that choose the best checkpoint; no problem is in both, and none is a test's.

    Generated problems do not depend on the run's seed where they are for validation. Without `data.validation` a file
    or hub data set gives up to a tenth of its problems, evenly spaced.

    Raises:
      UserError: unreadable, or too small to be cut.
    """
    data = run.data
    if data.train == "chains":
        train: Sequence[Problem] = ChainProblems(
            run.seed, data.generated_train, data.operations, "train", data.distractors
        )
    elif data.train == "prosqa":
        train = ProsQAProblems(run.seed, data.generated_train)
    else:
        train = load_problems(data.train)
    source = data.validation or (data.train if data.train in _GENERATED else "")
    if source:
        return train, _held_out(run, source, "validation", _VALIDATION_SEED)
    count = min(len(train) // _TRAIN_SHARE, _MOST_KEPT)
    if not count:
        raise UserError(
            f"{data.train} has {len(train)} problems, too few to keep a tenth for validation: name other problems as "
            "config.data.validation."
        )
    kept = {number * len(train) // count for number in range(count)}
    problems = list(enumerate(train))
    return [p for index, p in problems if index not in kept], [p for index, p in problems if index in kept]


def test_problems(run: RunConfig) -> Sequence[Problem]:
    """The problems of `data.test`, which no training reads; UserError if unreadable."""
    return _held_out(run, run.data.test, "test", _TEST_SEED)


def _held_out(run: RunConfig, source: str, split: Split, seed: int) -> Sequence[Problem]:
    data = run.data
    if source == "chains":
        return ChainProblems(seed, data.generated_test, data.operations, split, data.distractors)
    if source == "prosqa":
        return ProsQAProblems(seed, data.generated_test)
    return load_problems(source)


def build_tokens(
    run: RunConfig,
    workdir: str | Path,
    problems: Sequence[Problem],
    model_folder: Path | None = None,
    resumed: bool = False,
) -> Tokens:
    """The run's tokenizer.

    Args:
      run: its `data.tokenizer` says which.
      workdir: the run folder.
      problems: `bpe` is trained on them.
      model_folder: of the model's weights, for `model`; the tokenizer of `initialize_from` is in its `tokenizer`.
      resumed: whether the folder has a checkpoint, whose tokenizer, beside it, is then taken.

    Raises:
      UserError: there is no such tokenizer, or it cannot be loaded.
    """
    folder, kind, multiple = Path(workdir) / "tokenizer", run.data.tokenizer, run.mesh.tensor
    previous = Path(run.initialize_from) / "tokenizer" if run.initialize_from else None
    if kind == "chains":
        return Tokens.for_chains(multiple)
    if resumed:
        if not folder.is_dir():
            raise UserError(
                f"{folder} is missing, and the checkpoints beside it need it: restore it, or choose another --workdir."
            )
        return Tokens.load(str(folder), multiple)
    if kind in ("bpe", "model") and previous is not None and previous.is_dir():
        return Tokens.load(str(previous), multiple)  # whose ids the weights know
    if kind == "bpe":
        stride = max(len(problems) // _BPE_PROBLEMS, 1)
        texts = (_text(problems[index]) for index in range(0, len(problems), stride))
        return Tokens.train_bpe(texts, run.data.bpe_vocabulary, multiple)
    if kind == "model":
        if model_folder is None:
            raise UserError(
                "config.data.tokenizer is 'model', but config.model.source is 'scratch', which has no tokenizer: "
                "set it to 'bpe', 'chains', a folder or a hub name."
            )
        return Tokens.load(str(model_folder), multiple)
    return Tokens.load(kind, multiple)


def store_tokens(tokens: Tokens, workdir: str | Path) -> None:
    """Writes the tokenizer of a new run to `workdir/tokenizer`, where evaluation and export find it.

    It replaces what an earlier start, which came to no checkpoint, may have left; a kill leaves no half of it there.
    UserError if it cannot be written.
    """
    folder, part = Path(workdir) / "tokenizer", Path(workdir) / ".tokenizer.part"
    shutil.rmtree(part, ignore_errors=True)
    tokens.save(part)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}): mend its permissions, or choose another --workdir."
        ) from None


def _text(problem: Problem) -> str:
    return "\n".join([problem.question, *problem.steps, f"### {problem.answer}"])


def build_layout(run: RunConfig, tokens: Tokens) -> Layout:
    """How the run's problems become token ids."""
    data = run.data
    return Layout(
        tokens, run.markers, run.curriculum.mode, data.prompt_length, data.length_bucket, data.instruction
    )


def check_problems(
    run: RunConfig, layout: Layout, problems: Sequence[Problem], source: str
) -> Sequence[Problem]:
    """UserError for the first problem that is too long or cannot be spelled, before anything is trained.

    Of generated problems the first few stand for all: they are made when they are asked for.

    Returns:
      The problems; generated ones in which the rare one that is too long is replaced by the next of its stream that is
      not (`ProsQAProblems.those`), so that it cannot end a run late.
    """
    generated = source in _GENERATED
    check = _Check(run, layout)
    for index in range(min(len(problems), _FIRST_CHECKED) if generated else len(problems)):
        try:
            check(problems[index])
        except UserError as error:
            # Numbers are those of the file, unless a part of it was put aside for validation.
            counted = not generated and run.data.validation
            place = f"{source}, problem {index + 1}" if counted else source
            raise UserError(f"{place}: {error}") from None
    return problems.those(check.passes) if isinstance(problems, ProsQAProblems) else problems


class _Check:
    """UserError for a problem that is too long or cannot be spelled.

    A text of n bytes has at most n tokens, so only texts near a limit are encoded.
    """

    def __init__(self, run: RunConfig, layout: Layout):
        self.run, self.layout = run, layout
        # Of template, instruction and markers, generously.
        self.around = len(layout.tokens.encode_question("?")) + len(layout.instruction.encode()) + 8
        self.written = "curriculum" in run.stages
        self.sampled = "ppo" in run.stages
        # Rollouts, and evaluations after them, may have a length of their own.
        own, data = run.ppo.answer_length, run.data.answer_length
        self.sampled_length, self.sampled_key = (own, "ppo") if 0 < own < data else (data, "data")
        self.forced = len(layout.opening) - len(layout.closing)

    def __call__(self, problem: Problem) -> None:
        run, layout = self.run, self.layout
        layout.tokens.check_spelling(problem.question)
        layout.tokens.check_spelling(problem.answer)
        if len(problem.question.encode()) + self.around > run.data.prompt_length:
            layout.question(problem)
        if self.written:
            for step in problem.steps:
                layout.tokens.check_spelling(step)
            most = sum(len(step.encode()) + 1 for step in problem.steps) + len(problem.answer.encode()) + 8
            if most > run.data.answer_length:
                _check_answer(run, layout, problem)
        if self.sampled and len(problem.answer.encode()) + 8 > self.sampled_length:
            self._check_sampled(problem)

    def _check_sampled(self, problem: Problem) -> None:
        needed = len(self.layout.answer(problem)) - self.forced
        if needed > self.sampled_length:
            raise UserError(
                f"the answer {problem.answer[:60]!r} has {needed} tokens with its end, but "
                f"config.{self.sampled_key}.answer_length is {self.sampled_length}, so that no sampled answer could be right: raise it, or remove the question "
                f"{problem.question[:60]!r}."
            )

    def passes(self, problem: Problem) -> bool:
        try:
            self(problem)
        except UserError:
            return False
        return True


def _check_answer(run: RunConfig, layout: Layout, problem: Problem) -> None:
    steps = () if run.curriculum.mode == "no_cot" else problem.steps
    closing = len(layout.closing)
    written = (
        closing
        + sum(len(layout.step(step)) for step in steps[_shortest(run) :])
        + len(layout.answer(problem))
    )
    if written > run.data.answer_length:
        raise UserError(
            f"steps and answer have {written} tokens but config.data.answer_length is {run.data.answer_length}: "
            f"raise it, or remove the question {problem.question[:60]!r}."
        )


def _shortest(run: RunConfig) -> int:
    """Steps that are replaced by thoughts in every stage, so that they are never written."""
    curriculum = run.curriculum
    if curriculum.mode == "cot" or curriculum.uniform_prob or curriculum.guidance.distillation:
        return 0
    first = min(curriculum.stages, default=0)
    return 1_000_000 if first > curriculum.max_latent_stage else first
