"""`results.json`: written whole or not at all, read back, shown as a table, compared with another model's."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from longshot_jax.errors import UserError
from longshot_jax.evaluation.intervals import paired_interval

_FUSIONS = {
    "mean": "mean thought",
    "mean_one_path": "one path, noise of the mean",
    "attend_identical": "attend, copies",
}


def check_writable(path: str | Path) -> None:
    """UserError unless `path` can be written; to be called before anything is computed. Makes its folder."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"--output {path} is a folder: give the name of a file.")
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise _unwritable(path, error) from None


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes `results` as JSON; whatever stood there is replaced at once. UserError if it cannot be written."""
    path = Path(path)
    part = _part(path)
    try:
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _unwritable(path, error) from None


def read_results(path: str | Path) -> dict[str, Any]:
    """What `write_results` wrote; a UserError for anything else."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a results.json of eval.py."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): give a results.json of eval.py.") from None
    correct = results.get("correct") if isinstance(results, dict) else None
    if not isinstance(correct, list) or not correct or any(each not in (0, 1) for each in correct):
        raise UserError(f"{path} does not say which questions were right: give a results.json of eval.py.")
    return results


def results_table(results: Mapping[str, Any]) -> str:
    """The numbers of `results.json` in a few lines; accuracies in per cent."""
    low, high = results["confidence_interval"]
    rows = [("greedy accuracy", f"{_percent(results['accuracy'])}   [{_percent(low)}, {_percent(high)}]")]
    trajectories = results.get("config", {}).get("num_trajectories", "N")
    if "sampled_accuracy" in results:
        rows.append(("sampled accuracy", _percent(results["sampled_accuracy"])))
        rows.append((f"any of {trajectories} right", _percent(results["any_accuracy"])))
        rows.append((f"different answers of {trajectories}", f"{results['distinct_answers']:5.2f}"))
    rows += [
        (f"{_FUSIONS.get(kind, kind)} of {trajectories}", _percent(accuracy))
        for kind, accuracy in results.get("fusion", {}).items()
        if kind != "vote_adaptive"
    ]
    if "mean_trajectories" in results:
        label = f"vote of own number, {results['mean_trajectories']:.2f} on average"
        rows.append((label, _percent(results["fusion"]["vote_adaptive"])))
    rows.append(("mean thoughts", f"{results['mean_thoughts']:5.2f}"))
    rows += [
        (f"{steps} steps", f"{_percent(group['accuracy'])}   {group['mean_thoughts']:.2f} thoughts")
        for steps, group in results["by_steps"].items()
    ]
    rows += [(f"thoughts: {kind}", _percent(accuracy)) for kind, accuracy in results["controls"].items()]
    width = max(len(label) for label, _ in rows)
    return "\n".join(
        [f"{results['count']} questions", *(f"  {label:{width}}  {text}" for label, text in rows)]
    )


def check_same_questions(
    count: int, fingerprint: str | None, other: Mapping[str, Any], other_path: str | Path
) -> None:
    """UserError where another model was not evaluated on these questions, as far as their number and file tell."""
    theirs = other.get("config", {}).get("data_fingerprint")
    if count != len(other["correct"]) or (fingerprint and theirs and fingerprint != theirs):
        raise UserError(
            f"{other_path} was evaluated on other questions ({len(other['correct'])}, here {count}): a paired interval "
            "needs the same data file."
        )


def comparison(results: Mapping[str, Any], other: Mapping[str, Any], other_path: str | Path) -> str:
    """One line: the difference of two models' accuracies on the same questions, with its paired 95 % interval.

    Raises:
      UserError: as `check_same_questions`.
    """
    fingerprint = results.get("config", {}).get("data_fingerprint")
    check_same_questions(len(results["correct"]), fingerprint, other, other_path)
    found = paired_interval(np.asarray(results["correct"], bool), np.asarray(other["correct"], bool))
    return (
        f"difference to {other_path}: {100 * found.difference:+.1f} points, 95 % interval "
        f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    )


def _percent(share: float) -> str:
    return f"{100 * share:5.1f} %"


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written ({error.strerror or error}): choose another --output.")
