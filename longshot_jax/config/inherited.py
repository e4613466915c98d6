"""Settings that a config file leaves to the weights from which a run starts."""

import json
from pathlib import Path
from typing import Any

_SIDECAR = "longshot.safetensors"  # see checkpoints.sidecar, which writes it


def normalised_thoughts(source: Any, initialize_from: Any) -> bool:
    """Default of `thoughts.normalised`: that of the run or export that a run starts from; True for a plain Llama.

    The raw hidden states of a pretrained Llama are far larger than its token embeddings. From scratch it is False.
    """
    try:
        if initialize_from:
            stored = json.loads((Path(initialize_from).expanduser() / "config.json").read_bytes())
        else:
            with (Path(source).expanduser() / _SIDECAR).open("rb") as file:
                header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 1 << 24)))
            stored = json.loads(header["__metadata__"]["trained"])["config"]
        return stored.get("thoughts", {}).get("normalised", False) is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return bool(initialize_from) or source != "scratch"  # no run: whoever loads it says what is wrong
