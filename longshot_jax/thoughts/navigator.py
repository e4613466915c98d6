"""The thought policy: from a last hidden state to a distribution over thoughts, a stop decision and a value.

A thought is an action with a density. Its kind (`feedback`) says what is sampled and how it becomes the next
input embedding:

- `hidden`: the action is the thought itself, around the (projected) hidden state. COCONUT where nothing is
  projected and no noise is added (Hao et al. 2024, arXiv:2412.06769).
- `navigator`: the action is a position in a small reasoning space: the state plus a step along a direction. The
  thought is decoded from the position alone, so the position is all that carries over: a bottleneck.
- `navigator_residual`: the same, and the hidden state is added to the decoded thought.

Everything here works on one position and is broadcast over leading axes; only a thought that reads earlier actions
(`past`) needs to know its trajectory and its step.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from longshot_jax.model.llama import Llama, rms_norm
from longshot_jax.model.weights import constant, normal, weight, zeros
from longshot_jax.thoughts.cross import CrossAttention
from longshot_jax.thoughts.graph import GraphMemory, all_nodes, bank_nodes, join_nodes, own_nodes
from longshot_jax.thoughts.memory import MemoryBank, fuse, read_bank
from longshot_jax.thoughts.past import Past

Feedback = Literal["hidden", "navigator", "navigator_residual"]


@dataclass(frozen=True)
class NavigatorConfig:
    """What a thought is.

    Attributes:
      feedback: kind of action, see the module's docstring.
      normalised: thoughts pass a learned projection (`hidden`) and an RMS norm whose scale starts at the rms of
        the token embeddings. Off is COCONUT: raw hidden states, several times larger than token embeddings.
      reasoning_dim: R, size of the reasoning space and of the memory's positions.
      memory_top: how many neighbours a thought reads from the memory bank; 0 is no memory.
      stop_bias: initial logit of the stop decision; -1 stops one time in four. Far below, stopping is never tried. A run
        that takes a navigator of the same kind over from `initialize_from` takes its logit too, whatever is set here.
      step_embeddings: a thought knows its number by a learned embedding, added to the state; so many there are, and
        later steps share the last. 0 is none.
      graph: a thought reads a graph of earlier actions and of bank entries (`thoughts.graph`): its `own` trajectory's
        actions, or those of `all` trajectories of the question.
      graph_neighbours: bank entries in the graph, where there is a bank.
      graph_layers: graph transformer layers after the graph attention.
      cross_attention: a thought reads the other trajectories' earlier actions (`thoughts.cross`).
      heads: of graph and cross-trajectory attention; they divide `reasoning_dim`.
      max_trajectories: PPO's questions choose their number of trajectories from 2 to this (`thoughts.complexity`);
        0 is no choice.
    """

    feedback: Feedback = "hidden"
    normalised: bool = False
    reasoning_dim: int = 256
    memory_top: int = 0
    stop_bias: float = -1.0
    step_embeddings: int = 0
    graph: Literal["off", "own", "all"] = "off"
    graph_neighbours: int = 3
    graph_layers: int = 1
    cross_attention: bool = False
    heads: int = 4
    max_trajectories: int = 0

    @property
    def reads_past(self) -> bool:
        """Whether thoughts read actions of earlier steps, other than through the model."""
        return self.graph != "off" or self.cross_attention

    @property
    def reads_others(self) -> bool:
        """Whether trajectories read one another, and so are no independent samples."""
        return self.graph == "all" or self.cross_attention

    @property
    def reads_bank(self) -> bool:
        """Whether a memory bank would be read."""
        return self.memory_top > 0 or (self.graph != "off" and self.graph_neighbours > 0)

    @property
    def in_reasoning_space(self) -> bool:
        """Whether actions are positions in R^R rather than thoughts in R^D."""
        return self.feedback != "hidden"


def _identity(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    del key
    return jnp.eye(*shape, dtype=dtype)


class Navigator(nnx.Module):
    """Heads that read the last hidden state: action, stop decision, value; and the way back to an embedding."""

    def __init__(self, config: NavigatorConfig, hidden_size: int, rngs: nnx.Rngs):
        self.config = config
        space = config.reasoning_dim
        self.stop_weight = weight(rngs, (hidden_size,), ("norm",), zeros())
        self.stop_bias = weight(rngs, (1,), (None,), constant(config.stop_bias))
        self.value_in = weight(rngs, (hidden_size, space), ("embed", "reasoning"), normal(hidden_size**-0.5))
        self.value_out = weight(rngs, (space,), (None,), zeros())
        self.value_bias = weight(rngs, (1,), (None,), zeros())
        reads = config.memory_top > 0 or config.reads_past
        if config.in_reasoning_space or reads:
            orthonormal = jax.nn.initializers.orthogonal()
            self.state_in = weight(rngs, (hidden_size, space), ("embed", "reasoning"), orthonormal)
        if config.in_reasoning_space:
            self.direction = weight(rngs, (space, space), ("reasoning", None), normal(space**-0.5))
            self.step_weight = weight(rngs, (space,), (None,), zeros())
            # The decoder starts as the transposed encoder, scaled so that a decoded state has the rms of the
            # hidden state it came from; a random one does not get off the ground.
            gain = (hidden_size / space) ** 0.5
            self.decode_out = nnx.Param(self.state_in[...].T * gain, logical_axes=("reasoning", "embed"))
            self.decode_mlp_in = weight(rngs, (space, 2 * space), ("reasoning", "mlp"), normal(space**-0.5))
            self.decode_mlp_out = weight(rngs, (2 * space, hidden_size), ("mlp", "embed"), zeros())
        elif reads:
            self.memory_out = weight(rngs, (space, hidden_size), ("reasoning", "embed"), zeros())
        # What is read changes nothing at first. One zero on its way is enough: two would have no gradient.
        silent = zeros() if config.in_reasoning_space else normal(space**-0.5)
        if config.graph != "off":
            self.graph = GraphMemory(space, config.heads, config.graph_layers, rngs, silent)
        if config.cross_attention:
            self.cross = CrossAttention(space, config.heads, rngs, silent)
        if config.max_trajectories:
            choices = config.max_trajectories - 1
            self.number_weight = weight(rngs, (hidden_size, choices), ("embed", None), zeros())
            self.number_bias = weight(rngs, (choices,), (None,), zeros())
        if config.step_embeddings:
            size = space if config.in_reasoning_space else hidden_size
            self.step_table = weight(rngs, (config.step_embeddings, size), (None, None), zeros())
        if config.normalised:
            self.feedback_scale = weight(rngs, (hidden_size,), ("norm",), constant(hidden_size**-0.5))
            if config.feedback == "hidden":
                shape = (hidden_size, hidden_size)
                self.feedback_projection = weight(rngs, shape, ("embed", None), _identity)

    def state(
        self,
        hidden: Float[Array, "*batch D"],
        memory: MemoryBank | None,
        past: Past | None = None,
        steps: Int[Array, " Q"] | None = None,
    ) -> Float[Array, "*batch R"]:
        """Reasoning state: the projected hidden state, its step, and what it reads; `action_mean` has the arguments.

        It is fused half and half with what the bank holds near it; what it reads of graph and other trajectories is
        added. A thought that is not at any step, because `past` is None, reads neither.
        """
        config = self.config
        projected = hidden.astype(jnp.float32) @ self.state_in[...]
        state = self._at_step(projected, steps) if config.in_reasoning_space else projected
        asking = state
        if memory is not None and config.memory_top:
            state = fuse(state, *read_bank(memory, state, config.memory_top))
        if past is None or steps is None:
            return state
        batch = past.taken.shape[0]
        positions = past.actions.reshape(batch, -1, past.actions.shape[-1])
        if not config.in_reasoning_space:
            positions = positions.astype(jnp.float32) @ self.state_in[...]
        if config.graph != "off":
            nodes_of = all_nodes if config.graph == "all" else own_nodes
            nodes = nodes_of(positions, past, steps)
            if memory is not None and config.graph_neighbours:
                nodes = join_nodes(nodes, bank_nodes(memory, asking, config.graph_neighbours))
            state = state + self.graph(asking, nodes)
        if config.cross_attention:
            state = state + self.cross(asking, positions, past, steps)
        return state

    def _at_step(
        self, state: Float[Array, "*batch X"], steps: Int[Array, " Q"] | None
    ) -> Float[Array, "*batch X"]:
        """The state with the embedding of its step, where there are such embeddings."""
        if not self.config.step_embeddings or steps is None:
            return state
        return state + self.step_table[...][jnp.minimum(steps, self.config.step_embeddings - 1)]

    def action_mean(
        self,
        hidden: Float[Array, "*batch D"],
        memory: MemoryBank | None,
        past: Past | None = None,
        steps: Int[Array, " Q"] | None = None,
    ) -> Float[Array, "*batch X"]:
        """Mean of the thought's Gaussian: in R^D for `hidden`, else in R^R; float32.

        Args:
          hidden: last hidden states; [B, N, Q, D] where `past` is given.
          memory: the bank, or None.
          past: actions of the question's trajectories; each thought reads those before its step.
          steps: the number of each thought, from 0; the last axis but one of `hidden`.
        """
        if not self.config.in_reasoning_space:
            thought = hidden.astype(jnp.float32)
            if self.config.normalised:
                thought = thought @ self.feedback_projection[...]
            if (self.config.memory_top and memory is not None) or past is not None:
                own = hidden.astype(jnp.float32) @ self.state_in[...]
                thought = thought + (self.state(hidden, memory, past, steps) - own) @ self.memory_out[...]
            return self._normalise(self._at_step(thought, steps))
        state = self.state(hidden, memory, past, steps)
        direction = state @ self.direction[...]
        direction = direction * jax.lax.rsqrt(jnp.sum(jnp.square(direction), axis=-1, keepdims=True) + 1e-12)
        step_size = 2 * jax.nn.sigmoid(state @ self.step_weight[...])  # in (0, 2), 1 at the start
        return state + step_size[..., None] * direction

    def to_embedding(
        self, action: Float[Array, "*batch X"], hidden: Float[Array, "*batch D"]
    ) -> Float[Array, "*batch D"]:
        """The next input embedding. `hidden` is read by `navigator_residual` alone."""
        if not self.config.in_reasoning_space:
            return action.astype(hidden.dtype)
        decoded = action @ self.decode_out[...]
        decoded = decoded + jax.nn.gelu(action @ self.decode_mlp_in[...]) @ self.decode_mlp_out[...]
        if self.config.feedback == "navigator_residual":
            decoded = decoded + hidden.astype(jnp.float32)
        return self._normalise(decoded).astype(hidden.dtype)

    def _normalise(self, thought: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        if not self.config.normalised:
            return thought
        return rms_norm(thought, self.feedback_scale[...], 1e-6)

    def stop_logit(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Logit of "stop here, answer now", before the stop temperature."""
        return hidden.astype(jnp.float32) @ self.stop_weight[...] + self.stop_bias[...][0]

    def number_logits(self, hidden: Float[Array, "B D"]) -> Float[Array, "B choices"]:
        """Logits of 2, 3, ... trajectories, from h_0; uniform at the start."""
        return hidden.astype(jnp.float32) @ self.number_weight[...] + self.number_bias[...]

    def value(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Expected return from here. The critic reads the backbone but does not train it."""
        features = jax.lax.stop_gradient(hidden).astype(jnp.float32) @ self.value_in[...]
        return jax.nn.gelu(features) @ self.value_out[...] + self.value_bias[...][0]


class Reasoner(nnx.Module):
    """All weights of the policy: the Llama and its navigator."""

    def __init__(self, llama: Llama, navigator: NavigatorConfig, rngs: nnx.Rngs):
        self.llama = llama
        self.navigator = Navigator(navigator, llama.config.hidden_size, rngs)


def action_size(reasoner: Reasoner) -> int:
    """X: size of a thought's action."""
    config = reasoner.navigator.config
    return config.reasoning_dim if config.in_reasoning_space else reasoner.llama.config.hidden_size


def match_feedback_scale(reasoner: Reasoner) -> None:
    """Sets the norm of fed-back thoughts to the rms of the token embeddings; call once on loaded weights."""
    if reasoner.navigator.config.normalised:
        table = reasoner.llama.embedding[...].astype(jnp.float32)
        scale = jnp.sqrt(jnp.mean(jnp.square(table)))
        parameter = reasoner.navigator.feedback_scale
        parameter[...] = jnp.full(parameter.shape, scale, parameter.dtype)
