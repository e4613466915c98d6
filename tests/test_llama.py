"""The Llama forward pass: numbers of `transformers`, and everything that must not change them."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from longshot_jax.model.huggingface import load_weights, read_config
from longshot_jax.model.key_values import Context, KeyValues
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.model.rope import RopeScaling

GOLDEN = Path(__file__).parent / "fixtures" / "golden_llama3"


def small_config(**changes) -> LlamaConfig:
    shape = {
        "vocab_size": 19,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
    }
    return LlamaConfig(**(shape | changes))


@pytest.fixture(scope="module")
def llama() -> Llama:
    """Random weights, made by one compiled program: op by op would take seconds."""
    state = jax.jit(lambda: nnx.split(Llama(small_config(), nnx.Rngs(0)))[1])()
    return nnx.merge(nnx.split(nnx.eval_shape(lambda: Llama(small_config(), nnx.Rngs(0))))[0], state)


def same_weights(llama: Llama, config: LlamaConfig | None = None, **options) -> Llama:
    """The weights of `llama` under another config or other options."""
    other = nnx.eval_shape(lambda: Llama(config or small_config(), nnx.Rngs(0), **options))
    return nnx.merge(nnx.split(other)[0], nnx.split(llama)[1])


def some_tokens(batch: int, length: int) -> jax.Array:
    return jax.random.randint(jax.random.key(7), (batch, length), 0, 19)


@partial(jax.jit, static_argnums=0)
def jitted(graph: nnx.GraphDef, state: nnx.State, embeddings, positions, mask, context):
    return nnx.merge(graph, state)(embeddings, positions, mask, context)


def call(llama: Llama, embeddings, positions, mask, context=()) -> tuple[jax.Array, KeyValues]:
    """The module's call, compiled once for each shape: without `jit` its scan compiles at every call."""
    return jitted(*nnx.split(llama), embeddings, positions, mask, context)


def run(llama: Llama, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Logits [B, S, V], positions counted over real tokens."""
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = call(llama, llama.embed(tokens), positions, mask)
    return llama.logits(hidden)


@pytest.fixture(scope="module")
def golden() -> tuple[jax.Array, np.ndarray]:
    stored = np.load(GOLDEN / "golden.npz")
    return jnp.asarray(stored["ids"], jnp.int32), stored["logits"]


def golden_llama(**options) -> Llama:
    config = read_config(GOLDEN)
    abstract = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0), **options))
    return nnx.merge(nnx.split(abstract)[0], load_weights(GOLDEN, config))


def test_logits_equal_those_of_transformers(golden):
    tokens, logits = golden
    np.testing.assert_allclose(run(golden_llama(), tokens), logits, atol=1e-4, rtol=0)


def test_golden_numbers_depend_on_position_and_order(golden):
    """The fixture would notice: turned the wrong way or with another base, the same weights miss the bound."""
    tokens, logits = golden
    llama = golden_llama()
    hidden, _ = call(llama, llama.embed(tokens), jnp.zeros(tokens.shape, jnp.int32), jnp.ones(tokens.shape, bool))
    assert np.abs(llama.logits(hidden) - logits).max() > 0.1


def test_bfloat16_stays_near_float32(golden):
    """Activations in bfloat16 have 8 bits; over 3 layers logits of size up to 4.5 move by less than 0.015
    on average, and by 0.2 at most: the largest of so many is luck.
    """
    tokens, logits = golden
    result = run(golden_llama(compute_dtype=jnp.bfloat16), tokens)
    assert result.dtype == jnp.float32
    difference = np.abs(result - logits)
    assert 1e-4 < difference.max() < 0.2
    assert difference.mean() < 0.015


def test_shapes_of_hidden_states_and_cache(llama):
    tokens = some_tokens(3, 5)
    positions = jnp.broadcast_to(jnp.arange(5), (3, 5))
    hidden, cache = call(llama, llama.embed(tokens), positions, jnp.ones((3, 5), bool))
    assert hidden.shape == (3, 5, 16)
    assert cache.keys.shape == cache.values.shape == (2, 3, 2, 5, 6)
    assert llama.logits(hidden).shape == (3, 5, 19)


def test_tied_head_is_the_embedding_table():
    llama = Llama(small_config(tie_word_embeddings=True, num_hidden_layers=1), nnx.Rngs(0))
    assert not hasattr(llama, "head")
    np.testing.assert_allclose(llama.logits(jnp.eye(16)), llama.embedding[...].T, rtol=1e-6)


@pytest.mark.law
def test_cached_equals_uncached(llama):
    """Pieces that each read the cache of all those before give the logits of the whole."""
    tokens = some_tokens(2, 6)
    whole = run(llama, tokens)
    context, pieces = (), []
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        piece = tokens[:, start:stop]
        mask = jnp.ones(piece.shape, bool)
        positions = jnp.broadcast_to(jnp.arange(start, stop), piece.shape)
        hidden, cache = call(llama, llama.embed(piece), positions, mask, context)
        context = (*context, Context(cache, mask))
        pieces.append(llama.logits(hidden))
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, atol=1e-5)


def test_masked_context_is_not_seen(llama):
    tokens = some_tokens(2, 6)
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    mask = jnp.ones((2, 6), bool)
    noise = jax.random.normal(jax.random.key(1), (2, 2, 2, 3, 6))
    unseen = Context(KeyValues(noise, noise), jnp.zeros((2, 3), bool))
    alone, _ = call(llama, llama.embed(tokens), positions, mask)
    beside, _ = call(llama, llama.embed(tokens), positions, mask, (unseen,))
    np.testing.assert_allclose(beside, alone, atol=1e-6)
    seen = unseen.replace(mask=jnp.ones((2, 3), bool))
    assert jnp.abs(call(llama, llama.embed(tokens), positions, mask, (seen,))[0] - alone).max() > 1e-2


@pytest.mark.law
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_neighbours_change_nothing(llama, side):
    tokens = some_tokens(1, 5)
    alone = run(llama, tokens)[0]
    before = 3 if side == "left" else 0
    padded = some_tokens(2, 8).at[0, before : before + 5].set(tokens[0])
    mask = jnp.zeros((2, 8), bool).at[0, before : before + 5].set(True).at[1].set(True)
    np.testing.assert_allclose(run(llama, padded, mask)[0, before : before + 5], alone, atol=1e-5)


def test_no_position_sees_later_ones(llama):
    tokens = some_tokens(2, 6)
    changed = tokens.at[:, 4:].set((tokens[:, 4:] + 1) % 19)
    before, after = run(llama, tokens), run(llama, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert jnp.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def loss(state: nnx.State, graph: nnx.GraphDef, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean negative log-likelihood of the next real token."""
    log_probs = jax.nn.log_softmax(run(nnx.merge(graph, state), tokens, mask)[:, :-1])
    chosen = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
    scored = mask[:, 1:] & mask[:, :-1]
    return -jnp.sum(jnp.where(scored, chosen, 0.0)) / jnp.sum(scored)


def test_gradients_are_finite_reach_every_weight_and_do_not_depend_on_remat(llama):
    """Beside padding too: its queries see nothing at all, and a softmax over nothing must not give NaN."""
    tokens = some_tokens(2, 7)
    mask = jnp.arange(7)[None] >= jnp.array([[3], [0]])
    losses, gradients = [], []
    for remat in (False, True):
        graph, state = nnx.split(same_weights(llama, remat=remat))
        value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(state, graph, tokens, mask)
        losses.append(value)
        gradients.append(gradient)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    for path, gradient in jax.tree.leaves_with_path(gradients[0]):
        assert jnp.isfinite(gradient).all(), path
        assert jnp.abs(gradient).max() > 0, path
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *gradients)


def test_remat_does_recompute(llama):
    """More matrix products than without, or the option would be a name without a deed."""
    tokens = some_tokens(2, 7)

    def products(remat: bool) -> int:
        graph, state = nnx.split(same_weights(llama, remat=remat))
        program = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(state, graph, tokens, jnp.ones((2, 7), bool))
        return str(program).count("dot_general")

    assert products(remat=True) > products(remat=False)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="num_attention_heads 4 must be a multiple"):
        small_config(num_key_value_heads=3)


def test_scaled_rope_reaches_the_layers(llama):
    scaled = same_weights(llama, small_config(rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16), rope_theta=100.0))
    tokens = some_tokens(1, 12)
    assert jnp.abs(run(llama, tokens) - run(scaled, tokens)).max() > 1e-3
