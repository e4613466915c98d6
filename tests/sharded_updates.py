"""One curriculum update and one PPO update on meshes of 1, 2, 4 and 8 devices; run as a program by test_sharding.

With `joined`, trajectories have roles and one answer, and their number is an action.

    python tests/sharded_updates.py [joined]

Gradient descent with rate 1 stands in for AdamW, so that the change of the weights is the gradient.
"""

import json
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from longshot_jax.config.curriculum import CurriculumConfig
from longshot_jax.config.model import MeshConfig
from longshot_jax.config.optimizer import OptimizerConfig
from longshot_jax.config.ppo import PPOConfig
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.curriculum.batch import CurriculumBatch
from longshot_jax.curriculum.parallel import ParallelBatch
from longshot_jax.curriculum.update import curriculum_update
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.model.sharding import fetch, make_mesh, on_mesh, place_batch, replicated, shardings
from longshot_jax.ppo.update import policy_update
from longshot_jax.thoughts.reads.memory_bank import empty_bank, write_bank
from longshot_jax.thoughts.reasoner import Reasoner, gathering
from longshot_jax.thoughts.rollout import RolloutShape, Temperatures, sample_rollout
from longshot_jax.thoughts.stopping import Lengths
from longshot_jax.training.optimizer import make_optimizer
from longshot_jax.training.state import start_state

MESHES = [
    MeshConfig(),
    MeshConfig(data=2),
    MeshConfig(fsdp=2, tensor=2),
    MeshConfig(2, 2, 2),
    MeshConfig(1, 8, 1),
    MeshConfig(2, 2, 2, gather="model"),
]
ROWS, S, A, T = 16, 5, 4, 2
PPO = PPOConfig(questions=ROWS, epochs=1, minibatches=2, micro_batches=1, max_thoughts=T, kl_coefficient=0.0)


ALONE = NavigatorConfig("navigator", reasoning_dim=4, memory_top=2)
JOINED = NavigatorConfig("hidden", True, reasoning_dim=4, roles=3, join=True, max_trajectories=3)


def make(navigator):
    backbone = LlamaConfig(20, 16, 32, 1, 4, 2, 4, tie_word_embeddings=True)
    return Reasoner(Llama(backbone, nnx.Rngs(0)), navigator, nnx.Rngs(1))


def batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, A + 1, ROWS)
    mask = np.arange(A) < lengths[:, None]
    prompt_mask = np.arange(S) >= rng.integers(0, S - 1, ROWS)[:, None]
    return CurriculumBatch(
        rng.integers(0, 20, (ROWS, S)).astype(np.int32),
        prompt_mask,
        rng.integers(0, T + 1, ROWS).astype(np.int32),
        rng.integers(0, 20, (ROWS, A)).astype(np.int32),
        mask,
        mask,
    )


def parallel_batch(given):
    """The problems with one to three threads each, whose texts are of different lengths."""
    rng = np.random.default_rng(2)
    active = np.arange(3) < rng.integers(1, 4, ROWS)[:, None]
    text_mask = (np.arange(A) < rng.integers(1, A + 1, (ROWS, 3))[..., None]) & active[..., None]
    return ParallelBatch(
        given.prompt,
        given.prompt_mask,
        rng.integers(0, T + 1, (ROWS, 3)).astype(np.int32) * active,
        active,
        rng.integers(0, 20, (ROWS, 3, A)).astype(np.int32),
        text_mask,
        given.tokens,
        given.token_mask,
    )


def bank():
    """Sixteen slots, six of them in use: cut along `fsdp` where there is such an axis."""
    positions = jax.random.normal(jax.random.key(3), (6, 4))
    return write_bank(empty_bank(16, 4), positions, jnp.linspace(0.5, 1.5, 6), jnp.ones(6, bool))


def rolled_out(reasoner, given, memory):
    navigator = reasoner.navigator.config
    number, adaptive = navigator.joined or 2, navigator.max_trajectories > 0
    zeros = np.zeros((ROWS, number), np.int32)
    count = jnp.zeros(ROWS, jnp.int32) if adaptive else None
    return jax.jit(
        lambda: sample_rollout(
            reasoner,
            jnp.asarray(given.prompt),
            jnp.asarray(given.prompt_mask),
            memory,
            Lengths(zeros, zeros + T, count),
            Temperatures(jnp.asarray(0.5), jnp.ones(()), jnp.ones(())),
            jax.random.split(jax.random.key(1), ROWS),
            RolloutShape(number, T, A, opening=(3,), end_tokens=(2,), scaling="summed", adaptive=adaptive),
        )
    )()


def measure(mesh, navigator=ALONE, gather="layer"):
    """Loss and change of the weights (and the bank) of one update of each kind on a mesh; how its state is cut."""
    prepare = gathering(MeshConfig(gather=gather), jnp.float32)
    key = jax.random.key(0)
    graphdef, params = nnx.split(make(navigator))
    given, descent = batch(), optax.sgd(1.0)
    memory = None if navigator.join else bank()
    rollout, recorded = jax.device_get(rolled_out(make(navigator), given, memory))
    number = rollout.num_thoughts.shape[1]
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(ROWS, number)).astype(np.float32), np.zeros((ROWS, number, T + 1), np.float32)
    if navigator.join:
        assert set(rollout.num_trajectories) == {1, 2, 3}
        given = parallel_batch(given)
    params = jax.device_get(params)

    def start(params, key):
        return start_state(params, nnx.State({}), descent, key, memory=memory)

    def run(update, *data):
        places = shardings(jax.eval_shape(start, params, key), mesh)
        state = jax.jit(start, out_shardings=places)(params, key)
        step = jax.jit(on_mesh(mesh, update), donate_argnums=0, out_shardings=(places, replicated(mesh)))
        state, metrics = step(state, *place_batch(data, mesh))
        change = jax.tree.map(lambda new, old: np.asarray(new - old).ravel(), *map(fetch, (state.trainable, params)))
        remembered = () if memory is None else fetch((state.memory.positions, state.memory.values))
        rows = [np.asarray(part).ravel() for part in remembered]
        return float(metrics["loss"]), np.concatenate([*jax.tree.leaves(change), *rows])

    config = CurriculumConfig(max_latent_stage=T, batch_size=2, micro_batch_size=1)
    supervised = curriculum_update(graphdef, descent, config, prepare=prepare)
    curriculum = run(supervised, given)
    ppo = replace(PPO, num_trajectories=number, shared_reward=navigator.join)
    policy = run(policy_update(graphdef, descent, ppo, (3,), prepare), rollout, recorded, *rewards)
    adam = make_optimizer(OptimizerConfig(), 1)
    begun = jax.eval_shape(lambda key: start_state(params, nnx.State({}), adam, key), key)
    places = shardings(begun, mesh)
    moments = places.optimizer[1].inner_states["backbone"].inner_state[0].mu["backbone"]
    same = jax.tree.leaves(moments) == jax.tree.leaves(places.trainable["backbone"])
    bank_places = shardings(jax.eval_shape(bank), mesh)
    assert bank_places.positions.is_fully_replicated == (mesh.shape["fsdp"] == 1)
    cut = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(places.trainable))
    return curriculum, policy, same, cut


def compare(results):
    """Differences of every result to the first."""
    report = []
    for (loss, gradient), (policy_loss, policy_gradient), same, cut in results:
        (first, first_gradient), (first_policy, first_policy_gradient), *_ = results[0]
        report.append(
            {
                "loss": abs(loss - first),
                "gradient": float(np.abs(gradient - first_gradient).max()),
                "policy_loss": abs(policy_loss - first_policy),
                "policy_gradient": float(np.abs(policy_gradient - first_policy_gradient).max()),
                "gradient_size": float(np.abs(gradient).max()),
                "policy_gradient_size": float(np.abs(policy_gradient).max()),
                "moments_like_weights": same,
                "cut_weights": cut,
            }
        )
    return report


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_default_matmul_precision", "highest")
    # All meshes cut a joined answer's batch as they cut the others, so one and eight devices suffice.
    kind, meshes = (JOINED, MESHES[:4:3]) if "joined" in sys.argv[1:] else (ALONE, MESHES)
    print(json.dumps(compare([measure(make_mesh(config), kind, config.gather) for config in meshes])))
