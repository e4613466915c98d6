"""A profiler trace of one rollout and one update, and their time by the named scopes of the code.

A trace names kernels as XLA does. The compiled program says for each which `jax.named_scope`s its source stood in. A
kernel that XLA fused from several sources counts for the one that makes its result.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from longshot_jax.benchmarks.machine import Bench, Figures
from longshot_jax.benchmarks.measurements import one_epoch
from longshot_jax.benchmarks.workload import Policy
from longshot_jax.errors import UserError
from longshot_jax.files import unwritable

SCOPES = (
    "encode", "think", "thought", "navigator", "answer", "rescore", "token_scores", "attention", "feed_forward", "optimizer",
)  # fmt: skip
_OTHER = "other"
_NAMED = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', re.MULTILINE)
# Operations that a CPU traces beside those inside them, on any of its threads.
_AROUND = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*? (?:while|conditional|call)\(", re.MULTILINE)


def check_folder(folder: Path) -> None:
    """Creates the folder of the traces; a UserError if it cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--profile {folder} is a file: give the name of a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise unwritable(folder, error, "choose another --profile") from None


def profile(bench: Bench, folder: Path) -> Figures:
    """Traces one rollout and one epoch of an update into folders of their names; device seconds by scope."""
    run = one_epoch(bench.run)
    policy = Policy(run, bench.backbone)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    figures = {}
    for name, measured in {"rollout": policy.rollout(run), "update": policy.update(run)}.items():
        jax.block_until_ready(measured.call())
        with jax.profiler.trace(folder / name, profiler_options=options):
            jax.block_until_ready(measured.call())
        newest = max((folder / name).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        seconds = seconds_by_scope(_kernels(newest), measured.text())
        figures[name] = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    return figures


def rows(figures: Figures) -> list[list[Any]]:
    """Table rows, head included, of what `profile` returns."""
    table: list[list[Any]] = [["program and scope", "ms", "%"]]
    for program, seconds in figures.items():
        total = sum(seconds.values()) or 1.0
        table.append([f"**{program}**", 1e3 * total, 100.0])
        table += [[f"{program}: {scope}", 1e3 * each, 100 * each / total] for scope, each in seconds.items()]
    return table


def seconds_by_scope(kernels: Iterable[tuple[str, str, float]], text: str) -> dict[str, float]:
    """Seconds by scope of a program whose compiled text is given; see `_kernels`."""
    sources, around = dict(_NAMED.findall(text)), set(_AROUND.findall(text))
    seconds: dict[str, float] = defaultdict(float)
    for operation, kernel, duration in kernels:
        # A kernel that was launched in a graph knows its own name alone, in which dots are underscores.
        own = re.sub(r"_(\d+)$", r".\1", kernel)
        if operation not in around:
            seconds[scope_of(sources.get(operation) or sources.get(own) or "")] += duration
    return dict(seconds)


def scope_of(source: str) -> str:
    """The named scopes of a source such as `jit(f)/transpose(jvp(rescore))/attention/dot_general`, outermost first."""
    found = [part for part in re.split(r"[/()]+", source) if part in SCOPES]
    path = [part for place, part in enumerate(found) if place == 0 or part != found[place - 1]]
    return " / ".join(path or [_OTHER]) + (", backward" if "transpose(jvp" in source else "")


def _kernels(file: Path) -> Iterator[tuple[str, str, float]]:
    """HLO operation, own name and seconds of everything that ran: a GPU's kernels, or a CPU's operations."""
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        on_gpu = plane.name.startswith("/device:GPU")
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if line.name.startswith("Stream") if on_gpu else operation:
                    yield str(operation or ""), event.name, 1e-9 * event.duration_ns
