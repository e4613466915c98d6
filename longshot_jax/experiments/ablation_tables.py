"""Figures of an ablation over seeds, with intervals, from the results of its variants; and their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from longshot_jax.evaluation.intervals import mean_interval
from longshot_jax.experiments.variants import OPERATIONS, Variant, finished_results, reading_results
from longshot_jax.tables import markdown_table
from longshot_jax.thoughts.fusion import CHOOSING

QUESTIONS = 500  # test questions per number of operations


@dataclass(frozen=True)
class Part:
    """A variant, and the name of the one from which it differs in one thing; None for a start or a first base."""

    variant: Variant
    base: str | None = None


def collect(folder: Path, parts: Mapping[str, Part], seeds: int, settings: Mapping[str, int]) -> dict[str, Any]:
    """The figures of all finished variants, with the `settings` that they have in common.

    Returns:
      `{"variants": {name: {"title", "base", "seeds": [...], "accuracy": A, "mean_accuracy": A, "by_steps": {"1": A,
      ...}, "thoughts": A, "stop_correlation": A, "samples": {name: A}, "fusion": {kind: A}, "difference": A, "compute":
      {...}}}, "config": {...}}`. A is `{"mean", "interval", "values"}` over seeds, with Student's t interval at 95 %.
      `accuracy` is greedy on chains of four operations, `mean_accuracy` over all lengths, `difference` that to the base
      by seed, `stop_correlation` Spearman's of a question's thoughts and operations, `compute` the median over seeds.
    """
    done = {
        name: {
            seed: results
            for seed in range(seeds)
            if (results := finished_results(folder / f"seed{seed}" / name / "results.json", seed)) is not None
        }
        for name in parts
    }
    variants = {}
    for name, part in parts.items():
        if done[name]:
            with reading_results(folder / "seed*" / name / "results.json"):
                variants[name] = _entry(part, done[name], done.get(part.base or "", {}))
    return {"variants": variants, "config": {"seeds": seeds, "questions": QUESTIONS, **settings}}


def _entry(part: Part, runs: Mapping[int, Any], base: Mapping[int, Any]) -> dict[str, Any]:
    """The figures of one variant from its own and its base's results by seed."""
    first = next(iter(runs.values()))
    means = [float(np.mean([group["accuracy"] for group in run["by_steps"].values()])) for run in runs.values()]

    def over_seeds(*keys: str) -> dict[str, Any]:
        return _over_seeds([reduce(lambda value, key: value[key], keys, run) for run in runs.values()])

    entry: dict[str, Any] = {
        "title": part.variant.title,
        "base": part.base,
        "seeds": list(runs),
        "accuracy": over_seeds("accuracy"),
        "mean_accuracy": _over_seeds(means),
        "by_steps": {steps: over_seeds("by_steps", steps, "accuracy") for steps in map(str, OPERATIONS)},
        "thoughts": over_seeds("mean_thoughts"),
        "samples": {name: over_seeds(name) for name in ("sampled_accuracy", "any_accuracy", "distinct_answers")},
        "fusion": {kind: over_seeds("fusion", kind) for kind in first.get("fusion", {})},
        "compute": {
            name: float(np.median([run["compute"][name] for run in runs.values()])) for name in first["compute"]
        },
    }
    correlations = [_stop_correlation(run) for run in runs.values()]
    if None not in correlations:
        entry["stop_correlation"] = _over_seeds([float(value or 0.0) for value in correlations])
    differences = [run["accuracy"] - base[seed]["accuracy"] for seed, run in runs.items() if seed in base]
    if differences:
        entry["difference"] = _over_seeds(differences)
    return entry


def ablation_table(content: Mapping[str, Any]) -> str:
    """Markdown table of the variants: accuracies in per cent, differences in points.

    The rank correlation is between a question's thoughts and its number of operations, over all four lengths.
    """
    columns = "variant;base;greedy, 4 op.;difference;all lengths;thoughts;rank correlation;seeds;s"
    rows: list[list[str]] = [list(columns.split(";"))]
    for entry in content["variants"].values():
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
    """Markdown table of five samples and their fusions for starts and bases, in per cent on chains of four."""
    kinds = (*CHOOSING, "attend", "attend_identical", "mean", "mean_one_path")
    heads = ["variant", "greedy", "one sample", "different answers", "any right", *kinds]
    rows = [[head.replace("_", " ") for head in heads]]
    bases = {entry["base"] for entry in content["variants"].values()}
    for name, entry in content["variants"].items():
        if entry["base"] is None or name in bases:
            samples, fusion = entry["samples"], entry["fusion"]
            accuracies = [entry["accuracy"], samples["sampled_accuracy"], samples["any_accuracy"]]
            accuracies += [fusion[kind] for kind in kinds if kind in fusion]
            cells = [f"{100 * accuracy['mean']:.1f}" for accuracy in accuracies]
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
    # The interval of an accuracy is clipped to [0, 1]; that of a difference is not.
    ends = figure["interval"] if signed else np.clip(figure["interval"], 0, 1)
    low, high = (form.format(100 * end) for end in ends)
    return f"{text} [{low}, {high}]"


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds, its 95 % interval (None for one seed), and the values."""
    return {**mean_interval(values)._asdict(), "values": list(values)}


def _stop_correlation(results: Mapping[str, Any]) -> float | None:
    """Spearman's correlation of numbers of thoughts and operations over all questions; None for constant thoughts."""
    groups = results["by_steps"].items()
    thoughts = np.concatenate([group["thoughts"] for _, group in groups])
    steps = np.repeat([int(steps) for steps, _ in groups], [len(group["thoughts"]) for _, group in groups])
    if np.ptp(thoughts) == 0:
        return None
    found: Any = scipy.stats.spearmanr(thoughts, steps)
    return float(found.statistic)
