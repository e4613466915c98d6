"""What thoughts read of earlier actions: graph memory against a loop over its nodes, attention across trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import QUICK, small_bank, small_reasoner
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_jax.thoughts.reads.graph_memory import (
    BANK,
    GraphMemory,
    Nodes,
    all_nodes,
    bank_nodes,
    join_nodes,
    own_nodes,
)
from longshot_jax.thoughts.reads.history import History
from longshot_jax.thoughts.reads.memory_bank import MemoryBank, nearest_entries, read_bank

SPACE, HEADS, NODES = 6, 2, 5


@pytest.fixture(scope="module")
def memory():
    module = GraphMemory(SPACE, HEADS, 2, nnx.Rngs(0), jax.nn.initializers.normal(0.5))
    graphdef, params = nnx.split(module)
    rng = np.random.default_rng(1)
    return nnx.merge(graphdef, jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape) * 0.5), params))


read = jax.jit(lambda memory, state, nodes: memory(state, nodes), compiler_options=QUICK)


def drawn(seed, visible):
    rng = np.random.default_rng(seed)
    nodes = Nodes(
        positions=rng.normal(size=(NODES, SPACE)).astype("f4"),
        values=rng.normal(size=NODES).astype("f4"),
        ages=rng.integers(0, 6, NODES).astype("f4"),
        kinds=rng.integers(0, 3, NODES).astype("i4"),
        visible=np.array(visible),
    )
    return rng.normal(size=SPACE).astype("f4"), nodes


def by_loop(memory, state, nodes):
    """The same, one node after the other, over the nodes that are there and no others."""
    here = np.flatnonzero(nodes.visible)
    if not len(here):
        return np.zeros(SPACE)
    w = lambda module, name: np.float64(getattr(module, name)[...])  # noqa: E731
    unit = lambda v: v / np.sqrt(np.mean(v * v) + 1e-6)  # noqa: E731
    softmax = lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum()  # noqa: E731
    place, value, age = nodes.positions.astype("f8"), nodes.values.astype("f8"), np.log1p(nodes.ages)

    def edge(target, source):
        gap = place[target] - place[source]
        return np.array([np.sqrt(np.mean(gap * gap)), value[source], age[source]])

    x = {}
    for i in here:
        x[i] = unit(place[i]) @ w(memory, "position_in") + np.array([value[i], age[i]]) @ w(memory, "feature_in")
        x[i] = x[i] + w(memory, "kind")[nodes.kinds[i]]
    attention, size = memory.attention, SPACE // HEADS
    mixed = {}
    for i in here:
        parts = []
        for head in range(HEADS):
            project = w(attention, "project")[:, head]
            logits = []
            for j in here:
                logit = x[j] @ project @ w(attention, "source")[head] + x[i] @ project @ w(attention, "target")[head]
                logit += edge(i, j) @ w(attention, "edge")[:, head]
                logits.append(logit if logit > 0 else 0.2 * logit)
            share = softmax(np.array(logits))
            parts.append(sum(s * (x[j] @ project) for s, j in zip(share, here, strict=True)))
        whole = np.concatenate(parts)
        mixed[i] = np.where(whole > 0, whole, np.expm1(whole))
    x = {i: x[i] + mixed[i] for i in here}
    for layer in memory.layers:
        query, key, worth = w(layer, "qkv")
        normed, after = {i: unit(x[i]) for i in here}, {}
        for i in here:
            after[i] = x[i]
            for head in range(HEADS):
                asked = normed[i] @ query[:, head]
                logits = np.array(
                    [
                        asked @ (normed[j] @ key[:, head]) / size**0.5 + edge(i, j) @ w(layer, "edge")[:, head]
                        for j in here
                    ]
                )
                total = sum(s * (normed[j] @ worth[:, head]) for s, j in zip(softmax(logits), here, strict=True))
                after[i] = after[i] + total @ w(layer, "out")[head]
            inner = np.float64(jax.nn.gelu(jnp.float32(unit(after[i]) @ w(layer, "mlp_in"))))
            after[i] = after[i] + inner @ w(layer, "mlp_out")
        x = after
    asked = unit(state.astype("f8")) @ w(memory, "pool_query")
    logits = np.array([asked @ (x[i] @ w(memory, "pool_key")) / SPACE**0.5 for i in here])
    return sum(s * x[i] for s, i in zip(softmax(logits), here, strict=True)) @ w(memory, "out")


@settings(max_examples=12, deadline=None)
@given(st.lists(st.booleans(), min_size=NODES, max_size=NODES), st.integers(0, 2**16))
def test_reading_the_graph_memory_matches_a_loop_over_its_nodes(memory, visible, seed):
    state, nodes = drawn(seed, visible)
    np.testing.assert_allclose(read(memory, state, nodes), by_loop(memory, state, nodes), atol=2e-4, rtol=1e-3)


@settings(max_examples=12, deadline=None)
@given(st.permutations(range(NODES)), st.integers(0, 2**16))
def test_the_order_of_nodes_and_what_is_not_there_do_not_matter(memory, order, seed):
    state, nodes = drawn(seed, [True, True, False, True, False])
    poisoned = nodes.replace(
        positions=np.where(nodes.visible[:, None], nodes.positions, np.nan),
        values=np.where(nodes.visible, nodes.values, np.inf),
        ages=np.where(nodes.visible, nodes.ages, -5.0),
    )
    turned = jax.tree.map(lambda x: x[np.array(order)], poisoned)
    np.testing.assert_allclose(read(memory, state, turned), read(memory, state, nodes), atol=1e-5)


def history_of(seed=0, batch=2, trajectories=3, slots=3, size=5):
    rng = np.random.default_rng(seed)
    num_thoughts = rng.integers(0, slots + 1, (batch, trajectories))
    num_thoughts[0] = slots
    return History(
        jnp.float32(rng.normal(size=(batch, trajectories, slots, size))),
        jnp.float32(rng.normal(size=(batch, trajectories, slots))),
        jnp.asarray(np.arange(slots) < num_thoughts[..., None]),
    )


def test_own_nodes_are_those_of_all_that_are_ones_own():
    history, steps = history_of(), jnp.arange(3)
    own, everyone = (nodes(history.actions.reshape(2, 9, 5), history, steps) for nodes in (own_nodes, all_nodes))
    for n in range(3):
        of_one = jax.tree.map(lambda x, n=n: x[:, n, :, 3 * n : 3 * n + 3], everyone)
        jax.tree.map(lambda x, y, n=n: np.testing.assert_array_equal(x[:, n], y), own, of_one)


def test_nodes_are_the_actions_of_earlier_steps():
    history, steps = history_of(), jnp.arange(3)
    nodes = all_nodes(history.actions.reshape(2, 9, 5), history, steps)
    for b, n, q, m, s in np.ndindex(2, 3, 3, 3, 3):
        here = (b, n, q, 3 * m + s)
        assert bool(nodes.visible[here]) == (bool(history.thought_mask[b, m, s]) and s < q)
        if nodes.visible[here]:
            assert float(nodes.ages[here]) == q - s and int(nodes.kinds[here]) == int(m != n)
            assert float(nodes.values[here]) == float(history.values[b, m, s])
            np.testing.assert_array_equal(nodes.positions[here], history.actions[b, m, s])
    one = all_nodes(history.actions.reshape(2, 9, 5), history, steps[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, :, 0], b[:, :, 1]), one, nodes)


def test_bank_nodes_are_those_that_are_read():
    bank = small_bank().replace(ages=jnp.arange(9, dtype=jnp.int32))
    state = jax.random.normal(jax.random.key(0), (2, 3, 2, 5))
    nodes = bank_nodes(bank, state, 2)
    slots, found = nearest_entries(bank, state, 2)
    np.testing.assert_array_equal(nodes.positions, bank.positions[slots])
    np.testing.assert_array_equal(nodes.ages, bank.ages[slots])
    np.testing.assert_array_equal(nodes.visible, found)
    assert np.all(nodes.kinds == BANK) and bool(np.any(found))
    history = history_of()
    joined = join_nodes(all_nodes(history.actions.reshape(2, 9, 5), history, jnp.arange(2)), nodes)
    assert joined.visible.shape == (2, 3, 2, 11) and joined.positions.shape == (2, 3, 2, 11, 5)


@pytest.mark.law
@pytest.mark.parametrize("reads", ["own", "all"])
def test_later_actions_and_stopped_trajectories_are_not_read(reads):
    """Each thought's mean changes with the actions that it may read, and with no other."""
    navigator, history = small_reasoner("navigator", reads=reads).navigator, history_of()
    hidden = jax.random.normal(jax.random.key(1), (2, 3, 3, 8))
    mean = jax.jit(
        lambda actions: navigator.action_mean(hidden, None, history.replace(actions=actions), jnp.arange(3)),
        compiler_options=QUICK,
    )
    before = mean(history.actions)
    for b, m, s in np.ndindex(2, 3, 3):
        changed = np.asarray(mean(history.actions.at[b, m, s].add(1.0)) != before).any(-1)
        for row, n, q in np.ndindex(2, 3, 3):
            may = row == b and bool(history.thought_mask[b, m, s]) and s < q and (reads == "all" or m == n)
            assert bool(changed[row, n, q]) == may, (b, m, s, row, n, q)


def test_a_bank_of_65536_entries_is_read_step_by_step_like_all_at_once():
    slots, top = 65_536, 3
    rng = np.random.default_rng(0)
    bank = MemoryBank(
        jnp.float32(rng.normal(size=(slots, 4))),
        jnp.float32(rng.uniform(0.5, 1.5, slots)),
        jnp.zeros(slots, jnp.int32),
        jnp.int32(slots - 7),
        jnp.int32(0),
    )
    state = jnp.float32(rng.normal(size=(2, 32, 5, 4)))
    assert state[..., 0].size * slots > 2**24  # so the steps are searched one after the other
    found, there = jax.jit(nearest_entries, static_argnums=2)(bank, state, top)
    one, _ = jax.jit(nearest_entries, static_argnums=2)(bank, state[:, :, 3:4], top)
    np.testing.assert_array_equal(found[:, :, 3:4], one)
    assert bool(there.all()) and int(found.max()) < slots - 7
    positions = np.float64(bank.positions)
    units = positions / np.linalg.norm(positions, axis=1, keepdims=True)
    for place in ((0, 0, 0), (1, 31, 4)):
        query = np.float64(state[place]) / np.linalg.norm(state[place])
        scores = np.where(np.arange(slots) < slots - 7, units @ query * np.float64(bank.values), 0)
        np.testing.assert_allclose(scores[np.asarray(found[place])], np.sort(scores)[::-1][:top], rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(read_bank(bank, x, top)[0] ** 2)))(state)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
