"""The functions that a run compiles and the shapes of their arguments; nothing is allocated."""

from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from longshot_jax.config import RunConfig
from longshot_jax.config.curriculum import has_thoughts
from longshot_jax.config.model import MeshConfig
from longshot_jax.curriculum.batch import CurriculumBatch, StepTexts
from longshot_jax.curriculum.parallel import ParallelBatch
from longshot_jax.curriculum.update import CurriculumPrograms
from longshot_jax.model.decoding import DECODING_RULES
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import axes_of, batch_parts, batch_sharding, make_mesh, on_mesh, replicated
from longshot_jax.ppo.update import PPOPrograms
from longshot_jax.thoughts.reasoner import AbstractReasoner
from longshot_jax.thoughts.rollout import Temperatures
from longshot_jax.thoughts.stopping import Lengths

_SOME_TOKEN = 0  # token ids do not change shapes


@dataclass(frozen=True)
class Program:
    """A function that a phase compiles, with its arguments.

    Attributes:
      name: name in reports.
      function: jitted function; its first argument is the train state.
      arguments: shapes, dtypes and shardings.
      updates: optimizer steps per call; 0 for a rollout.
      cache_positions: positions whose keys and values one device holds at once.
      loop_trips: tokens of the longest answer that it decodes.
      micro_batches: passes whose gradients are summed.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    updates: int
    cache_positions: int
    loop_trips: int = 1
    micro_batches: int = 1

    @property
    def state(self) -> Any:
        """Shapes of the `TrainState`."""
        return self.arguments[0]


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
      name: `text`, `curriculum` or `ppo`.
      batch_key: the setting of the number of problems per batch. batch: its value.
      programs: in the order in which they run.
      micro_batch_key, micro_batch: the setting of the rows of one pass and its value; empty and 0 if it is not set.
      step: of the batch, or of the micro-batch where that is set: multiples of it divide evenly over the devices.
    """

    name: str
    batch_key: str
    batch: int
    step: int
    programs: tuple[Program, ...]
    micro_batch_key: str = ""
    micro_batch: int = 0

    @property
    def rows(self) -> int:
        """What a search for more memory or less changes: the micro-batch where one is set, else the batch."""
        return self.micro_batch or self.batch

    def sizes(self, rows: int) -> tuple[int, int]:
        """Batch and micro-batch nearest to `rows`, not above it, which a run accepts.

        Memory is that of a micro-batch, so where one is set the batch stays, and the micro-batch is a divisor of it;
        beyond the batch both are `rows`.
        """
        if not self.micro_batch:
            return rows, 0
        if rows >= self.batch:
            return rows, rows
        divisors = (size for size in range(rows, 0, -1) if self.batch % size == 0 and size % self.step == 0)
        return self.batch, next(divisors)


def make_phase(run: RunConfig, name: str, backbone: LlamaConfig, mesh: Mesh) -> Phase:
    """A phase as training compiles it; a UserError if the mesh does not divide the batch or the model."""
    return _ppo(run, backbone, mesh) if name == "ppo" else _supervised(run, name, backbone, mesh)


def with_batch(run: RunConfig, name: str, batch: int) -> RunConfig:
    """The run with another number of problems per batch and the same number of micro-batches."""
    if name == "ppo":
        return replace(run, ppo=replace(run.ppo, questions=batch))
    config = getattr(run, name)
    micro = config.micro_batch_size and batch * config.micro_batch_size // config.batch_size
    return replace(run, **{name: replace(config, batch_size=batch, micro_batch_size=micro)})


def with_sizes(run: RunConfig, name: str, batch: int, micro_batch: int) -> RunConfig:
    """The run with what `Phase.sizes` says."""
    run = with_batch(run, name, batch)
    if not micro_batch:
        return run
    return replace(run, **{name: replace(getattr(run, name), micro_batch_size=micro_batch)})


def share_of_one_device(
    run: RunConfig, phase: Phase, place: int, backbone: LlamaConfig, mesh: Mesh
) -> tuple[Program, int]:
    """A program of a phase with the rows of one device, and among how many devices its arithmetic is divided evenly.

    An update's rows are cut along `data` and `fsdp`, and its products along `tensor`; those of a rollout as its copy of the
    weights is placed (`model.decoding`). It is counted, and not run, so attention is plain: that of a GPU would be refused here,
    and hides its arithmetic.
    """
    parts, divided = batch_parts(mesh), mesh.shape["tensor"]
    alone = replace(run, mesh=MeshConfig(), model=replace(run.model, attention="plain"))
    if not phase.programs[place].updates:
        rules = DECODING_RULES[run.mesh.decoding_weights]
        parts = prod(mesh.shape[axis] for axis in on_mesh(mesh, axes_of, rules)(phase.batch, "batch"))
        divided = prod(mesh.shape[axis] for axis in rules.get("heads", ()))
        alone = replace(alone, ppo=replace(alone.ppo, minibatches=1, micro_batches=1))
    alone = with_batch(alone, phase.name, phase.batch // parts)
    return make_phase(alone, phase.name, backbone, make_mesh(alone.mesh)).programs[place], divided


def _opening_length(run: RunConfig) -> int:
    """Number of tokens of `Layout.opening`, if the tokenizer has one token for each of its marks."""
    if run.markers == "coconut":
        return 2 if has_thoughts(run.curriculum.mode) else 0
    return 0 if run.curriculum.mode == "cot" else 1


def _ppo(run: RunConfig, backbone: LlamaConfig, mesh: Mesh) -> Phase:
    config, length = run.ppo, run.data.prompt_length
    opening = (_SOME_TOKEN,) * _opening_length(run)
    programs = PPOPrograms(run, AbstractReasoner.of(run, backbone, mesh), mesh, opening, (_SOME_TOKEN,))
    questions, trajectories = config.questions, config.num_trajectories
    place = partial(_placed, mesh)
    bounds = place((questions, trajectories), jnp.int32)
    scalar = place((), jnp.float32)
    inputs = (
        programs.template,
        place((questions, length), jnp.int32),
        place((questions, length), jnp.bool_),
        Lengths(bounds, bounds),
        Temperatures(scalar, scalar, scalar),
        place((), jnp.int32),
    )
    rollout, recorded, _ = jax.eval_shape(programs.rollout, *inputs)
    experience = jax.tree.map(lambda x: place(x.shape, x.dtype), (rollout, recorded))
    rewards = tuple(place((questions, trajectories, *rest), jnp.float32) for rest in ((), (config.max_thoughts + 1,)))
    answer = len(opening) + run.sampled_length
    parts = config.minibatches * config.micro_batches
    rows = questions // batch_parts(mesh)
    before = length + trajectories * (bool(run.thoughts.roles) + config.max_thoughts)
    return Phase(
        "ppo",
        "config.ppo.questions",
        questions,
        parts * batch_parts(mesh),
        (
            Program(
                "rollout",
                programs.rollout,
                inputs,
                updates=0,
                cache_positions=rows * (before + run.sampled_answers * answer),
                loop_trips=run.sampled_length,
            ),
            Program(
                "update",
                programs.update,
                (programs.template, *experience, *rewards),
                updates=config.epochs * config.minibatches,
                cache_positions=rows // parts * (before + run.sampled_answers * (answer - 1)),
                micro_batches=config.micro_batches,
            ),
        ),
    )


def _supervised(run: RunConfig, name: str, backbone: LlamaConfig, mesh: Mesh) -> Phase:
    config, data, place = run.supervised(name), run.data, partial(_placed, mesh)
    abstract = AbstractReasoner.of(run, backbone, mesh)
    programs = CurriculumPrograms(run, abstract, mesh, _SOME_TOKEN, limit=1, phase=name)
    rows, joined, guidance = config.batch_size, run.thoughts.joined, config.guidance
    prompt, answer = (rows, data.prompt_length), (rows, data.answer_length)
    prompts = place(prompt, jnp.int32), place(prompt, jnp.bool_)
    steps = (rows, max(joined, 1) * config.max_thoughts, data.answer_length if config.c_thought else 1)
    read = StepTexts(place(steps, jnp.int32), place(steps, jnp.bool_), place(steps[:2], jnp.bool_))
    if joined:
        each, text = (rows, joined), (rows, joined, data.answer_length)
        tokens = [place(shape, dtype) for shape in (text, answer) for dtype in (jnp.int32, jnp.bool_)]
        batch = ParallelBatch(*prompts, place(each, jnp.int32), place(each, jnp.bool_), *tokens)
        batch = replace(batch, steps=read if guidance.reads_steps else None)
    else:
        batch = CurriculumBatch(
            *prompts,
            num_thoughts=place((rows,), jnp.int32),
            tokens=place(answer, jnp.int32),
            token_mask=place(answer, jnp.bool_),
            loss_mask=place(answer, jnp.bool_),
            answer_starts=place((rows,), jnp.int32),
        )
        batch = replace(
            batch,
            text=batch if guidance.distillation else None,
            hidden=place((rows,), jnp.bool_) if config.question_hidden else None,
            steps=read if guidance.reads_steps else None,
            noise_seeds=place((rows,), jnp.uint32) if config.variational.kl else None,
            roles=place((rows,), jnp.int32) if run.thoughts.roles else None,
        )
    micro = config.micro_batch_size or rows
    after = bool(run.thoughts.roles) + config.max_thoughts + data.answer_length - 1
    positions = data.prompt_length + max(joined, 1) * after + (data.answer_length if joined else 0)
    return Phase(
        name,
        f"config.{name}.batch_size",
        rows,
        batch_parts(mesh),
        (
            Program(
                f"{name} update",
                programs.update,
                (programs.template, batch),
                updates=1,
                cache_positions=micro // batch_parts(mesh) * positions,
                micro_batches=rows // micro,
            ),
        ),
        f"config.{name}.micro_batch_size" if config.micro_batch_size else "",
        config.micro_batch_size,
    )


def _placed(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> Any:
    """A shape on a mesh: rows are sharded, scalars replicated."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh) if shape else replicated(mesh))


def bytes_on_one_device(tree: Any) -> int:
    """Bytes on one device of arrays given by shape, dtype and sharding."""

    def held(leaf: Any) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return prod(shape) * jax.eval_shape(jax.random.key_data, leaf).size * 4
        return prod(shape) * leaf.dtype.itemsize

    return sum(held(leaf) for leaf in jax.tree.leaves(tree))
