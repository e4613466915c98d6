"""What one PPO update asks of the compiler, read from its StableHLO: this decides its speed on an accelerator."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.parameters import wide_product
from longshot_jax.model.sharding import make_mesh
from longshot_jax.planning.phases import make_phase

pytestmark = pytest.mark.slow

# No two sizes are alike, so that a shape tells which array it is.
VOCABULARY, WIDTH, HEAD = 96, 40, 12
BACKBONE = LlamaConfig(VOCABULARY, WIDTH, 56, 2, 2, 1, HEAD)
PROMPT = 15


def update(micro_batches=4, **settings):
    """The update's StableHLO, in bfloat16, with adapters on a frozen backbone, as `configs/published_single.py` has it."""
    run = tiny(
        phases=("ppo",), model__compute_dtype="bfloat16", model__weight_dtype="bfloat16", model__remat=True,
        model__lora__rank=2, ppo__trainable="lora", ppo__minibatches=1, ppo__micro_batches=micro_batches, **settings,
    )  # fmt: skip
    program = make_phase(run, "ppo", BACKBONE, make_mesh(run.mesh)).programs[1]
    return program.function.lower(*program.arguments).as_text()


@pytest.fixture(scope="module")
def text():
    return update()


def test_no_barrier_between_the_forward_pass_and_its_repetition(text):
    assert "optimization_barrier" not in text


def widened(text):
    """Shapes of all arrays that are converted from bfloat16 to float32."""
    return {
        tuple(map(int, sizes.rstrip("x").split("x")))
        for sizes in re.findall(r"stablehlo\.convert .* : \(tensor<((?:\d+x)+)bf16>\) -> tensor<(?:\d+x)+f32>", text)
    }


def test_no_table_and_no_key_is_widened(text):
    shapes = widened(text)
    assert any(WIDTH in shape for shape in shapes)  # hidden states, in the norms
    assert not [shape for shape in shapes if shape[-2:] == (VOCABULARY, WIDTH)]
    # Keys by heads, [O, K, P, C]; rotary angles are applied in float32 to [B, Q, K, C].
    assert not [shape for shape in shapes if shape[-2:] == (PROMPT, HEAD)]


SHARDED = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from tiny_run import tiny
from longshot_jax.model.llama import LlamaConfig
from longshot_jax.model.sharding import make_mesh
from longshot_jax.planning.hlo import operations
from longshot_jax.planning.phases import make_phase
run = tiny(
    phases=("ppo",), mesh__fsdp=8, mesh__gather=sys.argv[1], model__remat=True, ppo__trainable="all", ppo__questions=16,
    ppo__minibatches=1, ppo__micro_batches=int(sys.argv[2]), ppo__kl_coefficient=0.0,
)
program = make_phase(run, "ppo", LlamaConfig(16, 64, 1536, 3, 2, 1, 32), make_mesh(run.mesh)).programs[1]
layers = sum(leaf.size * 4 for leaf in jax.tree.leaves(program.state.trainable["backbone"]["layers"]))
made = program.function.lower(*program.arguments).compile({"xla_backend_optimization_level": "0"})
moved = [o for o in operations(made.as_text()) if o.payload]
for o in moved:
    print(o.opcode, o.loops, int(o.payload), o.source)
print(sum(o.payload * o.times(1) for o in moved) / layers / run.ppo.minibatches / run.ppo.epochs)
"""


@pytest.mark.parametrize(("gather", "micro_batches"), [("layer", 1), ("model", 2)])
def test_weights_move_three_times_a_minibatch(gather, micro_batches):
    """On eight simulated devices: a copy gathered forward, one backward and one of gradients summed; or one copy gathered
    for both micro-batches, and for each one of gradients summed."""
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{folder.parent}:{folder}"}
    command = [sys.executable, "-c", SHARDED, gather, str(micro_batches)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 2 < float(done.stdout.splitlines()[-1]) <= 3.15, done.stdout


def test_micro_batches_share_one_program(text):
    one, four = update(micro_batches=1), text
    products = [len(re.findall(r"stablehlo\.dot_general", program)) for program in (one, four)]
    assert products[0] == products[1] > 20


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_a_wide_product(dtype):
    rng = np.random.default_rng(0)
    x, y, weights = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 5, 4), (7, 4), (3, 5, 7)))
    x, y = x.astype(dtype), y.astype(dtype)

    def gradients(product):
        return jax.grad(lambda x, y: jnp.sum(weights * product("...d,vd->...v", x, y)), argnums=(0, 1))(x, y)

    def plain(subscripts, x, y):
        return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)

    assert wide_product("...d,vd->...v", x, y).dtype == jnp.float32
    np.testing.assert_array_equal(wide_product("...d,vd->...v", x, y), plain("...d,vd->...v", x, y))
    for ours, theirs in zip(gradients(wide_product), gradients(plain), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        if dtype == jnp.float32:
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=0.02, atol=0.02)
