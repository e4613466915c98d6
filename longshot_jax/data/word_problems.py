"""Rows of arithmetic word problems in their published forms, to question, steps and answer.

- MAWPS and ASDiv-A as one csv (Patel et al. 2021, arXiv:2103.07191): question with `number0`, `number1` in place of its
  numbers, these, a prefix equation, the answer.
- SVAMP (the same paper), JSON: Body, Question, infix Equation, Answer.
- MultiArith (Roy and Roth 2015, arXiv:1608.01413), JSON: sQuestion, lEquations, lSolutions.

An answer is written without needless decimals. A row whose equation cannot be written, or does not evaluate to the
answer, is left out of the csv, which is for training; of the others, which are tests, it keeps its answer and no steps.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from longshot_jax.data.equations import Tree, decimal, from_infix, from_prefix, number_of, written_steps
from longshot_jax.data.fields import csv_rows, plain
from longshot_jax.errors import UserError

Texts = tuple[str, tuple[str, ...], str]

_COLUMNS = ("Question", "Numbers", "Equation", "Answer")
_PLACEHOLDER = re.compile(r"\bnumber(\d+)\b")
_SPACE_BEFORE = re.compile(r" (?=[.,?!;:%)]|'s\b|n't\b)")


def from_csv(path: Path, text: str) -> Iterator[tuple[str, Texts]]:
    """(place, question, steps and answer) of each row that is kept; a UserError for a row of another form."""
    for place, row in csv_rows(path, text, _COLUMNS):
        numbers = row["Numbers"].split()
        answer = _number(place, "Answer", row["Answer"])
        tree = _equation(place, row["Equation"], lambda row=row, numbers=numbers: from_prefix(row["Equation"], numbers))
        shown = [decimal(_fraction(place, "Numbers", number)) for number in numbers]
        steps = written_steps(tree, answer)
        if steps and None not in shown:
            yield place, (_question(place, row["Question"], [str(number) for number in shown]), steps, answer)


def is_word_problem(row: Any) -> bool:
    """Whether a JSON object has the fields of SVAMP or MultiArith."""
    return isinstance(row, dict) and ({"Body", "Question", "Equation"} <= row.keys() or "sQuestion" in row)


def from_json_row(place: str, row: dict[str, Any]) -> Texts:
    """Question, steps and answer of an object of SVAMP or MultiArith; a UserError for another form."""
    if "sQuestion" in row:
        question, equations, answers = (row.get(key) for key in ("sQuestion", "lEquations", "lSolutions"))
        if not (
            isinstance(equations, list) and len(equations) == 1 and isinstance(answers, list) and len(answers) == 1
        ):
            raise UserError(f"{place}: lEquations and lSolutions must be lists of one: fix or remove the item")
        equation, answer = equations[0], answers[0]
    else:
        for key in ("Body", "Question"):
            if not isinstance(row[key], str) or not row[key].strip():
                raise UserError(f'{place}: "{key}" must be a text that is not empty: fix or remove the item')
        body, asked = row["Body"].strip(), row["Question"].strip()
        question = f"{body}{'' if body.endswith(('.', '?', '!', ',')) else ','} {asked}"
        equation, answer = row["Equation"], row.get("Answer")
    answer = _number(place, "the answer", answer)
    infix = str(equation).partition("=")[2] if "=" in str(equation) else str(equation)
    tree = _equation(place, equation, lambda: from_infix(infix))
    return str(question or "").strip(), written_steps(tree, answer) or (), answer


def _question(place: str, text: str, numbers: list[str]) -> str:
    for found in _PLACEHOLDER.finditer(text):
        if int(found[1]) >= len(numbers):
            raise UserError(f"{place}: {found[0]} has no number in the column Numbers: fix or remove the row")
    return _SPACE_BEFORE.sub("", _PLACEHOLDER.sub(lambda found: numbers[int(found[1])], text))


def _equation(place: str, text: Any, read: Any) -> Tree:
    try:
        return read()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: {str(text)[:60]!r} is not an equation ({error}): fix or remove it") from None


def _fraction(place: str, key: str, value: Any) -> Fraction:
    try:
        return number_of(str(plain(value)))  # 1e3 in JSON is 1000
    except ValueError:
        raise UserError(f"{place}: {key} must be a number, not {str(value)[:40]!r}: fix or remove it") from None


def _number(place: str, key: str, value: Any) -> str:
    number = _fraction(place, key, value)
    return decimal(number) or str(value).strip()
