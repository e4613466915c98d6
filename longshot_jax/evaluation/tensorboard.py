"""What a run tells TensorBoard, written without TensorFlow, by the first process alone."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from longshot_jax.errors import UserError

# What a kill may lose: events wait at most so many seconds before they are on disk.
_FLUSH_SECONDS = 5


class RunWriter:
    """Event files of one run; a context manager. On every process but the first each call does nothing.

    Args:
        folder: Where the event files go; every start of the same run adds one.
        resumed_from: The step of the checkpoint that the run goes on from, None for a new run. What a killed
            run logged after that step is hidden, since the resumed run logs those steps again.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, folder: str | Path, resumed_from: int | None = None):
        self._writer: Any = None
        if jax.process_index() != 0:
            return
        try:
            self._writer = _event_library().SummaryWriter(
                logdir=str(folder),
                # From here on what is there already is void. A new run says so too: TensorBoard takes the first such
                # mark for a run's beginning and heeds those that follow.
                purge_step=0 if resumed_from is None else resumed_from + 1,
                flush_secs=_FLUSH_SECONDS,
                # A file's name has the time in whole seconds: a quick restart must not write over the last file.
                filename_suffix=f".{os.getpid()}.{_unused_number(Path(folder))}",
            )
        except OSError as error:
            raise UserError(
                f"TensorBoard events cannot be written to {folder} ({error.strerror or error}): choose another "
                "--workdir or mend its permissions."
            ) from error

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One point for each name; a value that is not finite is drawn as such, not hidden."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, float(value), step)

    def histogram(self, step: int, name: str, array: Any) -> None:
        """The distribution of an array's finite elements; nothing where there is none."""
        if self._writer is not None:
            values = np.asarray(array, np.float64).ravel()
            values = values[np.isfinite(values)]
            if values.size:
                self._writer.add_histogram(name, values, step)

    def text(self, step: int, name: str, markdown: str) -> None:
        """A page of markdown, for instance a `samples_table`."""
        if self._writer is not None:
            self._writer.add_text(name, markdown, step)

    def hyperparameters(self, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """The run's config beside its results, for the comparison of runs; called once, at the end.

        Args:
            config: Nested; keys are joined by dots, what is neither number, bool nor text is shown as text.
            metrics: Final numbers, under names of their own.
        """
        if self._writer is None:
            return
        results = {name: float(value) for name, value in metrics.items()}
        # Written into the run's own event file: the library's method would open a second run beside it.
        for summary in _event_library().summary.hparams(_flat(config), results):
            self._writer.file_writer.add_summary(summary)
        self.scalars(0, results)

    def close(self) -> None:
        """Puts everything on disk; harmless when repeated."""
        if self._writer is not None:
            self._writer.close()


def samples_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table of sample questions, such as question, expected, decoded answer, thoughts.

    Args:
        rows: One mapping a row; the first row's keys are the columns.

    Returns:
        The table, every cell on one line; a row's text cannot break out of its cell.
    """
    if not rows:
        return "(no samples)"
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    cells = [[cell if index == 1 else _cell(cell) for cell in line] for index, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _cell(value: Any) -> str:
    """Text as one table cell: markup shown as it stands (special tokens look like HTML), lines broken by <br>."""
    text = str(value)
    for character in "\\`*_[]":
        text = text.replace(character, "\\" + character)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
    return "<br>".join(text.splitlines())


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config as the flat numbers, bools and texts that the hyper-parameter plugin takes."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def _event_library() -> ModuleType:
    """tensorboardX, kept from importing PyTorch: where that is installed, it would load it for one annotation."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        import tensorboardX
        import tensorboardX.summary
    finally:
        if absent:
            del sys.modules["torch"]
    return tensorboardX


def _unused_number(folder: Path) -> int:
    return len(list(folder.glob("events.out.tfevents.*")))
