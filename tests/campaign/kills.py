"""Runs that are killed with SIGKILL at random moments, started again, and compared with an undisturbed run.

    PYTHONPATH=tests python -m campaign.kills --kills 100 --seed 0 [--only KIND]

Each run is killed up to five times, at a moment of its start, of its training, or while a checkpoint is being written.
It must then end with the arrays, the metadata and the files of the undisturbed run, bit for bit. A start is a process
of its own, forked after the imports and before JAX has a device or a thread. Compiled programs are kept on disk, as
`scripts/train.py` keeps them. The last line is a summary; the exit code is 1 after any failure.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import safetensors  # noqa: F401  (imported before the fork, once for all starts)
import tensorboardX  # noqa: F401
import transformers  # noqa: F401
from tiny_run import tiny

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.config import RunConfig
from longshot_jax.distributed import join_processes
from longshot_jax.train import train

_CURRICULUM: dict[str, Any] = {
    "phases": ("curriculum",), "curriculum__stages": (0, 1), "evaluation__every": 3, "checkpoint__every": 1,
}  # fmt: skip
_PPO: dict[str, Any] = {
    "curriculum__stages": (1,), "curriculum__max_steps_per_stage": 2, "ppo__iterations": 4, "checkpoint__every": 1,
}  # fmt: skip
# The settings, the number of processes and the share of the kills of each kind of run.
KINDS: dict[str, tuple[dict[str, Any], int, float]] = {
    "curriculum": (_CURRICULUM, 1, 0.35),
    "ppo": (_PPO, 1, 0.3),
    "adapters": (_CURRICULUM | {"curriculum__trainable": "lora", "model__lora__rank": 2}, 1, 0.25),
    "two processes": (_CURRICULUM | {"mesh__fsdp": 2}, 2, 0.1),
}
_KILLS_A_RUN = 5
_LONGEST = 600.0  # seconds of a start; a longer one hangs


@dataclass
class Tally:
    """What happened to the runs of one kind."""

    kills: int = 0
    half_written: int = 0  # kills that left an incomplete checkpoint
    resumed: int = 0  # starts that went on from a checkpoint
    runs: int = 0
    equal: int = 0
    failures: list[str] = field(default_factory=list)

    def line(self, name: str) -> str:
        """The summary of a kind."""
        return (
            f"{name:14} {self.kills:4} kills, {self.half_written:3} with a half-written checkpoint; {self.resumed:4} "
            f"starts resumed; {self.equal:3} of {self.runs:3} runs equal; {len(self.failures)} failures"
        )


def in_child(work: Callable[[], None], log: Path) -> int:
    """Runs `work` in a forked process whose output goes to `log`; returns its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of every fork; it has no thread yet
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def start(run: RunConfig, processes: int, workdir: Path, cache: Path) -> list[int]:
    """Starts the processes of a run; returns their ids."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"

    def work(rank: int) -> None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_disable_most_optimizations", True)  # the first start compiles in half the time
        if processes > 1:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            launch = {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": str(processes), "PROCESS_ID": str(rank)}
            os.environ.update({f"JAX_{name}": value for name, value in launch.items()})
            join_processes()
        train(run, workdir)

    return [in_child(lambda rank=rank: work(rank), workdir.with_suffix(f".log{rank}")) for rank in range(processes)]


def wait(children: list[int], until: Callable[[], bool], pause: float = 0.0) -> list[int] | None:
    """Exit codes of the children, or None as soon as `until` is true: they are then killed, `pause` seconds apart."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) or until():
            kill([child for child in children if child not in codes], pause)
            return None if not any(codes.values()) else list(codes.values())
        time.sleep(0.001)
    return list(codes.values())


def kill(children: list[int], pause: float) -> None:
    for place, child in enumerate(children):
        time.sleep(pause if place else 0.0)
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)


def steps_of(workdir: Path) -> set[str]:
    folder = workdir / "checkpoints"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def half_written(workdir: Path) -> set[str]:
    """Names of incomplete checkpoints: orbax renames a folder once it is whole."""
    return {name for name in steps_of(workdir) if not name.isdecimal()}


def moment(rng: np.random.Generator, workdir: Path, seconds: float) -> Callable[[], bool]:
    """When to kill a start that would take `seconds`: at its beginning, anywhere, or while a checkpoint is written."""
    began = time.monotonic()
    kind = rng.choice(["start", "anywhere", "save"])
    if kind == "save":
        before, skipped, delay = half_written(workdir), int(rng.integers(3)), float(rng.uniform(0, 0.05))
        seen: set[str] = set()
        due = [float("inf")]

        def saving() -> bool:
            seen.update(half_written(workdir) - before)
            if len(seen) > skipped and due[0] == float("inf"):
                due[0] = time.monotonic() + delay
            return time.monotonic() >= due[0]

        return saving
    after = float(rng.uniform(0, seconds / 3 if kind == "start" else seconds))
    return lambda: time.monotonic() > began + after


def ending(workdir: Path) -> dict[str, Any]:
    """What a finished run left: names of files, and the newest checkpoint, read in a process of its own."""
    report = workdir.with_suffix(".report")

    def work() -> None:
        with Checkpoints.reader(workdir) as checkpoints:
            metadata, entries = checkpoints._read_metadata(checkpoints.steps[-1])
            template = {name: _abstract(entry) for name, entry in entries.items()}
            arrays, _ = checkpoints.restore(template)
            found = {
                "steps": checkpoints.steps,
                "best": checkpoints.best_step,
                "metadata": {key: metadata[key] for key in ("phase", "step", "best", "config", "backbone")},
                "arrays": {name: _digest(array) for name, array in arrays.items()},
            }
        names = {path.name for path in workdir.iterdir()} | steps_of(workdir)
        report.write_text(json.dumps(found | {"names": sorted(names)}))

    codes = wait([in_child(work, workdir.with_suffix(".log0"))], _late())
    return json.loads(report.read_text()) if codes == [0] else {"unreadable": str(workdir)}


def _abstract(entry: dict[str, Any]) -> jax.ShapeDtypeStruct:
    dtype = jax.random.key(0, impl=entry["generator"]).dtype if "generator" in entry else entry["dtype"]
    return jax.ShapeDtypeStruct(tuple(entry["shape"]), dtype)


def _digest(array: Any) -> str:
    words = jax.random.key_data(array) if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key) else array
    return hashlib.sha256(np.asarray(words).tobytes()).hexdigest()


def _late() -> Callable[[], bool]:
    began = time.monotonic()
    return lambda: time.monotonic() > began + _LONGEST


def _tail(workdir: Path) -> str:
    """The last lines of the logs of a run's processes."""
    logs = sorted(workdir.parent.glob(f"{workdir.name}.log*"))
    return "".join(f"\n--- {log.name}\n{log.read_text()[-1500:]}" for log in logs)


def campaign(name: str, kills: int, rng: np.random.Generator, folder: Path, cache: Path) -> Tally:
    """Kills runs of one kind until there were `kills` of them, and lets each run come to its end."""
    overrides, processes, _ = KINDS[name]
    run, tally = tiny(**overrides), Tally()
    expected, seconds = None, 0.0
    for attempt in ("undisturbed", "repeated"):  # the second finds all programs compiled, and says how long a start is
        workdir = folder / attempt
        began = time.monotonic()
        codes = wait(start(run, processes, workdir, cache), _late())
        seconds, found = time.monotonic() - began, ending(workdir)
        if codes != [0] * processes or (expected or found) != found:
            tally.failures.append(f"the {attempt} run of {name} ended with {codes}:{_tail(workdir)}")
            return tally
        expected = found
    print(f"{name}: an undisturbed start takes {seconds:.1f} s", flush=True)
    while tally.kills < kills and not tally.failures:
        tally.runs += 1
        workdir = folder / f"run{tally.runs}"
        codes = None
        for number in range(_KILLS_A_RUN + 1):
            last = number == _KILLS_A_RUN or tally.kills >= kills
            tally.resumed += any(step.isdecimal() for step in steps_of(workdir))
            children = start(run, processes, workdir, cache)
            rng.shuffle(children)  # the process that is killed first; what ends a job kills the others soon after
            pause = float(rng.choice([0.0, 0.1, 2.0]))
            codes = wait(children, _late() if last else moment(rng, workdir, seconds), pause)
            if codes is not None or last:
                break
            tally.kills += 1
            tally.half_written += bool(half_written(workdir))
        found = ending(workdir) if codes == [0] * processes else {}
        if found == expected:
            tally.equal += 1
            shutil.rmtree(workdir)
        else:
            unlike = [key for key in expected or {} if found.get(key) != (expected or {})[key]]
            tally.failures.append(f"run {tally.runs} of {name} ended with {codes}, unlike in {unlike}:{_tail(workdir)}")
        print(tally.line(name), flush=True)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--only", choices=list(KINDS), help="one kind of run")
    options = parser.parse_args()
    names = [options.only] if options.only else list(KINDS)
    began, tallies = time.monotonic(), {}
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder / "cache")
    for name in names:
        share = options.kills if options.only else round(options.kills * KINDS[name][2])
        rng = np.random.default_rng([options.seed, list(KINDS).index(name)])
        own = folder / name.replace(" ", "-")
        own.mkdir()
        tallies[name] = campaign(name, share, rng, own, cache)
    whole = Tally()
    for name, tally in tallies.items():
        print(tally.line(name))
        for key, value in vars(tally).items():
            setattr(whole, key, getattr(whole, key) + value)
    for failure in whole.failures:
        print(f"FAILURE {failure}")
    print(f"{whole.line('all')}; seed {options.seed}, {time.monotonic() - began:.0f} s")
    if not whole.failures:
        shutil.rmtree(folder)
    return int(bool(whole.failures))


if __name__ == "__main__":
    sys.exit(main())
