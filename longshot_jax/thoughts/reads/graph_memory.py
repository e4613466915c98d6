"""Graph memory: a thought reads a small graph of earlier actions and of the nearest entries of the memory bank.

Nodes are actions that the question's trajectories took at earlier steps (see `thoughts.reads.history` for why actions)
and the bank entries nearest to the reading state. Each has a position, a recorded value and an age. The graph is
complete; an edge carries the distance of its ends and the value and age of its source. The nodes pass through one layer
of multi-head graph attention (Velickovic et al. 2018, arXiv:1710.10903), graph transformer layers (Dwivedi & Bresson
2021, arXiv:2012.09699) and global attention pooling with the state as query (Li et al. 2016, arXiv:1511.05493). The
order of the nodes does not matter. The bank search costs O(M) per thought; the layers see only the entries that it
finds.

Shapes: G nodes of one graph, E = 3 features of an edge; the leading axes are the reading states'.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.nn.initializers import normal, zeros
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.model.attention import MASKED
from longshot_jax.model.parameters import weight
from longshot_jax.thoughts.reads.history import History
from longshot_jax.thoughts.reads.memory_bank import MemoryBank, entries_read

OWN, OTHER, BANK = range(3)


@struct.dataclass
class Nodes:
    """Nodes of the graph that each state reads.

    Attributes:
      positions: points of the reasoning space.
      values: recorded, in units of reward.
      ages: in thoughts for actions, in writes for bank entries.
      kinds: OWN, OTHER or BANK.
      visible: False in slots without a node.
    """

    positions: Float[Array, "*batch G R"]
    values: Float[Array, "*batch G"]
    ages: Float[Array, "*batch G"]
    kinds: Int[Array, "*batch G"]
    visible: Bool[Array, "*batch G"]


def own_nodes(positions: Float[Array, "B P R"], history: History, steps: Int[Array, " Q"]) -> Nodes:
    """A trajectory's own actions before each of Q steps, [B, N, Q, T]; `positions` are of all actions."""
    batch, trajectories, slots = history.thought_mask.shape
    shape = (batch, trajectories, steps.shape[0], slots)
    ages = steps[:, None] - jnp.arange(slots)
    positions = positions.reshape(batch, trajectories, 1, slots, -1)
    return Nodes(
        positions=jnp.broadcast_to(positions, (*shape, positions.shape[-1])),
        values=jnp.broadcast_to(history.values[:, :, None], shape),
        ages=jnp.broadcast_to(ages.astype(jnp.float32), shape),
        kinds=jnp.full(shape, OWN),
        visible=history.thought_mask[:, :, None] & (ages > 0),
    )


def all_nodes(positions: Float[Array, "B P R"], history: History, steps: Int[Array, " Q"]) -> Nodes:
    """All trajectories' actions before each of Q steps, as seen by each trajectory: [B, N, Q, P]."""
    batch, trajectories, slots = history.thought_mask.shape
    shape = (batch, trajectories, steps.shape[0], trajectories * slots)
    return Nodes(
        positions=jnp.broadcast_to(positions[:, None, None], (*shape, positions.shape[-1])),
        values=jnp.broadcast_to(history.values.reshape(batch, 1, 1, -1), shape),
        ages=jnp.broadcast_to(history.ages(steps).astype(jnp.float32), shape),
        kinds=jnp.broadcast_to(jnp.where(history.own, OWN, OTHER), shape),
        visible=jnp.broadcast_to(history.visible(steps), shape),
    )


def bank_nodes(
    bank: MemoryBank, state: Float[Array, "*batch R"], count: int, recorded: Int[Array, "*batch S"] | None = None
) -> Nodes:
    """The `count` entries of the bank that `read_bank` would choose for each state, or reads again if recorded."""
    slots, found = entries_read(bank, state, count, recorded)
    return Nodes(
        positions=bank.positions[slots],
        values=bank.values[slots],
        ages=bank.ages[slots].astype(jnp.float32),
        kinds=jnp.full(slots.shape, BANK),
        visible=found,
    )


def join_nodes(first: Nodes, second: Nodes) -> Nodes:
    """The nodes of both graphs in one."""
    axis = first.visible.ndim - 1
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=axis), first, second)


def _unit_rms(x: Float[Array, "*batch R"]) -> Float[Array, "*batch R"]:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _edges(nodes: Nodes) -> Float[Array, "*batch G G E"]:
    """Features of the edge from node j to node i: their distance, and the value and age of j."""
    gap = nodes.positions[..., :, None, :] - nodes.positions[..., None, :, :]
    # Added under the root, so that the gradient at distance zero is zero and not NaN.
    distance = jnp.sqrt(jnp.mean(jnp.square(gap), axis=-1) + 1e-12)
    of_source = jnp.stack([nodes.values, jnp.log1p(nodes.ages)], axis=-1)[..., None, :, :]
    of_source = jnp.broadcast_to(of_source, (*distance.shape, 2))
    return jnp.concatenate([distance[..., None], of_source], axis=-1)


def _shares(logits: Float[Array, "*batch H G G"], visible: Bool[Array, "*batch G"]) -> Array:
    """Softmax over the visible sources; zeros where there are none."""
    there = visible[..., None, None, :]
    return jnp.where(there, jax.nn.softmax(jnp.where(there, logits, MASKED), axis=-1), 0.0)


class GraphAttention(nnx.Module):
    """One layer of multi-head graph attention, with additive logits of both ends and of the edge."""

    def __init__(self, space: int, heads: int, rngs: nnx.Rngs):
        size = space // heads
        self.project = weight(rngs, (space, heads, size), ("reasoning", None, None), normal(space**-0.5))
        self.source = weight(rngs, (heads, size), (None, None), normal(size**-0.5))
        self.target = weight(rngs, (heads, size), (None, None), normal(size**-0.5))
        self.edge = weight(rngs, (3, heads), (None, None), normal(3**-0.5))

    def __call__(
        self, x: Float[Array, "*batch G R"], edges: Float[Array, "*batch G G E"], visible: Bool[Array, "*batch G"]
    ) -> Float[Array, "*batch G R"]:
        heads = jnp.einsum("...gr,rhc->...hgc", x, self.project[...])
        source = jnp.einsum("...hgc,hc->...hg", heads, self.source[...])[..., None, :]
        target = jnp.einsum("...hgc,hc->...hg", heads, self.target[...])[..., :, None]
        logits = jax.nn.leaky_relu(source + target + jnp.einsum("...ije,eh->...hij", edges, self.edge[...]), 0.2)
        mixed = jnp.einsum("...hij,...hjc->...ihc", _shares(logits, visible), heads)
        return jax.nn.elu(mixed.reshape(x.shape))


class GraphTransformerLayer(nnx.Module):
    """Pre-norm attention with a bias per edge, then a pre-norm feed-forward layer, both residual."""

    def __init__(self, space: int, heads: int, rngs: nnx.Rngs):
        size, spread = space // heads, normal(space**-0.5)
        self.qkv = weight(rngs, (3, space, heads, size), (None, "reasoning", None, None), spread)
        self.edge = weight(rngs, (3, heads), (None, None), zeros)
        self.out = weight(rngs, (heads, size, space), (None, None, "reasoning"), spread)
        self.mlp_in = weight(rngs, (space, 2 * space), ("reasoning", None), spread)
        self.mlp_out = weight(rngs, (2 * space, space), (None, "reasoning"), normal((2 * space) ** -0.5))

    def __call__(
        self, x: Float[Array, "*batch G R"], edges: Float[Array, "*batch G G E"], visible: Bool[Array, "*batch G"]
    ) -> Float[Array, "*batch G R"]:
        query, key, value = jnp.einsum("...gr,krhc->k...ghc", _unit_rms(x), self.qkv[...])
        logits = jnp.einsum("...ihc,...jhc->...hij", query, key) * query.shape[-1] ** -0.5
        logits += jnp.einsum("...ije,eh->...hij", edges, self.edge[...])
        x = x + jnp.einsum("...hij,...jhc,hcr->...ir", _shares(logits, visible), value, self.out[...])
        return x + jax.nn.gelu(_unit_rms(x) @ self.mlp_in[...]) @ self.mlp_out[...]


class GraphMemory(nnx.Module):
    """Maps a state and its nodes to the vector that the state reads."""

    def __init__(
        self, space: int, heads: int, layers: int, rngs: nnx.Rngs, out_initializer: jax.nn.initializers.Initializer
    ):
        spread = normal(space**-0.5)
        self.position_in = weight(rngs, (space, space), ("reasoning", None), spread)
        self.feature_in = weight(rngs, (2, space), (None, "reasoning"), normal(2**-0.5))
        self.kind = weight(rngs, (3, space), (None, "reasoning"), normal(0.1))
        self.attention = GraphAttention(space, heads, rngs)
        self.layers = nnx.List([GraphTransformerLayer(space, heads, rngs) for _ in range(layers)])
        self.pool_query = weight(rngs, (space, space), ("reasoning", None), spread)
        self.pool_key = weight(rngs, (space, space), ("reasoning", None), spread)
        self.out = weight(rngs, (space, space), (None, "reasoning"), out_initializer)

    def __call__(self, state: Float[Array, "*batch R"], nodes: Nodes) -> Float[Array, "*batch R"]:
        """What each state reads; zeros where there are no nodes."""
        visible = nodes.visible
        # Values in slots without a node must not reach a sum, even times zero: they may be NaN.
        nodes = replace(
            nodes,
            positions=jnp.where(visible[..., None], nodes.positions, 0.0),
            values=jnp.where(visible, nodes.values, 0.0),
            ages=jnp.where(visible, nodes.ages, 0.0),
        )
        features = jnp.stack([nodes.values, jnp.log1p(nodes.ages)], axis=-1) @ self.feature_in[...]
        x = _unit_rms(nodes.positions) @ self.position_in[...] + features + self.kind[...][nodes.kinds]
        edges = _edges(nodes)
        x = x + self.attention(x, edges, visible)
        for layer in self.layers:
            x = layer(x, edges, visible)
        query = _unit_rms(state) @ self.pool_query[...]
        logits = jnp.einsum("...r,...gr->...g", query, x @ self.pool_key[...]) * x.shape[-1] ** -0.5
        shares = jax.nn.softmax(jnp.where(visible, logits, MASKED), axis=-1)
        return jnp.einsum("...g,...gr->...r", jnp.where(visible, shares, 0.0), x) @ self.out[...]
