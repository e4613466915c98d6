"""Rollouts on one and on eight devices, and what their loops send to other devices; run as a program by test_decoding."""

import json
import re
import sys
from collections import defaultdict
from dataclasses import replace
from math import prod

import jax
import numpy as np

from longshot_jax.config import RunConfig, default_config, parse_config
from longshot_jax.config.model import MeshConfig
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import fetch, make_mesh, place_batch
from longshot_jax.planning.hlo import operations
from longshot_jax.ppo.update import PPOPrograms
from longshot_jax.thoughts.reasoner import AbstractReasoner
from longshot_jax.thoughts.rollout import Temperatures
from longshot_jax.thoughts.stopping import Lengths

MESHES = {
    "one": MeshConfig(),
    "fsdp": MeshConfig(fsdp=8),
    "all axes": MeshConfig(2, 2, 2),
    "cut": MeshConfig(fsdp=4, tensor=2, decoding_weights="tensor"),
}
BACKBONE = LlamaConfig(96, 64, 128, 2, 8, 2, 8)  # eight devices cut its heads, and not those of its keys
QUESTIONS, N, S, A, T = 16, 2, 6, 6, 3
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def settings(mesh: MeshConfig, drawn: bool) -> RunConfig:
    """With thoughts that read a memory bank, or that are drawn as tokens."""
    config = default_config()
    config.phases = ("ppo",)
    config.data.answer_length = A
    if drawn:
        config.thoughts.feedback, config.thoughts.noise, config.thoughts.sampled_tokens = "vocabulary", "tokens", 3
    else:
        config.thoughts.feedback, config.thoughts.reasoning_dim, config.thoughts.memory_top = "navigator", 16, 2
        config.ppo.memory_slots = 16
    config.ppo.questions, config.ppo.num_trajectories, config.ppo.max_thoughts = QUESTIONS, N, T
    config.ppo.minibatches, config.ppo.kl_coefficient = 1, 0.0
    return replace(parse_config(config), mesh=mesh)


def bytes_in_loops(text: str, unknown_trips: int) -> dict[str, int]:
    """Bytes that collectives inside loops give to a device, by opcode, from the text of a compiled program.

    In nested loops a collective counts once for each trip of all; `unknown_trips` is the number of trips of a loop whose
    length depends on data.
    """
    computations: dict[str, list[tuple[str, str, str]]] = {}
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            lines = computations.setdefault("ENTRY" if line.startswith("ENTRY") else name, [])
        elif found := _INSTRUCTION.match(line):
            lines.append((found[1], found[2].removesuffix("-start"), found[3]))
    total: dict[str, int] = defaultdict(int)

    def visit(name: str, trips: int, looped: bool) -> None:
        for result, opcode, rest in computations[name]:
            if looped and opcode in COLLECTIVES:
                arrays = re.findall(r"([a-z]+)(\d*)\[([\d,]*)\]", result)
                total[opcode] += trips * sum(
                    max(int(bits or 8) // 8, 1) * prod(int(size) for size in shape.split(",") if size)
                    for _, bits, shape in arrays
                )
            if opcode == "while":
                known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', rest)
                visit(_called("body", rest), trips * (int(known[1]) if known else unknown_trips), True)
            elif opcode == "call":
                visit(_called("to_apply", rest), trips, looped)
            elif opcode == "conditional":
                for branch in re.findall(r"%?([\w.\-]+)", re.search(r"branch_computations=\{([^}]*)\}", rest)[1]):
                    visit(branch, trips, looped)

    visit("ENTRY", 1, False)
    return dict(total)


def _called(key: str, rest: str) -> str:
    return re.search(rf"{key}=%?([\w.\-]+)", rest)[1]


def measure(name: str, drawn: bool) -> dict:
    run = settings(MESHES[name], drawn)
    mesh = make_mesh(run.mesh)
    abstract = AbstractReasoner.of(run, BACKBONE, mesh)
    programs = PPOPrograms(run, abstract, mesh, opening=(3,), end_tokens=(2,))
    one = AbstractReasoner.of(run, BACKBONE, make_mesh(MeshConfig()))
    params = jax.tree.map(jax.device_put, jax.device_get(one.random_params(run)), abstract.placement)
    state = programs.start(params)
    if not drawn:
        slots = np.random.default_rng(3).normal(size=(16, 16)).astype(np.float32)
        memory = replace(
            jax.device_get(state.memory), positions=slots, values=np.linspace(0.5, 1.5, 16).astype(np.float32),
            filled=np.int32(16),
        )  # fmt: skip
        state = replace(state, memory=jax.tree.map(jax.device_put, memory, programs.placement.memory))
    rng = np.random.default_rng(0)
    prompt = rng.integers(4, BACKBONE.vocab_size, (QUESTIONS, S)).astype(np.int32)
    mask = np.arange(S) >= rng.integers(0, S - 1, QUESTIONS)[:, None]
    bound = np.full((QUESTIONS, N), T, np.int32)
    inputs = place_batch((prompt, mask, Lengths(bound - 1, bound)), mesh)
    arguments = (state, *inputs, Temperatures(*map(np.float32, (0.3, 1.0, 1.0))), np.int32(0))
    compiled = programs.rollout.lower(*arguments).compile()
    rollout, recorded, _ = fetch(compiled(*arguments))
    return {
        "collectives": bytes_in_loops(compiled.as_text(), A),
        "weights_gathered": [
            o.source
            for o in operations(compiled.as_text())
            if o.opcode == "all-gather" and o.loops and "backbone" in str(o.source)
        ],
        "weights": sum(leaf.nbytes for leaf in jax.tree.leaves(params["backbone"])),
        "tokens": rollout.tokens.ravel().tolist(),
        "slots": (rollout.thought_tokens if drawn else rollout.bank_slots).ravel().tolist(),
        "log_probs": np.concatenate([recorded.tokens.log_probs.ravel(), recorded.thoughts.thought.ravel()]).tolist(),
    }


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_default_matmul_precision", "highest")
    print(json.dumps({name: measure(name, drawn="drawn" in sys.argv) for name in MESHES}))
