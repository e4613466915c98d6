"""The measured functions, as training compiles them, on random parameters and full-length random questions."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from longshot_jax.config import RunConfig
from longshot_jax.config.curriculum import GuidanceConfig, VariationalConfig
from longshot_jax.curriculum.batch import CurriculumBatch
from longshot_jax.curriculum.update import CurriculumPrograms
from longshot_jax.model.decoding import decoding_jit
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import make_mesh, place_batch
from longshot_jax.planning.arithmetic import count
from longshot_jax.ppo.update import PPOPrograms
from longshot_jax.thoughts.reasoner import AbstractReasoner, decoding_reasoner
from longshot_jax.thoughts.rollout import RolloutShape, Temperatures, make_temperatures, sample_rollout
from longshot_jax.thoughts.stopping import Lengths

OPENING = (0,)  # an arbitrary token
NO_TOKEN = -1  # as end token, so that no answer ends early


@dataclass
class Measured:
    """A compiled function.

    Attributes:
      call: runs it once; may be repeated.
      flops: FLOPs of its matrix products per call, counted by the planner.
      compile_seconds: seconds of compilation.
      temporary_bytes: memory besides inputs and outputs as the compiler reports it, 0 if it does not.
      text: the compiled program, as XLA writes it.
    """

    call: Callable[[], Any]
    flops: float
    compile_seconds: float
    temporary_bytes: int
    text: Callable[[], str]


def with_shape(
    run: RunConfig,
    *,
    questions: int | None = None,
    trajectories: int | None = None,
    thoughts: int | None = None,
    prompt: int | None = None,
    answer: int | None = None,
) -> RunConfig:
    """The run with other sizes B, N, T, S or A; a given B is one minibatch without micro-batches."""
    ppo, curriculum, data = run.ppo, run.curriculum, run.data
    if questions is not None:
        ppo = replace(ppo, questions=questions, minibatches=1, micro_batches=1)
        curriculum = replace(curriculum, batch_size=questions, micro_batch_size=0)
    if trajectories is not None:
        ppo = replace(ppo, num_trajectories=trajectories)
    if thoughts is not None:
        ppo = replace(ppo, max_thoughts=thoughts, min_thoughts=0, target_thoughts=(), target_iterations=0)
        curriculum = replace(curriculum, c_thought=1, thought_slots=0, max_latent_stage=thoughts)
    if prompt is not None:
        data = replace(data, prompt_length=prompt)
    if answer is not None:
        data, ppo = replace(data, answer_length=answer), replace(ppo, answer_length=answer)
    return replace(run, ppo=ppo, curriculum=curriculum, data=data)


def _compiled(jitted: Any, arguments: tuple[Any, ...], loop_trips: int = 1) -> tuple[Any, Measured]:
    flops = count(jitted, *arguments, loop_trips=loop_trips).flops
    lowered, start = jitted.lower(*arguments), time.perf_counter()
    compiled = lowered.compile()
    seconds, memory = time.perf_counter() - start, compiled.memory_analysis()
    temporary = memory.temp_size_in_bytes if memory else 0
    return compiled, Measured(lambda: compiled(*arguments), flops, seconds, temporary, compiled.as_text)


def _with_state(jitted: Any, held: list[Any], arguments: tuple[Any, ...]) -> Measured:
    """An update of the state `held[0]`, which is donated to each call and replaced by its result."""
    compiled, measured = _compiled(jitted, (held[0], *arguments))

    def call() -> Any:
        held[0], metrics = compiled(held[0], *arguments)
        return metrics

    measured.call = call
    return measured


def random_questions(run: RunConfig, backbone: LlamaConfig, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [B, S] without padding, and their mask."""
    shape = (rows, run.data.prompt_length)
    return np.random.default_rng(0).integers(0, backbone.vocab_size, shape).astype(np.int32), np.ones(shape, bool)


def curriculum_step(run: RunConfig, backbone: LlamaConfig) -> Measured:
    """One supervised update with the curriculum's largest number of thoughts, without guidance; of single trajectories."""
    alone = {"guidance": GuidanceConfig(), "question_hidden": 0.0, "variational": VariationalConfig()}
    run = replace(run, curriculum=replace(run.curriculum, **alone))
    mesh = make_mesh(run.mesh)
    abstract = AbstractReasoner.of(run, backbone, mesh)
    programs = CurriculumPrograms(run, abstract, mesh, latent_token=0, limit=1000)
    rows, thoughts = run.curriculum.batch_size, run.curriculum.max_thoughts
    prompt, mask = random_questions(run, backbone, rows)
    answers = np.random.default_rng(1).integers(0, backbone.vocab_size, (rows, run.data.answer_length))
    real = np.ones(answers.shape, bool)
    counts = np.full(rows, thoughts, np.int32)
    batch = CurriculumBatch(prompt, mask, counts, answers.astype(np.int32), real, real)  # pyright: ignore[reportArgumentType]
    state = programs.start(abstract.random_params(run))
    return _with_state(programs.update, [state], (place_batch(batch, mesh),))


class Policy:
    """PPO's rollouts and updates of several shapes, which share one state: a large model's fits a device only once.

    Args:
      run, backbone: make the state. The run of a shape may differ in sizes (`with_shape`) and in `ppo.gradient`.
    """

    def __init__(self, run: RunConfig, backbone: LlamaConfig):
        self._backbone, self._mesh = backbone, make_mesh(run.mesh)
        self._abstract = AbstractReasoner.of(run, backbone, self._mesh)
        self._held = [self._programs(run).start(self._abstract.random_params(run))]
        self._rollouts: dict[tuple[int, ...], tuple[Any, tuple[Any, ...], Measured]] = {}

    def _programs(self, run: RunConfig) -> PPOPrograms:
        return PPOPrograms(run, self._abstract, self._mesh, OPENING, (NO_TOKEN,))

    def _rollout(self, run: RunConfig) -> tuple[Any, tuple[Any, ...], Measured]:
        """The compiled rollout, its arguments after the state, and the measured function; each shape compiles once."""
        config = run.ppo
        shape = (config.questions, config.num_trajectories)
        sizes = (*shape, config.max_thoughts, run.data.prompt_length, run.sampled_length)
        if sizes not in self._rollouts:
            most = np.full(shape, config.max_thoughts, np.int32)
            questions = random_questions(run, self._backbone, config.questions)
            inputs = place_batch((*questions, Lengths(most, most)), self._mesh)  # pyright: ignore[reportArgumentType]
            warm = Temperatures(*(np.float32(value) for value in (0.2, 1.0, 1.0)))  # pyright: ignore[reportArgumentType]
            arguments, held = (*inputs, warm, np.int32(0)), self._held
            compiled, measured = _compiled(self._programs(run).rollout, (held[0], *arguments), run.sampled_length)
            measured.call = lambda: compiled(held[0], *arguments)
            self._rollouts[sizes] = compiled, arguments, measured
        return self._rollouts[sizes]

    def rollout(self, run: RunConfig) -> Measured:
        """A rollout with all thoughts and full-length answers."""
        return self._rollout(run)[2]

    def update(self, run: RunConfig) -> Measured:
        """The update on such a rollout, with random rewards."""
        compiled, arguments, _ = self._rollout(run)
        sampled, recorded, _ = compiled(self._held[0], *arguments)
        shape = (run.ppo.questions, run.ppo.num_trajectories)
        rewards = np.random.default_rng(2).normal(size=shape).astype(np.float32)
        costs = np.zeros((*shape, run.ppo.max_thoughts + 1), np.float32)
        experience = (sampled, recorded, *place_batch((rewards, costs), self._mesh))
        return _with_state(self._programs(run).update, self._held, experience)


def generation(run: RunConfig, backbone: LlamaConfig, questions: int) -> Measured:
    """Greedy answers with all thoughts, as in an evaluation; of single trajectories."""
    mesh = make_mesh(run.mesh)
    abstract = AbstractReasoner.of(run, backbone, mesh)
    params = abstract.random_params(run)
    prompt, mask = random_questions(run, backbone, questions)
    most = jnp.full((questions, 1), run.ppo.max_thoughts, jnp.int32)
    length = run.sampled_length
    shape = RolloutShape(1, run.ppo.max_thoughts, length, OPENING, (NO_TOKEN,))

    def answers(params: nnx.State, prompt: Any, mask: Any) -> Any:
        reasoner = decoding_reasoner(abstract.graphdef, params)
        keys = jax.random.split(jax.random.key(0), questions)
        rollout, _ = sample_rollout(
            reasoner, prompt, mask, None, Lengths(most, most), make_temperatures(), keys, shape, greedy=True
        )
        return rollout.tokens

    jitted = decoding_jit(answers, mesh, run.mesh.decoding_weights)
    return _compiled(jitted, (params, jnp.asarray(prompt), jnp.asarray(mask)), length)[1]
