"""A problem (question, steps, answer), read from a file or a hub data set.

The suffix of a local file states its form; `name:config:split` is a data set on the Hugging Face hub.

    .json   a list of objects (COCONUT's form, also ProsQA and ProntoQA)
    .jsonl  one object per line (GSM8K as published)
    .csv    a head and a row per problem; or MAWPS and ASDiv-A with number placeholders and prefix equations
            (`data.word_problems`)
    .parquet  a row per problem, as on the hub
    .txt    one `question||<<a+b=c>> <<...>> #### N` per line: the equation form of GSM8K

All but the last have the same rows: `question`, `answer` and perhaps `steps`, a list or one text with a step a line. The
answer may be prose that ends in `#### N`: then each line before it is a step, where the row has no `steps`. `threads` may
hold lists of steps that are independent of one another, and `steps` those and what needs several. A row may also be one of
SVAMP or MultiArith (`data.word_problems`), or have any fields that `data.fields` names.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

from longshot_jax.data.fields import csv_rows, has_own_columns, parquet_rows, read_json_text, texts_of
from longshot_jax.data.grading import same_answer
from longshot_jax.data.hub import cache_alone, hub_reachable
from longshot_jax.data.word_problems import from_csv, from_json_row, is_word_problem
from longshot_jax.errors import UserError, first_line, shown
from longshot_jax.files import local_path

_EQUATION = re.compile(r"<<[^<>]+>>")
_SURROGATE = re.compile("[\ud800-\udfff]")  # expressible in JSON, not in UTF-8
T = TypeVar("T")
Read = Callable[[str, T], "Problem"]  # from the place for messages, and a row or line
_ATTEMPTS = 1000  # to find a generated problem that passes a filter
_TOO_LONG = "is short enough: raise config.data.prompt_length and config.data.answer_length"
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?):(?P<config>[\w.+-]+):(?P<split>[\w.+\[\]%:-]+)", re.ASCII)


@dataclass(frozen=True)
class Problem:
    """A question, its reasoning as one text per step (may be ()), and its correct answer without the `####` marker.

    No text is empty. `threads` are the steps once more where some are independent of others: each thread is a sequence
    of its own, and all can be taken at the same time; () where nothing is known of it (`data.equation_graph`). What
    `steps` hold beside those of the threads needs several of them.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    threads: tuple[tuple[str, ...], ...] = ()

    def grade(self, answer: str) -> float:
        """1 if the text of an answer is right by the problem's own rule, else 0."""
        return float(same_answer(answer, self.answer))


def evenly_spaced(problems: Sequence[Problem], most: int) -> list[Problem]:
    """At most `most` problems, evenly spaced."""
    count = min(len(problems), most)
    return [problems[place * len(problems) // count] for place in range(count)]


class GeneratedProblems(Sequence[Problem]):
    """`count` problems, generated on access: `problem(index)`, or what replaces it, `stride` later in the stream."""

    def __init__(self, count: int, problem: Callable[[int], Problem], stride: int):
        if count < 1:
            raise UserError(f"count must be at least 1 problem, not {count}")
        self.size, self.problem, self.stride = count, problem, stride
        self._wanted: tuple[tuple[Callable[[Problem], bool], str], ...] = ()

    def filtered(self, wanted: Callable[[Problem], bool], fault: str = _TOO_LONG) -> "GeneratedProblems":
        """The same number of problems; unwanted ones are replaced by later ones of the stream.

        `fault` follows "none of 1000 generated problems" in the error if no later one is wanted.
        """
        chosen = GeneratedProblems(self.size, self.problem, self.stride)
        chosen._wanted = (*self._wanted, (wanted, fault))
        return chosen

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: SupportsIndex) -> Problem:  # type: ignore[override]  (no slices)
        position = index.__index__()
        if not 0 <= position < self.size:
            raise IndexError(f"problem {position} of {self.size}")
        fault: str | None = ""
        for attempt in range(_ATTEMPTS):
            problem = self.problem(position + attempt * self.stride)
            fault = next((fault for wanted, fault in self._wanted if not wanted(problem)), None)
            if fault is None:
                return problem
        raise UserError(f"none of {_ATTEMPTS} generated problems {fault}")


def checked_problem(place: str, problem: Any) -> Problem:
    """A problem that code gave, without white space around its texts; a UserError if it is none or a text is unusable."""
    if not isinstance(problem, Problem):
        raise UserError(
            f"{place}: {shown(problem, 40)} is no problem: give a longshot_jax.data.problems.Problem(question, steps, answer)"
        )
    steps: Any = problem.steps
    threads: Any = problem.threads
    rows = isinstance(threads, (tuple, list)) and all(
        isinstance(thread, (tuple, list)) and thread for thread in threads
    )
    if not rows:
        raise UserError(f'{place}: "threads" must be a tuple of tuples of steps, none empty: fix or remove the problem')
    return replace(
        problem,
        question=_text(place, "question", problem.question),
        steps=_steps(place, "steps", list(steps) if isinstance(steps, tuple) else steps),
        answer=_text(place, "answer", problem.answer),
        threads=tuple(_steps(place, "threads", list(thread)) for thread in threads),
    )


def question_key(problem: Problem) -> bytes:
    """A hash of 16 bytes that problems with the same question share.

    Two questions are the same if they are equal after Unicode normalisation (NFKC), case folding and joining of white
    space. Nothing else is kept of each, so that hundreds of thousands of problems take seconds.
    """
    text = problem.question
    if not text.isascii():  # folding can undo a normal form
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def fingerprint(problems: Iterable[Problem]) -> str:
    """16 hexadecimal digits that change with any text of the problems and with their order."""
    digest, before = hashlib.sha256(b"["), b""
    for problem in problems:
        digest.update(before + repr(problem).encode())
        before = b", "
    digest.update(b"]")
    return digest.hexdigest()[:16]


def load_problems(source: str, fields: Sequence[str] = ()) -> list[Problem]:
    """All problems of `source` in order: a file, or `name:config:split` on the hub.

    `fields` names the fields of question, answer and, if there are any, steps (`data.fields`).

    Raises UserError, naming the file and line (or item, counted from 1), if a source is missing, empty, unreadable or
    of another form, or if the hub is out of reach.
    """
    path = local_path(source, "the data file")
    from_row = partial(_from_named_row, fields) if fields else _from_row
    if path.exists():
        return _from_file(path, from_row)
    named = _HUB_NAME.fullmatch(source)
    if named:
        return _from_hub(source, named["name"], named["config"], named["split"], from_row)
    raise UserError(
        f"there is no data file {source}: give a .json, .jsonl, .csv, .parquet or .txt file, or a hub data set as "
        "name:config:split"
    )


def _from_file(path: Path, from_row: Read[Any]) -> list[Problem]:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".jsonl", ".csv", ".parquet", ".txt") or not path.is_file():
        raise UserError(f"{path} is not a data file: give a file that ends in .json, .jsonl, .csv, .parquet or .txt")
    if suffix == ".parquet":
        problems = [from_row(*row) for row in parquet_rows(path)]
    else:
        problems = _from_text_file(path, suffix, from_row)
    if not problems:
        raise UserError(f"{path} holds no problems: give a file with at least one")
    return problems


def _from_text_file(path: Path, suffix: str, from_row: Read[Any]) -> list[Problem]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    if suffix == ".json":
        return _from_json(path, text, from_row)
    if suffix == ".csv" and from_row is _from_row and not has_own_columns(text):
        return [_from_texts(*row) for row in from_csv(path, text)]
    if suffix == ".csv":
        # A column of this name holds no lists.
        return [
            from_row(place, row if from_row is not _from_row else row | {"threads": None})
            for place, row in csv_rows(path, text)
        ]
    from_line: Read[str] = partial(_from_json_line, from_row) if suffix == ".jsonl" else _from_equation_line
    # Only newlines end a line: U+2028 may occur in a question.
    lines = enumerate(text.split("\n"), start=1)
    return [from_line(f"{path}, line {number}", line) for number, line in lines if line.strip()]


def _from_json(path: Path, text: str, from_item: Read[Any]) -> list[Problem]:
    if not text.strip():
        return []
    try:
        items = read_json_text(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1 and text.lstrip().startswith("{"):
            raise UserError(f"{path} has an object a line, which is JSON Lines: rename it to end in .jsonl") from None
        raise UserError(f"{path}, line {error.lineno}: broken JSON ({error.msg}): fix the file") from None
    except RecursionError:
        raise UserError(f"{path}: JSON nested too deeply: give a list of objects") from None
    except ValueError as error:  # such as a number with more digits than Python reads
        raise UserError(f"{path}: unreadable JSON ({error}): fix the file") from None
    if not isinstance(items, list):
        pairs = items.items() if isinstance(items, dict) else ()
        lists = [
            key for key, value in pairs if isinstance(value, list) and any(isinstance(each, dict) for each in value)
        ]
        if len(lists) == 1:
            raise UserError(f"{path} holds an object with a list: take the list out of its key {shown(lists[0])}")
        raise UserError(f"{path} holds no JSON list: give a list of objects with question, steps and answer")
    return [from_item(f"{path}, item {number}", item) for number, item in enumerate(items, start=1)]


def _from_texts(place: str, texts: tuple[str, tuple[str, ...], str]) -> Problem:
    question, steps, answer = texts
    return Problem(_text(place, "question", question), steps, answer)


def _from_json_line(from_row: Read[Any], place: str, line: str) -> Problem:
    try:
        row = read_json_text(line)
    except (ValueError, RecursionError) as error:
        fault = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
        raise UserError(f"{place}: broken JSON ({fault}): fix or remove the line") from None
    return from_row(place, row)


def _from_row(place: str, row: Any) -> Problem:
    """The problem of a row with the plain names, or of one of SVAMP or MultiArith."""
    if is_word_problem(row) and not {"question", "answer"} <= row.keys():
        return _from_texts(place, from_json_row(place, row))
    if not isinstance(row, dict):
        raise UserError(f"{place}: not an object with question and answer: fix or remove it")
    others = "where all have other fields, name them by config.data.fields (or --fields)"
    for key in ("question", "answer"):
        if key not in row:
            raise UserError(f'{place}: "{key}" is missing: add it or remove the item; {others}')
    problem = _from_named_row(("question", "answer", "steps")[: 2 + ("steps" in row)], place, row)
    if "\n" in problem.answer and not problem.steps:  # prose, of which nothing says where the answer is
        raise UserError(
            f'{place}: the last line of "answer" must be "#### N", or "steps" hold the lines before it: fix or remove it; '
            f"{others}"
        )
    threads = row.get("threads") or []
    if not isinstance(threads, list) or not all(threads):
        raise UserError(f'{place}: "threads" must be a list of lists of steps, none empty: fix or remove the item')
    return replace(problem, threads=tuple(_steps(place, "threads", thread) for thread in threads))


def _from_named_row(fields: Sequence[str], place: str, row: Any) -> Problem:
    question, steps, answer = texts_of(row, fields, place)
    question, answer = _text(place, fields[0], question), _text(place, fields[1], answer)
    told, marker, number = answer.rpartition("####")
    if marker and "\n" not in number.strip():  # otherwise a heading of Markdown, say
        answer = _text(place, fields[1], number)
        steps = steps or [line for line in told.split("\n") if line.strip()]
    return Problem(question, _steps(place, fields[-1] if len(fields) > 2 else "steps", steps), answer)


def _from_equation_line(place: str, line: str) -> Problem:
    question, bars, solution = line.rpartition("||")
    equations, marker, answer = solution.rpartition("####")
    if not bars or not marker:
        lacking = "||" if not bars else "####"
        raise UserError(f"{place}: no {lacking}: write it as question||<<a+b=c>> #### answer")
    leftover = _EQUATION.sub("", equations).strip()
    if leftover:
        raise UserError(f"{place}: {leftover[:40]!r} is not an equation <<a+b=c>>: fix or remove it")
    steps = tuple(_EQUATION.findall(equations))
    return Problem(_text(place, "question", question), steps, _text(place, "answer", answer))


def _from_hub(source: str, name: str, config: str, split: str, from_row: Read[Any]) -> list[Problem]:
    advice = "give a local .json, .jsonl or .txt file instead"
    offline = not hub_reachable()
    import datasets  # takes more than a second

    try:
        with cache_alone() if offline else nullcontext():
            rows: Iterable[Any] = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises errors of many types
        if offline:
            raise UserError(
                f"the hub data set {source} is out of reach (no network) and was not downloaded before: {advice}"
            ) from None
        raise UserError(
            f"the hub data set {source} cannot be loaded ({first_line(error)}): fix the name or {advice}"
        ) from None
    problems = [from_row(f"{source}, item {number}", row) for number, row in enumerate(rows, start=1)]
    if not problems:
        raise UserError(f"the hub data set {source} holds no problems: choose another split or {advice}")
    return problems


def _steps(place: str, key: str, steps: Any) -> tuple[str, ...]:
    if not isinstance(steps, list) or not all(isinstance(step, str) and step.strip() for step in steps):
        raise UserError(f'{place}: "{key}" must hold lists of texts that are not empty: fix or remove the item')
    return tuple(_text(place, key, step) for step in steps)


def _text(place: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f'{place}: "{key}" must be a text, not {type(value).__name__}: fix or remove the item')
    if _SURROGATE.search(value):
        raise UserError(f'{place}: "{key}" holds half a character (a lone surrogate): fix or remove the item')
    if not value.strip():
        raise UserError(f'{place}: "{key}" is empty: fill it in or remove the item')
    return value.strip()
