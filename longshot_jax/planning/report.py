"""A plan as a text table."""

from collections.abc import Callable
from typing import Any

from longshot_jax.planning.accelerators import ACCELERATORS
from longshot_jax.planning.plan import Plan, advice, as_json
from longshot_jax.tables import by_name, text_table


def report(plan: Plan) -> str:
    """Memory per device by kind, FLOPs and roofline times of every function, the largest batch, the verdict."""
    written = as_json(plan)
    mesh = " x ".join(f"{axis} {size}" for axis, size in written["mesh"].items())
    lines = [
        f"{written['parameters'] / 1e9:.2f} billion parameters on {plan.devices} x {plan.accelerator}, mesh {mesh}",
        "",
    ]
    columns = {
        f"{name}: {program}".replace("_", " ").removeprefix("curriculum: "): figures
        for name, phase in written["phases"].items()
        for program, figures in phase["programs"].items()
    }

    def row(show: Callable[[Any], str]) -> dict[str, str]:
        return {column: show(figures) for column, figures in columns.items()}

    rows = {
        f"{kind.replace('_', ' ')}, GB a device": row(lambda figures, kind=kind: f"{figures['memory'][kind] / 1e9:.2f}")
        for kind in next(iter(columns.values()))["memory"]
        if any(figures["memory"][kind] for figures in columns.values())
    }
    rows["peak, GB a device"] = row(lambda figures: f"{figures['peak'] / 1e9:.2f}")
    rows["TFLOP, all devices"] = row(lambda figures: f"{figures['flops'] / 1e12:.4g}")
    for accelerator in ACCELERATORS:
        rows[f"roofline on {accelerator}, s"] = row(lambda figures, name=accelerator: f"{figures['seconds'][name]:.3g}")
    lines.append(text_table(by_name(rows)))
    lines.append("")
    for phase in written["phases"].values():
        if phase["largest_batch"] is not None:
            largest = phase["largest_batch"] or "none"
            lines.append(f"largest config.{phase['batch_key']} that fits: {largest} (set: {phase['batch']})")
    lines.append(advice(plan))
    return "\n".join(lines)
