"""Progress of a phase: a bar on a terminal, plain lines elsewhere."""

import statistics
import sys
import time
from typing import Any, TextIO, cast

from tqdm import tqdm

from longshot_jax.tables import figure

_SECONDS_BETWEEN_LINES = 30.0
_FEWEST_TIMED = 9  # batches: at most four of them compile a shape, and the median is then of one that does not


class Progress:
    """Shows steps done, rate, time left and figures; a context manager.

    On a terminal a bar; elsewhere (a log file, a scheduler) a plain line about every 30 seconds and at the end. The first
    step compiles, so a line's rate and time left are of the steps after it.

    Args:
      name, unit: names of the phase and of a step.
      total: steps of the whole phase.
      done: steps done before this start of the run; they do not count for the rate.
      stream: output stream; None is standard error.

    Attributes:
      done: steps done. last_line: time of the last plain line, or of the start.
    """

    def __init__(self, name: str, total: int, done: int = 0, unit: str = "update", stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._name, self._total, self._unit = name, total, unit
        self.done = done
        self._figures: dict[str, Any] = {}
        self._started = self.last_line = time.monotonic()
        self._compiled: tuple[float, int] | None = None  # when the first step ended, and the steps done by then
        self._reported = done  # steps done at the last plain line
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                desc=name, total=total, initial=done, unit=f" {unit}s", file=self._stream, dynamic_ncols=True
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is None and self._reported != self.done:
            self._write_line()
        self.close_bar()

    def close_bar(self) -> None:
        """Ends the bar, if there is one."""
        if self._bar is not None:
            self._bar.close()

    def advance(self, steps: int = 1, **figures: Any) -> None:
        """Counts `steps` and updates the shown figures, such as loss or accuracy."""
        self.done += steps
        if steps and self._compiled is None:
            self._compiled = time.monotonic(), self.done
        self._figures.update(figures)
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._shown()), refresh=False)
            self._bar.update(steps)
        elif time.monotonic() - self.last_line >= _SECONDS_BETWEEN_LINES:
            self._write_line()

    def note(self, text: str) -> None:
        """Writes a line, above the bar if there is one."""
        tqdm.write(text, file=self._stream)
        self._stream.flush()

    def _write_line(self) -> None:
        now = time.monotonic()
        self.last_line, self._reported = now, self.done
        start, first = self._compiled or (now, self.done)
        share = f" ({100 * self.done / self._total:.0f} %)" if self._total else ""
        facts = [f"{self._name}: {self.done}/{self._total}{share}"]
        if self.done > first:
            rate = (self.done - first) / max(now - start, 1e-9)
            left = tqdm.format_interval(round((self._total - self.done) / rate))
            pace = f"{figure(rate)} {self._unit}s/s" if rate >= 1 else f"{figure(1 / rate)} s/{self._unit}"
            facts += [pace, f"{left} left"]
        else:
            facts.append(f"{now - self._started:.0f} s with compilation")
        facts += self._shown()
        self.note(", ".join(facts))

    def _shown(self) -> list[str]:
        return [f"{name} {figure(value)}" for name, value in self._figures.items()]


class ProgressOfPasses:
    """Progress of several passes over the same questions, each with a bar of its own on a terminal.

    Elsewhere a line about every 30 seconds: a pass that takes less is silent.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream, self._name, self._shown = stream, "", cast(Progress | None, None)
        self._last_line = self._last_call = time.monotonic()
        self._times: dict[str, list[float]] = {}  # seconds a question of each batch, by pass

    def __call__(self, name: str, done: int, total: int) -> None:
        """Shows that `done` of the `total` questions of the pass `name` are done."""
        if self._shown is None or name != self._name:
            self._name, self._shown = name, Progress(name, total, 0, "question", self._stream)
            self._shown.last_line = self._last_line
        if questions := done - self._shown.done:
            self._times.setdefault(name, []).append((time.monotonic() - self._last_call) / questions)
        self._shown.advance(questions)
        self._last_line = self._shown.last_line
        if done == total:
            self._shown.close_bar()
            self._shown = None
        self._last_call = time.monotonic()

    def seconds_per_question(self, name: str) -> float | None:
        """Median over the batches of the pass `name`; None for fewer than nine batches, whose median may be of one that compiled."""
        times = self._times.get(name, [])
        return statistics.median(times) if len(times) >= _FEWEST_TIMED else None
