"""Checkpoints of a whole run: written in the background, kept by age and by quality, verified when read.

A checkpoint is every array of the run state under its path (``params.layers.wq``) and one JSON part, `host`, with
what is not an array: stage, input position, config. Layout of a run folder::

    runs/x/checkpoints/1200/state   the arrays (orbax, each process writes its own shards)
    runs/x/checkpoints/1200/host    JSON: `host` as given, and shape, type and fingerprint of every array

Arrays are stored flat, by path, rather than as the state's own tree: a reader that wants the parameters alone
names them, a mismatch is reported by name, and any registered pytree (flax.struct, nnx.State, optax) is the same
to the file. The storage format checks its own indices but not the numbers inside, so every array carries a
fingerprint of its bits, which turns a silently damaged file into an error.
"""

import errno
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from longshot_jax.errors import UserError
from longshot_jax.training.fingerprint import fingerprint_of

Which = Literal["latest", "best"] | int

_METRIC = "metric"
_DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The array writer reports the system's error as text only.
_DISK_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large", "ENOSPC")


class Checkpoints:
    """The checkpoints of one run folder; a context manager that waits for the last save.

    Args:
        folder: The run folder; checkpoints go to ``folder/checkpoints/<step>``. Created where missing.
        keep_last: How many of the newest checkpoints are kept (at least 1).
        keep_best: How many of the checkpoints with the highest metric are kept besides.

    Raises:
        UserError: The folder cannot be written, or what it holds cannot be read.

    All methods are called by every process of a run, in the same order. Saving is asynchronous: an error of
    the background writer (a full disk) is raised by the next `save`, `wait` or `close`.
    """

    def __init__(self, folder: str | Path, keep_last: int, keep_best: int):
        if keep_last < 1 or keep_best < 0:
            raise UserError(
                f"keep_last must be at least 1 and keep_best at least 0; they are {keep_last} and {keep_best}."
            )
        self._open(Path(folder), KeepLastAndBest(keep_last, keep_best), read_only=False)

    @classmethod
    def reader(cls, folder: str | Path) -> "Checkpoints":
        """The checkpoints of `folder` to read only, also while a run is writing there.

        Raises:
            UserError: The folder holds no checkpoint.
        """
        self = cls.__new__(cls)
        if not (Path(folder) / "checkpoints").is_dir():
            raise UserError(f"{folder} holds no checkpoints: give the folder that was the run's --workdir.")
        self._open(Path(folder), KeepLastAndBest(1, 0), read_only=True)
        return self

    def _open(self, folder: Path, policy: "KeepLastAndBest", read_only: bool) -> None:
        self.folder = folder.absolute() / "checkpoints"
        self._pending: int | None = None  # the step whose save may still be under way
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_metric_or_lowest,
            create=not read_only,
            cleanup_tmp_directories=not read_only,  # what a killed run left half-written
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise UserError(
                f"The checkpoint folder {self.folder} cannot be used ({_first_line(error)}); "
                "choose another --workdir or mend its permissions."
            ) from error
        except (ValueError, KeyError) as error:
            raise UserError(
                f"A checkpoint in {self.folder} cannot be read ({_first_line(error)}); "
                "remove the damaged step's folder."
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error_type: type | None, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except UserError:
            if error is None:  # otherwise the first error is the one to report
                raise

    def save(self, step: int, state: Any, host: Mapping[str, Any], metric: float | None = None) -> bool:
        """Writes `state` and `host` as checkpoint `step`, in the background.

        Returns as soon as the arrays are copied off the device, so they may be donated to the next update.
        The checkpoint counts only once it is whole; older ones are removed after that.

        Args:
            step: The number of updates done; the checkpoint's name.
            state: Any pytree of arrays, typed random keys and None leaves included.
            host: What JSON can hold. Tuples come back as lists.
            metric: What `best` means here, higher is better. None, or a value that is not finite: not ranked.

        Returns:
            False, and nothing is written, where a checkpoint of this step exists already.

        Raises:
            UserError: The disk is full, or this or the previous save could not be written.
        """
        assert not self._read_only, "these checkpoints were opened to be read"
        self.wait()
        if step in self._manager.all_steps():
            return False
        arrays = _named_arrays(state)
        layout = {name: _describe(leaf, fingerprint=True) for name, leaf in arrays.items()}
        saved_host = {"host": json.loads(json.dumps(host)), "arrays": layout}
        metrics = {_METRIC: float(metric)} if metric is not None and math.isfinite(metric) else {}
        stored = {name: _key_bits(leaf) for name, leaf in arrays.items() if leaf.size}
        self._pending = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(stored), host=ocp.args.JsonSave(saved_host)
                ),
                metrics=metrics,
                force=True,  # the loop decides when; the manager's own rule would refuse some steps silently
            )
        except Exception as error:
            self._raise_save_error(error)
        return True

    def restore(self, template: Any, which: Which = "latest") -> tuple[Any, dict[str, Any]]:
        """The state and the host part of a checkpoint, bit for bit.

        Args:
            template: The state to fill: arrays, or jax.ShapeDtypeStruct whose shardings say where each array
                is to be placed (without one: the first local device).
            which: The newest, the one with the highest metric, or a step.

        Raises:
            UserError: No such checkpoint; the template differs in an array's name, shape or type (the first is
                named); the checkpoint is damaged.
        """
        return self._restore(template, which, prefix="")

    def restore_partial(
        self, template: Any, prefix: str, which: Which = "best"
    ) -> tuple[Any, dict[str, Any]]:
        """One part of the state alone: ``restore_partial(params, "params")`` reads no optimizer moments.

        Args:
            template: The part to fill, as for `restore`.
            prefix: Where the part sits in the saved state, names joined by dots.
            which: As for `restore`.
        """
        return self._restore(template, which, prefix)

    def host(self, which: Which = "latest") -> dict[str, Any]:
        """The host part alone, for instance to build the template from the config it holds."""
        return self._read_layout(self._resolve(which))["host"]

    @property
    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, ascending; waits for a save that is under way."""
        self.wait()
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The newest step, None where there is no checkpoint."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the highest metric (of equals the newest), None where none has a metric."""
        if not self.steps:
            return None
        step = self._manager.best_step()
        return step if step is not None and self._manager.metrics(step) else None

    def wait(self) -> None:
        """Returns when no save is under way. Raises UserError where the last one failed."""
        try:
            self._manager.wait_until_finished()
            self._pending = None
        except Exception as error:
            self._raise_save_error(error)

    def close(self) -> None:
        """Waits for the last save and ends the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _raise_save_error(self, error: Exception) -> NoReturn:
        """Turns a failed save into one sentence; the manager goes on from what is whole on disk."""
        step, self._pending = self._pending, None
        self._manager.reload()
        reason = _disk_error(error)
        if reason is None:
            raise error
        last = max(self._manager.all_steps(), default=None)
        kept = "no earlier checkpoint exists" if last is None else f"the checkpoint of step {last} is intact"
        raise UserError(
            f"The checkpoint of step {step} could not be written to {self.folder} ({reason}); {kept}: "
            "free some space and start the same command again."
        ) from error

    def _resolve(self, which: Which) -> int:
        steps = self.steps
        if not steps:
            raise UserError(f"{self.folder} holds no whole checkpoint: train first, or give another folder.")
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = self.best_step
            if best is None:
                raise UserError(
                    f"No checkpoint in {self.folder} has a metric to be best by: ask for 'latest' or for one of "
                    f"the steps {steps}."
                )
            return best
        if which not in steps:
            raise UserError(f"{self.folder} holds no checkpoint of step {which}: it holds the steps {steps}.")
        return int(which)

    def _read_layout(self, step: int) -> dict[str, Any]:
        try:
            saved = self._manager.restore(step, args=ocp.args.Composite(host=ocp.args.JsonRestore()))["host"]
            return {"host": dict(saved["host"]), "arrays": dict(saved["arrays"])}
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error

    def _restore(self, template: Any, which: Which, prefix: str) -> tuple[Any, dict[str, Any]]:
        step = self._resolve(which)
        saved = self._read_layout(step)
        wanted = _named_arrays(template, prefix)
        self._check_layout(step, wanted, saved["arrays"], prefix)
        abstract = {name: _stored_form(leaf) for name, leaf in wanted.items() if leaf.size}
        try:
            read = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        item=abstract,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                        partial_restore=True,
                    )
                ),
            )["state"]
        except jax.errors.JaxRuntimeError:  # out of device memory: not the file's fault
            raise
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error
        leaves = []
        for name, leaf in wanted.items():
            array = read[name] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype, device=_placement(leaf))
            if leaf.size and int(fingerprint_of(array)) != saved["arrays"][name]["fingerprint"]:
                raise self._damaged(step, f"{name} does not have the bits that were saved")
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                array = jax.random.wrap_key_data(array, impl=saved["arrays"][name]["generator"])
            leaves.append(array)
        return jax.tree.unflatten(jax.tree.structure(template), leaves), saved["host"]

    def _check_layout(self, step: int, wanted: dict, stored: dict, prefix: str) -> None:
        where = f"the checkpoint of step {step} in {self.folder}"
        mend = "use the config and the code that wrote it, or another --workdir"
        for name, leaf in wanted.items():
            if name not in stored:
                raise UserError(f"The model has {name}, which {where} lacks: {mend}.")
            here, there = _describe(leaf), stored[name]
            if here["shape"] != there["shape"] or here["dtype"] != there["dtype"]:
                raise UserError(
                    f"{name} is {there['dtype']}{there['shape']} in {where}, but {here['dtype']}{here['shape']} "
                    f"here: {mend}."
                )
        for name in stored:
            if name not in wanted and (not prefix or name == prefix or name.startswith(prefix + ".")):
                raise UserError(f"{where[0].upper()}{where[1:]} has {name}, which the model lacks: {mend}.")

    def _damaged(self, step: int, reason: str) -> UserError:
        return UserError(
            f"The checkpoint of step {step} in {self.folder} is damaged ({reason}): remove "
            f"{self.folder / str(step)} to go on from an earlier one."
        )


@dataclass(frozen=True)
class KeepLastAndBest:
    """Which checkpoints stay: the newest `last`, and the `best` highest metrics among those that have one."""

    last: int
    best: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One bool for each checkpoint (each has `metrics`); they come in the order of their steps."""
        ranked = [index for index, info in enumerate(checkpoints) if info.metrics]
        ranked.sort(key=lambda index: (_metric_or_lowest(checkpoints[index].metrics), index))
        kept = set(ranked[max(len(ranked) - self.best, 0) :])
        return [index in kept or index >= len(checkpoints) - self.last for index in range(len(checkpoints))]


def _metric_or_lowest(metrics: Mapping[str, float] | None) -> float:
    return (metrics or {}).get(_METRIC, -math.inf)


class _Leaf(NamedTuple):
    """What a template says of one array."""

    shape: tuple[int, ...]
    dtype: Any
    sharding: jax.sharding.Sharding | None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _named_arrays(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of `tree` by path, names joined by dots; Python numbers become arrays."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = ".".join(part for part in (prefix, name) if part) or "value"
        if name in named:
            raise ValueError(f"two arrays of the state have the path {name}")
        if isinstance(leaf, jax.ShapeDtypeStruct):
            leaf = _Leaf(leaf.shape, leaf.dtype, leaf.sharding)
        elif not isinstance(leaf, jax.Array):
            array = jnp.asarray(leaf)
            if hasattr(leaf, "dtype") and array.dtype != leaf.dtype:
                raise TypeError(
                    f"{name} is {leaf.dtype}, which JAX would narrow: convert it, or put it in `host`"
                )
            leaf = array
        named[name] = leaf
    return named


def _describe(leaf: Any, fingerprint: bool = False) -> dict[str, Any]:
    """Shape and type as JSON; where the values are at hand, their fingerprint, and a random key's generator."""
    described = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    if fingerprint and leaf.size:
        described["fingerprint"] = int(fingerprint_of(_key_bits(leaf)))
        if leaf.dtype != _key_bits(leaf).dtype:
            described["generator"] = str(jax.random.key_impl(leaf))
    return described


def _key_bits(array: Any) -> Any:
    """A typed random key's words; anything else as it is."""
    return jax.random.key_data(array) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array


def _placement(leaf: Any) -> jax.sharding.Sharding:
    return leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _stored_form(leaf: Any) -> jax.ShapeDtypeStruct:
    """How a leaf lies in the file. A key's words are one more axis, last, which no partition spec names."""
    shape, dtype = leaf.shape, leaf.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
        shape, dtype = words.shape, words.dtype
    return jax.ShapeDtypeStruct(shape, dtype, sharding=_placement(leaf))


def _disk_error(error: BaseException) -> str | None:
    """Why the system refused to write, None where something else went wrong."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno not in _DISK_FULL_ERRNOS:
            return _first_line(seen)
        if isinstance(seen, OSError) or any(text in str(seen) for text in _DISK_FULL_TEXTS):
            return "the disk is full"
        seen = seen.__cause__ or seen.__context__
    return None


def _first_line(error: BaseException) -> str:
    """At most a line of an error's text, without the full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0][:160].rstrip(". ") if lines else "") or type(error).__name__
