"""A plan as a table to read."""

from longshot_jax.planning.accelerators import ACCELERATORS
from longshot_jax.planning.plan import Plan, advice, as_json
from longshot_jax.training.progress import summary

_KINDS = ("weights", "optimizer", "reference", "memory_bank", "gradients", "caches", "batch", "activations")


def report(plan: Plan) -> str:
    """Memory of one device by kind, FLOPs and roofline times of every function, the largest batch, the verdict."""
    written = as_json(plan)
    mesh = " x ".join(f"{axis} {size}" for axis, size in written["mesh"].items())
    lines = [
        f"{written['parameters'] / 1e9:.2f} billion parameters on {plan.devices} x {plan.accelerator}, mesh {mesh}",
        "",
    ]
    columns = {
        f"{name}: {program}".replace("_", " ").removeprefix("curriculum: "): figures
        for name, stage in written["stages"].items()
        for program, figures in stage["programs"].items()
    }
    rows: dict[str, dict[str, str]] = {}
    for kind in _KINDS:
        sizes = {column: figures["memory"][kind] for column, figures in columns.items()}
        if any(sizes.values()):
            name = f"{kind.replace('_', ' ')}, GB a device"
            rows[name] = {column: f"{size / 1e9:.2f}" for column, size in sizes.items()}
    rows["peak, GB a device"] = {
        column: f"{figures['peak'] / 1e9:.2f}" for column, figures in columns.items()
    }
    rows["TFLOP, all devices"] = {
        column: f"{figures['flops'] / 1e12:.4g}" for column, figures in columns.items()
    }
    for accelerator in ACCELERATORS:
        rows[f"roofline on {accelerator}, s"] = {
            column: f"{figures['seconds'][accelerator]:.3g}" for column, figures in columns.items()
        }
    lines.append(summary(rows))
    lines.append("")
    for stage in written["stages"].values():
        if stage["largest_batch"] is not None:
            largest = stage["largest_batch"] or "none"
            lines.append(f"largest config.{stage['batch_key']} that fits: {largest} (set: {stage['batch']})")
    lines.append(advice(plan))
    return "\n".join(lines)
