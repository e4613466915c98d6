"""Checkpoints of a run: written in the background, kept by age and by metric, verified when read.

A checkpoint holds the arrays of the run's state by path (``params.layers.wq``), and metadata for everything else, such
as phase, input position and config. Layout of a run folder::

    runs/x/checkpoints/1200/state      the arrays (orbax; each process writes its own shards)
    runs/x/checkpoints/1200/metadata   JSON: metadata; shape, dtype and fingerprint of every array; its own fingerprint

Arrays are stored by path and not as the state's tree, so that a reader can restore the parameters alone, a mismatch is
reported by name, and every registered pytree (flax.struct, nnx.State, optax) is stored alike. orbax verifies its
indices but not the values; the fingerprint of each array's bits turns a silently damaged file into an error.
"""

import gc
import hashlib
import json
import logging
import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from longshot_jax.checkpoints.named_arrays import (
    current_name,
    describe,
    fingerprint_of,
    key_bits,
    named_arrays,
    placement_of,
    stored_form,
)
from longshot_jax.checkpoints.refusals import DISK_FULL, TIMED_OUT, read_refusal, write_refusal
from longshot_jax.errors import UserError, first_line
from longshot_jax.files import has_folder, unreadable
from longshot_jax.model.huggingface.stored_tensors import INDEX, SINGLE

Which = Literal["latest", "best"] | int

# orbax logs tracebacks of errors that it also raises, and advice on its use.
for _logger in ("absl", "asyncio"):
    logging.getLogger(_logger).setLevel(logging.CRITICAL)

_METRIC = "metric"
_VERSION = 1  # of the metadata's format
# Metadata keys before version 1 -> present keys.
_RENAMED_KEYS = {"llama": "backbone", "llama_path": "backbone_path", "stage": "phase"}


class Checkpoints:
    """The checkpoints of one run folder; a context manager that waits for the last save on exit.

    Every process of a run calls all methods, in the same order. Saving is asynchronous: an error of the background
    writer, such as a full disk, is raised by the next `save`, `wait` or `close`. Raises a UserError if the folder
    cannot be written or read.

    Args:
      folder: run folder, created if missing; checkpoints are written to ``folder/checkpoints/<step>``.
      keep_last: number of newest checkpoints to keep, at least 1.
      keep_best: number of checkpoints with the highest metric to keep in addition.
      read_only: create and remove nothing; `save` is not allowed.
    """

    def __init__(self, folder: str | Path, keep_last: int, keep_best: int, *, read_only: bool = False):
        if keep_last < 1 or keep_best < 0:
            raise UserError(
                f"keep_last must be at least 1 and keep_best at least 0; they are {keep_last} and {keep_best}."
            )
        self.folder = Path(folder).absolute() / "checkpoints"
        self._pending: int | None = None  # step of the save that may be in progress
        self._read_only = read_only
        best = preservation_policy.BestN(
            n=keep_best, get_metric_fn=_metric_or_lowest, keep_checkpoints_without_metrics=False
        )
        self._kept = preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(keep_last), best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            best_fn=_metric_or_lowest,
            create=not read_only,
            cleanup_tmp_directories=not read_only,  # incomplete checkpoints of a killed run
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise UserError(
                f"The checkpoint folder {self.folder} cannot be used ({first_line(error)}); "
                "choose another --workdir or fix its permissions."
            ) from error
        except (ValueError, KeyError) as error:
            raise UserError(
                f"A checkpoint in {self.folder} cannot be read ({first_line(error)}); remove the damaged step's folder."
            ) from error

    @classmethod
    def reader(cls, folder: str | Path) -> "Checkpoints":
        """The checkpoints of a run folder for reading, even while a run writes there; a UserError if it has none."""
        if not has_folder(Path(folder) / "checkpoints"):
            what = f"{folder} holds no checkpoints" if has_folder(Path(folder)) else f"there is no folder {folder}"
            if any((Path(folder) / name).exists() for name in (SINGLE, INDEX)):
                raise UserError(f"{what} but a model in Hugging Face's form: name it as config.model.source.")
            raise UserError(f"{what}: give the folder that was the run's --workdir.")
        return cls(folder, 1, 0, read_only=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error_type: type | None, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except Exception:
            if error is None:  # otherwise report the first error
                raise

    def save(self, step: int, state: Any, metadata: Mapping[str, Any], metric: float | None = None) -> bool:
        """Writes `state` and `metadata` as checkpoint `step` in the background.

        Returns once the arrays are copied off the device, so that they may be donated to the next update; False if the
        step has a checkpoint, in which case nothing is written. A checkpoint counts only when it is complete; older
        ones are removed after that. Raises a UserError if this or the previous save failed, as on a full disk.

        Args:
          step: number of updates done; names the checkpoint.
          state: any pytree of arrays; typed random keys and None leaves are allowed.
          metadata: JSON-serialisable; tuples are restored as lists.
          metric: ranks the checkpoint for `best`, higher is better; None or a value that is not finite is not ranked.
        """
        assert not self._read_only, "these checkpoints are open for reading only"
        self.wait()
        if step in self._manager.all_steps():
            return False
        arrays = named_arrays(state)
        layout = {name: describe(leaf, fingerprint=True) for name, leaf in arrays.items()}
        content = {"version": _VERSION, "metadata": json.loads(json.dumps(metadata)), "arrays": layout}
        content["fingerprint"] = _digest(content)
        metrics = {_METRIC: float(metric)} if metric is not None and math.isfinite(metric) else {}
        stored = {name: key_bits(leaf) for name, leaf in arrays.items() if leaf.size}
        self._pending = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(stored), metadata=ocp.args.JsonSave(content)),
                metrics=metrics,
                force=True,  # the manager's own rule silently refuses some steps
            )
        except Exception as error:
            self._raise_save_error(error)
        return True

    def restore(self, template: Any, which: Which = "latest") -> tuple[Any, dict[str, Any]]:
        """The state and the metadata of a checkpoint, bit for bit; arguments and errors as for `restore_partial`."""
        return self.restore_partial(template, "", which)

    def restore_partial(self, template: Any, prefix: str, which: Which = "best") -> tuple[Any, dict[str, Any]]:
        """Part of the state, and the metadata: ``restore_partial(params, "params")`` reads no optimizer moments.

        Args:
          template: the part to fill: arrays, or jax.ShapeDtypeStruct with the shardings to place them by; an array
            without a sharding goes to the first local device.
          prefix: path of the part in the saved state, names joined by dots; empty for the whole state.
          which: the newest, the one with the highest metric, or a step.

        Raises:
          UserError: there is no such checkpoint; an array's name, shape or dtype differs from the template's (the first
            such array is named); the checkpoint is damaged.
        """
        step = self.step_of(which)
        metadata, stored = self._read_metadata(step)
        wanted = named_arrays(template, prefix)
        self._check_layout(step, wanted, stored, prefix)
        abstract = {stored[name]["name"]: stored_form(leaf) for name, leaf in wanted.items() if leaf.size}
        arguments = ocp.args.PyTreeRestore(
            item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
        )
        try:
            read = self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        except jax.errors.JaxRuntimeError:  # out of device memory: the file is not at fault
            raise
        except Exception as error:
            raise self._failed_read(step, error) from error
        leaves = []
        for name, leaf in wanted.items():
            entry = stored[name]
            if leaf.size:
                array = read[entry["name"]]
                if not isinstance(array, jax.Array):  # orbax leaves out what its own description does not name
                    raise self._damaged(step, f"{name} cannot be found in it")
                if int(fingerprint_of(array)) != entry["fingerprint"]:
                    raise self._damaged(step, f"{name} does not have the bits that were saved")
                if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                    array = jax.random.wrap_key_data(array, impl=entry["generator"])
            else:
                array = jnp.zeros(leaf.shape, leaf.dtype, device=placement_of(leaf))
            leaves.append(array)
        return jax.tree.unflatten(jax.tree.structure(template), leaves), metadata

    def metadata(self, which: Which = "latest") -> dict[str, Any]:
        """The metadata alone, for example to build a template from its config."""
        return self._read_metadata(self.step_of(which))[0]

    def arrays(self, prefix: str) -> dict[str, dict[str, Any]]:
        """Shape, dtype and fingerprint of the newest arrays below a path, by their names from there on."""
        stored = self._read_metadata(self.step_of("latest"))[1]
        return {
            name.removeprefix(f"{prefix}."): {key: value for key, value in entry.items() if key != "name"}
            for name, entry in stored.items()
            if name.startswith(f"{prefix}.")
        }

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending; waits for a save in progress."""
        self.wait()
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The newest step; None without checkpoints."""
        return max(self.steps, default=None)

    @property
    def best(self) -> tuple[float, int] | None:
        """The highest metric and its step, the newest on ties; None if no checkpoint has a metric."""
        step = self._manager.best_step() if self.steps else None
        metrics = None if step is None else self._manager.metrics(step)
        return (metrics[_METRIC], step) if step is not None and metrics else None

    @property
    def best_step(self) -> int | None:
        """The step of `best`."""
        return None if self.best is None else self.best[1]

    def wait(self) -> None:
        """Waits for the save in progress; raises a UserError if it failed."""
        try:
            self._manager.wait_until_finished()
            if self._pending is not None:
                self._pending = None
                gc.collect()  # a finished save holds its copy of the arrays in reference cycles
        except Exception as error:
            self._raise_save_error(error)

    def remove_surplus(self) -> None:
        """Removes what `keep_last` and `keep_best` do not keep: a run killed after its last save has left it there."""
        found = [_Found(step, self._manager.metrics(step)) for step in self.steps]
        kept = self._kept.should_preserve(found, context=preservation_policy.PreservationContext())
        for checkpoint, keep in zip(found, kept, strict=True):
            if not keep:
                with suppress(OSError):  # the run itself is complete
                    self._manager.delete(checkpoint.step)

    def close(self) -> None:
        """Waits for the last save and stops the background threads, also if that save failed."""
        try:
            self.wait()
        except Exception:
            with suppress(Exception):  # the manager raises what failed once more
                self._manager.close()
            raise
        self._manager.close()

    def _raise_save_error(self, error: Exception) -> NoReturn:
        """Raises the error of a failed save as a UserError if writing was refused; keeps the complete checkpoints."""
        step, self._pending = self._pending, None
        reason = write_refusal(error)
        if reason is None:
            raise error
        # Python would warn of every write that had not begun when another one failed.
        warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)
        last = None
        with suppress(OSError):  # the whole folder may be gone
            self._manager.reload()
            last = max(self._manager.all_steps(), default=None)
        kept = "no earlier checkpoint exists" if last is None else f"the checkpoint of step {last} is intact"
        advice = "free some of them" if reason == DISK_FULL else "see to that folder"
        if reason.startswith(TIMED_OUT):
            advice = "check that the clock did not jump and that the disk is fast,"
        raise UserError(
            f"The checkpoint of step {step} could not be written to {self.folder} ({reason}); {kept}: "
            f"{advice} and start the same command again."
        ) from error

    def step_of(self, which: Which) -> int:
        """The step of a checkpoint, which stays the same while a run writes others; a UserError if there is none."""
        steps = self.steps
        if not steps:
            raise UserError(f"{self.folder} holds no complete checkpoint: train first, or give another folder.")
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = self.best_step
            if best is None:
                raise UserError(
                    f"No checkpoint in {self.folder} has a metric: ask for 'latest' or one of the steps {steps}."
                )
            return best
        if isinstance(which, str):
            raise UserError(
                f"the checkpoint is {which!r}: name best, latest or one of the steps {steps} as a whole number."
            )
        if which not in steps:
            raise UserError(f"{self.folder} holds no checkpoint of step {which}: it holds the steps {steps}.")
        return int(which)

    def _read_metadata(self, step: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The metadata, and the description of every array by its present name, with its stored `name`."""
        try:
            is_old = not (self.folder / str(step) / "metadata").is_dir()  # before version 1
            item = "host" if is_old else "metadata"
            content = self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]
            version = 0 if is_old else content["version"]
            if version > _VERSION:
                raise UserError(
                    f"The checkpoint of step {step} in {self.folder} has version {version}, and this program reads "
                    f"versions up to {_VERSION}: use the program that wrote it, or a newer one."
                )
            metadata: dict[str, Any] = dict(content[item])
            arrays = {current_name(name): {**entry, "name": name} for name, entry in content["arrays"].items()}
            sound = is_old or content.pop("fingerprint") == _digest(content)
        except UserError:
            raise
        except Exception as error:
            raise self._failed_read(step, error) from error
        if not sound:
            raise self._damaged(step, "its metadata does not have the content that was saved")
        if is_old:
            metadata = {_RENAMED_KEYS.get(str(key), str(key)): value for key, value in metadata.items()}
            if "backbone_path" in metadata:
                metadata["backbone_path"] = current_name(metadata["backbone_path"])
        return metadata, arrays

    def _check_layout(self, step: int, wanted: dict, stored: dict, prefix: str) -> None:
        where = f"checkpoint of step {step} in {self.folder}"
        advice = "use the config and the code that wrote it, or another --workdir"
        for name, leaf in wanted.items():
            if name not in stored:
                raise UserError(f"The model has {name}, which the {where} lacks: {advice}.")
            here, there = describe(leaf), stored[name]
            if here["shape"] != there["shape"] or here["dtype"] != there["dtype"]:
                raise UserError(
                    f"{name} is {there['dtype']}{there['shape']} in the {where}, but {here['dtype']}{here['shape']} "
                    f"here: {advice}."
                )
        for name in stored:
            if name not in wanted and (not prefix or name == prefix or name.startswith(prefix + ".")):
                raise UserError(f"The {where} has {name}, which the model lacks: {advice}.")

    def _failed_read(self, step: int, error: Exception) -> UserError:
        """The error of a failed read: says that a checkpoint is damaged only if its files could be read."""
        if not has_folder(self.folder) or not has_folder(self.folder / str(step)):
            return UserError(
                f"The checkpoint of step {step} in {self.folder} was removed while it was read: start the same command again."
            )
        refusal = read_refusal(error, self.folder / str(step))
        if refusal is not None:
            return unreadable(f"The checkpoint of step {step} in {self.folder}", refusal)
        return self._damaged(step, first_line(error))

    def _damaged(self, step: int, reason: str) -> UserError:
        return UserError(
            f"The checkpoint of step {step} in {self.folder} is damaged ({reason}): remove {self.folder / str(step)} "
            "to continue from an earlier one."
        )


@dataclass
class _Found:
    """A checkpoint, as orbax's policies read it."""

    step: int
    metrics: dict[str, Any] | None
    time: datetime = datetime.min


def _metric_or_lowest(metrics: Mapping[str, float] | None) -> float:
    return (metrics or {}).get(_METRIC, -math.inf)


def _digest(content: Mapping[str, Any]) -> str:
    """Fingerprint of a JSON object, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
