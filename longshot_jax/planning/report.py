"""A plan as a text table."""

from collections.abc import Callable
from typing import Any

from longshot_jax.planning.placements import Placement, better
from longshot_jax.planning.plan import Plan, advice, as_json
from longshot_jax.planning.traffic import PARTS
from longshot_jax.tables import by_name, text_table
from longshot_jax.training.accelerators import ACCELERATORS


def report(plan: Plan) -> str:
    """Memory per device by kind, FLOPs and roofline times of every function, the largest batch, the verdict."""
    written = as_json(plan)
    mesh = " x ".join(f"{axis} {size}" for axis, size in written["mesh"].items())
    lines = [
        f"{written['parameters'] / 1e9:.2f} billion parameters on {plan.devices} x {plan.accelerator}, mesh {mesh}, "
        f"compiled by XLA for {'GPUs' if plan.compiler == 'cuda' else 'CPUs'}",
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
    with_traffic = {name: figures for name, figures in columns.items() if figures["traffic"]}
    if with_traffic:
        lines += [*_traffic(with_traffic, plan), ""]
    for phase in written["phases"].values():
        if phase["largest_batch"] is not None:
            largest = phase["largest_batch"] or "none"
            key, found = f"config.{phase['batch_key']}", f"{largest} (set: {phase['batch']})"
            if phase["micro_batch"]:
                micro = f"{phase['largest_micro_batch'] or 'none'} (set: {phase['micro_batch']})"
                lines.append(f"largest config.{phase['micro_batch_key']} that fits: {micro}, with {key} {found}")
            else:
                lines.append(f"largest {key} that fits: {found}")
    placements = [placement for phase in plan.phases for placement in phase.placements]
    if placements:
        lines += ["", text_table([["placement", "", "GB a device", "estimate, s"], *map(_placement, placements)])]
    for now, best in better(placements, plan.budget):
        if now.seconds is not None and best.seconds is not None and now.peak <= plan.budget:
            lines.append(
                f"config.mesh.{best.setting} {best.value} fits and is estimated to be faster: {best.seconds:.3g} s instead "
                f"of {now.seconds:.3g}, one call of each program."
            )
    if "ppo" not in plan.run.phases and plan.run.mesh.fsdp * plan.run.mesh.tensor > 1:
        lines.append(
            "Evaluations are not planned: each device holds a copy of the weights to decode from, whole with "
            f"config.mesh.decoding_weights replicated (set: {plan.run.mesh.decoding_weights})."
        )
    lines.append(advice(plan))
    return "\n".join(lines)


def _traffic(columns: dict[str, Any], plan: Plan) -> list[str]:
    """What programs move on one device in one call, by the GPU's compiler; `columns` are their figures in plan.json."""
    device, rows = ACCELERATORS[plan.accelerator], {}

    def row(name: str, show: Callable[[Any, Any], str]) -> None:
        rows[name] = {column: show(figures, figures["traffic"]) for column, figures in columns.items()}

    for key, name in (
        ("bytes", "moved in memory"),
        ("bytes_in_loops", "moved in loops"),
        ("floor_bytes", "floor: weights, caches, inputs"),
        ("copied_bytes", "copied"),
        ("copied_weights_bytes", "copied weights"),
        ("gathered_bytes", "gathered"),
        ("gathered_in_loops_bytes", "gathered in loops"),
    ):
        row(f"{name}, GB", lambda _, traffic, key=key: f"{traffic[key] / 1e9:.4g}")
    row("a decoded token, GB", lambda _, t: f"{t['token_bytes'] / 1e9:.4g}" if t["token_floor_bytes"] else "")
    row(
        "over its floor",
        lambda _, t: f"{t['token_bytes'] / t['token_floor_bytes']:.3g}" if t["token_floor_bytes"] else "",
    )
    for part in ("arithmetic", "memory", "link"):
        row(f"{part} alone, s", lambda _, traffic, part=part: f"{traffic['seconds_alone'][part]:.3g}")
    for part in PARTS:
        row(f"time of {part.replace('_', ' ')}, s", lambda _, traffic, part=part: f"{traffic['seconds'][part]:.3g}")
    row("estimate of one call, s", lambda _, traffic: f"{sum(traffic['seconds'].values()):.3g}")

    def share(figures: Any, traffic: Any) -> str:
        reached = figures["flops"] / plan.devices / sum(traffic["seconds"].values())
        return f"{reached / device.flops:.1%}"

    row("share of the bf16 peak", share)
    title = f"one call on one {plan.accelerator}, compiled for it and not timed (link {device.link / 1e9:.0f} GB/s)"
    lines = [text_table([[title, *columns], *([name, *cells.values()] for name, cells in rows.items())])]
    for name, figures in columns.items():
        for kind in ("collectives", "copies"):
            if found := figures["traffic"][kind][:8]:
                head = [f"{name}: {kind}", "iterations of loops", "times", "GB"]
                lines += ["", text_table([head, *map(_place, found)])]
    return lines


def _placement(placement: Placement) -> list[str]:
    return [
        f"config.mesh.{placement.setting} {placement.value}" + (" (set)" if placement.is_set else ""),
        f"{placement.phase}: {placement.program}",
        f"{placement.peak / 1e9:.2f}",
        "" if placement.seconds is None else f"{placement.seconds:.3g}",
    ]


def _place(row: dict[str, Any]) -> list[str]:
    loops = " x ".join(map(str, row["loops"])) + (", decoding" if row["decoding"] else "")
    return [row["kind"], loops or "none", str(row["times"]), f"{row['bytes'] / 1e9:.4g}"]
