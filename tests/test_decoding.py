"""Programs that decode: their copy of the weights, its placement, and what their loops do for each token."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import ADAPTERS, SMALL, question_keys, ragged_prompts, small_reasoner
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr
from run_folders import PPO, save_run

from longshot_jax.checkpoints.pretrained import load_pretrained
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.model.decoding import decoding_jit
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.model.storage import as_used, merge_states
from longshot_jax.thoughts import reasoner as reasoners
from longshot_jax.thoughts.reads.memory_bank import empty_bank, write_bank
from longshot_jax.thoughts.reasoner import Reasoner, decoding_reasoner
from longshot_jax.thoughts.rescore import rescore
from longshot_jax.thoughts.rollout import RolloutShape, Temperatures, make_temperatures, sample_rollout
from longshot_jax.thoughts.stopping import Lengths

QUESTIONS, N, T, A, DEPTH = 4, 2, 2, 5, SMALL["num_hidden_layers"]


def rollout_of(reasoner, greedy=False, end_token=2, length=A, unrolled=True):
    """A jitted rollout of a reasoner's parameters, and its arguments."""
    graphdef, params = nnx.split(reasoner)
    prompt, mask = ragged_prompts([3, 5, 4, 2], 5)
    bounds = jnp.full((QUESTIONS, N), T)
    shape = RolloutShape(N, T, length, opening=(3,), end_tokens=(end_token,))

    def rollout(params, prompt, mask, keys):
        return sample_rollout(
            decoding_reasoner(graphdef, params, unrolled=unrolled), prompt, mask, None, Lengths(bounds, bounds),
            make_temperatures(0.3), keys, shape, greedy,
        )  # fmt: skip

    return decoding_jit(rollout, None), (params, prompt, mask, question_keys(QUESTIONS))


def equations(jaxpr, loops=()):
    """Every equation of a function, with the names of the loops around it, the outermost first."""
    for equation in jaxpr.eqns:
        yield equation, loops
        name = equation.primitive.name
        for values in equation.params.values():
            for value in values if isinstance(values, tuple) else (values,):
                inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
                if isinstance(inner, Jaxpr):
                    yield from equations(inner, (*loops, name) if name in ("while", "scan") else loops)


def traced(rollout, arguments):
    return equations(rollout.trace(*arguments).jaxpr.jaxpr)


def test_a_token_multiplies_with_the_head_once():
    heads = [
        loops
        for equation, loops in traced(*rollout_of(small_reasoner(vocab_size=101)))
        if equation.primitive.name == "dot_general" and 101 in equation.outvars[0].aval.shape
    ]
    assert heads == [("while",)]


def test_decoding_ends_when_every_row_has_ended(monkeypatch):
    """Hidden states of zero: every logit is zero, and the greedy token is the lowest, which ends an answer."""
    reasoner, embedded = small_reasoner(), []
    reasoner.backbone.final_norm[...] = jnp.zeros_like(reasoner.backbone.final_norm[...])
    embed = Llama.embed

    def counted(self, tokens):
        jax.debug.callback(lambda: embedded.append(tokens.shape))
        return embed(self, tokens)

    monkeypatch.setattr(Llama, "embed", counted)
    rollout, arguments = rollout_of(reasoner, greedy=True, end_token=0, length=50)
    sampled, _ = jax.block_until_ready(rollout(*arguments))
    jax.effects_barrier()
    assert np.all(sampled.ended) and np.all(sampled.tokens == 0)
    assert embedded.count((QUESTIONS, N)) == 2, "the opening and one answer token"


@pytest.mark.slow
@pytest.mark.parametrize("copied", [False, True])
def test_on_a_gpu_no_loop_cuts_weights_out_of_the_stack(monkeypatch, copied):
    """As traced for a GPU: single positions run through layers that are in no loop, with the results of the loop.

    A CPU compiles it too, and ignores the options for the GPU's compiler.
    """
    monkeypatch.setattr("longshot_jax.model.llama._FEW_LAYERS", 0)  # as in a deep model
    reasoner = small_reasoner("navigator", lora=ADAPTERS)
    expected, arguments = rollout_of(reasoner)
    expected = expected(*arguments)
    monkeypatch.setattr(reasoners, "platform_of", lambda _: "gpu")
    monkeypatch.setattr(reasoners, "is_copied", lambda layers, dtype: copied)
    monkeypatch.setattr("longshot_jax.model.sharding.platform_of", lambda mesh: "gpu")

    def over_layers_of(rollout):
        return [
            (loops, equation.params["unroll"])
            for equation, loops in traced(rollout, arguments)
            if equation.primitive.name == "scan" and any(x.aval.shape[:1] == (DEPTH,) for x in equation.invars)
            and equation.params["length"] == DEPTH and equation.params["num_carry"] == 1
        ]  # fmt: skip

    rollout, _ = rollout_of(reasoner)
    over_layers = over_layers_of(rollout)
    # An evaluation keeps the loop, which compiles sooner.
    evaluation, _ = rollout_of(reasoner, unrolled=False)
    assert {unroll for _, unroll in over_layers_of(evaluation)} == {1}
    if copied:
        assert not over_layers
    else:
        assert ((), 1) in over_layers, "the prompt"
        assert {unroll for loops, unroll in over_layers if loops} == {DEPTH}
    for got, want in zip(jax.tree.leaves(rollout(*arguments)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.slow
def test_only_what_is_cast_is_copied():
    """Nothing in float32. In bfloat16 the backbone, once, and the rollout is that of weights stored in bfloat16."""
    rollout, arguments = rollout_of(small_reasoner())
    assert not [e for e, _ in traced(rollout, arguments) if e.primitive.name == "optimization_barrier"]

    def half(dtype):
        return Reasoner(
            Llama(LlamaConfig(**SMALL), nnx.Rngs(0), compute_dtype=dtype), NavigatorConfig("navigator"), nnx.Rngs(1)
        )

    rollout, arguments = rollout_of(half(jnp.bfloat16))
    copied = [e for e, loops in traced(rollout, arguments) if e.primitive.name == "optimization_barrier" and not loops]
    assert len(copied) == len(jax.tree.leaves(nnx.state(half(jnp.bfloat16).backbone)))
    graphdef = nnx.split(half(jnp.bfloat16))[0]
    plain = jax.jit(
        lambda params, *data: sample_rollout(
            nnx.merge(graphdef, params), *data[:2], None, Lengths(*(jnp.full((QUESTIONS, N), T),) * 2),
            make_temperatures(0.3), data[2], RolloutShape(N, T, A, (3,), (2,)),
        )
    )  # fmt: skip
    stored = merge_states(backbone=as_used(arguments[0]["backbone"], jnp.bfloat16), navigator=arguments[0]["navigator"])
    expected = plain(stored, *arguments[1:])
    for got, want in zip(jax.tree.leaves(rollout(*arguments)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, want)


def test_inference_holds_the_backbone_in_the_compute_dtype(tmp_path, monkeypatch):
    """A run in its own; a model without a run in float32 on a CPU, in bfloat16 on an accelerator."""

    def dtypes(path):
        params, graph = load_pretrained(path).params, load_pretrained(path).graphdef
        states = (nnx.merge_state(*params)[part] for part in ("backbone", "navigator"))
        found = [{leaf.dtype for leaf in jax.tree.leaves(state)} for state in states]
        return *found, nnx.merge(graph, *params).backbone.compute_dtype

    half, single = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    save_run(tmp_path, replace(PPO, model=replace(PPO.model, compute_dtype="bfloat16")), "ppo")
    assert dtypes(tmp_path) == ({half}, {single}, half)
    golden = Path(__file__).parent / "fixtures" / "golden_llama3"
    assert dtypes(golden) == ({single}, {single}, single)
    monkeypatch.setattr("longshot_jax.checkpoints.pretrained.platform_of", lambda mesh: "gpu")
    assert dtypes(golden) == ({half}, {single}, half)


@pytest.mark.slow
def test_a_bfloat16_rollout_is_rescored_with_the_entries_it_read():
    """By the float32 graph and from a full bank, in which rounding would often find another neighbour."""
    size, entries, questions = 32, 500, 32
    config = LlamaConfig(64, 128, 256, 8, 4, 2, 32)

    def graph(dtype):
        kind = NavigatorConfig("navigator", True, size, memory_top=3)
        return nnx.split(Reasoner(Llama(config, nnx.Rngs(0), compute_dtype=dtype), kind, nnx.Rngs(1)))

    (half, params), (full, _) = graph(jnp.bfloat16), graph(jnp.float32)
    rng = np.random.default_rng(0)
    prompt, bounds = jnp.asarray(rng.integers(0, 64, (questions, 12)), jnp.int32), jnp.full((questions, 4), 4)

    @jax.jit
    def sampled(params, bank, std):
        return sample_rollout(
            nnx.merge(half, params), prompt, jnp.ones(prompt.shape, bool), bank, Lengths(bounds, bounds),
            Temperatures(std, jnp.ones(()), jnp.ones(())), question_keys(questions), RolloutShape(4, 4, 2, (3,), (2,), "scaled"),
        )  # fmt: skip

    rescored = jax.jit(lambda params, *of: rescore(nnx.merge(full, params), *of, (3,), "parallel", "scaled"))
    _, scores = sampled(params, empty_bank(entries, size), jnp.zeros(()))
    spread = jnp.sqrt(jnp.mean(jnp.square(scores.thoughts.means)))
    first, _ = sampled(params, empty_bank(entries, size), 0.2 * spread)
    near = jnp.asarray(rng.normal(size=(entries, size)), jnp.float32) * 0.3 * spread
    near += first.actions.reshape(-1, size)[:entries]
    bank = write_bank(
        empty_bank(entries, size),
        near,
        jnp.asarray(rng.uniform(0.9, 1.0, entries), jnp.float32),
        jnp.ones(entries, bool),
    )
    rollout, recorded = sampled(params, bank, 0.2 * spread)
    assert np.mean(rollout.bank_slots >= 0) > 0.9 and bank.filled == entries

    def largest(rollout):
        ratio = rescored(params, rollout, bank).thoughts.thought - recorded.thoughts.thought
        return np.quantile(np.abs(ratio), 0.99)

    assert largest(rollout) <= 0.25
    assert largest(rollout.replace(bank_slots=None)) > 0.3, "searched again"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bank", "drawn"])
def test_a_rollout_moves_its_weights_between_devices_once(kind):
    """On eight devices the rollout is that of one device; with whole copies its loops communicate next to nothing.

    Also the slots of a memory bank that thoughts read, or the tokens of which they are drawn.
    """
    root = Path(__file__).parents[1]
    program = subprocess.run(
        [sys.executable, str(root / "tests" / "sharded_rollouts.py"), kind],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert program.returncode == 0, program.stderr[-2000:]
    results = json.loads(program.stdout.splitlines()[-1])
    one = results.pop("one")
    assert not one["collectives"] and any(one["log_probs"]) and max(one["slots"]) > 0
    for name, found in results.items():
        assert found["tokens"] == one["tokens"] and found["slots"] == one["slots"], name
        np.testing.assert_allclose(found["log_probs"], one["log_probs"], atol=1e-4, err_msg=name)
        assert not found["weights_gathered"], name
        if name != "cut":  # there every layer's results are added up, which here are larger than the weights
            assert sum(found["collectives"].values()) < 0.1 * one["weights"], (name, found["collectives"])
