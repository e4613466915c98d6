"""The safetensors files of a Hugging Face directory, open for reading slices, and what is wrong with them."""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from longshot_jax.errors import UserError
from longshot_jax.files import is_there, read_json
from longshot_jax.model.huggingface.other_forms import is_large_file_pointer, other_form

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def write_tensors(arrays: Mapping[str, np.ndarray], file: Path, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file with the permissions of the config.json beside it; alone only its owner could read it."""
    save_file(dict(arrays), file, dict(metadata))
    shutil.copymode(file.parent / "config.json", file)


class StoredTensors:
    """The open safetensors files of a directory; tensors are read only when sliced."""

    def __init__(self, folder: Path, stack: ExitStack):
        self.where = folder / SINGLE
        if not is_there(self.where) and (folder / INDEX).exists():
            self.where = folder / INDEX
            placed = read_json(self.where, advice="copy it again from its source").get("weight_map")
            if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
                raise UserError(f"{self.where}: the key weight_map must map tensor names to file names")
            for name in placed.values():
                # A link inside the folder may lead out of it, as those of a hub cache do; the index may not.
                if PurePath(name).is_absolute() or ".." in PurePath(name).parts or "\0" in name:
                    raise UserError(
                        f"{self.where}: weight_map names the file {name!r}, which does not lie in {folder}: put the file "
                        "there and correct the index"
                    )
            files = [folder / name for name in sorted(set(placed.values()))]
        else:
            placed, files = {}, [self.where]
        self._tensors: dict[str, tuple[Path, Any]] = {}
        self.marks: dict[str, str] = {}  # metadata of the files: for an export, what `save_weights` was given
        for file in files:
            opened = open_tensors(file, stack)
            self.marks |= opened.metadata() or {}
            self._tensors |= {name: (file, opened) for name in opened.keys()}
        for name, file in placed.items():
            if name not in self._tensors or self.file(name) != folder / file:
                raise UserError(f"{folder / file}: tensor {name} is missing, though {INDEX} places it there")

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def file(self, name: str) -> Path:
        return self._tensors[name][0]

    def tensor(self, name: str) -> "_FiniteTensor":
        """A tensor that is read when sliced."""
        file, opened = self._tensors[name]
        return _FiniteTensor(opened.get_slice(name), name, file)


def stored_marks(folder: Path) -> dict[str, str]:
    """Metadata of the weights in a Hugging Face directory; a UserError if they cannot be read."""
    with ExitStack() as stack:
        return StoredTensors(folder, stack).marks


class _FiniteTensor:
    """A tensor of an open file that is read when sliced; a slice with NaN or infinity is a UserError."""

    def __init__(self, stored: Any, name: str, file: Path):
        self._stored, self._name, self._file = stored, name, file
        self.get_shape, self.get_dtype = stored.get_shape, stored.get_dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        block = self._stored[index]
        if not _all_finite(block):
            raise UserError(
                f"{self._file}: tensor {self._name} holds NaN or infinity: copy the file again from its source, or give "
                "another model"
            )
        return block


def open_tensors(file: Path, stack: ExitStack) -> Any:
    """Opens a safetensors file and checks its header against its length."""
    if not is_there(file):
        raise UserError(f"{file} is missing{_instead(file)}")
    try:
        return stack.enter_context(safe_open(file, framework="numpy"))
    except SafetensorError as error:
        if is_large_file_pointer(file):
            raise UserError(
                f"{file} is a pointer of Git LFS, not the weights: run git lfs pull in its repository, or download it again"
            ) from None
        raise UserError(f"{file} is damaged or cut short ({error}); copy it again from its source") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _instead(missing: Path) -> str:
    if missing.name != SINGLE:  # a shard
        return f", though {INDEX} names it: the copy or download was not finished, so get it again from its source"
    way = other_form(missing.parent) or "copy it from the source of the model"
    return f"; weights are read from safetensors only: {way}"


def _all_finite(values: np.ndarray) -> bool:
    """Whether an array of floats holds neither NaN nor infinity; for bfloat16 six times as fast as `np.isfinite`.

    Read as integers, such numbers are the largest of their sign: those from the bits of infinity on.
    """
    if not values.size:
        return True
    size = 8 * values.dtype.itemsize
    infinity = int(np.array(np.inf, values.dtype).view(f"u{size // 8}"))
    positive, negative = values.view(f"i{size // 8}"), values.view(f"u{size // 8}")
    return int(positive.max()) < infinity and int(negative.max()) < infinity + 2 ** (size - 1)
