"""The measurements of `scripts/bench.py`. Each takes the run's shape and returns named figures."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from longshot_jax.benchmarks.machine import WIDE, Bench, Figures
from longshot_jax.benchmarks.timing import fitted_exponent
from longshot_jax.benchmarks.workload import Measured, Policy, curriculum_step, generation, random_questions, with_shape
from longshot_jax.config import RunConfig
from longshot_jax.curriculum.batch import CurriculumBatch
from longshot_jax.curriculum.loss import curriculum_sums
from longshot_jax.model.huggingface.weights import load_weights, save_weights
from longshot_jax.model.quantization import dtype_beside, is_quantised
from longshot_jax.model.sharding import make_mesh
from longshot_jax.model.storage import plain_weights
from longshot_jax.thoughts.reasoner import AbstractReasoner

_FEW, _MORE = 2, 8  # thoughts or tokens of a short rollout, and the further ones of a long one


def _costs(measured: Measured, seconds: float, peak: float) -> Figures:
    return {
        "seconds": seconds,
        "flops_per_second": measured.flops / seconds,
        "fraction_of_peak": measured.flops / seconds / peak,
        "temporary_bytes": measured.temporary_bytes,
    }


def _compiled_together(measured: Callable[[RunConfig], Measured], shapes: dict[str, RunConfig]) -> dict[str, Measured]:
    """A rollout or update of each shape. Compiling one occupies one core, so all are compiled at once."""
    with ThreadPoolExecutor() as threads:
        return dict(zip(shapes, threads.map(measured, shapes.values()), strict=True))


def measure_curriculum(bench: Bench, peak: float) -> Figures:
    """One supervised update, compared with the published scheme."""
    run = bench.run
    rows, thoughts = run.curriculum.batch_size, run.curriculum.max_thoughts
    ours = curriculum_step(run, bench.backbone)
    functions = {"ours": ours.call}
    if baseline := bench.baseline(thoughts, run.data.answer_length):
        functions["torch"] = baseline.step(rows)
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
    """Greedy answers of a batch, compared with the published scheme (one question) and `generate` of transformers."""
    questions, thoughts = bench.generated, bench.run.ppo.max_thoughts
    ours = generation(bench.run, bench.backbone, questions)
    functions = {"ours": ours.call}
    if baseline := bench.baseline(thoughts, bench.run.sampled_length):
        functions |= {"torch": baseline.generate_one(), "batch": baseline.generate_batch(questions)}
    seconds = bench.times(functions)
    each = seconds["ours"] / questions
    return {
        "seconds_per_question": each,
        "tokens_per_second": bench.run.sampled_length / each,
        "thoughts_per_second": thoughts / each,
        "ratio_to_torch": seconds["torch"] / each if "torch" in seconds else None,
        "ratio_to_transformers_batch": seconds["batch"] / seconds["ours"] if "batch" in seconds else None,
        **_costs(ours, seconds["ours"], peak),
    }


def _probes(run: RunConfig) -> dict[str, RunConfig]:
    """Shapes whose rollout times give the marginal cost of a thought and of a token."""
    few, many = _FEW, _FEW + _MORE
    return {
        "few": with_shape(run, thoughts=few, answer=few),
        "thoughts": with_shape(run, thoughts=many, answer=few),
        "tokens": with_shape(run, thoughts=few, answer=many),
    }


def _marginal_seconds(seconds: dict[str, float]) -> tuple[float, float]:
    """Seconds of one more thought and of one more token, from the times of `_probes`."""
    return (seconds["thoughts"] - seconds["few"]) / _MORE, (seconds["tokens"] - seconds["few"]) / _MORE


def measure_rollout(bench: Bench, peak: float) -> Figures:
    """A rollout, the marginal cost of a thought and of a token, and N = 5 compared with N = 1.

    Roles fix N, so with `thoughts.roles` that comparison is left out.
    """
    run, backbone = bench.run, bench.backbone
    shapes = {"rollout": run, **_probes(run)}
    if not run.thoughts.roles:
        shapes |= {f"n{n}": with_shape(run, prompt=bench.long_prompt, trajectories=n) for n in (1, 5)}
    policy = Policy(run, backbone)
    rollouts = _compiled_together(policy.rollout, shapes)
    seconds = bench.times({name: rollout.call for name, rollout in rollouts.items()})
    thought, token = _marginal_seconds(seconds)
    questions = run.ppo.questions / seconds["rollout"]  # a second
    return {
        "thought_seconds": thought,
        "token_seconds": token,
        "encode_seconds": seconds["few"] - _FEW * (thought + token),
        "thought_over_token": thought / token,
        **({"n5_over_n1": seconds["n5"] / seconds["n1"]} if "n5" in seconds else {}),
        "thoughts_per_second": questions * run.ppo.num_trajectories * run.ppo.max_thoughts,
        "tokens_per_second": questions * run.sampled_answers * run.sampled_length,
        **_costs(rollouts["rollout"], seconds["rollout"], peak),
    }


def one_epoch(run: RunConfig) -> RunConfig:
    """The run with one epoch an update, which no early stop cuts short: what an epoch costs does not depend on them."""
    return replace(run, ppo=replace(run.ppo, epochs=1, early_stop_kl=0.0))


def measure_update(bench: Bench, peak: float, wide_peak: float) -> Figures:
    """One epoch of PPO's update: with and without thoughts at equal length, and with both rescore methods.

    A model narrower than 1,024 is also measured at that width, against the peak there.
    """
    run, backbone = one_epoch(bench.run), bench.backbone
    thoughts, answer = run.ppo.max_thoughts, run.sampled_length
    score = replace(run, ppo=replace(run.ppo, gradient="score"))
    shapes = {
        "parallel": score,
        "without": with_shape(score, thoughts=0, answer=answer + thoughts),
        "sequential": replace(run, ppo=replace(run.ppo, gradient="pathwise")),
    }
    policy = Policy(score, backbone)
    # An update reads a rollout of its sizes, and `sequential` has those of `parallel`: each compiles once.
    _compiled_together(policy.rollout, {name: shape for name, shape in shapes.items() if name != "sequential"})
    updates = _compiled_together(policy.update, shapes)
    seconds = bench.times({name: update.call for name, update in updates.items()})
    figures = {
        "thoughts_over_none": seconds["parallel"] / seconds["without"],
        "sequential_thoughts_over_none": seconds["sequential"] / seconds["without"],
        "thoughts": thoughts,
        **_costs(updates["parallel"], seconds["parallel"], peak),
    }
    figures["epoch_seconds"] = figures.pop("seconds")
    del policy, updates  # before the next state
    if backbone.hidden_size < WIDE:
        wide = _wide_update(bench, score, wide_peak)
        figures |= {f"wide_{name}": value for name, value in wide.items()}
    return figures


def _wide_update(bench: Bench, run: RunConfig, peak: float) -> Figures:
    """Costs of an update of two layers at width 1,024."""
    heads = WIDE // 64
    wide = replace(
        bench.backbone,
        hidden_size=WIDE,
        intermediate_size=43 * WIDE // 16,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1),
        head_dim=64,
    )
    # Two trajectories, or as many as the roles of a joined answer.
    run = with_shape(run, questions=8, trajectories=run.thoughts.joined or min(run.thoughts.roles or 2, 2))
    update = Policy(run, wide).update(run)
    return _costs(update, bench.times({"wide": update.call})["wide"], peak)


def measure_bandwidth(bench: Bench, copy_peak: float) -> Figures:
    """Fractions of the copy bandwidth at which a thought and a token read the parameters, at batch 1 and 8."""
    figures: Figures = {}
    backbone = bench.backbone
    # A rollout reads a copy in the compute dtype, in which matrices of eight bits stay as they are.
    itemsize = jnp.dtype(bench.run.model.compute_dtype).itemsize
    table = backbone.vocab_size * backbone.hidden_size * itemsize
    layers = backbone.num_hidden_layers * sum(prod(x.inputs + x.outputs) for x in backbone.matrices.values())
    layers *= 1 if is_quantised(bench.run.model.weight_dtype) else itemsize
    single = with_shape(bench.run, questions=1, trajectories=1)
    policy = Policy(single, backbone)
    probes = {questions: _probes(with_shape(single, questions=questions)) for questions in (1, 8)}
    flat = {f"{questions} {name}": shape for questions, shapes in probes.items() for name, shape in shapes.items()}
    rollouts = _compiled_together(policy.rollout, flat)
    for questions, shapes in probes.items():
        calls = {name: rollouts[f"{questions} {name}"].call for name in shapes}
        thought, token = _marginal_seconds(bench.times(calls))
        figures[f"thought_at_batch_{questions}"] = layers / copy_peak / thought
        figures[f"token_at_batch_{questions}"] = (layers + table) / copy_peak / token
    return figures


def measure_conversion(bench: Bench) -> Figures:
    """Seconds of writing the parameters to a Hugging Face folder and of reading them."""
    abstract = AbstractReasoner.of(bench.run, bench.backbone, make_mesh(bench.run.mesh))
    dtype = jnp.dtype(dtype_beside(bench.run.model.weight_dtype))
    params = plain_weights(abstract.random_params(bench.run)["backbone"], bench.run.lora, dtype)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        save_weights(params, bench.backbone, folder, dtype=dtype.name)
        saved = time.perf_counter()
        del params  # before they are read
        jax.block_until_ready(load_weights(folder, bench.backbone, dtype))
        loaded = time.perf_counter()
    return {
        "to_hf_seconds": saved - start,
        "from_hf_seconds": loaded - saved,
        "bytes": size,
        "bytes_per_second": 2 * size / (loaded - start),
    }


def measure_curves(bench: Bench) -> Figures:
    """Seconds of a rollout against one size at a time, with fitted exponents; with `thoughts.roles`, which fix N, not against N."""
    run, backbone = bench.run, bench.backbone
    sizes = {
        "B": (run.ppo.questions, lambda n: with_shape(run, questions=n)),
        "N": (1, lambda n: with_shape(run, trajectories=n)),
        "T": (max(run.ppo.max_thoughts // 2, 1), lambda n: with_shape(run, thoughts=n)),
        "prompt": (run.data.prompt_length, lambda n: with_shape(run, prompt=n)),
    }
    if run.thoughts.roles:
        del sizes["N"]
    policy = Policy(run, backbone)
    curves: dict[str, Any] = {}
    for name, (start, shape) in sizes.items():
        grown = [start * factor for factor in bench.growth]
        rollouts = _compiled_together(policy.rollout, {str(n): shape(n) for n in grown})
        seconds = bench.times({size: rollout.call for size, rollout in rollouts.items()})
        curves[name] = {"sizes": grown, "seconds": [seconds[str(n)] for n in grown]}
    del policy
    # Each depth has a state of its own, so these do not take turns.
    grown = [backbone.num_hidden_layers * factor for factor in bench.growth]
    curves["depth"] = {"sizes": grown, "seconds": [_rollout_seconds(bench, depth) for depth in grown]}
    exponents = {name: fitted_exponent(curve["sizes"], curve["seconds"]) for name, curve in curves.items()}
    return {"exponents": exponents, "curves": curves}


def _rollout_seconds(bench: Bench, depth: int) -> float:
    deep = replace(bench.backbone, num_hidden_layers=depth)
    return bench.times({"rollout": Policy(bench.run, deep).rollout(bench.run).call})["rollout"]


def measure_compilation(bench: Bench) -> Figures:
    """Compile seconds of a supervised update at two depths, and recompilations over ragged batches."""
    shallow, deep = bench.depths
    run = with_shape(bench.run, questions=min(bench.run.curriculum.batch_size, 4))
    seconds = {
        depth: curriculum_step(run, replace(bench.backbone, num_hidden_layers=depth)).compile_seconds
        for depth in bench.depths
    }
    return {
        f"depth{shallow}_seconds": seconds[shallow],
        f"depth{deep}_seconds": seconds[deep],
        f"depth{deep}_over_depth{shallow}": seconds[deep] / seconds[shallow],
        "recompiles": _recompiles(bench),
    }


def _recompiles(bench: Bench) -> int:
    """The number of recompilations over batches of different lengths and numbers of thoughts."""
    abstract = AbstractReasoner.of(bench.run, bench.backbone, make_mesh(bench.run.mesh))
    params = abstract.random_params(bench.run)
    most = max(bench.run.curriculum.max_thoughts, 1)
    rng = np.random.default_rng(3)

    @jax.jit
    def loss(params: Any, batch: CurriculumBatch) -> Any:
        return curriculum_sums(nnx.merge(abstract.graphdef, params), batch, most).loss_sum

    for _ in range(4):
        prompt, mask = random_questions(bench.run, bench.backbone, 4)
        mask = np.arange(mask.shape[1]) >= rng.integers(0, mask.shape[1], (4, 1))
        answer = rng.integers(0, bench.backbone.vocab_size, (4, bench.run.data.answer_length)).astype(np.int32)
        real = np.arange(answer.shape[1]) < rng.integers(1, answer.shape[1] + 1, (4, 1))
        counts = rng.integers(0, most + 1, 4).astype(np.int32)
        loss(params, CurriculumBatch(prompt, mask, counts, answer, real, real))  # pyright: ignore[reportArgumentType]
    return loss._cache_size() - 1  # pyright: ignore[reportAttributeAccessIssue]
