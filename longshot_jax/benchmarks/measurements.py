"""The measurements of `scripts/bench.py`, each a function of the run's shape that gives figures by name."""

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from longshot_jax.benchmarks import torch_coconut
from longshot_jax.benchmarks.timing import copy, fitted_exponent, interleaved, matrix_product
from longshot_jax.benchmarks.workload import (
    Measured,
    curriculum_step,
    generation,
    policy,
    random_questions,
    with_shape,
)
from longshot_jax.config import RunConfig
from longshot_jax.model.huggingface import load_weights, save_weights
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import make_mesh
from longshot_jax.training.curriculum import CurriculumBatch, curriculum_sums
from longshot_jax.training.curriculum_programs import max_curriculum_thoughts
from longshot_jax.training.setup import blueprint_of, random_weights

Figures = dict[str, Any]
WIDE = 1024  # width at which an update is held against the peak: below it no machine reaches its own


@dataclass(frozen=True)
class Bench:
    """What all measurements share.

    Attributes:
      run, llama: shape; weights are random.
      repetitions: turns of each timing; seconds: after which a timing takes no further turn.
      clock: of `timing.CLOCKS`.
      generated: questions of one batch of greedy answers.
      long_prompt: tokens of the prompt in the comparison of N = 5 with N = 1.
      growth: factors by which a size grows along a curve.
      depths: layers of the two steps whose compilation is compared.
    """

    run: RunConfig
    llama: LlamaConfig
    repetitions: int = 7
    seconds: float = 60.0
    clock: str = "wall"
    generated: int = 64
    long_prompt: int = 256
    growth: tuple[int, ...] = (1, 2, 4, 8)
    depths: tuple[int, int] = (4, 32)

    def times(self, functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """Interleaved medians."""
        return interleaved(functions, self.repetitions, self.seconds, self.clock)

    @property
    def answer_length(self) -> int:
        """A of PPO's answers."""
        return self.run.ppo.answer_length or self.run.data.answer_length

    @property
    def with_torch(self) -> bool:
        """Whether the baseline can be run beside: on a CPU, with PyTorch installed."""
        return jax.default_backend() == "cpu" and torch_coconut.installed()

    def baseline(self, thoughts: int, answer: int) -> torch_coconut.TorchCoconut:
        """The published scheme at this shape."""
        return torch_coconut.TorchCoconut(self.llama, self.run.data.prompt_length, thoughts, answer)


def machine(bench: Bench) -> Figures:
    """Where this was measured."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "jax": jax.__version__,
        "repetitions": bench.repetitions,
        "clock": bench.clock,
        "compute_dtype": bench.run.model.compute_dtype,
    }


def peaks(bench: Bench) -> Figures:
    """Matrix products at the model's width and at 1,024, and a copy: the ceilings of this machine, just now."""
    dtype = jnp.dtype(bench.run.model.compute_dtype)
    own, own_flops = matrix_product(bench.llama.hidden_size, dtype)
    wide, wide_flops = matrix_product(WIDE, dtype)
    copying, moved = copy(64)
    seconds = bench.times({"own": own, "wide": wide, "copy": copying})
    return {
        "matrix_flops_per_second": own_flops / seconds["own"],
        "wide_matrix_flops_per_second": wide_flops / seconds["wide"],
        "copy_bytes_per_second": moved / seconds["copy"],
    }


def _costs(measured: Measured, seconds: float, peak: float) -> Figures:
    return {
        "seconds": seconds,
        "flops_per_second": measured.flops / seconds,
        "fraction_of_peak": measured.flops / seconds / peak,
        "compile_seconds": measured.compile_seconds,
        "temporary_bytes": measured.temporary_bytes,
    }


def measure_curriculum(bench: Bench, peak: float) -> Figures:
    """One supervised update, beside the published scheme's."""
    run = bench.run
    rows, thoughts = run.curriculum.batch_size, max_curriculum_thoughts(run.curriculum)
    ours = curriculum_step(run, bench.llama)
    functions = {"ours": ours.call}
    if bench.with_torch:
        functions["torch"] = bench.baseline(thoughts, run.data.answer_length).step(rows)
    seconds = bench.times(functions)
    positions = run.data.prompt_length + thoughts + run.data.answer_length
    return {
        "examples_per_second": rows / seconds["ours"],
        "thoughts_per_second": rows * thoughts / seconds["ours"],
        "tokens_per_second": rows * positions / seconds["ours"],
        "ratio_to_torch": seconds["torch"] / seconds["ours"] if "torch" in seconds else None,
        "torch_examples_per_second": rows / seconds["torch"] if "torch" in seconds else None,
        **_costs(ours, seconds["ours"], peak),
    }


def measure_generation(bench: Bench, peak: float) -> Figures:
    """Greedy answers of a batch, beside the published scheme's for one question and `generate` of transformers."""
    questions, thoughts = bench.generated, bench.run.ppo.max_steps
    ours = generation(bench.run, bench.llama, questions)
    functions = {"ours": ours.call}
    if bench.with_torch:
        baseline = bench.baseline(thoughts, bench.answer_length)
        functions |= {"torch": baseline.generate_one(), "batch": baseline.generate_batch(questions)}
    seconds = bench.times(functions)
    each = seconds["ours"] / questions
    return {
        "seconds_per_question": each,
        "tokens_per_second": bench.answer_length / each,
        "thoughts_per_second": thoughts / each,
        "ratio_to_torch": seconds["torch"] / each if "torch" in seconds else None,
        "ratio_to_transformers_batch": seconds["batch"] / seconds["ours"] if "batch" in seconds else None,
        **_costs(ours, seconds["ours"], peak),
    }


def measure_rollout(bench: Bench, peak: float) -> Figures:
    """A rollout, what one more thought and one more token cost in it, and N = 5 beside N = 1."""
    run, llama = bench.run, bench.llama
    few, more = 2, 8
    shapes = {
        "rollout": run,
        "few": with_shape(run, thoughts=few, answer=few),
        "thoughts": with_shape(run, thoughts=few + more, answer=few),
        "tokens": with_shape(run, thoughts=few, answer=few + more),
        "n1": with_shape(run, prompt=bench.long_prompt, trajectories=1),
        "n5": with_shape(run, prompt=bench.long_prompt, trajectories=5),
    }
    rollouts = {name: policy(shape, llama, update=False)[0] for name, shape in shapes.items()}
    seconds = bench.times({name: rollout.call for name, rollout in rollouts.items()})
    thought = (seconds["thoughts"] - seconds["few"]) / more
    token = (seconds["tokens"] - seconds["few"]) / more
    rows = run.ppo.questions * run.ppo.num_trajectories
    return {
        "thought_seconds": thought,
        "token_seconds": token,
        "encode_seconds": seconds["few"] - few * (thought + token),
        "thought_over_token": thought / token,
        "n5_over_n1": seconds["n5"] / seconds["n1"],
        "thoughts_per_second": rows * run.ppo.max_steps / seconds["rollout"],
        "tokens_per_second": rows * bench.answer_length / seconds["rollout"],
        **_costs(rollouts["rollout"], seconds["rollout"], peak),
    }


def measure_update(bench: Bench, wide_peak: float) -> Figures:
    """PPO's update with and without thoughts at equal length, both ways of rescoring, and at width 1,024."""
    run, llama = bench.run, bench.llama
    thoughts, answer = run.ppo.max_steps, bench.answer_length
    score = replace(run, ppo=replace(run.ppo, gradient="score"))
    shapes = {
        "parallel": score,
        "without": with_shape(score, thoughts=0, answer=answer + thoughts),
        "sequential": replace(run, ppo=replace(run.ppo, gradient="pathwise")),
    }
    heads = WIDE // 64
    wide = replace(
        llama,
        hidden_size=WIDE,
        intermediate_size=43 * WIDE // 16,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1),
        head_dim=64,
    )
    updates = {name: policy(shape, llama)[1] for name, shape in shapes.items()}
    updates["wide"] = policy(with_shape(score, questions=8, trajectories=2), wide)[1]
    seconds = bench.times({name: update.call for name, update in updates.items() if update is not None})
    measured = updates["wide"]
    assert measured is not None
    return {
        "t6_over_t0": seconds["parallel"] / seconds["without"],
        "sequential_t6_over_t0": seconds["sequential"] / seconds["without"],
        "seconds": seconds["parallel"],
        "thoughts": thoughts,
        "wide_seconds": seconds["wide"],
        **{
            name: value
            for name, value in _costs(measured, seconds["wide"], wide_peak).items()
            if name != "seconds"
        },
    }


def measure_bandwidth(bench: Bench, copy_peak: float) -> Figures:
    """One thought and one token at batch 1 and 8, against the time in which the weights could be read once."""
    figures: Figures = {}
    few, more, llama = 2, 8, bench.llama
    itemsize = jnp.dtype(bench.run.model.weight_dtype).itemsize
    table = llama.vocab_size * llama.hidden_size
    attention = (
        llama.hidden_size * llama.head_dim * 2 * (llama.num_attention_heads + llama.num_key_value_heads)
    )
    layers = llama.num_hidden_layers * (attention + 3 * llama.hidden_size * llama.intermediate_size)
    for questions in (1, 8):
        base = with_shape(bench.run, questions=questions, trajectories=1)
        shapes = {
            "few": with_shape(base, thoughts=few, answer=few),
            "thoughts": with_shape(base, thoughts=few + more, answer=few),
            "tokens": with_shape(base, thoughts=few, answer=few + more),
        }
        calls = {name: policy(shape, llama, update=False)[0].call for name, shape in shapes.items()}
        seconds = bench.times(calls)
        thought = (seconds["thoughts"] - seconds["few"]) / more
        token = (seconds["tokens"] - seconds["few"]) / more
        figures[f"thought_at_batch_{questions}"] = layers * itemsize / copy_peak / thought
        figures[f"token_at_batch_{questions}"] = (layers + table) * itemsize / copy_peak / token
    return figures


def measure_conversion(bench: Bench) -> Figures:
    """Weights to a Hugging Face folder and back."""
    weights = random_weights(bench.run, blueprint_of(bench.run, bench.llama, make_mesh(bench.run.mesh)))[
        "llama"
    ]
    size = sum(x.nbytes for x in jax.tree.leaves(weights))
    dtype = bench.run.model.weight_dtype
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        save_weights(weights, bench.llama, folder, dtype=dtype)
        saved = time.perf_counter()
        jax.block_until_ready(load_weights(folder, bench.llama, jnp.dtype(dtype)))
        loaded = time.perf_counter()
    return {
        "to_hf_seconds": saved - start,
        "from_hf_seconds": loaded - saved,
        "bytes": size,
        "bytes_per_second": 2 * size / (loaded - start),
    }


def measure_curves(bench: Bench) -> Figures:
    """Seconds of a rollout as one size grows, the others as configured, with fitted exponents."""
    run, llama = bench.run, bench.llama
    sizes = {
        "B": (run.ppo.questions, lambda n: (with_shape(run, questions=n), llama)),
        "N": (1, lambda n: (with_shape(run, trajectories=n), llama)),
        "T": (max(run.ppo.max_steps // 2, 1), lambda n: (with_shape(run, thoughts=n), llama)),
        "prompt": (run.data.prompt_length, lambda n: (with_shape(run, prompt=n), llama)),
        "depth": (llama.num_hidden_layers, lambda n: (run, replace(llama, num_hidden_layers=n))),
    }
    curves: dict[str, Any] = {}
    for name, (start, shape) in sizes.items():
        grown = [start * factor for factor in bench.growth]
        rollouts = {str(n): policy(*shape(n), update=False)[0].call for n in grown}
        seconds = bench.times(rollouts)
        curves[name] = {"sizes": grown, "seconds": [seconds[str(n)] for n in grown]}
    exponents = {name: fitted_exponent(curve["sizes"], curve["seconds"]) for name, curve in curves.items()}
    return {"curves": curves, "exponents": exponents}


def measure_compilation(bench: Bench) -> Figures:
    """Seconds that compiling a supervised update takes at two depths, and recompilations over ragged batches."""
    shallow, deep = bench.depths
    run = with_shape(bench.run, questions=min(bench.run.curriculum.batch_size, 4))
    seconds = {}
    for depth in bench.depths:
        llama = replace(bench.llama, num_hidden_layers=depth)
        seconds[depth] = curriculum_step(run, llama).compile_seconds
    return {
        f"depth{shallow}_seconds": seconds[shallow],
        f"depth{deep}_seconds": seconds[deep],
        f"depth{deep}_over_depth{shallow}": seconds[deep] / seconds[shallow],
        "recompiles": _recompiles(bench),
    }


def _recompiles(bench: Bench) -> int:
    """Programs compiled after the first, over batches with other lengths and numbers of thoughts."""
    blueprint = blueprint_of(bench.run, bench.llama, make_mesh(bench.run.mesh))
    weights = random_weights(bench.run, blueprint)
    most = max(max_curriculum_thoughts(bench.run.curriculum), 1)
    rng = np.random.default_rng(3)

    @jax.jit
    def loss(weights: Any, batch: CurriculumBatch) -> Any:
        return curriculum_sums(nnx.merge(blueprint.graph, weights), batch, most).loss_sum

    for _ in range(4):
        prompt, mask = random_questions(bench.run, bench.llama, 4)
        mask = np.arange(mask.shape[1]) >= rng.integers(0, mask.shape[1], (4, 1))
        answer = rng.integers(0, bench.llama.vocab_size, (4, bench.run.data.answer_length)).astype(np.int32)
        real = np.arange(answer.shape[1]) < rng.integers(1, answer.shape[1] + 1, (4, 1))
        counts = rng.integers(0, most + 1, 4).astype(np.int32)
        loss(weights, CurriculumBatch(prompt, mask, counts, answer, real, real))  # pyright: ignore[reportArgumentType]
    return loss._cache_size() - 1  # pyright: ignore[reportAttributeAccessIssue]
