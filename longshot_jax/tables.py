"""Tables as aligned text or Markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def text_table(rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns, the first to the left and the others to the right; a rule under the head."""
    table = [[figure(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table whose first row is the head, with aligned source."""
    head, *body = [[figure(cell) for cell in row] for row in rows]
    table = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in table)


def by_name(rows: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """Table rows, head included, from name -> column -> value; missing values are empty."""
    if not rows:
        return []
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return [["", *columns], *([name, *(row.get(column, "") for column in columns)] for name, row in rows.items())]


def figure(value: Any) -> str:
    """Formats a number with four significant digits; integers and text unchanged, one-element arrays as numbers."""
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)
