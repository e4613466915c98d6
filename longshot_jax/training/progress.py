"""What a person sees while a run is at work: a bar or plain lines, and one table at the end."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Progress of one stage: done, rate, time left and a few live figures; a context manager.

    On a terminal a bar; elsewhere (a log file, a scheduler) a plain line about every 30 seconds with the same
    facts, the last one always.

    Args:
        name: The stage.
        total: Steps of the whole stage.
        done: Steps that a resumed run has behind it; they do not count for the rate.
        unit: What a step is called.
        stream: Where to write, standard error by default.
    """

    def __init__(
        self, name: str, total: int, done: int = 0, unit: str = "update", stream: TextIO | None = None
    ):
        self._stream = sys.stderr if stream is None else stream
        self._name, self._total, self._unit = name, total, unit
        self._done = self._first = done
        self._figures: dict[str, Any] = {}
        self._started = self._last_line = time.monotonic()
        self._reported = done  # the step of the last plain line
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                desc=name, total=total, initial=done, unit=f" {unit}s", file=self._stream, dynamic_ncols=True
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, steps: int = 1, **figures: Any) -> None:
        """Counts `steps`; `figures` (loss, accuracy, thoughts) replace those shown, the others stay."""
        self._done += steps
        self._figures.update(figures)
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(_named(self._figures)), refresh=False)
            self._bar.update(steps)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._write_line()

    def note(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar, or writes the last line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._reported != self._done:
            self._write_line()

    def _write_line(self) -> None:
        now = time.monotonic()
        self._last_line, self._reported = now, self._done
        rate = (self._done - self._first) / max(now - self._started, 1e-9)
        left = _duration((self._total - self._done) / rate) if rate > 0 else "?"
        share = f" ({100 * self._done / self._total:.0f} %)" if self._total else ""
        facts = [
            f"{self._name}: {self._done}/{self._total}{share}",
            f"{_figure(rate)} {self._unit}s/s"
            if rate >= 1
            else f"{_figure(1 / rate if rate else 0)} s/{self._unit}",
            f"{left} left",
            *_named(self._figures),
        ]
        print(", ".join(facts), file=self._stream, flush=True)


def summary(rows: Mapping[str, Any]) -> str:
    """The table that ends a run: one line for each name, aligned, no wider than its content.

    Args:
        rows: A value for each name; or, for several columns, a mapping from column to value for each name
            (a column that a row lacks stays empty).

    Returns:
        Plain text without a final line break.
    """
    columns: list[str] = []
    for value in rows.values():
        if isinstance(value, Mapping):
            columns += [str(column) for column in value if str(column) not in columns]
    table = [["", *columns]] if columns else []
    for name, value in rows.items():
        if isinstance(value, Mapping):
            shown = {str(column): _figure(cell) for column, cell in value.items()}
            table.append([str(name), *(shown.get(column, "") for column in columns)])
        else:
            table.append([str(name), _figure(value)])
    width = max((len(line) for line in table), default=0)
    table = [line + [""] * (width - len(line)) for line in table]
    widths = [max(len(line[column]) for line in table) for column in range(width)]
    lines = []
    for line in table:
        # Names to the left; figures to the right where there are columns to compare.
        cells = [line[0].ljust(widths[0])]
        cells += [
            cell.rjust(size) if columns else cell for cell, size in zip(line[1:], widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    if columns:
        lines.insert(1, "  ".join("-" * size for size in widths))
    return "\n".join(lines)


def _named(figures: Mapping[str, Any]) -> list[str]:
    return [f"{name} {_figure(value)}" for name, value in figures.items()]


def _figure(value: Any) -> str:
    """Four significant digits; whole numbers, texts and bools as they are; arrays of one element as numbers."""
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03 or 02:03."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
