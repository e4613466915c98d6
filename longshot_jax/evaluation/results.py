"""`results.json`: written atomically, read, shown as a table, compared with the results of another model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from longshot_jax.errors import UserError, shown
from longshot_jax.evaluation.intervals import paired_interval
from longshot_jax.files import read_json, write_json

_FUSIONS = {
    "mean": "mean thought",
    "mean_one_path": "one path, noise of the mean",
    "attend_identical": "attend, copies",
}


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes `results` as JSON, atomically; a UserError if the file cannot be written."""
    write_json(path, results, advice="choose another --output")


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads the results of an evaluation; a UserError for any other file."""
    advice = "give a results.json of eval.py"
    results = read_json(path, advice=advice)
    correct = results.get("correct")
    if not isinstance(correct, list) or not correct or any(each not in (0, 1) for each in correct):
        raise UserError(f"{path} does not list which answers are right: {advice}.")
    if not isinstance(config := results.get("config", {}), dict):
        raise UserError(f"{path}: config is {shown(config)}, but it must be an object: {advice}.")
    return results


def results_table(results: Mapping[str, Any]) -> str:
    """The results as a table in text; accuracies in per cent."""
    low, high = results["confidence_interval"]
    rows = [("greedy accuracy", f"{_percent(results['accuracy'])}   [{_percent(low)}, {_percent(high)}]")]
    config = results.get("config", {})
    if note := config.get("contamination"):
        rows.append(("NOT HELD OUT", note))
    if config.get("grader"):
        rows.append(("right by", config["grader"]))
    if (asked := config.get("thoughts_asked")) is not None:
        rows.append(("thoughts asked for", f"{asked}"))
    trajectories = config.get("num_trajectories", "N")
    if "sampled_accuracy" in results:
        rows.append(("sampled accuracy", _percent(results["sampled_accuracy"])))
        rows.append((f"any of {trajectories} right", _percent(results["any_accuracy"])))
        rows.append((f"different answers of {trajectories}", f"{results['distinct_answers']:5.2f}"))
    rows += [
        (f"{_FUSIONS.get(kind, kind)} of {trajectories}", _percent(accuracy))
        for kind, accuracy in results.get("fusion", {}).items()
        if kind != "vote_adaptive"
    ]
    if "trajectories" in results:  # of joined answers
        rows.append(("mean trajectories", f"{results['mean_trajectories']:5.2f}"))
    elif "mean_trajectories" in results:
        label = f"vote of own number, {results['mean_trajectories']:.2f} on average"
        rows.append((label, _percent(results["fusion"]["vote_adaptive"])))
    rows.append(("mean thoughts", f"{results['mean_thoughts']:5.2f}"))
    if seconds := results.get("seconds_per_question"):
        label = f"greedy, {config['batch_size']} at once"
        rows.append((label, f"{1000 * seconds:#5.3g} ms a question"))
    if (stage := config.get("stage")) is not None:
        written = "remaining steps written" if config["steps_written"] else "answer at once"
        rows.append(("trained to stage", f"{stage:2}, evaluated with {written}"))
        longest = max(map(int, results["by_steps"]), default=0)
        if config["steps_written"] and results["mean_thoughts"] and 0 < longest <= stage:
            # Without its thoughts a model may write all steps as text, and the control tells nothing of the thoughts.
            rows.append(
                ("", "no step remains, yet a control may write some: --thoughts steps has the answer follow at once")
            )
    rows += [
        (f"{steps} steps", f"{_percent(group['accuracy'])}   {group['mean_thoughts']:.2f} thoughts")
        for steps, group in results["by_steps"].items()
    ]
    if "question_hidden_accuracy" in results:
        rows.append(("from the thoughts alone", _percent(results["question_hidden_accuracy"])))
    for kind, accuracy in results["controls"].items():
        rows.append(("reads: none" if kind == "no_reads" else f"thoughts: {kind}", _percent(accuracy)))
    if not results["mean_thoughts"] and asked != 0:
        rows.append(
            ("controls", "none, since no question used a thought (docs/troubleshooting.md: Thoughts do no work)")
        )
    width = max(len(label) for label, _ in rows)
    different = results.get("different_questions", results["count"])
    count = f"{results['count']} questions" + (
        f", {different} of them different" if different < results["count"] else ""
    )
    return "\n".join([count, *(f"  {label:{width}}  {text}" for label, text in rows)])


def check_comparable(
    count: int, fingerprint: str | None, grader: str, other: Mapping[str, Any], other_path: str | Path
) -> None:
    """Raises a UserError if the number or the data file of another model's questions differs, or what graded them."""
    config = other.get("config", {})
    theirs = config.get("data_fingerprint")
    if count != len(other["correct"]) or (fingerprint and theirs and fingerprint != theirs):
        raise UserError(
            f"{other_path} was evaluated on other questions ({len(other['correct'])}, here {count}): a paired interval "
            "needs the same data file."
        )
    if grader != config.get("grader", ""):
        mine, others = (each or "the rule of the data" for each in (grader, config.get("grader")))
        raise UserError(
            f"{other_path} was graded by {others}, these results by {mine}: a paired interval needs the same --grader."
        )


def comparison(results: Mapping[str, Any], other: Mapping[str, Any], other_path: str | Path) -> str:
    """One line: the difference of two models' accuracies with paired 95 % interval; a UserError if questions differ."""
    config = results.get("config", {})
    check_comparable(
        len(results["correct"]), config.get("data_fingerprint"), config.get("grader", ""), other, other_path
    )
    found = paired_interval(np.asarray(results["correct"], bool), np.asarray(other["correct"], bool))
    return (
        f"difference to {other_path}: {100 * found.difference:+.1f} points, 95 % interval "
        f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    )


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:5.1f} %"
