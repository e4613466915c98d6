"""Exported runs with a damaged longshot.safetensors; read again with struct, json and NumPy alone."""

import json
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
from run_folders import PPO, save_run

from campaign.configs import settings_unlike
from campaign.damage import ODD_VALUES, damaged_bytes, damaged_json
from campaign.huggingface import joined, split, tensors_of
from campaign.judging import Case, first, same
from campaign.tokenizer_files import files_of
from longshot_jax.checkpoints.convert import to_hf
from longshot_jax.checkpoints.pretrained import Pretrained, load_pretrained
from longshot_jax.checkpoints.sidecar import FILE, Sidecar, read_sidecar

_WIDTH = 16
_ODDS = (*ODD_VALUES, "ppo", "curriculum", "F32", "I32", "F64", "BF16", [0, 4], [4], [16, 4], [2, 4])


class Exports:
    name, share = "exports", 0.05

    def __init__(self, folder: Path) -> None:
        save_run(folder / "run", PPO, "ppo")
        to_hf(folder / "run", folder / "export")
        self.files = files_of(folder / "export")

    def case(self, rng: random.Random, folder: Path) -> Case:
        files, what, harmless = dict(self.files), "undamaged", True
        how = rng.choice(["none", "settings", "settings", "settings", "header", "bytes", "bytes"])
        if how == "bytes":
            what, files[FILE] = damaged_bytes(rng, files[FILE])
        elif how != "none":
            header, body = split(files[FILE])
            if how == "settings":
                trained = json.loads(header["__metadata__"]["trained"])
                # Most values are settings; phase and step are beside them.
                config = trained.pop("config") if rng.random() < 0.3 else None
                what, trained = damaged_json(rng, trained, _ODDS)
                trained |= {} if config is None else {"config": config}
                header["__metadata__"]["trained"] = json.dumps(trained)
            else:
                what, header = damaged_json(rng, header, _ODDS)
            files[FILE] = joined(header, body)
        harmless = how == "none"
        for name, data in files.items():
            (folder / name).write_bytes(data)
        names = (str(folder), "config.")
        if rng.random() < 0.1:
            return Case(
                f"whole, {what}",
                lambda: load_pretrained(folder),
                lambda read: _wrong_whole(read, files[FILE]),
                names,
                harmless,
            )
        return Case(what, lambda: read_sidecar(folder, _WIDTH), lambda read: _wrong(read, files[FILE]), names, harmless)


def _trained(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]] | str:
    """Settings and arrays of the file, or why it is broken."""
    try:
        header, _ = split(content)
        return json.loads(header["__metadata__"]["trained"]), tensors_of(content)
    except Exception as error:
        return f"read, but the file is broken: {type(error).__name__} {error}"


def _wrong(sidecar: Sidecar | None, content: bytes) -> str | None:
    found = _trained(content)
    if isinstance(found, str) or sidecar is None:
        return str(found) if sidecar else "the file is there, but none was found"
    trained, arrays = found
    parts = {"navigator": sidecar.navigator, "memory": sidecar.memory, "thought_rms": np.float32(sidecar.thought_rms)}
    flat = {_path(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(parts)}
    faults = [
        same(sidecar.phase, trained["phase"], "phase"),
        same(sidecar.step, trained["step"], "step"),
        same(sorted(flat), sorted(arrays), "the set of arrays"),
        settings_unlike(sidecar.run, trained["config"]),
    ]
    for name, array in flat.items():
        given = arrays.get(name, array)
        # The bits: a flipped one in the values is read as it is, as from any file of weights.
        if (given.dtype, given.shape, given.tobytes()) != (array.dtype, array.shape, array.tobytes()):
            faults.append(f"{name} differs: {given.dtype}{given.shape} in the file, {array.dtype}{array.shape} read")
    return first(*faults)


def _wrong_whole(pretrained: Pretrained, content: bytes) -> str | None:
    found = _trained(content)
    if isinstance(found, str):
        return found
    trained, arrays = found
    navigator = pretrained.params[0]["navigator"]
    flat = {"navigator." + _path(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(navigator)}
    unlike = [name for name in flat if name not in arrays or arrays[name].tobytes() != flat[name].tobytes()]
    return first(
        f"{unlike} differ" if unlike else None,
        same(pretrained.source.get("step"), trained["step"], "step"),
        same(pretrained.source.get("phase"), trained["phase"], "phase"),
    )


def _path(path: tuple[Any, ...]) -> str:
    return (
        ".".join(str(getattr(step, "key", getattr(step, "name", ""))) for step in path)
        .removesuffix(".value")
        .rstrip(".")
    )
