"""Attention over segments: the plain one against one softmax over their union, in NumPy, and the fused ones against it."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import QUICK, ragged_prompts, small_reasoner
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from longshot_jax.errors import UserError
from longshot_jax.model.attention import PaddingLast, Segment, attend, check_attention, chosen_attention, fused_attend
from longshot_jax.model.decoding import DECODING_RULES
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.model.sharding import AXES, on_mesh
from longshot_jax.thoughts.think import encode, encode_and_extend, extend

HEADS, GROUPS, SIZE = 4, 2, 3
FUSED_SIZE = 8  # of a head, for `jax.nn.dot_product_attention`


def one_softmax(queries, segments):
    """The definition, row by row and head by head, in float64."""
    result = np.zeros(queries.shape)
    for row, query, head in np.ndindex(*queries.shape[:3]):
        logits, values = [], []
        for segment in segments:
            owner = row * len(segment.keys) // len(queries)
            keys = np.asarray(segment.keys, float)[owner, head * GROUPS // HEADS]
            seen = np.asarray(segment.visible)[owner, query if segment.visible.shape[1] > 1 else 0]
            logits.append((keys @ np.asarray(queries, float)[row, query, head] / SIZE**0.5)[seen])
            values.append(np.asarray(segment.values, float)[owner, head * GROUPS // HEADS][seen])
        every = np.concatenate(logits)
        weights = np.exp(every - every.max())
        result[row, query, head] = weights @ np.concatenate(values) / weights.sum()
    return result


def segment(rng, owners, past, visible, size=1.0):
    keys, values = (size * rng.normal(size=(owners, GROUPS, past, SIZE)) for _ in range(2))
    return Segment(jnp.asarray(keys, jnp.float32), jnp.asarray(values, jnp.float32), jnp.asarray(visible))


def a_case(rows, length, owners, past, size=1.0):
    """Queries that see a shared prompt with holes, an empty segment, and themselves causally."""
    rng = np.random.default_rng([rows, length, owners, past])
    queries = jnp.asarray(size * rng.normal(size=(rows, length, HEADS, SIZE)), jnp.float32)
    causal = np.broadcast_to(np.tril(np.ones((length, length), bool)), (rows, length, length))
    holes = rng.random((owners, 1, past)) < 0.6
    return queries, (
        segment(rng, owners, past, holes, size),
        segment(rng, rows, 0, np.zeros((rows, 1, 0), bool)),
        segment(rng, rows, length, causal, size),
    )


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (6, 1, 2, 4), (3, 2, 3, 1), (2, 4, 1, 0)])
def test_segments_are_one_softmax(shape):
    queries, segments = a_case(*shape)
    found = jax.jit(attend, compiler_options=QUICK)(queries, segments)
    np.testing.assert_allclose(found, one_softmax(queries, segments), atol=2e-6)


def test_logits_far_from_each_other_do_not_overflow():
    queries, segments = a_case(4, 3, 2, 5, size=30.0)
    assert np.isfinite(attend(queries, segments)).all()
    np.testing.assert_allclose(attend(queries, segments), one_softmax(queries, segments), atol=1e-3)


def test_gradient_is_that_of_one_softmax():
    queries, segments = a_case(4, 3, 2, 5)

    def plain(queries, segments):
        def laid(x):
            return jnp.repeat(jnp.repeat(x, 4 // len(x), 0), HEADS // GROUPS, 1)

        keys, values = (jnp.concatenate([laid(getattr(s, name)) for s in segments], 2) for name in ("keys", "values"))
        masks = [
            jnp.broadcast_to(jnp.repeat(s.visible, 4 // len(s.visible), 0), (4, 3, s.keys.shape[2])) for s in segments
        ]
        logits = jnp.einsum("bqhc,bhpc->bhqp", queries, keys) * SIZE**-0.5
        weights = jax.nn.softmax(jnp.where(jnp.concatenate(masks, -1)[:, None], logits, -jnp.inf), axis=-1)
        return jnp.einsum("bhqp,bhpc->bqhc", weights, values)

    def gradient(function):
        loss = lambda queries, segments: jnp.sum(jnp.sin(function(queries, segments)))  # noqa: E731
        return jax.grad(loss, argnums=(0, 1), allow_int=True)(queries, segments)

    for ours, theirs in zip(jax.tree.leaves(gradient(attend)), jax.tree.leaves(gradient(plain)), strict=True):
        if jnp.issubdtype(ours.dtype, jnp.floating):
            np.testing.assert_allclose(ours, theirs, atol=2e-6)


# `jax.nn.dot_product_attention`


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def own_segment(mask, seed=0):
    rows, length = mask.shape
    queries, keys, values = arrays(
        seed, (rows, length, HEADS, FUSED_SIZE), (rows, GROUPS, length, FUSED_SIZE), (rows, GROUPS, length, FUSED_SIZE)
    )
    visible = jnp.tril(jnp.ones((length, length), bool))[None] & mask[:, None]
    return queries, Segment(keys, values, visible)


def both(queries, segments, mask):
    """Outputs on real positions and gradients of a sum over them, plain and fused."""

    def of(function):
        def loss(queries, segments):
            mixed = jnp.where(mask[..., None, None], function(queries, segments), 0.0)
            return jnp.sum(jnp.sin(mixed)), mixed

        return jax.jit(jax.value_and_grad(loss, has_aux=True, allow_int=True, argnums=(0, 1)), compiler_options=QUICK)(
            queries, segments
        )

    return of(attend), of(lambda queries, segments: fused_attend(queries, segments, "xla"))


def agree(plain, fused, mask):
    np.testing.assert_allclose(plain[0][1], fused[0][1], atol=2e-6)
    for one, other in zip(jax.tree.leaves(plain[1]), jax.tree.leaves(fused[1]), strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            np.testing.assert_allclose(one, other, atol=3e-6)


def test_padding_becomes_a_length():
    mask = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], bool)
    queries, own = own_segment(mask)
    agree(*both(queries, (own,), mask), mask)


def test_padding_moves_behind_what_is_real_and_back():
    mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 1, 1]], bool)
    order, (x,) = PaddingLast.of(mask), arrays(0, (2, 4, 3, 5))
    moved = order.apply(x, 1, 3)
    np.testing.assert_array_equal(order.apply(mask), jnp.arange(5) < mask.sum(1)[:, None])
    np.testing.assert_array_equal(moved[1, 3, 2, :3], x[1, 3, 2, jnp.array([1, 3, 4])])
    np.testing.assert_array_equal(order.undo(moved, 1, 3), x)
    weights = jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)
    gradient = jax.grad(lambda x: jnp.sum(weights * order.apply(x, 1, 3)))(x)
    np.testing.assert_array_equal(gradient, order.undo(weights, 1, 3))


@pytest.mark.parametrize("past", [3, 4])
def test_a_shared_prompt_and_holes_become_a_mask(past):
    """Two rows for each of two prompts, odd lengths padded to even ones."""
    mask = jnp.array([[1, 0, 1], [1, 1, 1], [0, 0, 1], [1, 1, 0]], bool)
    queries, own = own_segment(mask)
    keys, values = arrays(1, (2, GROUPS, past, FUSED_SIZE), (2, GROUPS, past, FUSED_SIZE))
    seen = jnp.arange(past) >= jnp.array([[0], [1]])
    agree(*both(queries, (Segment(keys, values, seen[:, None]), own), mask), mask)


@pytest.mark.card
@pytest.mark.parametrize(
    ("heads", "size", "past"), [((9, 3), 64, 0), ((9, 3), 64, 96), ((32, 8), 128, 0), ((32, 8), 128, 37)]
)
def test_the_kernel_of_this_device_is_the_plain_attention_in_bfloat16(heads, size, past):
    """cuDNN's on a GPU, XLA's elsewhere, at the heads of SmolLM2 and Llama 3, values and gradients.

    With `past` positions of prompts that two rows share, with holes; else alone, with padding behind what is real.
    """
    kernel = "cudnn" if jax.default_backend() == "gpu" else "xla"
    rows, length = 4, 51
    rng = np.random.default_rng(past)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

    queries, pull = random(rows, length, heads[0], size), random(rows, length, heads[0], size)
    keys_and_values = [random(rows, heads[1], length, size) for _ in range(2)]
    shared = [random(rows // 2, heads[1], past, size) for _ in range(2)]
    real = np.arange(length) < np.array([51, 40, 17, 2])[:, None]
    own = jnp.asarray(np.tril(np.ones((length, length), bool))[None] & real[:, None])
    holes = jnp.asarray(rng.random((rows // 2, 1, past)) < 0.8)

    def found(attention, dtype):
        def loss(queries, own_arrays, shared_arrays):
            segments = (Segment(*own_arrays, own),)
            if past:
                segments = (Segment(*shared_arrays, holes), *segments)
            mixed = attention(queries, segments).astype(jnp.float32)
            return jnp.sum(jnp.where(real[..., None, None], mixed * pull, 0.0)), mixed

        arguments = jax.tree.map(lambda x: x.astype(dtype), (queries, keys_and_values, shared))
        (_, mixed), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arguments)
        return [np.where(real[..., None, None], mixed, 0.0), *jax.tree.leaves(gradients)]

    exact = found(attend, jnp.float32)
    for ours, plain, precise in zip(
        found(lambda *given: fused_attend(*given, kernel), jnp.bfloat16),
        found(attend, jnp.bfloat16),
        exact,
        strict=True,
    ):
        if np.size(precise):
            scale = np.linalg.norm(precise)
            errors = [np.linalg.norm(np.asarray(x, np.float32) - precise) / scale for x in (ours, plain)]
            assert errors[0] < 0.01 and errors[0] < 2 * errors[1] + 1e-3, errors


@pytest.mark.slow
def test_the_kernel_gets_even_lengths_and_no_call_without_positions(monkeypatch):
    """cuDNN's backward pass requires the first; a program without the second ended its process on a GPU."""
    kernel, asked = jax.nn.dot_product_attention, []

    def asking(queries, keys, *arguments, **options):
        asked.append((queries.shape[1], keys.shape[1]))
        return kernel(queries, keys, *arguments, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", asking)
    for length in (0, 1, 2, 5):
        queries, own = own_segment(jnp.ones((2, length), bool))
        prompts = Segment(*arrays(1, *[(2, GROUPS, 3, FUSED_SIZE)] * 2), jnp.ones((2, 1, 3), bool))
        for segments in ((own,), (prompts, own)):
            assert fused_attend(queries, segments, "xla").shape == queries.shape
    assert asked == [(2, 2), (2, 6), (6, 6), (6, 8)]


@pytest.mark.parametrize(
    ("fsdp", "placement", "fused"), [(2, "tensor", True), (4, "tensor", False), (4, "replicated", True)]
)
def test_heads_that_are_cut_otherwise_than_their_keys_use_plain_attention(monkeypatch, fsdp, placement, fused):
    """cuDNN refuses them: Llama-3-70B, cut over 64 devices to decode, has 64 heads and 8 of keys."""
    kernel, asked = jax.nn.dot_product_attention, []

    def asking(*arguments, **options):
        asked.append(arguments[0].shape)
        return kernel(*arguments, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", asking)
    llama = nnx.eval_shape(lambda: Llama(LlamaConfig(16, 32, 16, 1, 4, 2, 8), nnx.Rngs(0), attention="xla"))
    graphdef, weights = nnx.split(llama)
    mesh = AbstractMesh((1, fsdp, 1), AXES, axis_types=(AxisType.Auto,) * 3)

    def states(weights, embeddings):
        ones = jnp.ones(embeddings.shape[:2], jnp.int32)
        return nnx.merge(graphdef, weights)(embeddings, ones, ones.astype(bool))[0]

    given = weights, jax.ShapeDtypeStruct((4, 6, 32), jnp.float32)
    assert jax.eval_shape(on_mesh(mesh, states, DECODING_RULES[placement]), *given).shape == (4, 6, 32)
    assert bool(asked) == fused


@pytest.mark.parametrize("keeps", ["nothing", "products"])
def test_a_llama_is_the_same_with_either_attention_and_either_memory(keeps):
    reasoner = small_reasoner(seed=3)
    tokens, mask = ragged_prompts([5, 3], 6)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    config, backbone = reasoner.backbone.config, reasoner.backbone
    params = nnx.split(backbone)[1]
    other = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0), remat=True, remat_keeps=keeps, attention="xla"))

    def gradient(graphdef):
        def loss(params):
            model = nnx.merge(graphdef, params)
            hidden, _ = model(model.embed(tokens), positions, mask)
            return jnp.sum(jnp.where(mask[..., None], jnp.sin(hidden), 0.0))

        return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)

    (value, ours), (theirs_value, theirs) = gradient(nnx.split(backbone)[0]), gradient(nnx.split(other)[0])
    np.testing.assert_allclose(value, theirs_value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), ours, theirs)


@pytest.mark.parametrize("attention", ["plain", "xla"])
def test_prompts_and_their_continuations_in_one_pass(attention):
    """As in two, with the prompts' keys and values as context."""
    reasoner, other = small_reasoner(seed=4), small_reasoner(seed=4)
    other.backbone.attention = other.backbone.layers.attention = attention
    tokens, mask = ragged_prompts([2, 4], 4)
    (embeddings,) = arrays(0, (2, 3, 5, 8))
    after = jnp.asarray(np.random.default_rng(1).random((2, 3, 5)) < 0.8)
    order = jnp.maximum(jnp.cumsum(after, -1) - 1, 0)

    def states(hidden, new):
        return hidden, jnp.where(after[..., None], new, 0.0)

    def two(embeddings):
        prompt = encode(reasoner, tokens, mask)
        return states(
            prompt.hidden, extend(reasoner, embeddings, prompt.lengths[:, None, None] + order, after, prompt)[0]
        )

    def one(embeddings):
        return states(*encode_and_extend(other, tokens, mask, embeddings, order, after))

    for theirs, ours in zip(
        *(jax.jit(function, compiler_options=QUICK)(embeddings) for function in (two, one)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "sentence"),
    [
        ("cpu", "bfloat16", 64, r"needs an NVIDIA GPU, and these devices are cpu: take 'auto'"),
        ("gpu", "float32", 64, r"compute_dtype is 'float32': set it to 'bfloat16'"),
        ("gpu", "bfloat16", 20, r"a multiple of 8, and these have 20"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused(platform, dtype, head_dim, sentence):
    with pytest.raises(UserError, match=sentence):
        check_attention("cudnn", platform, dtype, head_dim)
    check_attention("xla", platform, dtype, head_dim)
    check_attention("cudnn", "gpu", "bfloat16", 128)
    device = SimpleNamespace(platform=platform, compute_capability="9.0")
    assert chosen_attention("auto", device, dtype, head_dim) == "plain"


def test_the_kernel_is_the_default_where_it_runs():
    def chosen(capability, head_dim=128):
        device = SimpleNamespace(platform="gpu", compute_capability=capability)
        return chosen_attention("auto", device, "bfloat16", head_dim)

    assert chosen("8.0") == chosen("10.3") == chosen("9.0", 64) == "cudnn"
    assert chosen("7.5") == chosen("gfx942") == chosen("9.0", 256) == "plain"
    assert chosen_attention("auto", jax.devices()[0], "bfloat16", 128) == "plain"
