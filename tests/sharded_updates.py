"""One curriculum update and one PPO update on meshes of 1, 2, 4 and 8 devices; run as a program by test_sharding.

Gradient descent with rate 1 stands in for AdamW, so that the change of the weights is the gradient.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from longshot_jax.config.model import MeshConfig
from longshot_jax.config.optimizer import OptimizerConfig
from longshot_jax.config.ppo import PPOConfig
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.curriculum.batch import CurriculumBatch
from longshot_jax.curriculum.update import curriculum_update
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.model.sharding import fetch, make_mesh, on_mesh, place_batch, replicated, shardings
from longshot_jax.ppo.update import policy_update
from longshot_jax.thoughts.reads.memory_bank import empty_bank, write_bank
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.rollout import RolloutShape, Temperatures, sample_rollout
from longshot_jax.thoughts.stopping import Lengths
from longshot_jax.training.optimizer import make_optimizer
from longshot_jax.training.state import start_state

MESHES = [MeshConfig(), MeshConfig(data=2), MeshConfig(fsdp=2, tensor=2), MeshConfig(2, 2, 2), MeshConfig(1, 8, 1)]
ROWS, S, A, T, N = 16, 5, 4, 2, 2
PPO = PPOConfig(
    questions=ROWS, num_trajectories=N, epochs=1, minibatches=2, micro_batches=1, max_thoughts=T, kl_coefficient=0.0
)


def make():
    backbone = LlamaConfig(20, 16, 32, 1, 4, 2, 4, tie_word_embeddings=True)
    return Reasoner(
        Llama(backbone, nnx.Rngs(0)), NavigatorConfig("navigator", reasoning_dim=4, memory_top=2), nnx.Rngs(1)
    )


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


def bank():
    """Sixteen slots, six of them in use: cut along `fsdp` where there is such an axis."""
    positions = jax.random.normal(jax.random.key(3), (6, 4))
    return write_bank(empty_bank(16, 4), positions, jnp.linspace(0.5, 1.5, 6), jnp.ones(6, bool))


def rolled_out(reasoner, given):
    zeros = np.zeros((ROWS, N), np.int32)
    return jax.jit(
        lambda: sample_rollout(
            reasoner,
            jnp.asarray(given.prompt),
            jnp.asarray(given.prompt_mask),
            bank(),
            Lengths(zeros, zeros + T),
            Temperatures(jnp.asarray(0.5), jnp.ones(()), jnp.ones(())),
            jax.random.split(jax.random.key(1), ROWS),
            RolloutShape(N, T, A, opening=(3,), end_tokens=(2,), scaling="summed"),
        )
    )()


def measure(mesh):
    """Loss and change of the weights (and the bank) of one update of each kind on a mesh; how its state is cut."""
    key = jax.random.key(0)
    graphdef, params = nnx.split(make())
    given, descent = batch(), optax.sgd(1.0)
    rollout, recorded = jax.device_get(rolled_out(make(), given))
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(ROWS, N)).astype(np.float32), np.zeros((ROWS, N, T + 1), np.float32)
    params = jax.device_get(params)

    def start(params, key):
        return start_state(params, nnx.State({}), descent, key, memory=bank())

    def run(update, *data):
        places = shardings(jax.eval_shape(start, params, key), mesh)
        state = jax.jit(start, out_shardings=places)(params, key)
        step = jax.jit(on_mesh(mesh, update), donate_argnums=0, out_shardings=(places, replicated(mesh)))
        state, metrics = step(state, *place_batch(data, mesh))
        change = jax.tree.map(lambda new, old: np.asarray(new - old).ravel(), *map(fetch, (state.trainable, params)))
        remembered = fetch((state.memory.positions, state.memory.values))
        rows = [np.asarray(part).ravel() for part in remembered]
        return float(metrics["loss"]), np.concatenate([*jax.tree.leaves(change), *rows])

    supervised = curriculum_update(graphdef, descent, max_thoughts=T, pause_token=None, micro_batches=2)
    curriculum = run(supervised, given)
    policy = run(policy_update(graphdef, descent, PPO, (3,)), rollout, recorded, *rewards)
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
    print(json.dumps(compare([measure(make_mesh(config)) for config in MESHES])))
