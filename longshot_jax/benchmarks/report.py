"""All measurements of a run's shape as a dictionary, a text table, and a figure of cost against size."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from longshot_jax.benchmarks import measurements
from longshot_jax.benchmarks.machine import Bench, Figures, machine, peaks
from longshot_jax.tables import markdown_table

# The measurement of each section, from the bench and the peaks of the machine.
_MEASUREMENTS: Mapping[str, Callable[[Bench, Figures], Figures]] = {
    "curriculum_step": lambda bench, peak: measurements.measure_curriculum(bench, peak["matrix_flops_per_second"]),
    "generation": lambda bench, peak: measurements.measure_generation(bench, peak["matrix_flops_per_second"]),
    "rollout": lambda bench, peak: measurements.measure_rollout(bench, peak["matrix_flops_per_second"]),
    "update": lambda bench, peak: measurements.measure_update(
        bench, peak["matrix_flops_per_second"], peak["wide_matrix_flops_per_second"]
    ),
    "bandwidth": lambda bench, peak: measurements.measure_bandwidth(bench, peak["copy_bytes_per_second"]),
    "conversion": lambda bench, _: measurements.measure_conversion(bench),
    "curves": lambda bench, _: measurements.measure_curves(bench),
    "compile": lambda bench, _: measurements.measure_compilation(bench),
}
SECTIONS = tuple(_MEASUREMENTS)
# What a run with `thoughts.join` does not do: each of its questions has as many trajectories as roles.
SINGLE = ("curriculum_step", "generation", "bandwidth", "compile")


def measure(bench: Bench, only: Collection[str] = SECTIONS, note: Callable[[str], None] = print) -> Figures:
    """Runs the sections in `only`; `note` receives progress messages."""
    start = time.perf_counter()
    note("peaks of this machine")
    results: Figures = {"machine": machine(bench), "peaks": peaks(bench)}
    mesh = bench.run.mesh
    devices = mesh.data * mesh.fsdp * mesh.tensor  # on which a program runs; a peak is that of one
    peak = results["peaks"] | {
        name: results["peaks"][name] * devices for name in ("matrix_flops_per_second", "wide_matrix_flops_per_second")
    }
    for name in SECTIONS:
        if name in only:
            note(name)
            results[name] = _MEASUREMENTS[name](bench, peak)
    results["machine"]["benchmark_seconds"] = time.perf_counter() - start
    if memory := jax.devices()[0].memory_stats():
        results["machine"]["most_memory_bytes"] = memory["peak_bytes_in_use"]
    curves = results.pop("curves", {})  # holds two sections
    return results | curves


def table(results: Figures) -> str:
    """One line per figure, in Markdown; beside every ratio stands the processor that it was measured on."""
    device = results.get("machine", {}).get("device", "")
    rows = [["section", "figure", "value", "ratio on"]]
    for section, figures in results.items():
        if section != "curves":
            for name, value in figures.items():
                is_ratio = isinstance(value, float) and _unit(name) is None
                rows.append([f"`{section}`", f"`{name}`", _shown(name, value), device if is_ratio else ""])
    return markdown_table(rows)


_UNITS = (
    ("flops_per_second", "GFLOP/s", 1e9),
    ("bytes_per_second", "GB/s", 1e9),
    ("bytes", "MB", 1e6),
    ("seconds_per_question", "ms", 1e-3),
    ("seconds", "s", 1.0),
    ("per_second", "/s", 1.0),
)


def _unit(name: str) -> tuple[str, float] | None:
    """Unit and scale of a figure; None for a ratio, or a plain number."""
    return next(((unit, scale) for ending, unit, scale in _UNITS if name.endswith(ending)), None)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "none: needs PyTorch on a CPU"
    if not isinstance(value, float | int):
        return str(value)
    if found := _unit(name):
        unit, scale = found
        if unit == "s" and value < 1:
            return f"{value * 1e3:.1f} ms"
        return f"{value:.3f} s" if unit == "s" else f"{value / scale:,.1f} {unit}"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


_WIDTH, _HEIGHT, _MARGIN = 190, 170, 42


def figure(results: Figures) -> str:
    """Cost against size as SVG, one panel per curve; both axes start at zero, so linear growth is a line through it."""
    panels = []
    for place, (name, curve) in enumerate(results["curves"].items()):
        exponent = results["exponents"][name]
        panels.append(
            f'<g transform="translate({place * (_WIDTH + _MARGIN) + _MARGIN},30)">{_panel(name, curve, exponent)}</g>'
        )
    width = len(panels) * (_WIDTH + _MARGIN) + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT + 80}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        + "".join(panels)
        + "</svg>\n"
    )


def _panel(name: str, curve: Figures, exponent: float) -> str:
    sizes, seconds = curve["sizes"], curve["seconds"]
    right, top = max(sizes), max(seconds)
    points = [(x / right * _WIDTH, _HEIGHT - y / top * _HEIGHT) for x, y in zip(sizes, seconds, strict=True)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#1f5fa8"/>' for x, y in points)
    ticks = "".join(
        f'<text x="{x:.1f}" y="{_HEIGHT + 14}" text-anchor="middle">{size}</text>'
        for (x, _), size in zip(points, sizes, strict=True)
    )
    return (
        f'<path d="M0,0V{_HEIGHT}H{_WIDTH}" fill="none" stroke="black"/>'
        f'<polyline points="{line}" fill="none" stroke="#1f5fa8"/>{dots}{ticks}'
        f'<text x="0" y="-8">{top * 1e3:.0f} ms, size^{exponent:.2f}</text>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 34}" text-anchor="middle">{name}</text>'
    )
