"""The problems and layout of a run's settings, and the check that problems fit."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from longshot_jax.config.curriculum import CurriculumConfig
from longshot_jax.config.run import DataConfig, RunConfig
from longshot_jax.data.chains import CHAIN_WORDS, ChainProblems, Split
from longshot_jax.data.colouring import COLOURING_WORDS, ColouringProblems, as_colouring
from longshot_jax.data.equation_graph import parallel_steps
from longshot_jax.data.layout import Layout, TooLong
from longshot_jax.data.own import load_code, names_code, own_problems
from longshot_jax.data.problems import GeneratedProblems, Problem, fingerprint, load_problems, question_key
from longshot_jax.data.prosqa import ProsQAProblems
from longshot_jax.data.reasoning_gym import CONTAMINATION, PREFIX, TEMPLATED, gym_problems, version
from longshot_jax.data.redraw import RedrawnProblems
from longshot_jax.data.stories import StoryProblems
from longshot_jax.data.threads import THREAD_WORDS, ThreadProblems
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError

# Held-out problems do not depend on the run's seed, so that runs can be compared.
_VALIDATION_SEED, _TEST_SEED = 7_000_003, 7_000_019
_VALIDATION_STRIDE, _MAX_VALIDATION = 10, 500  # a tenth of the training questions, at most 500, is for validation
_FIRST_COMPARED = 1_000  # generated problems that are compared with a training file
_FIRST_CHECKED = 64  # generated problems that are checked before training
_COMPARED = 10_000  # problems after one that is too long, among which the longest is looked for

# Generated problems: settings, seed, count and split -> problems. A new generator is a file and a line here.
GENERATORS: Mapping[str, Callable[[DataConfig, int, int, Split], Sequence[Problem]]] = {
    "chains": lambda data, seed, count, split: ChainProblems(seed, count, data.operations, split, data.distractors),
    "threads": lambda data, seed, count, split: ThreadProblems(
        seed, count, data.threads, data.operations, split, data.interleaved, data.steps_together, data.crossings
    ),
    "colouring": lambda data, seed, count, split: ColouringProblems(seed, count, data.nodes, split),
    "prosqa": lambda data, seed, count, split: ProsQAProblems(seed, count),
    "stories": lambda data, seed, count, split: StoryProblems(
        seed, count, data.operations, split, data.distractors, data.largest_number, data.equations
    ),
}

# Tokenizers of generated problems: a token a character.
ALPHABETS: Mapping[str, Sequence[str]] = {"chains": CHAIN_WORDS, "threads": THREAD_WORDS, "colouring": COLOURING_WORDS}


class Problems(NamedTuple):
    """Training problems of a run, and the validation problems that choose the best checkpoint."""

    train: Sequence[Problem]
    validation: Sequence[Problem]


def read_problems(run: RunConfig, warn: Callable[[str], object] = lambda _: None) -> Problems:
    """The training and validation problems of a run; a UserError if a source is unreadable or too small to be split.

    Without `data.validation`, a file or hub data set is split by its questions: up to a tenth of the different ones,
    evenly spaced, is for validation, and all copies of a question are on one side. Generated problems come from
    different streams or splits.

    Problems of `data.test` and `data.validation` whose question is also in a training file are counted, and `warn` gets
    a line with their share; `data.remove_overlap` leaves them out of training. Generated training problems are not
    compared with files. A problem that `data.redraw` would make one of validation or test stays as it is.
    """
    data = run.data
    if data.redraw:
        original = read_problems(replace(run, data=replace(data, redraw=0.0)), warn)
        if not isinstance(original.train, list):
            raise UserError(
                f"config.data.redraw is {data.redraw}, but config.data.train {data.train!r} is generated, with new numbers "
                "in each problem: set it to 0."
            )
        held_out = {question_key(problem) for problem in original.validation}
        with suppress(UserError):  # of test problems that cannot be read, which was said above
            held_out.update(map(question_key, _compared(test_problems(run))))
        redrawn = RedrawnProblems(original.train, data.train, run.seed, data.redraw, held_out)
        return original._replace(train=redrawn)
    if (note := contamination((data.train,), data.validation)) and data.validation:
        warn(f"warning: config.data.validation: {note}.")
    train = _read(data, "train", "train", run.seed, data.generated_train)
    if not isinstance(train, list):
        return Problems(
            train, _held_out(data, "validation" if data.validation else "train", "validation", _VALIDATION_SEED)
        )
    keys = [question_key(problem) for problem in train]
    if data.validation:
        validation = _held_out(data, "validation", "validation", _VALIDATION_SEED)
        shared = _overlap(data, "validation", validation, keys, warn)
    else:
        different = list(dict.fromkeys(keys))  # in the order of their first occurrences
        count = min(len(different) // _VALIDATION_STRIDE, _MAX_VALIDATION)
        if not count:
            raise UserError(
                f"{data.train} has {len(different)} different problems, too few to keep a tenth for validation: name "
                "other problems as config.data.validation."
            )
        chosen = {different[number * len(different) // count] for number in range(count)}
        validation = [problem for problem, key in zip(train, keys, strict=True) if key in chosen]
        train = [problem for problem, key in zip(train, keys, strict=True) if key not in chosen]
        keys, shared = [key for key in keys if key not in chosen], set()
    try:
        shared |= _overlap(data, "test", test_problems(run), keys, warn)
    except UserError as error:
        warn(f"warning: config.data.test was not compared with the training problems, because {error}")
    if data.remove_overlap and shared:
        train = [problem for problem, key in zip(train, keys, strict=True) if key not in shared]
        if not train:
            raise UserError(
                f"every problem of {data.train} is also in config.data.validation or config.data.test, so "
                "config.data.remove_overlap leaves none to train on: name other problems as config.data.train."
            )
    return Problems(train, validation)


def _overlap(
    data: DataConfig, setting: str, problems: Sequence[Problem], train: Sequence[bytes], warn: Callable[[str], object]
) -> set[bytes]:
    """Questions of held-out problems that are among the training questions; warns of them."""
    held_out, trained = list(map(question_key, _compared(problems))), set(train)
    shared = trained.intersection(held_out)
    if shared:
        count = sum(key in shared for key in held_out)
        if data.remove_overlap:
            advice = "they are left out of training"
        elif getattr(data, setting) == data.train:
            advice = f"name another file as config.data.{setting}"
        else:
            advice = "set config.data.remove_overlap to True to leave them out of training"
        warn(
            f"warning: {count} of the {len(held_out)} problems of config.data.{setting} ({getattr(data, setting)}), "
            f"{count / len(held_out):.1%}, are also in the training problems ({data.train}): {advice}."
        )
    return shared


def _compared(problems: Sequence[Problem]) -> Iterable[Problem]:
    """The held-out problems that are compared with training files."""
    return problems if isinstance(problems, list) else islice(problems, _FIRST_COMPARED)


def test_problems(run: RunConfig) -> Sequence[Problem]:
    """The problems of `data.test`, held out from training; a UserError if it is unreadable."""
    return _held_out(run.data, "test", "test", _TEST_SEED)


def contamination(trained_on: Iterable[str], source: str) -> str:
    """What must be said beside an accuracy on `source` of a model that was trained on these sources; "" if nothing."""
    return CONTAMINATION if TEMPLATED in trained_on and not source.startswith(PREFIX) else ""


def own_code(run: RunConfig) -> dict[str, str]:
    """Fingerprints of the code of the user, or the version of its library, by the setting that names it."""
    named = {f"data.{setting}": getattr(run.data, setting) for setting in ("train", "validation", "grader")}
    if "ppo" in run.phases:
        named |= {f"ppo.reward[{place}]": reward for place, reward in enumerate(run.ppo.reward)}
    return {
        setting: version() if source.startswith(PREFIX) else load_code(source, f"config.{setting}").fingerprint
        for setting, source in named.items()
        if source.startswith(PREFIX) or names_code(source)
    }


def file_fingerprints(run: RunConfig, problems: Problems) -> dict[str, str]:
    """Fingerprints of the problems that were read from files or from the hub, by setting; code has its own."""
    data, train = run.data, problems.train
    redrawn = train if isinstance(train, RedrawnProblems) else None
    given = ("train", data.train, redrawn.problems if redrawn else train)
    parts = (given, ("validation", data.validation or data.train, problems.validation))
    files = [(setting, part) for setting, source, part in parts if isinstance(part, list) and not names_code(source)]
    found = {f"data.{setting}": fingerprint(part) for setting, part in files}
    if redrawn:  # which decide what is redrawn
        found["data.test"] = hashlib.sha256(b"".join(sorted(redrawn.held_out))).hexdigest()[:16]
    return found


def _held_out(data: DataConfig, setting: str, split: Split, seed: int) -> Sequence[Problem]:
    return _read(data, setting, split, seed, data.generated_test)


def _read(data: DataConfig, setting: str, split: Split, seed: int, count: int) -> Sequence[Problem]:
    """The problems that a setting of `data` names; those that are not a list are generated, and differ between splits."""
    source = getattr(data, setting)
    if source in GENERATORS:
        try:
            return GENERATORS[source](data, seed, count, split)
        except UserError as error:  # its text starts with the name of the setting
            raise UserError(f"config.data.{error}") from None
    if source.startswith(PREFIX):
        return gym_problems(source, data.parameters, seed, count, split)
    if names_code(source):
        return own_problems(load_code(source, f"config.data.{setting}"), count, split)
    problems = load_problems(source, data.fields)
    if data.train != "colouring":
        return problems
    return [as_colouring(problem, f"{source}, problem {number}") for number, problem in enumerate(problems, start=1)]


def build_layout(run: RunConfig, tokenizer: Tokenizer) -> Layout:
    """The layout of a run's problems as token ids."""
    data = run.data
    return Layout(tokenizer, run.markers, run.curriculum.mode, data.prompt_length, data.length_bucket, data.instruction)


def check_problems(run: RunConfig, layout: Layout, problems: Problems) -> Problems:
    """Checks problems before training; a UserError for one that is too long or that the tokenizer cannot spell.

    It names the longest prompt, or the longest steps and answer, and the first otherwise.

    Of generated problems only the first ones are checked. In the result a later one that does not fit (ProsQA,
    stories) is replaced by the next of its stream that does, so that it cannot end a run.
    """
    data = run.data
    needy = [phase for phase in run.phases if phase != "ppo" and run.supervised(phase).mode != "no_cot"]
    some = islice(problems.train, None if isinstance(problems.train, (list, RedrawnProblems)) else _FIRST_CHECKED)
    if needy and not any(problem.steps or (run.thoughts.join and problem.threads) for problem in some):
        raise UserError(
            f"no problem of {data.train} has written steps, from which {needy[0]!r} in config.phases learns: give "
            "config.data.train with steps, or leave the phase out."
        )
    return Problems(
        _checked(run, layout, problems.train, data.train, counted=bool(data.validation) and not data.remove_overlap),
        _checked(run, layout, problems.validation, data.validation or data.train, counted=bool(data.validation)),
    )


def _checked(
    run: RunConfig, layout: Layout, problems: Sequence[Problem], source: str, counted: bool
) -> Sequence[Problem]:
    """`counted`: indices of the problems equal those of the file, because the file was not split."""
    generated = not isinstance(problems, (list, RedrawnProblems))
    check = _Check(run, layout)
    count = min(len(problems), _FIRST_CHECKED) if generated else len(problems)
    for index in range(count):
        try:
            check(problems[index])
        except UserError as error:
            if isinstance(error, TooLong):
                index, error = _longest(check, problems, range(index, min(count, index + _COMPARED)), error)
            place = f"{source}, problem {index + 1}" if counted and not generated else source
            raise UserError(f"{place}: {error}") from None
    return problems.filtered(check.passes) if isinstance(problems, (GeneratedProblems, RedrawnProblems)) else problems


def _longest(check: "_Check", problems: Sequence[Problem], indices: range, first: TooLong) -> tuple[int, TooLong]:
    """Index and error of the longest problem, so that one start tells what all need; `first` is of the first index."""
    found = indices[0], first
    for index in indices[1:]:
        try:
            check(problems[index])
        except UserError as other:  # one of another kind is told by the next start
            if isinstance(other, TooLong) and other.what == first.what and other.needed > found[1].needed:
                found = index, other
    return found


class _Check:
    """Raises a UserError for a problem that is too long or that the tokenizer cannot spell.

    A text of n bytes has at most n tokens, so only texts near a limit are encoded.
    """

    def __init__(self, run: RunConfig, layout: Layout):
        self.run, self.layout = run, layout
        # An upper bound of the tokens of template, instruction and markers.
        self.overhead = len(layout.tokenizer.encode_question("?")) + len(layout.instruction.encode()) + 8
        # PPO may set its own answer length, for rollouts and later evaluations.
        own, data = run.ppo.answer_length, run.data.answer_length
        self.sampled_length, self.key = (own, "ppo") if own else (data, "data")
        self.forced = len(layout.opening) - len(layout.closing)

    def __call__(self, problem: Problem) -> None:
        run, layout = self.run, self.layout
        layout.tokenizer.check_spelling(problem.question)
        layout.tokenizer.check_spelling(problem.answer)
        steps = self._steps(problem)
        if len(problem.question.encode()) + self.overhead > run.data.prompt_length:
            layout.question(problem)
        answer = len(problem.answer.encode()) + 8
        most = sum(len(step.encode()) + 1 for step in steps) + answer
        if supervised := [run.supervised(phase) for phase in run.phases if phase != "ppo"]:
            for step in steps:
                layout.tokenizer.check_spelling(step)
            if most > run.data.answer_length:
                for config in supervised:
                    self._check_written(problem, config)
        if "ppo" in run.phases and answer > self.sampled_length:
            self._check_sampled(problem)

    def _steps(self, problem: Problem) -> Sequence[str]:
        """The steps as they are read; a UserError for more threads than trajectories."""
        if not self.run.thoughts.joined:
            return problem.steps
        threads, joint = parallel_steps(problem, self.run.thoughts.joined)
        return [*(step for thread in threads for step in thread), *joint]

    def _check_written(self, problem: Problem, config: CurriculumConfig) -> None:
        """Checks steps and answer at the stage that writes most steps, and the steps that guidance reads."""
        layout, limit = self.layout, self.run.data.answer_length
        if config.guidance.reads_steps and config.c_thought:
            longest = max((len(layout.step(step)) for step in self._steps(problem)), default=0)
            if longest > limit:
                raise UserError(
                    f"a step has {longest} tokens but config.data.answer_length is {limit}: raise it, or set "
                    "config.curriculum.guidance to its defaults."
                )

        def written(steps: Sequence[str]) -> int:
            gone = len(steps) if config.mode == "no_cot" else min(config.always_replaced, len(steps))
            if not config.c_thought and config.always_replaced <= config.max_latent_stage:
                gone = layout.token_thoughts(steps[:gone], config.thought_slots)[0]
            return sum(len(layout.step(step)) for step in steps[gone:])

        joined = self.run.thoughts.joined
        answer = len(replace(layout, mode=config.mode).answer(problem, joined))  # the phase's mode, not the run's
        if joined:  # each thread is written by its own trajectory, up to a marker
            tokens = max(answer, *(written(steps) + 1 for steps in parallel_steps(problem, joined).threads))
        else:
            tokens = len(layout.closing) + written(problem.steps) + answer
        if tokens > limit:
            raise TooLong(
                f"steps and answer have {tokens} tokens but config.data.answer_length is {limit}: raise it, or remove "
                f"the question {problem.question[:60]!r}.",
                "answer",
                tokens,
            )

    def _check_sampled(self, problem: Problem) -> None:
        needed = len(self.layout.answer(problem)) - self.forced
        if needed > self.sampled_length:
            raise UserError(
                f"the answer {problem.answer[:60]!r} has {needed} tokens with its end, but config.{self.key}."
                f"answer_length is {self.sampled_length}, so that no sampled answer could be correct: raise it, or "
                f"remove the question {problem.question[:60]!r}."
            )

    def passes(self, problem: Problem) -> bool:
        with suppress(UserError):
            self(problem)
            return True
        return False
