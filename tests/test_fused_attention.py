"""Attention through `jax.nn.dot_product_attention` against the plain one: padding, holes, shared prompts, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import QUICK, ragged_prompts, small_reasoner

from longshot_jax.errors import UserError
from longshot_jax.model.attention import Segment, attend
from longshot_jax.model.fused_attention import check_attention, fused_attend
from longshot_jax.model.llama import Llama

HEADS, GROUPS, SIZE = 4, 2, 8


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def own_segment(mask, seed=0):
    rows, length = mask.shape
    queries, keys, values = arrays(
        seed, (rows, length, HEADS, SIZE), (rows, GROUPS, length, SIZE), (rows, GROUPS, length, SIZE)
    )
    visible = jnp.tril(jnp.ones((length, length), bool))[None] & mask[:, None]
    return queries, Segment(keys, values, visible)


def both(queries, segments, mask):
    """Outputs on real positions and gradients of a sum over them, plain and fused."""

    def of(function):
        def loss(queries, segments):
            mixed = jnp.where(mask[..., None, None], function(queries, segments), 0.0)
            return jnp.sum(jnp.sin(mixed)), mixed

        return jax.jit(
            jax.value_and_grad(loss, has_aux=True, allow_int=True, argnums=(0, 1)), compiler_options=QUICK
        )(queries, segments)

    return of(attend), of(lambda queries, segments: fused_attend(queries, segments, "xla"))


def agree(plain, fused, mask):
    np.testing.assert_allclose(plain[0][1], fused[0][1], atol=2e-6)
    for one, other in zip(jax.tree.leaves(plain[1]), jax.tree.leaves(fused[1]), strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            np.testing.assert_allclose(one, other, atol=3e-6)


def test_padding_on_any_side_becomes_a_length():
    mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 1, 1]], bool)
    queries, own = own_segment(mask)
    agree(*both(queries, (own,), mask), mask)


@pytest.mark.parametrize("past", [3, 4])
def test_a_shared_prompt_and_holes_become_a_mask(past):
    """Two rows for each of two prompts, odd lengths padded to even ones."""
    mask = jnp.array([[1, 0, 1], [1, 1, 1], [0, 0, 1], [1, 1, 0]], bool)
    queries, own = own_segment(mask)
    keys, values = arrays(1, (2, GROUPS, past, SIZE), (2, GROUPS, past, SIZE))
    seen = jnp.arange(past) >= jnp.array([[0], [1]])
    agree(*both(queries, (Segment(keys, values, seen[:, None]), own), mask), mask)


@pytest.mark.parametrize("keeps", ["nothing", "products"])
def test_a_llama_is_the_same_with_either_attention_and_either_memory(keeps):
    reasoner = small_reasoner(seed=3)
    tokens, mask = ragged_prompts([5, 3], 6)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    config, llama = reasoner.llama.config, reasoner.llama
    from flax import nnx

    weights = nnx.split(llama)[1]
    other = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0), remat=True, remat_keeps=keeps, attention="xla"))

    def gradient(graph):
        def loss(weights):
            model = nnx.merge(graph, weights)
            hidden, _ = model(model.embed(tokens), positions, mask)
            return jnp.sum(jnp.where(mask[..., None], jnp.sin(hidden), 0.0))

        return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(weights)

    (value, ours), (theirs_value, theirs) = gradient(nnx.split(llama)[0]), gradient(nnx.split(other)[0])
    np.testing.assert_allclose(value, theirs_value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), ours, theirs)


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "sentence"),
    [
        ("cpu", "bfloat16", 64, r"needs an NVIDIA GPU, and these devices are cpu: take 'plain'"),
        ("gpu", "float32", 64, r"compute_dtype is 'float32': set it to 'bfloat16'"),
        ("gpu", "bfloat16", 20, r"a multiple of 8, and these have 20"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused(platform, dtype, head_dim, sentence):
    with pytest.raises(UserError, match=sentence):
        check_attention("cudnn", platform, dtype, head_dim)
    check_attention("xla", platform, dtype, head_dim)
    check_attention("cudnn", "gpu", "bfloat16", 128)
