"""What a run tells TensorBoard, written without TensorFlow, by the first process alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from longshot_jax.errors import UserError
from longshot_jax.evaluation.event_file import EventFile, event_library

# TensorBoard's own bins of histograms: 1e-12 to 1e20 in steps of 10 %, of either sign.
_POSITIVE = 1e-12 * 1.1 ** np.arange(774)
_BINS = np.concatenate([-_POSITIVE[::-1], [0.0], _POSITIVE])


class RunWriter:
    """Event files of one run; a context manager. On every process but the first each call does nothing.

    Args:
        folder: Where the event files go; every start of the same run adds one.
        resumed_from: The step of the checkpoint that the run goes on from, None for a new run. What a killed
            run logged after that step is hidden, since the resumed run logs those steps again.

    Raises:
        UserError: The folder cannot be written, or the disk is full: here, or in any method.
    """

    def __init__(self, folder: str | Path, resumed_from: int | None = None):
        self._file: EventFile | None = None
        if jax.process_index() != 0:
            return
        self._file = EventFile(Path(folder))
        # From here on what is there already is void. A new run says so too: TensorBoard takes the first such
        # mark for a run's beginning and heeds those that follow.
        self._file.purge(0 if resumed_from is None else resumed_from + 1)

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, error_type: type | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except UserError:
            if error is None:  # otherwise the first error is the one to report
                raise

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One point for each name; a value that is not finite is drawn as such, not hidden."""
        if self._file is not None:
            make = event_library().summary.scalar
            self._file.add(step, *(make(name, float(value)) for name, value in values.items()))

    def histogram(self, step: int, name: str, array: Any) -> None:
        """The distribution of an array's finite elements; nothing where there is none."""
        if self._file is not None:
            values = np.asarray(array, np.float64).ravel()
            values = values[np.isfinite(values)]
            if values.size:
                self._file.add(step, event_library().summary.histogram(name, values, _BINS))

    def text(self, step: int, name: str, markdown: str) -> None:
        """A page of markdown, for instance a `samples_table`."""
        if self._file is not None:
            self._file.add(step, event_library().summary.text(name, markdown))

    def image(self, step: int, name: str, pixels: Any) -> None:
        """A picture, uint8 [height, width, 3]."""
        if self._file is not None:
            picture = np.asarray(pixels, np.uint8)
            self._file.add(step, event_library().summary.image(name, picture, dataformats="HWC"))

    def hyperparameters(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """The run's config, for the comparison of runs; called once, at the start.

        Args:
            config: Nested; keys are joined by dots, what is neither number, bool nor text is shown as text.
            metrics: Names of the final numbers that `results` will give, where the run gets so far.
        """
        if self._file is not None:
            self._file.add(0, *self._comparison(config, metrics)[:2])

    def results(self, metrics: Mapping[str, Any]) -> None:
        """The run's final numbers, beside its hyper-parameters; called once, at the end."""
        if self._file is not None:
            self._file.add(0, self._comparison({}, ())[2])
            self.scalars(0, metrics)

    @staticmethod
    def _comparison(config: Mapping[str, Any], metrics: Sequence[str]) -> tuple[Any, Any, Any]:
        """What TensorBoard's comparison of runs reads: the experiment, the session's start, its end."""
        return event_library().summary.hparams(_flat(config), dict.fromkeys(metrics))

    def close(self) -> None:
        """Puts everything on disk; harmless when repeated."""
        if self._file is not None:
            self._file.close()


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
