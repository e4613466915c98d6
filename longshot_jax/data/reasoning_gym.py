"""Tasks of reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760) as problems, with their own graders.

`reasoning_gym:chain_sum` is the task `chain_sum`. A hash of its question decides whether a problem is for training,
validation or test. Those of `gsm_symbolic` are split by template: its templates were made of questions of GSM8K's *test*
(Mirzadeh et al. 2024, arXiv:2410.05229), and problems of one template differ in names and numbers only.

Steps are those that a task states, which few do. Those of `leg_counting` are written here: the legs of each kind of
animal, which are threads of their own, and their running sum.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from longshot_jax.data.chains import Split
from longshot_jax.data.own import split_problems
from longshot_jax.data.problems import GeneratedProblems, Problem, checked_problem
from longshot_jax.errors import UserError, did_you_mean, first_line, shown

PREFIX = "reasoning_gym:"
TEMPLATED = f"{PREFIX}gsm_symbolic"
CONTAMINATION = (
    "the model was trained on gsm_symbolic, whose templates were made of questions of GSM8K's test: an accuracy there is no "
    "accuracy on unseen questions"
)
_DRAWN = ("acre", "list_functions", "word_ladder")  # tasks that draw all problems, here 10,000, when they are made
_SETTING = "config.data.parameters"


@dataclass(frozen=True)
class GymProblem(Problem):
    """A problem with its entry in reasoning-gym's form, by which `score` (the task's `score_answer`) judges an answer."""

    entry: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    score: Callable[[str, Mapping[str, Any]], float] | None = field(default=None, repr=False, compare=False)

    def grade(self, answer: str) -> float:
        """1 if the task gives the full score, else 0: a policy would find what earns a part of it without the answer."""
        return float(self.score is not None and self.score(answer, self.entry) >= 1)


def gym_problems(source: str, parameters: str, seed: int, count: int, split: Split) -> GeneratedProblems:
    """`count` problems of a task with parameters in JSON; a UserError for a task or parameters that do not exist."""
    dataset, task = _dataset(source, parameters, seed), source.removeprefix(PREFIX)
    drawn = task in _DRAWN
    if source == TEMPLATED:
        dataset.task_indices = _InTurn(_templates(dataset, split))

    def problem(index: int) -> Problem:
        try:
            entry = dataset[index % dataset.size if drawn else index]
        except Exception as error:  # of the library
            raise UserError(
                f"{source}, problem {index + 1}: {type(error).__name__} ({first_line(error)}): change {_SETTING}"
            ) from None
        if not isinstance(entry["answer"], str):
            raise UserError(f"{source} states no answers, because many are right: name another task")
        threads: tuple[tuple[str, ...], ...] = ()
        if task == "leg_counting":
            threads, steps = _legs(entry["metadata"]["animals"], sys.modules[type(dataset).__module__].ANIMALS)
        else:
            solution = str(entry["metadata"].get("answer_cot", "")).split("\n")
            steps = tuple(line.strip() for line in solution if line.strip() and not line.startswith("####"))
        made = GymProblem(entry["question"], steps, entry["answer"], threads, entry=entry, score=dataset.score_answer)
        return checked_problem(f"{source}, problem {index + 1}", made)

    if source == TEMPLATED:
        return GeneratedProblems(count, problem, stride=count + 1)
    return split_problems(source, count, problem, split)


def _legs(
    animals: Mapping[str, int], legs_of: Mapping[str, int]
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Threads and steps: `3*4=12` for each kind of animal, then the sums `12+10=22`."""
    products = [f"{count}*{legs_of[animal]}={count * legs_of[animal]}" for animal, count in animals.items()]
    sums, total = [], 0
    for place, (animal, count) in enumerate(animals.items()):
        legs = count * legs_of[animal]
        sums += [f"{total}+{legs}={total + legs}"] * (place > 0)
        total += legs
    return tuple((product,) for product in products), (*products, *sums)


class _InTurn(list[int]):
    """Templates in turn, for any index."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index % len(self))


def _templates(dataset: Any, split: Split) -> list[int]:
    """gsm_symbolic's templates of a split: of ten in a row one is for validation and two are for test."""
    of_place: Mapping[int, Split] = {0: "test", 1: "validation", 5: "test"}
    known = sys.modules[type(dataset).__module__].tasks_ok
    return [template for place, template in enumerate(known) if of_place.get(place % 10, "train") == split]


def _dataset(source: str, parameters: str, seed: int) -> Any:
    try:
        library: Any = importlib.import_module("reasoning_gym")  # an extra
    except ModuleNotFoundError as error:
        raise UserError(
            f"{source} needs the package reasoning-gym ({first_line(error)}): install the extra of that name, in the folder "
            "of this project with pip install -e '.[reasoning-gym]'"
        ) from None
    task, tasks = source.removeprefix(PREFIX), library.factory.DATASETS
    if task not in tasks:
        advice = did_you_mean(task, tasks, f"it has {len(tasks)}, such as {PREFIX}chain_sum", PREFIX + "{}")
        raise UserError(f"{source} is no task of reasoning-gym: {advice}")
    try:
        given = json.loads(parameters or "{}")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f'{_SETTING} is not JSON ({first_line(error)}): give an object such as {{"max_terms": 3}}'
        ) from None
    if not isinstance(given, dict):
        raise UserError(f'{_SETTING} is {shown(given)}: give a JSON object such as {{"max_terms": 3}}')
    known = [each.name for each in dataclasses.fields(tasks[task][1]) if each.name not in ("seed", "size")]
    for name in given.keys() - set(known):
        advice = did_you_mean(name, known, f"it has {', '.join(known) or 'none'}", "{}")
        raise UserError(f"{_SETTING}: {source} has no parameter {shown(name)}: {advice}")
    try:
        return library.create_dataset(task, **given, seed=seed, size=10_000)
    except Exception as error:  # of many types, most of them assertions
        raise UserError(f"{_SETTING} {shown(given)} does not fit {source} ({first_line(error)}): change it") from None


def version() -> str:
    """The version of the library, with which a task's problems change."""
    return f"reasoning-gym {importlib.metadata.version('reasoning-gym')}"
