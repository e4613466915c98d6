"""Damage to bytes, texts and JSON values, drawn from a random generator."""

import json
import random
from collections.abc import Sequence
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 1.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf"), 10**30, -(2**31), 2**31,
    "", " ", "text", "1", "nan", "null", "\ud800", "ǘ 漢字 🙂", "\x00", "a\nb", "../x", "x" * 5000, [], {}, [1], {"a": 1},
    [[[[[]]]]], [None], ["a", "b"],
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "nan", "inf", "-inf", "1e999", "1e400", "0x10", "1_000", "１２", "true", "False", "None", "null", "[1", "(1,)", "[]",
    "()", "{}", "1,2", "1,,2", ",", "9" * 5000, "-0", "1e3", " 3", "3 ", "\x00", "'3'", '"ppo"', "\u2028", "ü", "1.0", "0.5",
    "-1", "2147483648", "4294967296", "1" + "0" * 30, "((1,),)", "(" * 300, "1+1", "__import__('os')", "1j", "b'1'", "...",
)  # fmt: skip


def damaged_bytes(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """A file's content with one damage, and its name."""
    kind = rng.choice(["bit", "bit", "bits", "cut", "cut", "empty", "gap", "twice", "noise", "zeros", "mark", "tail"])
    if not data:
        return "noise in an empty file", rng.randbytes(5)
    place, length = rng.randrange(len(data)), rng.choice([1, 1, 2, 7, 64, 1000])
    if kind == "bit":
        bit = rng.randrange(8)
        changed = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        return f"bit {bit} of byte {place}", changed
    if kind == "bits":
        content = bytearray(data)
        for _ in range(rng.choice([2, 5, 30])):
            content[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return "several bits", bytes(content)
    if kind == "cut":
        return f"cut at byte {place}", data[:place]
    if kind == "empty":
        return "emptied", b""
    if kind == "gap":
        return f"{length} bytes lost at {place}", data[:place] + data[place + length :]
    if kind == "twice":
        return f"{length} bytes twice at {place}", data[: place + length] + data[place:]
    if kind == "noise":
        return f"{length} bytes inserted at {place}", data[:place] + rng.randbytes(length) + data[place:]
    if kind == "zeros":
        return f"{length} bytes zeroed at {place}", data[:place] + bytes(len(data[place : place + length])) + data[
            place + length :
        ]
    if kind == "mark":
        return "a byte order mark", b"\xef\xbb\xbf" + data
    return "more at the end", data + rng.choice([b"\n", b"\x00", b"{}", data[:100], b"\xff"])


def damaged_text(rng: random.Random, text: str, pieces: Sequence[str]) -> tuple[str, str]:
    """A text with one to three pieces lost, doubled, or inserted from `pieces`."""
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        place = rng.randrange(len(text) + 1)
        kind, length = rng.choice(["lost", "twice", "inserted"]), rng.choice([1, 1, 2, 5, 20])
        if kind == "lost":
            text = text[:place] + text[place + length :]
        elif kind == "twice":
            text = text[: place + length] + text[place:]
        else:
            text = text[:place] + rng.choice(pieces) + text[place:]
        done.append(f"{length} characters {kind} at {place}" if kind != "inserted" else f"inserted at {place}")
    return ", ".join(done), text


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths of everything below a JSON value."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += [(*path, key), *places(item, (*path, key))]
    return found


def damaged_json(rng: random.Random, value: Any, odd: Sequence[Any] = ODD_VALUES) -> tuple[str, Any]:
    """A deep copy with one to three values replaced, lost, added, renamed, doubled, swapped or wrapped."""
    value = json.loads(json.dumps(value))
    done = []
    for _ in range(rng.choice([1, 1, 1, 1, 2, 3])):
        paths = places(value)
        if not paths:
            break
        *above, key = path = rng.choice(paths)
        parent = value
        for step in above:
            parent = parent[step]
        kind = rng.choice(["replaced", "replaced", "replaced", "lost", "added", "renamed", "wrapped", "swapped"])
        name = ".".join(map(str, path))[:60]
        if kind == "lost":
            del parent[key]
        elif kind == "added":
            new = rng.choice(["extra", "num_experts", "", "ünknown", "seed", "type", name])
            if isinstance(parent, dict):
                parent[new] = rng.choice(odd)
            else:
                parent.insert(key, rng.choice(odd))
        elif kind == "renamed" and isinstance(parent, dict):
            parent[rng.choice([key + "s", key[:-1], key.upper(), key + " "])] = parent.pop(key)
        elif kind == "wrapped":
            parent[key] = [parent[key]] if rng.random() < 0.5 else {"value": parent[key]}
        elif kind == "swapped" and len(parent) > 1:
            other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
            parent[key], parent[other] = parent[other], parent[key]
        else:
            kind, parent[key] = "replaced", rng.choice(odd)
            kind += f" by {str(parent[key])[:30]!r}"
        done.append(f"{name} {kind}")
    return ", ".join(done), value


def written_json(rng: random.Random, value: Any) -> str:
    """JSON text in one of the forms that mean the same."""
    separators = rng.choice([None, (",", ":"), (" ,\n", "\t: ")])
    return json.dumps(
        value,
        ensure_ascii=rng.random() < 0.5 or _has_surrogate(value),
        indent=rng.choice([None, 0, 2]),
        separators=separators,
    )


def _has_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def has_duplicates(text: str) -> bool:
    """Whether any object of a JSON text names a key twice."""
    found = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(len({key for key, _ in pairs}) < len(pairs))
        return dict(pairs)

    json.loads(text, object_pairs_hook=look)
    return any(found)
