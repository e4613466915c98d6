"""What is measured: the functions that training compiles, on random weights and full-length random questions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from longshot_jax.benchmarks.timing import compile_timed, temporary_bytes
from longshot_jax.config import RunConfig
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import make_mesh, place_batch
from longshot_jax.planning.arithmetic import count
from longshot_jax.thoughts.rollout import Lengths, Temperatures, sample_rollout
from longshot_jax.training.curriculum import CurriculumBatch
from longshot_jax.training.curriculum_programs import CurriculumPrograms, max_curriculum_thoughts
from longshot_jax.training.ppo_programs import PPOPrograms
from longshot_jax.training.setup import blueprint_of, random_weights

OPENING = (0,)  # which token it is changes nothing
NO_TOKEN = -1  # as the end token: no answer ends, so that every row decodes its whole length


@dataclass
class Measured:
    """A compiled function of the project, ready to be called again and again.

    Attributes:
      call: runs it once.
      flops: of its matrix products in one call, counted by the planner.
      compile_seconds: that compiling took.
      temporary_bytes: besides inputs and outputs.
    """

    call: Callable[[], Any]
    flops: float
    compile_seconds: float
    temporary_bytes: int


def with_shape(
    run: RunConfig,
    *,
    questions: int | None = None,
    trajectories: int | None = None,
    thoughts: int | None = None,
    prompt: int | None = None,
    answer: int | None = None,
) -> RunConfig:
    """The run with another B, N, T, S or A, and every question in one micro-batch where B is given."""
    ppo, curriculum, data = run.ppo, run.curriculum, run.data
    if questions is not None:
        ppo = replace(ppo, questions=questions, minibatches=1, micro_batches=1)
        curriculum = replace(curriculum, batch_size=questions, micro_batch_size=0)
    if trajectories is not None:
        ppo = replace(ppo, num_trajectories=trajectories)
    if thoughts is not None:
        ppo = replace(ppo, max_steps=thoughts, min_steps=0, target_steps=(), target_iterations=0)
        curriculum = replace(curriculum, c_thought=1, max_latent_stage=thoughts)
    if prompt is not None:
        data = replace(data, prompt_length=prompt)
    if answer is not None:
        data, ppo = replace(data, answer_length=answer), replace(ppo, answer_length=answer)
    return replace(run, ppo=ppo, curriculum=curriculum, data=data)


def _compiled(jitted: Any, arguments: tuple[Any, ...], loop_trips: int = 1) -> tuple[Any, Measured]:
    flops = count(jitted, *arguments, loop_trips=loop_trips).flops
    compiled, seconds = compile_timed(jitted, *arguments)
    return compiled, Measured(lambda: compiled(*arguments), flops, seconds, temporary_bytes(compiled))


def _with_state(jitted: Any, state: Any, arguments: tuple[Any, ...]) -> Measured:
    """An update, whose state is given away at each call and taken from its result."""
    compiled, measured = _compiled(jitted, (state, *arguments))
    held = [state]

    def call() -> Any:
        held[0], metrics = compiled(held[0], *arguments)
        return metrics

    measured.call = call
    return measured


def random_questions(run: RunConfig, llama: LlamaConfig, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [B, S] without padding, and their mask."""
    shape = (rows, run.data.prompt_length)
    return np.random.default_rng(0).integers(0, llama.vocab_size, shape).astype(np.int32), np.ones(
        shape, bool
    )


def curriculum_step(run: RunConfig, llama: LlamaConfig) -> Measured:
    """One supervised update with as many thoughts as the curriculum ever has."""
    mesh = make_mesh(run.mesh)
    blueprint = blueprint_of(run, llama, mesh)
    programs = CurriculumPrograms(run, blueprint, mesh, pause_token=0, limit=1000)
    rows, thoughts = run.curriculum.batch_size, max_curriculum_thoughts(run.curriculum)
    prompt, mask = random_questions(run, llama, rows)
    answers = np.random.default_rng(1).integers(0, llama.vocab_size, (rows, run.data.answer_length))
    real = np.ones(answers.shape, bool)
    counts = np.full(rows, thoughts, np.int32)
    batch = CurriculumBatch(prompt, mask, counts, answers.astype(np.int32), real, real)  # pyright: ignore[reportArgumentType]
    state = programs.start(random_weights(run, blueprint))
    return _with_state(programs.update, state, (place_batch(batch, mesh),))


def policy(run: RunConfig, llama: LlamaConfig, update: bool = True) -> tuple[Measured, Measured | None]:
    """A rollout of PPO with every thought and every token of the answer, and the update on what it gives."""
    mesh, config = make_mesh(run.mesh), run.ppo
    blueprint = blueprint_of(run, llama, mesh)
    programs = PPOPrograms(run, blueprint, mesh, OPENING, NO_TOKEN)
    shape = (config.questions, config.num_trajectories)
    most = np.full(shape, config.max_steps, np.int32)
    inputs = place_batch(
        (*random_questions(run, llama, config.questions), Lengths(most, most)),  # pyright: ignore[reportArgumentType]
        mesh,
    )
    warm = Temperatures(*(np.float32(value) for value in (0.2, 1.0, 1.0)))  # pyright: ignore[reportArgumentType]
    state = programs.start(random_weights(run, blueprint))
    trips = programs.answer_length
    compiled, rollout = _compiled(programs.rollout, (state, *inputs, warm, np.int32(0)), trips)
    if not update:
        return rollout, None
    sampled, recorded, _ = compiled(state, *inputs, warm, np.int32(0))
    rewards = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    costs = np.zeros((*shape, config.max_steps + 1), np.float32)
    experience = (sampled, recorded, *place_batch((rewards, costs), mesh))
    rollout.call = lambda: None  # its state is given away to the update
    return rollout, _with_state(programs.update, state, experience)


def generation(run: RunConfig, llama: LlamaConfig, questions: int) -> Measured:
    """Greedy answers with all thoughts, as an evaluation decodes them."""
    blueprint = blueprint_of(run, llama, make_mesh(run.mesh))
    weights = random_weights(run, blueprint)
    prompt, mask = random_questions(run, llama, questions)
    most = jnp.full((questions, 1), run.ppo.max_steps, jnp.int32)
    length = run.ppo.answer_length or run.data.answer_length

    @jax.jit
    def answers(weights: nnx.State, prompt: Any, mask: Any) -> Any:
        rollout, _ = sample_rollout(
            nnx.merge(blueprint.graph, weights),
            prompt,
            mask,
            None,
            Lengths(most, most),
            Temperatures(*map(jnp.float32, (0.0, 1.0, 1.0))),
            jax.random.split(jax.random.key(0), questions),
            num_trajectories=1,
            max_thoughts=run.ppo.max_steps,
            answer_length=length,
            opening=OPENING,
            end_token=NO_TOKEN,
            scaling="summed",
            greedy=True,
        )
        return rollout.tokens

    return _compiled(answers, (weights, jnp.asarray(prompt), jnp.asarray(mask)), length)[1]
