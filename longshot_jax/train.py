"""A whole run: the configured phases in sequence, in one run folder.

    runs/x/config.json     settings                  runs/x/checkpoints/   newest and best states
    runs/x/tokenizer/      tokenizer                 runs/x/tensorboard/   TensorBoard events

The same command continues a killed run from its newest checkpoint, to the same final parameters: every batch, random
number and decision is a function of the settings and the checkpoint.
"""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.checkpoints.frozen_source import KEY, FrozenSource, is_hub_name, model_folder
from longshot_jax.checkpoints.initialize import (
    Difference,
    abstract_reasoner,
    build_reasoner,
    copied_rows,
    frozen_source,
    other_layout,
    trained_before,
)
from longshot_jax.checkpoints.run_folder import check_same_config, prepare_workdir, write_config
from longshot_jax.checkpoints.saved_reasoner import CODE, DATA, TRAINED_ON
from longshot_jax.config import RunConfig, parse_config
from longshot_jax.config.declarations import flatten
from longshot_jax.curriculum.batch import thoughtless_problems, unfitting_steps
from longshot_jax.curriculum.loop import CurriculumLoop
from longshot_jax.data.own import OwnCodeError, own_grader
from longshot_jax.data.run_tokenizer import build_tokenizer, foreign_tokenizer, store_tokenizer
from longshot_jax.data.sources import build_layout, check_problems, file_fingerprints, own_code, read_problems
from longshot_jax.distributed import on_primary
from longshot_jax.errors import UserError
from longshot_jax.files import has_folder, local_path
from longshot_jax.model.huggingface.weights import check_weights
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import make_mesh
from longshot_jax.ppo.loop import PPOLoop
from longshot_jax.ppo.rewards import check_rewards
from longshot_jax.tables import by_name, text_table
from longshot_jax.training.context import RunContext
from longshot_jax.training.tensorboard import RunWriter
from longshot_jax.training.weights_and_biases import weights_and_biases

# Settings that a continued run may change: they affect neither parameters nor the content of a checkpoint.
_MAY_CHANGE = ("evaluation", "checkpoint", "mesh", "logger")
_BEST = "final/best_accuracy"


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
      workdir: run folder.
      best_step, best_accuracy: step and validation accuracy of the best checkpoint; None without an evaluation.
      phases: of each phase, `updates`, `sequences` read by them, `seconds`, and the final `accuracy`.
      seconds: duration over all starts of the run.
    """

    workdir: Path
    best_step: int | None
    best_accuracy: float | None
    phases: dict[str, dict[str, float]]
    seconds: float


def train(run: RunConfig, workdir: str | Path, stream: Any = None) -> RunResult:
    """Runs or continues all phases of a run and prints a summary.

    Args:
      workdir: run folder, created if missing.
      stream: text stream for progress and summary; None is standard error.

    Raises:
      UserError: anything that the user can fix, usually before training starts.
      Preempted: SIGTERM was received and the state is saved.
    """
    workdir = local_path(workdir, "--workdir")
    mesh = make_mesh(run.mesh)
    # Checks all three before anything is fetched or written. A run without checkpoints is a new one.
    may_go_on, _, _ = (has_folder(workdir / name) for name in ("checkpoints", "tensorboard", "tokenizer"))
    folder = None if may_go_on else model_folder(run)  # a checkpoint has what it needs of it
    problems = read_problems(run, lambda text: _note(text, stream))
    data = file_fingerprints(run, problems)
    with ExitStack() as stack:
        lock = on_primary(lambda: prepare_workdir(workdir))
        if lock is not None:
            stack.enter_context(lock)
        metadata = _newest_metadata(workdir)
        source = backbone = None
        if metadata is None and may_go_on:
            folder = model_folder(run)
        if metadata is not None:
            run, source = _continued(run, data, workdir, metadata, lambda text: _note(text, stream))
            backbone = LlamaConfig.from_json(metadata["backbone"])
        tokenizer = build_tokenizer(run, workdir, problems.train, folder, resumed=metadata is not None)
        if metadata is None and (foreign := foreign_tokenizer(run, tokenizer, folder)):
            _note(f"warning: {foreign}.", stream)
        if metadata is None and (layout_before := other_layout(run, folder)):
            _note(f"warning: {layout_before}.", stream)
        layout = build_layout(run, tokenizer)
        problems = check_problems(run, layout, problems)
        if "curriculum" in run.phases:
            for told in (
                unfitting_steps(problems.train, run.curriculum, layout, run.thoughts.joined),
                thoughtless_problems(problems.train, run.curriculum),
            ):
                if told:
                    _note(f"warning: {told}.", stream)
        grade = own_grader(run.data.grader, problems.train)
        if "ppo" in run.phases:
            check_rewards(run, problems.train, lambda text: _note(text, stream))
        abstract = abstract_reasoner(run, tokenizer, mesh, folder, backbone)
        log = stack.enter_context(weights_and_biases(run, workdir))
        if folder is not None and metadata is None:
            check_weights(folder)
        # Written after all checks, so a refused run leaves nothing behind.
        on_primary(lambda: write_config(workdir, asdict(run)))
        if metadata is None or not (workdir / "tokenizer").is_dir():
            on_primary(lambda: store_tokenizer(tokenizer, workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir, run.checkpoint.keep_last, run.checkpoint.keep_best))
        _warn_of_length(run, abstract.backbone, stream)
        resumed_from = metadata["step"] if metadata else None
        writer = stack.enter_context(RunWriter(workdir / "tensorboard", resumed_from, log))
        writer.hyperparameters(asdict(run), [*map(_final_accuracy, run.phases), _BEST])
        before = trained_before(run, abstract, folder) if metadata is None else metadata.get(TRAINED_ON, ())
        context = RunContext(
            *(run, abstract, layout, problems, mesh, checkpoints, writer, stream, source),
            grade=grade,
            code=own_code(run),
            data=data,
            trained_on=tuple(dict.fromkeys([*before, run.data.train])),
        )
        stack.enter_context(context.preemption)
        first = 0
        if metadata is not None:
            context.seconds_before, context.finished = metadata["seconds"], metadata["finished"]
            best = tuple(metadata["best"]) if metadata["best"] else None
            lost = best is not None and run.checkpoint.keep_best and best[1] not in checkpoints.steps
            context.best = checkpoints.best if lost else best
            first = run.phases.index(metadata["phase"])
        # Create all loops first, since they check the settings of their phases.
        loops = [PPOLoop(context) if phase == "ppo" else CurriculumLoop(context, phase) for phase in run.phases[first:]]
        params = None
        if metadata is None:
            rows = copied_rows(folder, tokenizer)
            params, difference = build_reasoner(run, abstract, folder, rows)
            _note_difference(difference, run.initialize_from or str(folder), stream)
            context.frozen_source = frozen_source(run, folder, params, rows)
        step = 0
        for phase in run.phases[first:]:
            try:
                params, step = loops.pop(0).run(params, metadata, step)
            except OwnCodeError as error:
                raise UserError(f"{error}; {context.kept()}.") from None
            metadata, reached = None, context.finished[phase]
            _note(f"{phase}: accuracy {reached['accuracy']:.1%} after {reached['updates']:,} updates", stream)
        checkpoints.wait()
        checkpoints.remove_surplus()
        best_accuracy, best_step = checkpoints.best or (None, None)
        result = RunResult(workdir, best_step, best_accuracy, context.finished, context.seconds)
        _report(context, result)
    return result


def _note(text: str, stream: Any) -> None:
    """Prints a line on the first process."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr if stream is None else stream, flush=True)


def _warn_of_length(run: RunConfig, backbone: LlamaConfig, stream: Any) -> None:
    longest, context_length = run.longest_sequence, backbone.max_position_embeddings
    if longest > context_length:
        _note(
            f"warning: prompt, thoughts and answer may take {longest} positions, and the model is made for {context_length} "
            "(max_position_embeddings): beyond them it has not been trained. Lower config.data.prompt_length, "
            "config.data.answer_length, config.ppo.answer_length or the number of thoughts.",
            stream,
        )


def _note_difference(difference: Difference, start: str, stream: Any) -> None:
    """Says what a run does not take of the trained navigator that it starts from."""
    parts = [("initialised", difference.initialised), ("left out", difference.left_out)]
    said = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)
    if said:
        _note(f"The navigator is not wholly that of {start}. {said[0].upper()}{said[1:]}.", stream)


def _newest_metadata(workdir: Path) -> dict[str, Any] | None:
    """Metadata of the newest complete checkpoint, from which the run continues; None for a new run."""
    metadata = None
    if has_folder(workdir / "checkpoints"):
        with Checkpoints.reader(workdir) as checkpoints:
            metadata = None if checkpoints.latest_step is None else checkpoints.metadata()
    # All processes have looked before the first one creates the folder.
    multihost_utils.sync_global_devices("run folder read")
    return metadata


def _continued(
    run: RunConfig, data: Mapping[str, str], workdir: Path, metadata: dict[str, Any], note: Callable[[str], object]
) -> tuple[RunConfig, FrozenSource | None]:
    """The settings with which a run goes on, and the folder of the frozen weights that its checkpoint does not hold.

    The folder that a run started from may be gone or lie elsewhere: the checkpoint holds what was read there, or the
    frozen weights are looked for at their present place.

    Raises a UserError unless the checkpoint has the same settings, code and data files (`data`); newer settings have their
    defaults there.
    """
    if "config" not in metadata:
        raise UserError(
            f"{workdir} holds converted weights, not a run: name it as config.initialize_from, and choose another "
            "--workdir."
        )
    stored = parse_config(metadata["config"])
    start = "initialize_from" if stored.initialize_from else "model.source"
    moved = (metadata[KEY]["setting"],) if KEY in metadata else ()
    before, now = flatten(stored)[start], flatten(run)[start]
    if before != "scratch" and not _is_folder(before):
        if _is_folder(now):
            moved = (*moved, start)
        elif now == before and (start == "initialize_from" or not is_hub_name(before)):
            # The default of this setting would be read there.
            run = replace(run, thoughts=replace(run.thoughts, normalised=stored.thoughts.normalised))
    check_same_config(workdir, asdict(stored), asdict(run), (*_MAY_CHANGE, *moved))
    if KEY not in metadata and before != now:
        note(f"config.{start} was {before} and is not read again: the checkpoint has all weights.")
    for key, found, what in ((CODE, own_code(run), "code of"), (DATA, data, "problems of")):
        for setting, now in found.items():
            if metadata.get(key, {}).get(setting, now) != now:
                raise UserError(
                    f"the {what} config.{setting} changed since the checkpoint in {workdir}, and the run would end with "
                    f"other parameters: restore them, or start from these weights with --config.initialize_from={workdir} "
                    "and another --workdir."
                )
    return run, FrozenSource.find(metadata, stored, run, workdir)


def _is_folder(named: str) -> bool:
    return os.path.isdir(os.path.expanduser(named))  # False too where it may not be looked at


def _final_accuracy(phase: str) -> str:
    return f"final/{phase}_accuracy"


def _report(context: RunContext, result: RunResult) -> None:
    """Prints the summary table and writes the results to TensorBoard."""
    rows: dict[str, Any] = {name: dict(figures) for name, figures in result.phases.items()}
    metrics = {_final_accuracy(name): figures["accuracy"] for name, figures in result.phases.items()}
    if result.best_accuracy is not None:
        rows[f"best of {context.run.phases[-1]}"] = {"accuracy": result.best_accuracy, "step": result.best_step}
        metrics[_BEST] = result.best_accuracy
    context.writer.results(metrics)
    with context.progress("run", 0, 0, "update") as shown:
        shown.note(text_table(by_name(rows)))
        shown.note(f"{result.workdir}: {result.seconds:.0f} s in all")
