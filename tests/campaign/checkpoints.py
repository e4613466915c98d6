"""Checkpoints with one damaged, lost or foreign file: read bit for bit, or refused."""

import random
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from checkpoint_states import bits, make_state
from run_folders import PPO, save_run

from campaign.damage import damaged_bytes
from campaign.judging import Case, first, same
from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.pretrained import Pretrained, load_pretrained

_METRICS = {1: 0.9, 2: 0.5}


class CheckpointFiles:
    name, share = "checkpoints", 0.05

    def __init__(self, folder: Path) -> None:
        self.states = {step: make_state(step) for step in _METRICS}
        self.saved, self.run = folder / "saved", folder / "run"
        with Checkpoints(self.saved, 2, 0) as checkpoints:
            for step, state in self.states.items():
                checkpoints.save(step, state, {"step": step, "text": "ü"}, _METRICS[step])
        self.bits = {step: bits(state) for step, state in self.states.items()}

    @cached_property
    def pretrained(self) -> Pretrained:
        """A whole run, made for the first input that needs it."""
        save_run(self.run, PPO, "ppo")
        return load_pretrained(self.run)

    def case(self, rng: random.Random, folder: Path) -> Case:
        whole_run = rng.random() < 0.2
        own, whole = folder / "run", self.pretrained if whole_run else None
        shutil.copytree(self.run if whole else self.saved, own)
        what, harmless, removed = _damage(rng, own)
        names = (str(own),)
        if whole:
            return Case(
                f"run, {what}", lambda: load_pretrained(own), lambda read: _wrong_run(read, whole), names, harmless
            )
        which = rng.choice(["latest", "best", 1, 2])
        meant = {"latest": 2, "best": 1}.get(str(which), which)

        def read() -> tuple[Any, dict[str, Any]]:
            with Checkpoints.reader(own) as checkpoints:
                return checkpoints.restore(self.states[1], which)

        def wrong(result: tuple[Any, dict[str, Any]]) -> str | None:
            restored, metadata = result
            step = metadata.get("step")
            fallback = removed is not None and step == 3 - removed  # a whole step was removed, as a user may
            fault = None if fallback or step == meant else f"{which} is step {step}, expected {meant}"
            return first(
                fault,
                same(metadata, {"step": step, "text": "ü"}, "the metadata"),
                None if bits(restored) == self.bits[step] else "arrays differ",
            )

        return Case(f"{which}, {what}", read, wrong, names, harmless)


def _wrong_run(pretrained: Pretrained, whole: Pretrained) -> str | None:
    for name in ("params", "memory"):
        if bits(jax.tree.leaves(getattr(pretrained, name))) != bits(jax.tree.leaves(getattr(whole, name))):
            return f"{name} differ"
    names = ("backbone", "rule", "max_thoughts", "answer_length", "source", "sigma", "coupling")
    return first(*(same(getattr(pretrained, name), getattr(whole, name), name) for name in names))


def _damage(rng: random.Random, folder: Path) -> tuple[str, bool, int | None]:
    """Damages one file below `folder/checkpoints`; returns its name, whether it is harmless, and a step that is gone."""
    steps = folder / "checkpoints"
    files = sorted(path for path in steps.rglob("*") if path.is_file())
    file = rng.choice(files)
    name = str(file.relative_to(steps))
    how = rng.choice(
        ["none", "bytes", "bytes", "bytes", "bytes", "lost", "lost", "folder lost", "step lost", "foreign"]
    )
    if how == "bytes":
        what, content = damaged_bytes(rng, file.read_bytes())
        file.write_bytes(content)
        return f"{name}: {what}", False, None
    if how == "lost":
        file.unlink()
    elif how == "folder lost":
        inner = rng.choice([path for path in file.parents if path != steps and path.is_relative_to(steps)])
        shutil.rmtree(inner)
        step = int(inner.name) if inner.parent == steps else None
        return f"folder {inner.relative_to(steps)} lost", False, step
    elif how == "step lost":
        step = int(name.split("/")[0])
        shutil.rmtree(steps / str(step))
        return f"step {step} removed", False, step
    elif how == "foreign":
        place = rng.choice([steps, steps / name.split("/")[0], folder])
        new = rng.choice(["notes.txt", ".DS_Store", "3.orbax-checkpoint-tmp", "x" * 200, "ü.json"])
        (place / new).write_text("foreign")
        return f"foreign file {new} in {place.relative_to(folder)}", True, None
    return f"{name} {how}", how == "none", None
