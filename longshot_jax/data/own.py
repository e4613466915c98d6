"""Code of the user, named as `module:name` or `file.py:name`: reward functions, problems and graders.

Such code runs only where a config file or the command line names it, never because a checkpoint, a model or a data
directory does. A module is looked for as a file of the current folder, then among what is installed.
"""

import ast
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from longshot_jax.data.chains import Split, hashed_split
from longshot_jax.data.problems import GeneratedProblems, Problem, checked_problem, question_key
from longshot_jax.errors import UserError, did_you_mean, first_line, line_of, shown
from longshot_jax.files import local_path

_NAME = re.compile(r"(?P<module>.+\.py|[^\W\d][\w.]*):(?P<name>[^\W\d]\w*)")
_FIRST = 64  # problems of a function that are drawn before training
_FEWEST = 10  # different questions among them


class OwnCodeError(UserError):
    """Code of the user that raised, or gave what cannot be used."""


@dataclass(frozen=True)
class OwnCode:
    """What a setting names; a call raises a UserError for whatever the code raises.

    Attributes:
      named: as the setting names it.
      value: a function, or something to iterate over.
      file: the code's file.
      fingerprint: of that file's code, without comments and white space.
    """

    named: str
    value: Any
    file: str
    fingerprint: str

    @property
    def name(self) -> str:
        return self.named.rpartition(":")[2]

    def __call__(self, *arguments: Any, when: str = "") -> Any:
        """What the function gives; `when` is put into the sentence if it raises."""
        return self.guarded(lambda: self.value(*arguments), when)

    def guarded(self, compute: Callable[[], Any], when: str = "") -> Any:
        """What `compute` gives, which runs this code."""
        try:
            return compute()
        except (Exception, SystemExit) as error:  # of any type
            raise OwnCodeError(f"{self.named} {_raised(error, self.file)}{when}: fix it") from None


def names_code(source: str) -> bool:
    """Whether a setting names the user's code, and no file, generator, hub data set or task of reasoning-gym."""
    return _NAME.fullmatch(source) is not None and not source.startswith("reasoning_gym:")


def load_code(named: str, setting: str) -> OwnCode:
    """Runs the module that `named` names, once in a process, and finds the name in it.

    Raises a UserError that begins with `setting` if there is no such module or name, or if the module raises.
    """
    parts = _NAME.fullmatch(named)
    if parts is None:
        raise UserError(f"{setting} is {shown(named)}: name code as module:function or file.py:function")
    module = _module(parts["module"], f"{setting} {named!r}")
    name, known = parts["name"], [name for name in vars(module) if not name.startswith("__")]
    if not hasattr(module, name):
        advice = did_you_mean(name, known, "define it there", cutoff=0.4)
        raise UserError(f"{setting} {named!r}: {parts['module']} has no {name!r}: {advice}")
    file = str(getattr(module, "__file__", None))
    if not file.endswith(".py"):
        raise UserError(f"{setting} {named!r}: {parts['module']} is no Python file: name code of your own")
    code = ast.unparse(ast.parse(Path(file).read_bytes()))
    return OwnCode(named, getattr(module, name), file, hashlib.sha256(code.encode()).hexdigest()[:16])


def _module(name: str, place: str) -> ModuleType:
    file = local_path(name if name.endswith(".py") else f"{name.replace('.', '/')}.py", place).absolute()
    if file.is_file():
        return _module_of_file(file, place)
    try:
        if not name.endswith(".py") and importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the module is the user's code
        if not isinstance(error, ModuleNotFoundError) or not name.startswith(error.name or "-"):
            raise UserError(f"{place}: {name} {_raised(error)}: fix it") from None
    suffix = ".py" if name.endswith(".py") else ""
    there = [path.stem + suffix for path in file.parent.glob("*.py")]
    otherwise = "give the path of a .py file, or an installed module"
    advice = did_you_mean(file.stem + suffix, there, otherwise, cutoff=0.7)
    raise UserError(f"{place}: there is no {file}: {advice}")


def _module_of_file(file: Path, place: str) -> ModuleType:
    """The module of a file, which may import what lies beside it. It is run again only if the file has changed."""
    name = f"own_{file.stem}_{hashlib.sha256(str(file).encode() + file.read_bytes()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if name not in sys.modules and spec is not None and spec.loader is not None:
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look for their module there
        path = list(sys.path)
        sys.path.append(str(file.parent))
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise UserError(f"{place}: {file.name} {_raised(error, str(file))}: fix it") from None
        finally:
            sys.path[:] = path
    return sys.modules[name]


def _raised(error: BaseException, file: str = "") -> str:
    line = line_of(error, file)
    return f"raises {type(error).__name__} ({first_line(error)}){f' in {Path(file).name}, line {line}' if line else ''}"


def own_problems(code: OwnCode, count: int, split: Split) -> list[Problem] | GeneratedProblems:
    """The problems of `code`: what it yields, or those of `split_problems` if it is a function of an index.

    Something without a length, such as a generator, is read up to `count` problems. Raises UserError for other code, an
    unusable problem, and questions of which most are repeated.
    """
    source = code.value
    if callable(source):
        parameters = code.guarded(lambda: inspect.signature(source).parameters.values())
        needed = [each for each in parameters if each.default is each.empty and "VAR" not in each.kind.name]
        if len(needed) > 1 or any(each.kind is each.KEYWORD_ONLY for each in needed):
            raise UserError(
                f"{code.named} takes {len(needed)} arguments: problems come from a function of an index, or of none"
            )
        if needed:

            def problem(index: int) -> Problem:
                when = f" for index {index}"
                return checked_problem(f"{code.named}{when}", code(index, when=when))

            return split_problems(code.named, count, problem, split)
        source = code()
    if not isinstance(source, Iterable) or isinstance(source, str):
        raise UserError(f"{code.named} gives {shown(source, 40)}: give something that yields problems")
    found = code.guarded(lambda: list(source if hasattr(source, "__len__") else islice(source, count)))
    problems = [checked_problem(f"{code.named}, problem {place}", item) for place, item in enumerate(found, start=1)]
    different = len({question_key(problem) for problem in problems})
    if not problems or 2 * different < len(problems):
        fault = (
            f"repeats itself: its {len(found):,} problems have {different:,} different questions"
            if found
            else "yields no problem"
        )
        raise UserError(f"{code.named} {fault}: yield at least one, and each once")
    return problems


def split_problems(named: str, count: int, problem: Callable[[int], Problem], split: Split) -> GeneratedProblems:
    """`count` problems of a function of an index: the ones that the hash of the question puts into `split`.

    Raises UserError if the function gives few questions, or not the same problem for the same index.
    """
    first = [problem(index) for index in range(_FIRST)]
    if first[:4] != [problem(index) for index in range(4)]:
        raise UserError(
            f"{named} gives another problem for the same index: draw its numbers from a generator seeded with the index"
        )
    different = len({question_key(each) for each in first})
    if different < _FEWEST:
        raise UserError(
            f"{named} repeats itself: its first {_FIRST} problems have {different} different questions, too few to keep some "
            "for validation and test: give more of them"
        )

    def guarded(index: int) -> Problem:
        try:
            return problem(index)
        except UserError as error:
            raise OwnCodeError(str(error)) from None

    # The stride is no multiple of the period that a function of `index % period` may have.
    return GeneratedProblems(count, guarded, stride=count + 1).filtered(
        lambda each: hashed_split(question_key(each).hex()) == split,
        f"of {named} has a question for {split}: give more different questions",
    )


Grade = Callable[[Problem, str], float]


def by_problem(problem: Problem, text: str) -> float:
    """The grade by the problem's own rule."""
    return problem.grade(text)


def checked_grade(named: str, given: Any, about: str) -> float:
    """What a grader has `given` as a number; an OwnCodeError if it is none from 0 to 1."""
    if not isinstance(given, (bool, int, float, np.number, np.bool_)) or not 0 <= given <= 1:
        raise OwnCodeError(f"{named} gives {shown(given, 40)}{about}: give True, False or a number from 0 to 1")
    return float(given)


def own_grader(named: str, problems: Iterable[Problem], setting: str = "config.data.grader") -> Grade:
    """The function `named`, which grades an answer's text from 0 to 1; `by_problem` if that is empty.

    The function is called for the first `problems`, and must give 1 for their own answers. Raises a UserError, now or
    when it grades, if it raises or gives no such number.
    """
    if not named:
        return by_problem
    code = load_code(named, setting)
    if not callable(code.value):
        raise UserError(f"{setting} {named!r} is no function of a problem and an answer's text")

    def grade(problem: Problem, text: str) -> float:
        about = f" for the answer {shown(text, 40)} to {shown(problem.question, 60)}"
        return checked_grade(named, code(problem, text, when=about), about)

    for problem in islice(problems, _FIRST):
        grade(problem, "")  # a model may answer nothing
        if grade(problem, problem.answer) < 1:
            raise UserError(
                f"{named} gives less than 1 for the problem's own answer {shown(problem.answer, 40)} to "
                f"{shown(problem.question, 60)}: that answer must be right"
            )
    return grade
