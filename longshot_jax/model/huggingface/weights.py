"""Llama weights from and to a Hugging Face directory of safetensors.

Names and shapes of all tensors are checked first. Each weight is then read slice by slice, so that a host holds at most
one slice of one weight besides the arrays on its devices.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError

from longshot_jax.errors import UserError
from longshot_jax.files import replacing_folder
from longshot_jax.model.huggingface.config import config_json, read_config
from longshot_jax.model.huggingface.stored_tensors import INDEX, StoredTensors, open_tensors, write_tensors
from longshot_jax.model.huggingface.tensor_names import (
    HEAD,
    TENSORS,
    Tensor,
    TensorLayout,
    abstract_state,
    layout_of,
    tensors_of,
)
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.lora import Matrix
from longshot_jax.model.quantization import is_quantised, quantised_block

_READABLE = ("BF16", "F16", "F32")
# Buffers in old checkpoints that follow from the config.
_DERIVED = ".rotary_emb.inv_freq"
_TABLE = TENSORS["embedding",].name
# Marks exported files: an export may replace an earlier export, but not a downloaded model.
METADATA = {"format": "pt", "written_by": "longshot_jax"}
CARD = "README.md"
_EXPORTED = {
    "config.json", "generation_config.json", INDEX, "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "additional_chat_templates",
}  # fmt: skip


def check_weights(folder: str | Path) -> None:
    """Raises a UserError if the files of weights in a Hugging Face directory are missing, cut short or of another model.

    Reads their heads alone.
    """
    with ExitStack() as stack:
        _account(StoredTensors(Path(folder), stack), read_config(folder))


def load_weights(
    folder: str | Path,
    config: LlamaConfig,
    dtype: jax.typing.DTypeLike = jnp.float32,
    *,
    embedding_rows: int | None = None,
    copied_rows: Mapping[int, int] | None = None,
    sharding: jax.sharding.Sharding | nnx.State[Any, Any] | None = None,
) -> nnx.State[Any, Any]:
    """The weights of a Hugging Face Llama, as the state of `Llama(config, weight_dtype=dtype)`.

    Added rows of the embedding table (and of an untied head) are the mean of the stored rows. The logit of an added
    token is then the mean of the stored tokens' logits, so by Jensen's inequality its probability is at most average.
    Small random rows would have logits near 0, far above a trained model's, and take most of the probability.

    Args:
      folder: holds `model.safetensors`, or several files and `model.safetensors.index.json`.
      config: result of `read_config(folder)`.
      dtype: dtype of the result, or int8 (see `model.quantization`); files may hold bfloat16, float16 or float32.
      embedding_rows: embedding rows (`vocab_size`) of the result, at least `config.vocab_size`, which is the default.
      copied_rows: row of the embedding table (and of an untied head) -> stored row from which it starts instead.
      sharding: one for all weights, or a state of shardings with the structure of the result; None is the default
        device. Every process reads only the slices of its own devices.

    Raises:
      UserError: a file is missing or damaged; a tensor is missing, surplus, or of the wrong shape or dtype.
    """
    folder = Path(folder)
    rows = config.vocab_size if embedding_rows is None else embedding_rows
    if rows < config.vocab_size:
        raise UserError(
            f"{folder}: the embedding table has {config.vocab_size} rows, but {rows} were asked for; "
            "use the tokenizer that belongs to the model"
        )
    abstract = abstract_state(replace(config, vocab_size=rows), dtype)
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        targets = [sharding] * len(jax.tree.leaves(abstract))
    elif jax.tree.structure(sharding) == jax.tree.structure(abstract):
        targets = jax.tree.leaves(sharding)
    else:
        raise ValueError("sharding must have the structure of the Llama's state, one sharding for each weight")

    loaded, matrices = [], config.matrices
    with ExitStack() as stack:
        checkpoint = StoredTensors(folder, stack)
        _account(checkpoint, config)
        for (path, leaf), target in zip(jax.tree.leaves_with_path(abstract), targets, strict=True):
            read = _blocks(checkpoint.tensor, path, leaf, matrices, copied_rows or {})
            loaded.append(_place(read, leaf.shape, target))
    return jax.tree.unflatten(jax.tree.structure(abstract), loaded)


def save_weights(
    state: nnx.State[Any, Any],
    config: LlamaConfig,
    folder: str | Path,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    shard_bytes: int = 5_000_000_000,
    token_ids: Mapping[str, Any] | None = None,
    beside: Callable[[Path], None] | None = None,
    marks: Mapping[str, str] | None = None,
) -> None:
    """Writes `config.json` and safetensors that `transformers` loads as a `LlamaForCausalLM`.

    The folder appears complete or not at all: files are written to a temporary folder, which is renamed at the end.
    Raises a UserError if `folder` holds anything but an earlier export, or cannot be written.

    Args:
      state: state of a `Llama` of this config, from `nnx.split`.
      config: its `vocab_size` is that of the state.
      folder: new, empty, or an earlier export, which is replaced but for `kept_files`.
      dtype: dtype of the written tensors, float32 or bfloat16.
      shard_bytes: largest size of a file, unless a single tensor is larger.
      token_ids: values of `bos_token_id`, `eos_token_id` (an id or a list) and `pad_token_id` for `config.json`.
      beside: writes additional files into the temporary folder.
      marks: goes into the metadata of each file of tensors.
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"weights are written as float32 or bfloat16, not {dtype}")
    tensors = tensors_of(state)
    wanted = tensors_of(abstract_state(config, dtype))
    if [(t.name, t.shape) for t in tensors] != [(t.name, t.shape) for t in wanted]:
        raise ValueError("the state is not that of a Llama of this config")

    folder = Path(folder).resolve()
    refuse_foreign(folder)
    try:
        with replacing_folder(folder, "choose another folder") as part:
            for file in kept_files(folder):
                shutil.copy2(file, part / file.name)
            content = config_json(config, dtype.name, token_ids or {})
            (part / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            _write_tensors(tensors, dtype, part, shard_bytes, METADATA | dict(marks or {}))
            if beside is not None:
                beside(part)
    except SafetensorError as error:
        raise UserError(f"{folder} cannot be written ({error}): choose another folder.") from error


def _account(checkpoint: StoredTensors, config: LlamaConfig) -> None:
    """Compares names, shapes and dtypes of all tensors with the config; a UserError if they differ."""
    wanted = {tensor.name: tensor.shape for tensor in tensors_of(abstract_state(config, jnp.float32))}
    for name, shape in wanted.items():
        if name not in checkpoint.names:
            raise UserError(
                f"{checkpoint.where}: tensor {name} of shape {list(shape)}, which config.json asks for, is missing"
            )
    if config.tie_word_embeddings:
        wanted[HEAD] = wanted[_TABLE]
    for name in checkpoint.names:
        if name.endswith(_DERIVED):
            continue
        if name not in wanted:
            raise UserError(
                f"{checkpoint.file(name)}: tensor {name} of shape {checkpoint.tensor(name).get_shape()} has no "
                "place in the model that config.json describes"
            )
        stored, kind = tuple(checkpoint.tensor(name).get_shape()), checkpoint.tensor(name).get_dtype()
        if stored != wanted[name]:
            raise UserError(
                f"{checkpoint.file(name)}: tensor {name} has shape {list(stored)}, but config.json asks for "
                f"{list(wanted[name])}"
            )
        if kind not in _READABLE:
            raise UserError(
                f"{checkpoint.file(name)}: tensor {name} is stored as {kind}, but only "
                f"{', '.join(_READABLE)} can be read"
            )
    if config.tie_word_embeddings and HEAD in checkpoint.names:
        _check_tied(checkpoint)


def _check_tied(checkpoint: StoredTensors) -> None:
    """Raises a UserError if a head stored beside tied embeddings differs from them: dropping it would lose weights."""
    table, head = checkpoint.tensor(_TABLE), checkpoint.tensor(HEAD)
    for block in _row_blocks(head):
        if not np.array_equal(table[block], head[block]):
            raise UserError(
                f"{checkpoint.file(HEAD)}: tensor {HEAD} differs from the embeddings, though config.json says "
                "that they are tied; set tie_word_embeddings to false"
            )


def _row_blocks(tensor: Any, size: int = 4096) -> Iterator[slice]:
    """Slices of at most `size` rows that together cover a tensor."""
    rows = tensor.get_shape()[0]
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _blocks(
    tensor_named: Callable[[str], Any],
    path: tuple[Any, ...],
    weight: jax.ShapeDtypeStruct,
    matrices: Mapping[str, Matrix],
    copied_rows: Mapping[int, int],
) -> Callable[[Sequence[slice]], np.ndarray]:
    """A function that reads any block of the weight at a path, and quantises it if the weight is quantised."""
    *above, name = [step.key for step in path if isinstance(step, jax.tree_util.DictKey)]
    of_scale, name = name.endswith("_scale"), name.removesuffix("_scale")
    if not of_scale and not is_quantised(weight.dtype):
        return _reader(tensor_named, layout_of(path), weight, copied_rows)
    matrix = matrices[name]
    shape = (weight.shape[0], *matrix.inputs, *matrix.outputs)
    wide = jax.ShapeDtypeStruct(shape, np.float32)
    read = _reader(tensor_named, TENSORS[(*above, name)], wide)
    return quantised_block(read, shape, len(matrix.inputs), of_scale)


def _reader(
    tensor_named: Callable[[str], Any],
    layout: TensorLayout,
    weight: jax.ShapeDtypeStruct,
    copied_rows: Mapping[int, int] | None = None,
) -> Callable[[Sequence[slice]], np.ndarray]:
    """A function that reads any block of a weight, in its dtype, from the weight's tensors."""

    def read(name: str, shape: Sequence[int], ranges: Sequence[range], into: np.ndarray) -> None:
        tensor = tensor_named(name)
        if name not in (_TABLE, HEAD):
            into[...] = layout.from_tensor(tensor, shape, ranges)
            return
        rows, columns = ranges
        stored = tensor.get_shape()[0]
        known = range(min(rows.start, stored), min(rows.stop, stored))
        if known:
            into[: len(known)] = layout.from_tensor(tensor, shape, [known, columns])
        if len(known) < len(rows):
            into[len(known) :] = _mean_row(tensor, slice(columns.start, columns.stop))
        for row, origin in (copied_rows or {}).items():
            if row in rows:
                into[row - rows.start] = layout.from_tensor(tensor, shape, [range(origin, origin + 1), columns])[0]

    def block(index: Sequence[slice]) -> np.ndarray:
        ranges = [range(*part.indices(size)) for part, size in zip(index, weight.shape, strict=True)]
        result = np.empty([len(part) for part in ranges], weight.dtype)
        if layout.stacked:
            for place, layer in enumerate(ranges[0]):
                read(layout.name.format(layer=layer), weight.shape[1:], ranges[1:], result[place])
        else:
            read(layout.name, weight.shape, ranges, result)
        return result

    return block


def _mean_row(table: Any, columns: slice) -> np.ndarray:
    """Mean of a table's rows, float64."""
    total = np.zeros(columns.stop - columns.start)
    for rows in _row_blocks(table):
        total += table[rows, columns].astype(np.float32).sum(0, dtype=np.float64)
    return total / table.get_shape()[0]


def _place(
    block: Callable[[Sequence[slice]], np.ndarray], shape: Sequence[int], sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """Places a weight on its devices; the host holds one slice at a time."""
    if sharding is None:
        return jax.block_until_ready(jax.device_put(block([slice(None)] * len(shape))))
    holders: dict[tuple, list] = {}  # bounds of a slice -> the devices that hold it
    for device, index in sharding.addressable_devices_indices_map(tuple(shape)).items():
        assert index is not None
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    pieces = []
    for bounds, devices in holders.items():
        host = block([slice(*pair) for pair in bounds])  # read once for all its devices
        pieces += [jax.device_put(host, device) for device in devices]
        jax.block_until_ready(pieces)
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, pieces)


def _write_tensors(
    tensors: Sequence[Tensor], dtype: np.dtype, folder: Path, shard_bytes: int, metadata: dict[str, str]
) -> None:
    """Writes the tensors in files of at most `shard_bytes`, in order; one file at a time is in memory.

    A larger tensor has a file of its own.
    """
    from huggingface_hub import split_state_dict_into_shards_factory  # takes a second to import

    named: dict[str, Any] = {tensor.name: tensor for tensor in tensors}
    split = split_state_dict_into_shards_factory(
        named,
        get_storage_size=lambda tensor: prod(tensor.shape) * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        write_tensors({name: _fetched(named[name], dtype) for name in names}, folder / file, metadata)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _fetched(tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    """A tensor in the layout of the checkpoint, on the host."""
    weight = tensor.weight if tensor.layer is None else tensor.weight[tensor.layer]
    return np.ascontiguousarray(tensor.layout.to_tensor(np.asarray(weight)), dtype)


def kept_files(folder: Path) -> list[Path]:
    """Files of an earlier export that its next one keeps: the card, and what only the user can put there."""
    files = [folder / CARD, folder / "tokenizer.model", *folder.glob("LICENSE*"), *folder.glob("LICENCE*")]
    return [file for file in files if file.is_file()]


def refuse_foreign(folder: Path) -> None:
    """Raises a UserError unless the folder is missing, empty, or an earlier export without other files than `kept_files`.

    The working directory is refused too, and what it lies in: it is replaced, and the user's shell would stay in the
    folder that is deleted.
    """
    with suppress(OSError):  # a working directory that is gone already lies in no folder
        if Path.cwd().is_relative_to(folder.resolve()):
            raise UserError(
                f"{folder} is the working directory or one above it, and an export replaces its folder whole: run the command "
                "from another directory, or choose another folder"
            )
    try:
        present = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    advice, kept = "choose a new folder", kept_files(folder)
    for file in present:
        if file.suffix == ".safetensors":
            with ExitStack() as stack:
                if (open_tensors(file, stack).metadata() or {}).get("written_by") != METADATA["written_by"]:
                    raise UserError(f"{folder} holds {file.name}, which is not an export of this program; {advice}")
        elif file.name not in _EXPORTED and file not in kept:
            raise UserError(f"{folder} holds {file.name}, which does not belong to an export; {advice}")
    if present and not any(file.suffix == ".safetensors" for file in present):
        raise UserError(f"{folder} holds {present[0].name} but no exported weights; {advice}")
