"""Question, answer and steps by the names of their fields, and what JSON, CSV and Parquet files hold."""

import ast
import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from longshot_jax.errors import UserError, did_you_mean, first_line, shown

Texts = tuple[Any, Any, Any]

csv.field_size_limit(2**31 - 1)  # of a whole process: by default a text above 131,072 characters is an error
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
# More digits behind the point than a table holds are those of a 4-byte number that was read as an 8-byte one.
_DIGITS, _MAGNITUDE = 15, 400


def texts_of(row: Any, fields: Sequence[str], place: str) -> Texts:
    """Question, steps and answer of a row; a UserError if a field is missing.

    Numbers become texts. Steps may be a list, or one text with a step a line; a field that is not named, or empty, has none.
    """
    if not isinstance(row, dict):
        raise UserError(f"{place}: not an object with fields: fix or remove it")
    for name in fields:
        if name not in row:
            advice = did_you_mean(name, map(str, row), f"there are {', '.join(map(str, row))}")
            raise UserError(f"{place}: there is no field {name!r} of config.data.fields: {advice}")
    question, answer, *steps = (plain(row[name]) for name in fields)
    lines = steps[0] if steps and steps[0] is not None else []
    if isinstance(lines, str):
        if _is_list(lines):  # as pandas writes a column of lists into a csv
            raise UserError(
                f"{place}: {fields[2]!r} is a list written as a text ({shown(lines, 40)}): write a step a line, or save the "
                "rows as .jsonl or .parquet"
            )
        lines = [line for line in lines.split("\n") if line.strip()]  # only newlines end a line, as in every file
    return question, list(map(plain, lines)) if isinstance(lines, list) else lines, answer


def _is_list(text: str) -> bool:
    if not (text := text.strip()).startswith("["):
        return False
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = read(text)
            return isinstance(found, list) and all(isinstance(each, str) for each in found)
    return False


def plain(value: Any) -> Any:
    """A number as its digits, None for one that is none (a missing number in Parquet); anything else as it is."""
    if not isinstance(value, float | Decimal):
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    value = _shortest(value) if isinstance(value, float) else value
    if not value.is_finite():
        return None
    if not value:
        return "0"
    if abs(value.adjusted()) > _MAGNITUDE:  # whose digits would fill the memory
        return value
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _shortest(value: float) -> Decimal:
    """The fewest digits that tell a number: of a 4-byte number that Parquet held, those of 4 bytes."""
    whole = Decimal(repr(value))
    with np.errstate(over="ignore"):
        short = np.float32(value)
    is_short = float(short) == value and len(whole.as_tuple().digits) >= _DIGITS
    return Decimal(str(short)) if is_short else whole


def read_json_text(text: str) -> Any:
    """What a JSON text holds, with the digits of each number as they stand there; errors are those of `json.loads`."""
    return json.loads(text, parse_float=_decimal)


def _decimal(digits: str) -> Decimal | float:
    try:
        return Decimal(digits)
    except ArithmeticError:  # an exponent with dozens of digits
        return math.nan


def has_own_columns(text: str) -> bool:
    """Whether a csv has the columns `question` and `answer`."""
    try:
        return {"question", "answer"} <= {*next(_reader(text), [])}
    except csv.Error:  # whoever reads the rows says what is wrong
        return False


def _reader(text: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)


def csv_rows(path: Path, text: str, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) of a csv with a head; a UserError if one of `columns` is not there, or for a row of another length."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        names = reader.fieldnames or ()
        if twice := [name for place, name in enumerate(names) if name and name in names[:place]]:
            raise UserError(f"{path}, line 1: the column {twice[0]!r} stands there twice: rename or remove one")
        others = [word for mark, word in _SEPARATORS.items() if len(names) == 1 and mark in names[0]]
        if others:
            raise UserError(f"{path}, line 1: its columns are separated by {others[0]}: separate them by commas")
        missing = [name for name in columns if name not in names]
        if missing and {"question", "answer"} <= {name.lower() for name in names}:
            raise UserError(
                f"{path}, line 1: the columns {', '.join(names)} are question and answer in other letters: write them small, or "
                "name them by config.data.fields or --fields"
            )
        if missing:
            raise UserError(
                f"{path}, line 1: no column {missing[0]} among {', '.join(names)}: a csv must have the columns question and answer, or "
                f"{', '.join(columns[:-1])} and {columns[-1]}, or its columns be named by config.data.fields or --fields"
            )
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{place}: another number of columns than in line 1: fix or remove the row")
            yield place, row
    except csv.Error as error:
        raise UserError(f"{path}, line {max(reader.line_num, 1)}: broken csv ({error}): fix the row") from None


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a Parquet file; a UserError if it is none."""
    import pyarrow.parquet  # takes half a second

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error:  # of many types
        raise UserError(f"{path} cannot be read as Parquet ({first_line(error)}): give another file") from None
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
