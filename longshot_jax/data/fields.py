"""Question, answer and steps by the names of their fields, and the rows of CSV and Parquet files."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from longshot_jax.errors import UserError, did_you_mean, first_line

Texts = tuple[Any, Any, Any]


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
    question, answer, *steps = (_plain(row[name]) for name in fields)
    lines = steps[0] if steps and steps[0] is not None else []
    if isinstance(lines, str):  # only newlines end a line, as in every file
        lines = [line for line in lines.split("\n") if line.strip()]
    return question, list(map(_plain, lines)) if isinstance(lines, list) else lines, answer


def _plain(value: Any) -> Any:
    """A number as its text, None for one that is none (a missing number in Parquet); anything else as it is."""
    if not isinstance(value, float | Decimal):
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not math.isfinite(value):
        return None
    return str(int(value) if value == int(value) else value)


def own_columns(text: str) -> list[str]:
    """`question`, `answer` and, if it is there, `steps`, where a csv has columns of these names; else []."""
    try:
        head = next(csv.reader(io.StringIO(text, newline="")), [])
    except csv.Error:  # whoever reads the rows says what is wrong
        return []
    return (
        [name for name in ("question", "answer", "steps") if name in head] if {"question", "answer"} <= {*head} else []
    )


def csv_rows(path: Path, text: str, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) of a csv with a head; a UserError if one of `columns` is not there, or for a row of another length."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = reader.fieldnames or ()
        if twice := [name for place, name in enumerate(names) if name and name in names[:place]]:
            raise UserError(f"{path}, line 1: the column {twice[0]!r} stands there twice: rename or remove one")
        missing = [name for name in columns if name not in names]
        if missing:
            raise UserError(
                f"{path}, line 1: no column {missing[0]}: a csv must have the columns question and answer, or "
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
