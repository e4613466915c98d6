"""The planner: memory by kind, what fits, what is refused, and the plans of the configs."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from commands import start
from flax import nnx
from tiny_run import tiny

from longshot_jax.config.model import MeshConfig
from longshot_jax.errors import UserError
from longshot_jax.model.llama import Llama
from longshot_jax.planning import compilers
from longshot_jax.planning.compilers import planned_mesh
from longshot_jax.planning.phases import make_phase
from longshot_jax.planning.placements import better, compiled_placements
from longshot_jax.planning.plan import advice, as_json, make_plan
from longshot_jax.planning.report import report
from longshot_jax.planning.shapes import planned_backbone
from longshot_jax.training import accelerators

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def plan():
    run = tiny(phases=("ppo",), thoughts__feedback="navigator", ppo__memory_slots=16, ppo__minibatches=1,
               thoughts__memory_top=2)  # fmt: skip
    return make_plan(run, None, "a100-40g", search=False)


@pytest.mark.slow
def test_memory_by_kind(plan):
    (phase,) = as_json(plan)["phases"].values()
    update, rollout = phase["programs"]["update"], phase["programs"]["rollout"]
    weights = 4 * as_json(plan)["parameters"]
    for program in (update, rollout):
        memory = program["memory"]
        assert memory["weights"] == memory["reference"] == weights
        assert 2 * weights < memory["optimizer"] < 2.01 * weights + 64  # two moments and some counters
        assert memory["memory_bank"] == 16 * (256 + 2) * 4 + 8
        assert program["peak"] == sum(memory.values()) and memory["activations"] > 0
    assert update["memory"]["gradients"] == weights and rollout["memory"]["gradients"] == 0
    # 8 questions of 15 tokens, with 2 trajectories of 2 thoughts, 1 marker and 5 answer tokens.
    assert rollout["memory"]["caches"] == 2 * 2 * 8 * 4 * 8 * (15 + 2 * (2 + 1 + 5))
    assert update["flops"] > 0 and set(update["seconds"]) == set(accelerators.ACCELERATORS)
    assert phase["largest_batch"] is None
    assert update["traffic"] is update["compiler"] is None  # this compiler's say nothing of a GPU
    assert json.loads(json.dumps(as_json(plan))) == as_json(plan)


def test_report_and_verdict(plan, monkeypatch):
    (phase,) = plan.phases
    searched = report(replace(plan, phases=(replace(phase, largest=12),)))
    assert plan.fits and "\nfits: " in searched and "largest config.ppo.questions that fits: 12 (set: 8)" in searched
    small = replace(accelerators.ACCELERATORS["h200"], memory=plan.peak * 1.05)
    monkeypatch.setitem(accelerators.ACCELERATORS, "small", small)
    # It would go in, but without a tenth to spare.
    tight = replace(plan, accelerator="small")
    assert not tight.fits and "config.mesh.fsdp 2 instead of 1 would, on 2 devices" in advice(tight)
    fewer = replace(tight, phases=(replace(phase, largest=4),))
    assert "config.ppo.questions 4 instead of 8 would fit" in advice(fewer)
    two = [
        replace(phase, largest=4),
        replace(phase, phase=replace(phase.phase, batch_key="config.text.batch_size"), largest=2),
    ]
    changes = "config.ppo.questions 4 instead of 8 and config.text.batch_size 2 instead of 8 would fit"
    assert changes in advice(replace(tight, phases=tuple(two)))
    two[1] = replace(two[1], largest=0)
    assert "would fit" not in advice(replace(tight, phases=tuple(two)))
    monkeypatch.setitem(accelerators.ACCELERATORS, "small", replace(small, memory=1000.0))
    assert "its activations and caches alone do not" in advice(tight)


COSTS = {  # value of the setting -> GB on one device, seconds
    "replicated": (30, 0.3), "tensor": (12, 0.5), "layer": (20, 4.0), "model": (40, 3.5)
}  # fmt: skip


def placed(run, costs=COSTS):
    def cost(other, index):
        value = (other.mesh.decoding_weights, other.mesh.gather)[index]
        gigabytes, seconds = costs[value]
        return gigabytes * 10**9, seconds

    return tuple(compiled_placements(run, "ppo", [("rollout", False), ("update", True)], cost))


def test_placements_of_the_weights(plan):
    """Those of several devices, and of `fsdp` for updates; the fastest that fits is named, with what it would save."""
    assert placed(tiny()) == ()
    assert {p.setting for p in placed(tiny(mesh__tensor=2))} == {"decoding_weights"}
    found = placed(tiny(mesh__fsdp=2))
    assert [(p.setting, p.value, p.is_set, p.program) for p in found] == [
        ("decoding_weights", "replicated", True, "rollout"),
        ("decoding_weights", "tensor", False, "rollout"),
        ("gather", "layer", True, "update"),
        ("gather", "model", False, "update"),
    ]
    assert [(now.value, best.value) for now, best in better(found, 72e9)] == [("layer", "model")]
    assert better(found, 36e9) == [], "what is faster does not fit"
    assert [(now.value, best.value) for now, best in better(found, 24e9)] == [("replicated", "tensor")]
    assert better(found, 1e9) == []
    # Two phases share a setting: what is faster for one of them is too large for the other.
    other = [
        replace(p, phase="text", peak=80 * 10**9) if p.value == "model" else replace(p, phase="text") for p in found
    ]
    assert better([*found, *other], 72e9) == []
    unknown = placed(tiny(mesh__fsdp=2), {value: (size, None) for value, (size, _) in COSTS.items()})
    assert better(unknown, 72e9) == [], "the CPU's compiler knows no times"
    assert [best.value for _, best in better(unknown, 24e9)] == ["tensor"]

    (phase,) = plan.phases
    shown = report(replace(plan, accelerator="h100-80g", phases=(replace(phase, placements=found),)))
    assert (
        "config.mesh.gather model fits and is estimated to be faster: 3.5 s instead of 4, one call of each program."
        in shown
    )
    assert re.search(r"config.mesh.decoding_weights replicated \(set\) +ppo: rollout +30.00 +0.3\n", shown)


def test_a_placement_that_makes_a_plan_fit_is_advised(plan, monkeypatch):
    (phase,) = plan.phases
    rollout, update = phase.programs
    large = replace(rollout, memory={"weights": 30 * 10**9})
    found = replace(phase, programs=(large, update), placements=placed(tiny(mesh__fsdp=2)))
    small = replace(accelerators.ACCELERATORS["h200"], memory=25e9)
    monkeypatch.setitem(accelerators.ACCELERATORS, "small", small)
    assert advice(replace(plan, accelerator="small", phases=(found,))).endswith(
        "; it would with config.mesh.decoding_weights tensor."
    )
    both = replace(found, programs=(large, replace(update, memory={"weights": 30 * 10**9})))
    assert "it would with" not in advice(replace(plan, accelerator="small", phases=(both,))), "the update does not"


def test_published_shapes_and_local_folders(tmp_path):
    def of(name, **overrides):
        return planned_backbone(tiny(model__source=name, phases=("ppo",), **overrides))

    assert of("meta-llama/Meta-Llama-3-8B-Instruct").hidden_size == 4096
    assert of("meta-llama/Llama-3.1-70B").num_hidden_layers == 80
    assert of("meta-llama/Llama-3.2-1B-Instruct").tie_word_embeddings
    assert of("meta-llama/Llama-3.2-3B", mesh__tensor=5).vocab_size == 128_260
    with pytest.raises(UserError, match=r"give a local folder with its config\.json, or a meta-llama name"):
        of("somebody/else")
    weights = {"1B": 1.236e9, "3B": 3.213e9, "8B": 8.030e9, "70B": 70.554e9}  # as the model cards count
    for name, total in weights.items():
        version = "3.2" if name in ("1B", "3B") else "3.1"
        config = of(f"meta-llama/Llama-{version}-{name}")
        state = nnx.split(nnx.eval_shape(lambda config=config: Llama(config, nnx.Rngs(0))))[1]
        assert sum(leaf.size for leaf in jax.tree.leaves(state)) == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--accelerator", "h100"], "--accelerator 'h100' is not known: take one of a100-40g, a100-80g, h100-80g"),
        (["--accelerator", "h200", "--devices", "3"], "1 = 1 devices, but --devices is 3: take --devices 1 or config.mesh.fsdp 3"),
        (["--accelerator", "h200", "--config.mesh.fsdp=64", "--devices", "1"], "but there are 1: data 1 x fsdp 1"),
        (["--accelerator", "h200", "--devices", "many"], "--devices: 'many' is not a whole number from 1"),
        (["--accelerator", "h200", "--devices", "-1"], "--devices: '-1' is not a whole number from 1"),
        (["--accelerator", "h200", "--devices", "0"], "--devices: '0' is not a whole number from 1"),
        (["--accelerator", "h200", "--compiler", "tpu"], "--compiler 'tpu' is not known: take one of cuda, cpu"),
        (["--accelerator", "h200", "--compiler", "cuda"], "is not installed here: run `make plan-gpu` and take .venv-gpu/bin/python, or take --compiler cpu"),
        ([], "no accelerator was given"),
        (["--accelerators", "h200"], "did you mean --accelerator?"),
        (["--accelerator", "h200", "--config.phases=()"], "config.phases is empty"),
        (["--accelerator", "h200", "--output", str(ROOT)], "is a folder: give the name of a file"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned(arguments, sentence, monkeypatch, capsys):
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)  # this process has its devices already
    monkeypatch.setattr(compilers, "installed", lambda: False)
    for variable in ("CUDA_VISIBLE_DEVICES", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(variable, "")  # so that the command's own value goes with the test
    assert start("plan.py", "--config", ROOT / "configs" / "tiny.py", *arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said
    if "jax_num_cpu_devices" in updates:
        requested = arguments[arguments.index("--devices") + 1] if "--devices" in arguments else 1
        assert updates == {"jax_platforms": "cpu", "jax_num_cpu_devices": int(requested)}


@pytest.mark.parametrize("searched", [True, False])
def test_the_search_can_be_left_out_and_what_does_not_fit_has_a_code(searched, monkeypatch):
    asked = []

    def make_plan(*_, search, **__):
        asked.append(search)
        return SimpleNamespace(fits=False)

    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # this process has its devices already
    monkeypatch.setattr("longshot_jax.planning.plan.make_plan", make_plan)
    monkeypatch.setattr("longshot_jax.planning.report.report", lambda _: "")
    for variable in ("CUDA_VISIBLE_DEVICES", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(variable, "")
    arguments = ["--accelerator", "h200", "--compiler", "cpu", *([] if searched else ["--no-search"])]
    assert start("plan.py", "--config", ROOT / "configs" / "tiny.py", *arguments) == 3
    assert asked == [searched]


def test_a_compiler_is_chosen_and_said(monkeypatch):
    said = []
    monkeypatch.setattr(compilers, "installed", lambda: False)
    assert compilers.chosen_compiler(None, said.append) == "cpu" and "make plan-gpu" in said[0]
    monkeypatch.setattr(compilers, "installed", lambda: True)
    assert compilers.chosen_compiler(None, said.append) == "cuda" and said[1:] == ["XLA's compiler: cuda"]
    assert compilers.chosen_compiler("cpu", said.append) == "cpu" and len(said) == 2


@pytest.mark.parametrize(
    ("mesh", "nearest"),
    [
        (MeshConfig(fsdp=12), "8 or 16 would, such as config.mesh data 1 fsdp 8 tensor 1"),
        (MeshConfig(data=2, fsdp=3, tensor=4), None),
        (MeshConfig(data=3, fsdp=2, tensor=3), "16 or 24 would, such as config.mesh data 1 fsdp 16 tensor 1"),
    ],
)
def test_gpus_come_in_whole_nodes(mesh, nearest, monkeypatch):
    def missing(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(compilers.topologies, "get_topology_desc", missing)
    match = re.escape(nearest) if nearest else "does not start with JAX .*make plan-gpu"
    with pytest.raises(UserError, match=match):
        planned_mesh("cuda", "h200", mesh)


def test_positions_of_caches_of_joined_answers():
    """A joined answer has one cache, and a role a position of its own."""
    few = {"ppo__questions": 8, "ppo__num_trajectories": 2, "ppo__max_thoughts": 3, "ppo__answer_length": 4}
    alone = tiny(**few, phases=("ppo",), ppo__minibatches=1)
    joined = replace(alone, thoughts=replace(alone.thoughts, roles=2, join=True))
    found = {}
    for run in (alone, joined):
        phase = make_phase(run, "ppo", planned_backbone(run), planned_mesh("cpu", "", run.mesh))
        found[run.thoughts.join] = [program.cache_positions for program in phase.programs]
    prompt, opening = alone.data.prompt_length, 1
    assert found[False][0] == 8 * (prompt + 2 * (3 + opening + 4))
    assert found[False][1] == 8 * (prompt + 2 * (3 + opening + 4 - 1))
    assert found[True] == [8 * (prompt + 2 * (1 + 3) + opening + 4), 8 * (prompt + 2 * (1 + 3) + opening + 4 - 1)]


def test_a_run_without_phases_has_no_plan():
    with pytest.raises(UserError, match="phases is empty"):
        make_plan(replace(tiny(), phases=()), 1, "h200")


def planned(tmp_path, *arguments):
    """Exit code, plan.json and standard error of the command."""
    output = tmp_path / "plan.json"
    command = [sys.executable, str(ROOT / "scripts" / "plan.py"), *arguments, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode != 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.returncode, json.loads(output.read_text()), done.stdout


@pytest.mark.long
def test_a_plan_that_does_not_fit_ends_with_code_3(tmp_path):
    code, written, shown = planned(
        tmp_path, "--config", str(ROOT / "configs" / "tiny.py"), "--accelerator", "a100-40g",
        "--config.phases=('curriculum',)", "--config.curriculum.batch_size=100000000",
    )  # fmt: skip
    assert code == 3 and not written["fits"]
    assert (
        f"config.curriculum.batch_size {written['phases']['curriculum']['largest_batch']} instead of 100000000" in shown
    )


# Compiles without searching for the largest batch: half the time.
COMPILED = """
import json, sys, jax
from longshot_jax.cli import command_parser, parse_command
parser = command_parser(None)
parser.add_argument("--devices", type=int)
parser.add_argument("--accelerator")
run, _, options = parse_command(parser)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", options.devices)
from longshot_jax.planning.plan import as_json, make_plan
print(json.dumps(as_json(make_plan(run, options.devices, options.accelerator, search=False))))
"""


def compiled(config, devices, accelerator, *overrides):
    """The content of plan.json for a config."""
    command = [sys.executable, "-c", COMPILED, "--config", str(ROOT / "configs" / config),
               f"--devices={devices}", f"--accelerator={accelerator}", *overrides]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_published_single_fits_an_a100_of_40_gb():
    written = compiled("published_single.py", 1, "a100-40g")
    assert written["fits"] and written["peak"] < 36e9
    assert written["phases"]["ppo"]["programs"]["rollout"]["memory"]["weights"] == pytest.approx(16.25e9, rel=0.01)


@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "devices", "accelerator"),
    [
        ("smollm2_gsm8k", 1, "h100-80g"),
        ("llama32_1b_gsm8k", 1, "h100-80g"),
        ("single", 1, "a100-40g"),
        ("multi", 8, "h100-80g"),
    ],
)
def test_recipes_of_three_phases_fit(config, devices, accelerator):
    written = compiled(f"{config}.py", devices, accelerator)
    assert written["fits"] and set(written["phases"]) == {"text", "curriculum", "ppo"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "overrides", "parameters"),
    [
        (8, [], 8.03e9),
        (64, ["--config.model.source=meta-llama/Meta-Llama-3-70B-Instruct", "--config.mesh.fsdp=16",
              "--config.mesh.tensor=4", "--config.mesh.decoding_weights=tensor", "--config.mesh.gather=layer"], 70.6e9),
    ],
    ids=["multi", "70B"],
)  # fmt: skip
def test_published_multi_fits_h100s(devices, overrides, parameters):
    written = compiled("published_multi.py", devices, "h100-80g", *overrides)
    assert written["fits"] and written["parameters"] == pytest.approx(parameters, rel=0.01)
    update = written["phases"]["ppo"]["programs"]["update"]
    memory = update["memory"]
    state = memory["weights"] + memory["optimizer"] + memory["reference"] + memory["gradients"]
    # Five float32 copies of every weight, cut over all devices.
    assert state == pytest.approx(5 * 4 * written["parameters"] / devices, rel=0.03)
    assert np.isfinite(update["seconds"]["h100-80g"]) and update["flops"] > 1e15
    assert MeshConfig(**written["mesh"]).fsdp * written["mesh"]["tensor"] == devices
