"""The functions that a run compiles, with the shapes they are called with: nothing is allocated."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from longshot_jax.config import MeshConfig, RunConfig
from longshot_jax.data.examples import has_thoughts
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import batch_parts, batch_sharding, make_mesh, replicated
from longshot_jax.thoughts.rollout import Lengths, Temperatures
from longshot_jax.training.curriculum import CurriculumBatch
from longshot_jax.training.curriculum_programs import CurriculumPrograms, max_curriculum_thoughts
from longshot_jax.training.ppo_programs import PPOPrograms
from longshot_jax.training.setup import blueprint_of

_SOME_TOKEN = 0  # which tokens the markers are changes no shape


@dataclass(frozen=True)
class Program:
    """A compiled function of a stage and what it is called with.

    Attributes:
      name: of the function.
      function: jitted; its first argument is the train state, which it is given or reads.
      arguments: shapes, dtypes and shardings.
      updates: optimizer steps of one call, 0 where it trains nothing.
      cache_positions: positions whose keys and values it holds at once, on one device.
      loop_trips: tokens of the longest answer that it decodes.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    updates: int
    cache_positions: int
    loop_trips: int = 1

    @property
    def state(self) -> Any:
        """Shapes of the `TrainState`."""
        return self.arguments[0]


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      name: `curriculum` or `ppo`.
      batch_key: the setting that says how many problems a batch has; batch: its value.
      batch_step: what the batch must be a multiple of.
      programs: in the order in which they run.
    """

    name: str
    batch_key: str
    batch: int
    batch_step: int
    programs: tuple[Program, ...]


def make_stage(run: RunConfig, name: str, llama: LlamaConfig, mesh: Mesh) -> Stage:
    """A stage of the run as training would compile it; a UserError where the mesh does not divide something."""
    makers: dict[str, Callable[..., Stage]] = {"ppo": _ppo, "curriculum": _curriculum}
    return makers[name](run, llama, mesh)


def with_batch(run: RunConfig, name: str, batch: int) -> RunConfig:
    """The run with another number of problems a batch, and as many micro-batches as before."""
    if name == "ppo":
        return replace(run, ppo=replace(run.ppo, questions=batch))
    config = run.curriculum
    micro = config.micro_batch_size and batch * config.micro_batch_size // config.batch_size
    return replace(run, curriculum=replace(config, batch_size=batch, micro_batch_size=micro))


def share_of_one_device(run: RunConfig, stage: Stage, llama: LlamaConfig, mesh: Mesh) -> Stage:
    """What the devices that share no batch compute together: the stage on one device with its part of the batch.

    `tensor` divides what is left evenly: heads, widths and vocabulary are cut along it.
    """
    alone = replace(with_batch(run, stage.name, stage.batch // batch_parts(mesh)), mesh=MeshConfig())
    return make_stage(alone, stage.name, llama, make_mesh(alone.mesh))


def _opening_length(run: RunConfig) -> int:
    """Tokens of `Layout.opening`, as a tokenizer writes it that has a token for each of its marks."""
    if run.markers == "coconut":
        return 2 if has_thoughts(run.curriculum.mode) else 0
    return 0 if run.curriculum.mode == "cot" else 1


def _ppo(run: RunConfig, llama: LlamaConfig, mesh: Mesh) -> Stage:
    config, length = run.ppo, run.data.prompt_length
    opening = (_SOME_TOKEN,) * _opening_length(run)
    programs = PPOPrograms(run, blueprint_of(run, llama, mesh), mesh, opening, _SOME_TOKEN)
    questions, trajectories = config.questions, config.num_trajectories
    place = _Places(mesh)
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
    rewards = tuple(
        place((questions, trajectories, *rest), jnp.float32) for rest in ((), (config.max_steps + 1,))
    )
    answer = len(opening) + programs.answer_length
    parts = config.minibatches * config.micro_batches
    rows = questions // batch_parts(mesh)
    return Stage(
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
                cache_positions=rows * (length + trajectories * (config.max_steps + answer)),
                loop_trips=programs.answer_length,
            ),
            Program(
                "update",
                programs.update,
                (programs.template, *experience, *rewards),
                updates=config.epochs * config.minibatches,
                cache_positions=rows // parts * (length + trajectories * (config.max_steps + answer - 1)),
            ),
        ),
    )


def _curriculum(run: RunConfig, llama: LlamaConfig, mesh: Mesh) -> Stage:
    config, data, place = run.curriculum, run.data, _Places(mesh)
    programs = CurriculumPrograms(run, blueprint_of(run, llama, mesh), mesh, _SOME_TOKEN, limit=1)
    rows = config.batch_size
    prompt, answer = (rows, data.prompt_length), (rows, data.answer_length)
    batch = CurriculumBatch(
        prompt=place(prompt, jnp.int32),
        prompt_mask=place(prompt, jnp.bool_),
        thought_counts=place((rows,), jnp.int32),
        tokens=place(answer, jnp.int32),
        token_mask=place(answer, jnp.bool_),
        loss_mask=place(answer, jnp.bool_),
    )
    micro = config.micro_batch_size or rows
    positions = data.prompt_length + max_curriculum_thoughts(config) + data.answer_length - 1
    return Stage(
        "curriculum",
        "config.curriculum.batch_size",
        rows,
        rows // micro * batch_parts(mesh),
        (
            Program(
                "curriculum update",
                programs.update,
                (programs.template, batch),
                updates=1,
                cache_positions=micro // batch_parts(mesh) * positions,
            ),
        ),
    )


class _Places:
    """Shapes on a mesh: rows cut, scalars whole."""

    def __init__(self, mesh: Mesh):
        self._rows, self._whole = batch_sharding(mesh), replicated(mesh)

    def __call__(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._rows if shape else self._whole)


def bytes_on_one_device(tree: Any) -> int:
    """What one device holds of arrays that are given by shape, dtype and sharding."""

    def held(leaf: Any) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return prod(shape) * jax.eval_shape(jax.random.key_data, leaf).size * 4
        return prod(shape) * leaf.dtype.itemsize

    return sum(held(leaf) for leaf in jax.tree.leaves(tree))
