"""A problem (question, steps, answer) and the files and hub data sets that problems are read from.

The form of a local file is known by its ending:

    .json   a list of objects with `question`, `steps`, `answer`: COCONUT's form, also ProsQA and ProntoQA
    .jsonl  one object a line with `question` and `answer`, prose that ends in `#### N`: GSM8K as published
    .txt    one `question||<<a+b=c>> <<...>> #### N` a line: the equation form of GSM8K

Anything else of the form `name:config:split` is a data set on the Hugging Face hub.
"""

import json
import re
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshot_jax.data.hub import cache_alone, hub_reachable
from longshot_jax.errors import UserError

_EQUATION = re.compile(r"<<[^<>]+>>")
_SURROGATE = re.compile("[\ud800-\udfff]")  # which JSON can write, and UTF-8 cannot
_HUB_NAME = re.compile(
    r"(?P<name>[\w.-]+(/[\w.-]+)?):(?P<config>[\w.+-]+):(?P<split>[\w.+\[\]%:-]+)", re.ASCII
)


@dataclass(frozen=True)
class Problem:
    """One question with its written reasoning and its answer.

    question: what the model is asked, never empty.
    steps: the reasoning that leads to the answer, one text a step; () where the source gives none.
    answer: what is compared with the model's answer, never empty and without the `####` marker.
    """

    question: str
    steps: tuple[str, ...]
    answer: str


def load_problems(source: str) -> list[Problem]:
    """Every problem of `source`, in its order: a `.json`, `.jsonl` or `.txt` file, or `name:config:split` on the hub.

    Of prose answers (GSM8K) each line before `#### N` is a step, calculator marks `<<...>>` included.

    Errors: UserError, naming the file and the line (or item, counted from 1), for a file that is missing, empty or
    of another form, for a broken line, and for a question or answer that is missing, empty or of the wrong type;
    for a hub name without network.
    """
    path = Path(source).expanduser()
    if path.exists():
        return _from_file(path)
    named = _HUB_NAME.fullmatch(source)
    if named:
        return _from_hub(source, named["name"], named["config"], named["split"])
    raise UserError(
        f"there is no data file {source}: give a .json, .jsonl or .txt file, or a hub data set as name:config:split"
    )


def _from_file(path: Path) -> list[Problem]:
    readers = {".json": _from_json, ".jsonl": _from_lines_of_json, ".txt": _from_equation_lines}
    reader = readers.get(path.suffix.lower())
    if reader is None or not path.is_file():
        raise UserError(f"{path} is not a data file: give a file that ends in .json, .jsonl or .txt")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    problems = reader(path, text)
    if not problems:
        raise UserError(f"{path} holds no problems: give a file with at least one")
    return problems


def _from_json(path: Path, text: str) -> list[Problem]:
    if not text.strip():
        return []
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: broken JSON ({error.msg}): mend the file") from None
    except RecursionError:
        raise UserError(f"{path}: JSON nested too deeply: give a list of objects") from None
    except ValueError as error:  # such as a number of more digits than Python reads
        raise UserError(f"{path}: unreadable JSON ({error}): mend the file") from None
    if not isinstance(items, list):
        raise UserError(f"{path} holds no JSON list: give a list of objects with question, steps and answer")
    return [_from_coconut_row(f"{path}, item {number}", item) for number, item in enumerate(items, start=1)]


def _from_lines_of_json(path: Path, text: str) -> list[Problem]:
    problems = []
    for place, line in _lines(path, text):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            fault = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
            raise UserError(f"{place}: broken JSON ({fault}): mend or remove the line") from None
        problems.append(_from_prose_row(place, row))
    return problems


def _from_equation_lines(path: Path, text: str) -> list[Problem]:
    problems = []
    for place, line in _lines(path, text):
        question, bars, solution = line.rpartition("||")
        equations, marker, answer = solution.rpartition("####")
        if not bars or not marker:
            lacking = "||" if not bars else "####"
            raise UserError(f"{place}: no {lacking}: write it as question||<<a+b=c>> #### answer")
        leftover = _EQUATION.sub("", equations).strip()
        if leftover:
            raise UserError(f"{place}: {leftover[:40]!r} is no equation <<a+b=c>>: mend or remove it")
        steps = tuple(_EQUATION.findall(equations))
        problems.append(Problem(_text(place, "question", question), steps, _text(place, "answer", answer)))
    return problems


def _from_hub(source: str, name: str, config: str, split: str) -> list[Problem]:
    mend = "give a local .json, .jsonl or .txt file instead"
    offline = not hub_reachable()
    import datasets  # takes more than a second, so only here

    try:
        with cache_alone() if offline else nullcontext():
            rows: Iterable[Any] = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library's own errors are many: each means that this name gave no data
        if offline:
            raise UserError(
                f"the hub data set {source} is out of reach (no network) and was not downloaded before: {mend}"
            ) from None
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the hub data set {source} cannot be loaded ({first_line}): mend the name or {mend}"
        ) from None
    problems = []
    for number, row in enumerate(rows, start=1):
        has_steps = isinstance(row, dict) and "steps" in row
        problems.append(
            (_from_coconut_row if has_steps else _from_prose_row)(f"{source}, item {number}", row)
        )
    if not problems:
        raise UserError(f"the hub data set {source} holds no problems: choose another split or {mend}")
    return problems


def _lines(path: Path, text: str) -> Iterable[tuple[str, str]]:
    """The lines that hold anything, each with its place. Only newlines end one: U+2028 may stand in a question."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def _from_coconut_row(place: str, row: Any) -> Problem:
    question, answer = _field(place, row, "question"), _field(place, row, "answer")
    steps = row.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, str) and step.strip() for step in steps):
        raise UserError(
            f'{place}: "steps" must be a list of texts that are not empty: mend or remove the item'
        )
    return Problem(question, tuple(_text(place, "steps", step) for step in steps), answer)


def _from_prose_row(place: str, row: Any) -> Problem:
    question, prose = _field(place, row, "question"), _field(place, row, "answer")
    *steps, last = [line.strip() for line in prose.split("\n") if line.strip()]
    if not last.startswith("####"):
        raise UserError(f'{place}: the last line of "answer" must be "#### N": mend or remove the line')
    return Problem(question, tuple(steps), _text(place, "answer", last.removeprefix("####")))


def _field(place: str, row: Any, key: str) -> str:
    if not isinstance(row, dict):
        raise UserError(f"{place}: not an object with question and answer: mend or remove it")
    if key not in row:
        raise UserError(f'{place}: "{key}" is missing: add it or remove the item')
    return _text(place, key, row[key])


def _text(place: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(
            f'{place}: "{key}" must be a text, not {type(value).__name__}: mend or remove the item'
        )
    if _SURROGATE.search(value):
        raise UserError(
            f'{place}: "{key}" holds half a character (a lone surrogate): mend or remove the item'
        )
    if not value.strip():
        raise UserError(f'{place}: "{key}" is empty: fill it in or remove the item')
    return value.strip()
