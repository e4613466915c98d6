"""A plan as a text table."""

from longshot_jax.planning.accelerators import ACCELERATORS
from longshot_jax.planning.plan import Plan, advice, as_json
from longshot_jax.tables import by_name, text_table

_KINDS = ("weights", "optimizer", "reference", "memory_bank", "gradients", "caches", "batch", "activations")


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
    rows: dict[str, dict[str, str]] = {}
    for kind in _KINDS:
        sizes = {column: figures["memory"][kind] for column, figures in columns.items()}
        if any(sizes.values()):
            name = f"{kind.replace('_', ' ')}, GB a device"
            rows[name] = {column: f"{size / 1e9:.2f}" for column, size in sizes.items()}
    rows["peak, GB a device"] = {column: f"{figures['peak'] / 1e9:.2f}" for column, figures in columns.items()}
    rows["TFLOP, all devices"] = {column: f"{figures['flops'] / 1e12:.4g}" for column, figures in columns.items()}
    for accelerator in ACCELERATORS:
        rows[f"roofline on {accelerator}, s"] = {
            column: f"{figures['seconds'][accelerator]:.3g}" for column, figures in columns.items()
        }
    lines.append(text_table(by_name(rows)))
    lines.append("")
    for phase in written["phases"].values():
        if phase["largest_batch"] is not None:
            largest = phase["largest_batch"] or "none"
            lines.append(f"largest config.{phase['batch_key']} that fits: {largest} (set: {phase['batch']})")
    lines.append(advice(plan))
    return "\n".join(lines)
