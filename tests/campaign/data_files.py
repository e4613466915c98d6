"""Data files in their three forms, with damage to bytes and to records; read again with Python's json alone."""

import json
import random
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

from campaign.damage import damaged_bytes, damaged_json, has_duplicates, written_json
from campaign.judging import Case, same
from longshot_jax.data.problems import load_problems

_WORDS = (
    "Natalia sold 48 clips. How many? Every shumpus is a rempus. Tom 3 + 4 = 7 $1,200 ½ ünïcode 漢字 🙂 e\u0301 \u2028 "
    "<<48/2=24>> #### || ### <|latent|> {{x}} \\ / \" ' \t"
).split(" ")
Record = dict[str, Any]
Row = tuple[str, tuple[str, ...], str]


class DataFiles:
    name, share = "data", 0.3

    def __init__(self, folder: Path) -> None:
        del folder

    def case(self, rng: random.Random, folder: Path) -> Case:
        suffix = rng.choice([".json", ".jsonl", ".txt"])
        records = [_record(rng, suffix) for _ in range(rng.choice([1, 2, 5]))]
        file = folder / f"problems{suffix}"
        how = rng.choice(["none", "bytes", "bytes", "records"])
        what = "undamaged"
        if how == "records" and suffix != ".txt":
            what, changed = damaged_json(rng, records)
            records = changed if isinstance(changed, list) else records
        content = _written(rng, suffix, records)
        if how == "bytes":
            what, content = damaged_bytes(rng, content)
        if rng.random() < 0.05:
            what, content = f"{what}, a key twice", _key_twice(rng, content)
        file.write_bytes(content)
        expected = _read_again(suffix, content)
        ambiguous = expected is not None and suffix != ".txt" and any(map(has_duplicates, _documents(suffix, content)))

        def wrong(problems: Any) -> str | None:
            found = [(problem.question, problem.steps, problem.answer) for problem in problems]
            if expected is None:
                return f"read as {str(found)[:200]}, but the file is broken"
            return same(found, expected, "the list of problems")

        harmless = expected is not None and not ambiguous
        return Case(f"{suffix}, {what}", lambda: load_problems(str(file)), wrong, (file.name,), harmless)


def _text(rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.choice([1, 3, 12]))).strip() or "x"


def _record(rng: random.Random, suffix: str) -> Any:
    steps = [_text(rng) for _ in range(rng.choice([0, 1, 3]))]
    if suffix == ".json":
        return {
            "question": _text(rng),
            "steps": steps,
            "answer": _text(rng),
            **({"id": 7} if rng.random() < 0.3 else {}),
        }
    if suffix == ".jsonl":
        return {"question": _text(rng), "answer": "\n".join([*steps, f"#### {rng.randrange(10**6)}"])}
    equations = " ".join(f"<<{n}+{n}={2 * n}>>" for n in range(len(steps)))
    return f"{_text(rng)}||{equations} #### {rng.randrange(10**6)}"


def _written(rng: random.Random, suffix: str, records: list[Any]) -> bytes:
    if suffix == ".json":
        text = written_json(rng, records)
    elif suffix == ".jsonl":
        text = "\n".join(json.dumps(record) for record in records)
    else:
        text = "\n".join(records)
    text += rng.choice(["", "\n", "\n\n"])
    return (text.replace("\n", "\r\n") if rng.random() < 0.1 else text).encode()


def _key_twice(rng: random.Random, content: bytes) -> bytes:
    key = rng.choice([b'"question"', b'"answer"', b'"steps"'])
    return content.replace(key, key + b': "other", ' + key, 1)


def _documents(suffix: str, content: bytes) -> list[str]:
    # Files are opened as Python opens text: any end of a line becomes a newline.
    text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    return [text] if suffix == ".json" else [line for line in text.split("\n") if line.strip()]


def _read_again(suffix: str, content: bytes) -> list[Row] | None:
    """The problems of a file; None if it breaks its form anywhere."""
    try:
        documents = _documents(suffix, content)
        if suffix == ".txt":
            return [_equations(line) for line in documents] or None
        found = [json.loads(text, parse_float=_digits, parse_constant=lambda _: None) for text in documents]
        rows = found[0] if suffix == ".json" else found
        if not isinstance(rows, list):
            return None
        return [_row(row) for row in rows] or None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


def _whole(value: Any) -> str:
    """A text that is not blank and that UTF-8 can express."""
    value.encode()
    if not value.strip():
        raise ValueError("blank")
    return value.strip()


def _digits(text: str) -> str | None:
    """A number without exponent and without needless zeros; None for one of hundreds of digits."""
    number = Decimal(text)
    if abs(number.adjusted()) > 400:
        return None if number else "0"
    return f"{number.normalize(Context(prec=1000)):f}" if number else "0"


def _as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _row(row: Record) -> Row:
    question, answer, steps = _whole(_as_text(row["question"])), _whole(_as_text(row["answer"])), row.get("steps")
    steps = [] if steps is None else _as_text(steps)
    if isinstance(steps, str):
        steps = [line for line in steps.split("\n") if line.strip()]
    if not isinstance(steps, list):
        raise TypeError("steps")
    told, mark, number = answer.rpartition("####")
    if mark:
        answer, steps = _whole(number), steps or [line for line in told.split("\n") if line.strip()]
    if "\n" in answer and (mark or not steps):
        raise ValueError("where is the answer?")
    return question, tuple(_whole(_as_text(step)) for step in steps), answer


def _equations(line: str) -> Row:
    question, solution = line.rsplit("||", 1)
    written, answer = solution.rsplit("####", 1)
    steps, rest = [], written
    while rest.strip():
        opening, closing = rest.index("<<"), rest.index(">>")
        step = rest[opening : closing + 2]
        if rest[:opening].strip() or len(step) < 5 or set(step[2:-2]) & set("<>"):
            raise ValueError("not an equation")
        steps.append(step)
        rest = rest[closing + 2 :]
    return _whole(question), tuple(steps), _whole(answer)
