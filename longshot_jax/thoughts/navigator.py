"""The thought policy: maps the last hidden state to a distribution over thoughts, a stop decision and a value.

A thought is an action with a density. `feedback` sets its action space and its map to the next input embedding:

- `hidden`: the action is the thought, centred on the (projected) hidden state. COCONUT where there is neither
  projection nor noise (Hao et al. 2024, arXiv:2412.06769).
- `vocabulary`: the action is the thought, centred on the mean token embedding under the distribution of the next token
  (soft tokens: Zhang et al. 2025, arXiv:2505.15778). It lies where embeddings do, so a pretrained model can read it.
- `navigator`: the action is a position in a small reasoning space, the state plus a step along a direction. The thought
  is decoded from the position alone, which is therefore a bottleneck.
- `navigator_residual`: as `navigator`, with the hidden state added to the decoded thought.

With learned noise the standard deviation of a thought's Gaussian, too, is a function of the hidden state that makes it;
its mean always is. So a prior over thoughts is conditional in both (GRAM: arXiv:2605.19376).

All methods broadcast over leading axes. Only thoughts that read earlier actions (`history`) need the axes of trajectory
and step.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import constant, normal, zeros
from jaxtyping import Array, Float, Int

from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.model.llama import rms_norm
from longshot_jax.model.parameters import weight
from longshot_jax.thoughts.reads.cross_attention import CrossAttention
from longshot_jax.thoughts.reads.graph_memory import GraphMemory, all_nodes, bank_nodes, join_nodes, own_nodes
from longshot_jax.thoughts.reads.history import History
from longshot_jax.thoughts.reads.memory_bank import MemoryBank, fuse, nearest_entries, read_bank, unit

# Bound of the learned log factor. Eight times less noise than it starts with is nearly none, and eight times more, with
# the usual 0.2 of a thought's rms, buries the thought. A bounded factor can neither silence exploration for good nor
# make a log-prob infinite, and tanh has its largest slope at the start.
MAX_LOG_FACTOR = math.log(8.0)


def _identity(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    del key
    return jnp.eye(*shape, dtype=dtype)


class Navigator(nnx.Module):
    """Heads on the last hidden state (action, stop, value, trajectory count) and the decoder to an embedding."""

    def __init__(self, config: NavigatorConfig, hidden_size: int, rngs: nnx.Rngs):
        self.config = config
        space = config.reasoning_dim
        self.stop_weight = weight(rngs, (hidden_size,), ("norm",), zeros)
        self.stop_bias = weight(rngs, (1,), (None,), constant(config.stop_bias))
        self.value_in = weight(rngs, (hidden_size, space), ("embed", "reasoning"), normal(hidden_size**-0.5))
        self.value_out = weight(rngs, (space,), (None,), zeros)
        self.value_bias = weight(rngs, (1,), (None,), zeros)
        reads = config.memory_top > 0 or config.reads_history
        if config.in_reasoning_space or reads:
            orthonormal = jax.nn.initializers.orthogonal()
            self.state_in = weight(rngs, (hidden_size, space), ("embed", "reasoning"), orthonormal)
        if config.in_reasoning_space:
            self.direction = weight(rngs, (space, space), ("reasoning", None), normal(space**-0.5))
            self.step_weight = weight(rngs, (space,), (None,), zeros)
            # Starts as the transposed encoder, scaled so that a decoded state has the rms of its hidden state; training
            # does not get started with a random decoder.
            gain = (hidden_size / space) ** 0.5
            self.decode_out = nnx.Param(self.state_in[...].T * gain, logical_axes=("reasoning", "embed"))
            self.decode_mlp_in = weight(rngs, (space, 2 * space), ("reasoning", "mlp"), normal(space**-0.5))
            self.decode_mlp_out = weight(rngs, (2 * space, hidden_size), ("mlp", "embed"), zeros)
        elif reads:
            self.memory_out = weight(rngs, (space, hidden_size), ("reasoning", "embed"), zeros)
        # Reads contribute zero at first. Only one factor of their path is zero: with two, neither would get a gradient.
        silent = zeros if config.in_reasoning_space else normal(space**-0.5)
        if config.graph != "off":
            self.graph = GraphMemory(space, config.heads, config.graph_layers, rngs, silent)
        if config.cross_attention:
            self.cross_attention = CrossAttention(space, config.heads, rngs, silent)
        if config.noise == "learned":  # zero: the factor starts at one
            self.noise_weight = weight(rngs, (hidden_size,), ("norm",), zeros)
            self.noise_bias = weight(rngs, (1,), (None,), zeros)
            size = space if config.in_reasoning_space else hidden_size
            read = normal(hidden_size**-0.5)
            self.posterior_in = weight(rngs, (hidden_size, space), ("embed", "reasoning"), read)
            self.posterior_summary = weight(rngs, (hidden_size, space), ("embed", "reasoning"), read)
            self.posterior_shift = weight(rngs, (space, size), ("reasoning", None), zeros)
            self.posterior_noise = weight(rngs, (space,), (None,), zeros)
        if config.max_trajectories:
            choices = config.max_trajectories - config.fewest_trajectories + 1
            self.count_weight = weight(rngs, (hidden_size, choices), ("embed", None), zeros)
            self.count_bias = weight(rngs, (choices,), (None,), zeros)
        if config.step_embeddings:
            size = space if config.in_reasoning_space else hidden_size
            self.step_table = weight(rngs, (config.step_embeddings, size), (None, None), zeros)
        if config.roles:
            self.role_table = weight(rngs, (config.roles, hidden_size), (None, "embed"), normal(hidden_size**-0.5))
        if config.normalised:
            self.feedback_scale = weight(rngs, (hidden_size,), ("norm",), constant(hidden_size**-0.5))
            if config.feedback == "hidden":
                shape = (hidden_size, hidden_size)
                self.feedback_projection = weight(rngs, shape, ("embed", None), _identity)

    def state(
        self,
        hidden: Float[Array, "*batch D"],
        memory: MemoryBank | None,
        history: History | None = None,
        steps: Int[Array, " Q"] | None = None,
        bank_slots: Int[Array, "*batch K"] | None = None,
    ) -> Float[Array, "*batch R"]:
        """Reasoning state: projected hidden state, step embedding and reads. Arguments as for `action_mean`.

        The state is averaged with what it reads from the bank; reads from the graph and from other trajectories are
        added. Without `history` or `steps` it reads only the bank.
        """
        config = self.config
        state = asking = self._asking(hidden, steps)
        if memory is not None and config.memory_top:
            state = fuse(state, *read_bank(memory, state, config.memory_top, bank_slots))
        if history is None or steps is None:
            return state
        batch = history.thought_mask.shape[0]
        positions = history.actions.reshape(batch, -1, history.actions.shape[-1])
        if not config.in_reasoning_space:
            positions = positions.astype(jnp.float32) @ self.state_in[...]
        if config.graph != "off":
            nodes_of = all_nodes if config.graph == "all" else own_nodes
            nodes = nodes_of(positions, history, steps)
            if memory is not None and config.graph_neighbours:
                nodes = join_nodes(nodes, bank_nodes(memory, asking, config.graph_neighbours, bank_slots))
            state = state + self.graph(asking, nodes)
        if config.cross_attention:
            state = state + self.cross_attention(asking, positions, history, steps)
        return state

    def _asking(self, hidden: Float[Array, "*batch D"], steps: Int[Array, " Q"] | None) -> Float[Array, "*batch R"]:
        """The state before any read, which asks the bank."""
        projected = hidden.astype(jnp.float32) @ self.state_in[...]
        return self._at_step(projected, steps) if self.config.in_reasoning_space else projected

    def bank_slots(
        self, hidden: Float[Array, "*batch D"], memory: MemoryBank | None, steps: Int[Array, " Q"] | None = None
    ) -> Int[Array, "*batch K"] | None:
        """Slots of the bank that thoughts read, as `action_mean` takes them again; None if they read none."""
        if memory is None or not self.config.reads_bank:
            return None
        slots, found = nearest_entries(memory, self._asking(hidden, steps), self.config.bank_entries)
        return jnp.where(found, slots, -1)

    def _at_step(self, state: Float[Array, "*batch X"], steps: Int[Array, " Q"] | None) -> Float[Array, "*batch X"]:
        """Adds the embeddings of the steps, if configured."""
        if not self.config.step_embeddings or steps is None:
            return state
        return state + self.step_table[...][jnp.minimum(steps, self.config.step_embeddings - 1)]

    def action_mean(
        self,
        hidden: Float[Array, "*batch D"],
        memory: MemoryBank | None,
        history: History | None = None,
        steps: Int[Array, " Q"] | None = None,
        bank_slots: Int[Array, "*batch K"] | None = None,
    ) -> Float[Array, "*batch X"]:
        """Mean of the thought's Gaussian: in R^R for the navigator's feedbacks, else in R^D; float32.

        Args:
          hidden: what thoughts are made of, see `Reasoner.thought_source`; [B, N, Q, D] where `history` is given.
          memory: the bank, or None.
          history: actions of the question's trajectories; each thought reads the actions before its step.
          steps: index of each thought, from 0, along the last axis but one of `hidden`.
          bank_slots: recorded slots of the bank to read, see `memory_bank.entries_read`; None searches it.
        """
        if not self.config.in_reasoning_space:
            thought = hidden.astype(jnp.float32)
            if self.config.normalised and self.config.feedback == "hidden":
                thought = thought @ self.feedback_projection[...]
            if (self.config.memory_top and memory is not None) or history is not None:
                own = hidden.astype(jnp.float32) @ self.state_in[...]
                thought = (
                    thought + (self.state(hidden, memory, history, steps, bank_slots) - own) @ self.memory_out[...]
                )
            return self._normalise(self._at_step(thought, steps))
        state = self.state(hidden, memory, history, steps, bank_slots)
        direction = unit(state @ self.direction[...])
        step_size = 2 * jax.nn.sigmoid(state @ self.step_weight[...])  # in (0, 2), 1 at the start
        return state + step_size[..., None] * direction

    def noise_std(
        self, hidden: Float[Array, "*batch D"], thought_std: Float[Array, ""] | float
    ) -> Float[Array, "*batch"]:
        """Standard deviation of the thought's Gaussian, `thought_std` times the learned factor; 0 where that is 0."""
        if self.config.noise != "learned":
            return jnp.broadcast_to(thought_std, hidden.shape[:-1])
        logit = hidden.astype(jnp.float32) @ self.noise_weight[...] + self.noise_bias[...][0]
        return thought_std * jnp.exp(MAX_LOG_FACTOR * jnp.tanh(logit))

    def posterior(
        self,
        hidden: Float[Array, "*batch D"],
        summary: Float[Array, "*#batch D"],
        mean: Float[Array, "*batch X"],
        thought_std: Float[Array, ""],
    ) -> tuple[Float[Array, "*batch X"], Float[Array, "*batch"]]:
        """Mean and standard deviation of a thought given a summary of question and answer, which broadcasts.

        `mean` and `thought_std` are those of the thought without it; only training by a variational bound asks for more.
        """
        seen = hidden.astype(jnp.float32) @ self.posterior_in[...]
        features = jax.nn.gelu(seen + summary.astype(jnp.float32) @ self.posterior_summary[...])
        std = thought_std * jnp.exp(MAX_LOG_FACTOR * jnp.tanh(features @ self.posterior_noise[...]))
        return mean + thought_std * (features @ self.posterior_shift[...]), std

    def to_embedding(
        self, action: Float[Array, "*batch X"], hidden: Float[Array, "*batch D"]
    ) -> Float[Array, "*batch D"]:
        """The next input embedding, in the dtype of `hidden`, whose values only `navigator_residual` uses."""
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
        """Logit of stopping at this position, before division by the stop temperature."""
        return hidden.astype(jnp.float32) @ self.stop_weight[...] + self.stop_bias[...][0]

    def count_logits(self, hidden: Float[Array, "B D"]) -> Float[Array, "B choices"]:
        """Logits of the fewest trajectories, one more, and so on, from h_0; uniform at initialisation."""
        return hidden.astype(jnp.float32) @ self.count_weight[...] + self.count_bias[...]

    def value(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Expected return from this position. The critic's gradient does not reach the backbone."""
        features = jax.lax.stop_gradient(hidden).astype(jnp.float32) @ self.value_in[...]
        return jax.nn.gelu(features) @ self.value_out[...] + self.value_bias[...][0]
