"""XLA's GPU compiler, without a GPU: plans of small programs for each accelerator, and what they say of traffic."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longshot_jax.planning import compilers
from longshot_jax.training.accelerators import ACCELERATORS

ROOT = Path(__file__).parents[1]
PYTHON = Path(sys.executable) if compilers.installed() else ROOT / ".venv-gpu" / "bin" / "python"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PYTHON.exists(), reason="XLA's GPU compiler is not installed: make plan-gpu"),
]

STARTED = """
import json, os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
import jax
jax.config.update("jax_platforms", "cpu")
"""


def in_its_environment(program, *arguments):
    """What a program prints as JSON in its last line."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment.pop("XLA_FLAGS", None)  # those of these tests, which another release of JAX may not know
    command = [str(PYTHON), "-c", STARTED + program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


PRODUCTS = """
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from longshot_jax.config.model import MeshConfig
from longshot_jax.training.accelerators import ACCELERATORS
from longshot_jax.planning.compilers import planned_mesh
from longshot_jax.planning.hlo import operations
written = {}
for name in ACCELERATORS:
    mesh = planned_mesh("cuda", name, MeshConfig(fsdp=2))
    def shape(*sizes, axes):
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
    def layers(x, w):
        def layer(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))), None
        return jax.lax.scan(layer, x, w)[0]
    arguments = shape(64, 1024, axes=("fsdp",)), shape(6, 1024, 1024, axes=(None, "fsdp"))
    made = jax.jit(layers).lower(*arguments).compile({"xla_gpu_enable_triton_gemm": False})
    found = operations(made.as_text())
    written[name] = {
        "flops": sum(o.flops * o.times(1) for o in found),
        "products": sum(o.bytes * o.times(1) for o in found if o.flops),
        "gathered": sum(o.payload * o.times(1) for o in found if o.opcode == "all-gather"),
        "sent": sum(o.sent * o.times(1) for o in found),
        "loops": sorted({o.loops for o in found if o.flops}),
    }
print(json.dumps(written))
"""


def test_products_and_collectives_for_every_accelerator():
    written = in_its_environment(PRODUCTS)
    assert set(written) == set(ACCELERATORS)
    weights, rows = 2 * 1024 * 1024, 2 * 32 * 1024
    for found in written.values():
        assert found["flops"] == 6 * 2 * 32 * 1024 * 1024
        # Each layer's product reads its matrix and its rows once, and writes rows.
        assert found["products"] == pytest.approx(6 * (weights + 2 * rows), rel=0.01)
        assert found["gathered"] == 6 * weights and found["sent"] == 3 * weights
        assert found["loops"] == [[6]]


PLAN = """
from dataclasses import replace
from tiny_run import tiny
from longshot_jax.training.accelerators import ACCELERATORS
from longshot_jax.planning.plan import as_json, make_plan
from longshot_jax.planning.report import report
run = tiny(phases=("ppo",), mesh__fsdp=2, model__compute_dtype="bfloat16", model__attention="plain", ppo__minibatches=1)
peak = make_plan(run, 2, "h100-80g", compiler="cuda", search=False).peak
# So that the search for the largest batch ends soon: large ones compile for minutes.
ACCELERATORS["small"] = replace(ACCELERATORS["h100-80g"], memory=4 * peak)
plan = make_plan(run, 2, "small", compiler="cuda")
print(report(plan), file=sys.stderr)
print(json.dumps(as_json(plan) | {"report": report(plan), "counted": [
    program.arithmetic.flops for phase in plan.phases for program in phase.programs]}))
"""


def test_a_plan_for_two_h100():
    written = in_its_environment(PLAN)
    assert written["fits"]
    assert written["phases"]["ppo"]["largest_batch"] > written["phases"]["ppo"]["batch"]
    programs = written["phases"]["ppo"]["programs"]
    for program in programs.values():
        traffic = program["traffic"]
        assert program["compiler"] == "cuda"
        assert traffic["bytes"] > traffic["floor_bytes"] > 0
        assert traffic["bytes"] > traffic["bytes_in_loops"] > 0
        assert traffic["bytes"] > traffic["copied_bytes"] > traffic["copied_weights_bytes"] >= 0
        assert traffic["gathered_bytes"] >= traffic["gathered_in_loops_bytes"] >= 0 < traffic["gathered_bytes"]
        assert sum(row["bytes"] for row in traffic["collectives"] if row["kind"] == "all-gather") == pytest.approx(
            traffic["gathered_bytes"]
        )
        alone, parts = traffic["seconds_alone"], traffic["seconds"]
        # Kernels one after another take longer than all their arithmetic, and than all their traffic.
        kernels = sum(parts.values()) - parts["link"]
        assert alone["arithmetic"] < kernels and alone["memory"] < kernels + parts["link"]
        assert parts["link"] == pytest.approx(alone["link"]) and parts["link"] > 0
        # The compiler turns small products into sums, which are not counted, takes constant ones out of loops, and repeats some.
        in_products = alone["arithmetic"] * ACCELERATORS["h100-80g"].flops * 2
        assert 0.5 * program["flops"] < in_products < 1.2 * program["flops"]
    rollout = programs["rollout"]["traffic"]
    assert 0 < rollout["token_floor_bytes"] < rollout["token_bytes"] < rollout["bytes"]
    assert programs["update"]["traffic"]["token_floor_bytes"] == 0
    placements = written["phases"]["ppo"]["placements"]
    assert [(p["setting"], p["value"], p["is_set"]) for p in placements] == [
        ("decoding_weights", "replicated", True), ("decoding_weights", "tensor", False),
        ("gather", "layer", True), ("gather", "model", False),
    ]  # fmt: skip
    assert all(p["peak"] > 0 and p["seconds"] > 0 for p in placements)
    assert placements[0]["peak"] == programs["rollout"]["peak"]
    assert placements[2]["seconds"] == pytest.approx(sum(programs["update"]["traffic"]["seconds"].values()))
    for said in ("compiled for it and not timed", "over its floor", "share of the bf16 peak", "all-gather"):
        assert said in written["report"]


PUBLISHED = """
from longshot_jax.cli import command_parser, parse_command
run, *_ = parse_command(command_parser(None))
devices = run.mesh.data * run.mesh.fsdp * run.mesh.tensor
jax.config.update("jax_num_cpu_devices", devices)
from longshot_jax.planning.plan import as_json, make_plan
written = as_json(make_plan(run, devices, "h100-80g", compiler="cuda", search=False))
print(json.dumps(written | {"jax": jax.__version_info__[:2]}))
"""


def programs_of(config, *overrides):
    written = in_its_environment(PUBLISHED, "--config", str(ROOT / "configs" / config), *overrides)
    if written["jax"] < [0, 12]:
        pytest.skip("compilers before JAX 0.12 copy layers out of their stack: make plan-gpu with Python 3.12")
    assert written["fits"]
    return [written["phases"]["ppo"]["programs"][name] for name in ("rollout", "update")]


def reached(program, devices=1):
    """Share of the bfloat16 peak of the H100s in the estimate."""
    seconds = sum(program["traffic"]["seconds"].values())
    return program["flops"] / devices / seconds / ACCELERATORS["h100-80g"].flops


def test_published_single_copies_no_weights():
    """A decoded token reads weights and caches once, and an update computes for most of its time."""
    rollout, update = programs_of("published_single.py")
    assert rollout["traffic"]["token_bytes"] <= 1.3 * rollout["traffic"]["token_floor_bytes"]
    assert update["traffic"]["copied_bytes"] <= 0.05 * update["traffic"]["bytes"]
    assert reached(update) >= 0.55


def test_published_multi_gathers_nothing_while_it_decodes():
    rollout, update = programs_of("published_multi.py")
    assert rollout["traffic"]["gathered_in_loops_bytes"] == 0
    assert rollout["traffic"]["token_bytes"] <= 1.3 * rollout["traffic"]["token_floor_bytes"]
    assert sum(sum(program["traffic"]["seconds"].values()) for program in (rollout, update)) <= 3.0


def test_weights_that_are_cut_to_decode_are_not_gathered(tmp_path):
    """Two layers of Llama-3-70B's widths on 64 devices, which cut its 64 heads, and not the 8 of its keys."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128_256, "hidden_size": 8192,
        "intermediate_size": 28_672, "num_hidden_layers": 2, "num_attention_heads": 64, "num_key_value_heads": 8,
        "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    rollout, _ = programs_of(
        "published_multi.py", f"--config.model.source={tmp_path}", "--config.mesh.fsdp=16", "--config.mesh.tensor=4",
        "--config.mesh.decoding_weights=tensor", "--config.mesh.gather=layer",
    )  # fmt: skip
    smallest = 2 * 8192 * 1024  # of its matrices, the keys' in bfloat16
    gathered = [row for row in rollout["traffic"]["collectives"] if row["kind"] == "all-gather" and row["loops"]]
    assert all(row["bytes"] / row["times"] < smallest for row in gathered), gathered
