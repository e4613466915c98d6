"""The figures of an ablation: over seeds, with intervals, from the results that its arms have left, and as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from longshot_jax.evaluation.intervals import mean_interval
from longshot_jax.experiments.variants import OPERATIONS, Arm, finished_results
from longshot_jax.tables import markdown_table

QUESTIONS = 500  # of each number of operations


@dataclass(frozen=True)
class Part:
    """One arm of the ablation.

    Attributes:
      arm: how it is trained.
      base: the arm that it differs from by one thing; None for a start or a first base.
    """

    arm: Arm
    base: str | None = None


def collect(folder: Path, parts: Mapping[str, Part], seeds: int, settings: Mapping[str, int]) -> dict[str, Any]:
    """What is done so far, with the `settings` that all arms have in common.

    Returns:
      `{"arms": {name: {"title", "base", "seeds": [...], "accuracy": A, "mean_accuracy": A, "by_steps": {"1": A, ...},
      "thoughts": A, "stop_correlation": A, "samples": {name: A}, "fusion": {kind: A}, "difference": A, "compute":
      {...}}}, "config": {...}}`, where A is `{"mean", "interval", "values"}` over seeds: a 95 % interval of Student's t.
      `accuracy` is greedy, on chains of four operations, `mean_accuracy` over all lengths alike; `difference` is that to
      the base, seed by seed; `stop_correlation` is Spearman's between a question's thoughts and its number of
      operations; `compute` is the median over seeds, of the arm's own training.
    """
    done = {
        name: {
            seed: results
            for seed in range(seeds)
            if (results := finished_results(folder / f"seed{seed}" / name / "results.json", seed)) is not None
        }
        for name in parts
    }
    arms = {}
    for name, part in parts.items():
        runs = done[name]
        if not runs:
            continue
        entry: dict[str, Any] = {
            "title": part.arm.title,
            "base": part.base,
            "seeds": list(runs),
            "accuracy": _over_seeds([run["accuracy"] for run in runs.values()]),
            "mean_accuracy": _over_seeds(
                [float(np.mean([group["accuracy"] for group in run["by_steps"].values()])) for run in runs.values()]
            ),
            "by_steps": {
                steps: _over_seeds([run["by_steps"][steps]["accuracy"] for run in runs.values()])
                for steps in map(str, OPERATIONS)
            },
            "thoughts": _over_seeds([run["mean_thoughts"] for run in runs.values()]),
            "samples": {
                name: _over_seeds([run[name] for run in runs.values()])
                for name in ("sampled_accuracy", "any_accuracy", "distinct_answers")
            },
            "fusion": {
                kind: _over_seeds([run["fusion"][kind] for run in runs.values()])
                for kind in next(iter(runs.values())).get("fusion", {})
            },
            "compute": {
                name: float(np.median([run["compute"][name] for run in runs.values()]))
                for name in next(iter(runs.values()))["compute"]
            },
        }
        correlations = [_stop_correlation(run) for run in runs.values()]
        if None not in correlations:
            entry["stop_correlation"] = _over_seeds([float(value or 0.0) for value in correlations])
        base = done.get(part.base or "", {})
        pairs = [(runs[seed]["accuracy"], base[seed]["accuracy"]) for seed in runs if seed in base]
        if pairs:
            entry["difference"] = _over_seeds([ours - theirs for ours, theirs in pairs])
        arms[name] = entry
    return {"arms": arms, "config": {"seeds": seeds, "questions": QUESTIONS, **settings}}


def ablation_table(content: Mapping[str, Any]) -> str:
    """The arms as Markdown: accuracy in per cent on chains of four, difference to the base in points, mean accuracy, thoughts.

    The rank correlation is that of a question's thoughts with its number of operations, over all four lengths.
    """
    heads = "arm;base;greedy, 4 op.;difference;all lengths;thoughts;rank correlation;seeds;s"
    rows = [heads.split(";")]
    for entry in content["arms"].values():
        correlation = entry.get("stop_correlation")
        rows.append(
            [
                entry["title"],
                entry["base"] or "",
                _shown(entry["accuracy"]),
                _shown(entry.get("difference"), signed=True),
                f"{100 * entry['mean_accuracy']['mean']:.1f}",
                f"{entry['thoughts']['mean']:.2f}",
                "" if correlation is None else f"{correlation['mean']:.2f}",
                str(len(entry["seeds"])),
                f"{entry['compute']['seconds']:.0f}",
            ]
        )
    return markdown_table(rows)


def fusion_table(content: Mapping[str, Any]) -> str:
    """What five samples are worth, for starts and bases: per cent on chains of four, means over seeds."""
    kinds = ("vote", "weighted", "best", "attend", "attend_identical", "mean", "mean_one_path")
    heads = ["arm", "greedy", "one sample", "different answers", "any right", *kinds]
    rows = [[head.replace("_", " ") for head in heads]]
    bases = {entry["base"] for entry in content["arms"].values()}
    for name, entry in content["arms"].items():
        if entry["base"] is None or name in bases:
            samples, fusion = entry["samples"], entry["fusion"]
            shares = [entry["accuracy"], samples["sampled_accuracy"], samples["any_accuracy"]]
            shares += [fusion[kind] for kind in kinds if kind in fusion]
            cells = [f"{100 * share['mean']:.1f}" for share in shares]
            cells.insert(2, f"{samples['distinct_answers']['mean']:.2f}")
            rows.append([entry["title"], *cells, *[""] * (len(heads) - 1 - len(cells))])
    return markdown_table(rows)


def _shown(figure: Mapping[str, Any] | None, signed: bool = False) -> str:
    if figure is None:
        return ""
    form = "{:+.1f}" if signed else "{:.1f}"
    text = form.format(100 * figure["mean"])
    if figure["interval"] is None:
        return text
    # The interval of a fraction is cut to fractions; that of a difference may end anywhere.
    ends = figure["interval"] if signed else np.clip(figure["interval"], 0, 1)
    low, high = (form.format(100 * end) for end in ends)
    return f"{text} [{low}, {high}]"


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds, its 95 % interval (None for one seed) and the values."""
    return {**mean_interval(values)._asdict(), "values": list(values)}


def _stop_correlation(results: Mapping[str, Any]) -> float | None:
    """Spearman's rank correlation of thoughts and operations over all questions; None where all thoughts are equal."""
    groups = {int(steps): group["thoughts"] for steps, group in results["by_steps"].items()}
    thoughts = np.concatenate([np.asarray(group) for group in groups.values()])
    steps = np.concatenate([np.full(len(group), number) for number, group in groups.items()])
    if np.ptp(thoughts) == 0:
        return None
    found: Any = scipy.stats.spearmanr(thoughts, steps)
    return float(found.statistic)
