"""All measurements of a run's shape in one dictionary, as a table, and as a figure of cost against size."""

from collections.abc import Callable, Collection
from typing import Any

from longshot_jax.benchmarks.measurements import (
    Bench,
    Figures,
    machine,
    measure_bandwidth,
    measure_compilation,
    measure_conversion,
    measure_curriculum,
    measure_curves,
    measure_generation,
    measure_rollout,
    measure_update,
    peaks,
)

SECTIONS = (
    "curriculum_step",
    "generation",
    "rollout",
    "update",
    "bandwidth",
    "conversion",
    "curves",
    "compile",
)


def measure(bench: Bench, only: Collection[str] = SECTIONS, note: Callable[[str], None] = print) -> Figures:
    """Runs the measurements; what is left out is absent.

    Args:
      bench: shape and patience.
      only: names of `SECTIONS`.
      note: told what is being measured.
    """
    note("peaks of this machine")
    found = peaks(bench)
    own, wide = found["matrix_flops_per_second"], found["wide_matrix_flops_per_second"]
    makers: dict[str, Callable[[], Figures]] = {
        "curriculum_step": lambda: measure_curriculum(bench, own),
        "generation": lambda: measure_generation(bench, own),
        "rollout": lambda: measure_rollout(bench, own),
        "update": lambda: measure_update(bench, wide),
        "bandwidth": lambda: measure_bandwidth(bench, found["copy_bytes_per_second"]),
        "conversion": lambda: measure_conversion(bench),
        "curves": lambda: measure_curves(bench),
        "compile": lambda: measure_compilation(bench),
    }
    results: Figures = {"machine": machine(bench), "peaks": found}
    for name in SECTIONS:
        if name in only:
            note(name)
            results[name] = makers[name]()
    if "curves" in results:
        both = results.pop("curves")
        results |= {"exponents": both["exponents"], "curves": both["curves"]}
    return results


def table(results: Figures) -> str:
    """One line for every figure."""
    lines = []
    for section, figures in results.items():
        if section == "curves":
            continue
        lines.append(section)
        lines += [f"  {name:<32} {_shown(name, value)}" for name, value in figures.items()]
    return "\n".join(lines)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "none: needs PyTorch on a CPU"
    if not isinstance(value, float | int):
        return str(value)
    for ending, unit, scale in (
        ("flops_per_second", "GFLOP/s", 1e9),
        ("bytes_per_second", "GB/s", 1e9),
        ("bytes", "MB", 1e6),
        ("seconds_per_question", "ms", 1e-3),
    ):
        if name.endswith(ending):
            return f"{value / scale:,.1f} {unit}"
    if name.endswith("seconds"):
        return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


_WIDTH, _HEIGHT, _MARGIN = 190, 170, 42


def figure(results: Figures) -> str:
    """Cost against size, one panel a curve, as SVG; both axes start at zero, so that linear is a straight line."""
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
