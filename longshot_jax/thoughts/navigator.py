"""The thought policy: from a last hidden state to a distribution over thoughts, a stop decision and a value.

A thought is an action with a density. Its kind (`feedback`) says what is sampled and how it becomes the next
input embedding:

- `hidden`: the action is the thought itself, around the (projected) hidden state. COCONUT where nothing is
  projected and no noise is added (Hao et al. 2024, arXiv:2412.06769).
- `navigator`: the action is a position in a small reasoning space: the state plus a step along a direction. The
  thought is decoded from the position alone, so the position is all that carries over: a bottleneck.
- `navigator_residual`: the same, and the hidden state is added to the decoded thought.

Everything here works on one position and is broadcast over leading axes.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from longshot_jax.model.llama import Llama, rms_norm
from longshot_jax.model.weights import constant, normal, weight, zeros
from longshot_jax.thoughts.memory import MemoryBank, fuse, read_bank

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
      stop_bias: initial logit of the stop decision; -1 stops one time in four. Far below, stopping is never tried.
    """

    feedback: Feedback = "hidden"
    normalised: bool = False
    reasoning_dim: int = 256
    memory_top: int = 0
    stop_bias: float = -1.0

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
        if config.in_reasoning_space or config.memory_top:
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
        elif config.memory_top:
            self.memory_out = weight(rngs, (space, hidden_size), ("reasoning", "embed"), zeros())
        if config.normalised:
            self.feedback_scale = weight(rngs, (hidden_size,), ("norm",), constant(hidden_size**-0.5))
            if config.feedback == "hidden":
                shape = (hidden_size, hidden_size)
                self.feedback_projection = weight(rngs, shape, ("embed", None), _identity)

    def state(self, hidden: Float[Array, "*batch D"], memory: MemoryBank | None) -> Float[Array, "*batch R"]:
        """Reasoning state: the projected hidden state, fused half and half with what the memory holds near it."""
        state = hidden.astype(jnp.float32) @ self.state_in[...]
        if memory is None or not self.config.memory_top:
            return state
        read, has_read = read_bank(memory, state, self.config.memory_top)
        return fuse(state, read, has_read)

    def action_mean(
        self, hidden: Float[Array, "*batch D"], memory: MemoryBank | None
    ) -> Float[Array, "*batch X"]:
        """Mean of the thought's Gaussian: in R^D for `hidden`, else in R^R; float32."""
        if not self.config.in_reasoning_space:
            thought = hidden.astype(jnp.float32)
            if self.config.normalised:
                thought = thought @ self.feedback_projection[...]
            if self.config.memory_top and memory is not None:
                own = hidden.astype(jnp.float32) @ self.state_in[...]
                thought = thought + (self.state(hidden, memory) - own) @ self.memory_out[...]
            return self._normalise(thought)
        state = self.state(hidden, memory)
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

    def value(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Expected return from here. The critic reads the backbone but does not train it."""
        features = jax.lax.stop_gradient(hidden).astype(jnp.float32) @ self.value_in[...]
        return jax.nn.gelu(features) @ self.value_out[...] + self.value_bias[...][0]


class Reasoner(nnx.Module):
    """All weights of the policy: the Llama and its navigator."""

    def __init__(self, llama: Llama, navigator: NavigatorConfig, rngs: nnx.Rngs):
        self.llama = llama
        self.navigator = Navigator(navigator, llama.config.hidden_size, rngs)


def match_feedback_scale(reasoner: Reasoner) -> None:
    """Sets the norm of fed-back thoughts to the rms of the token embeddings; call once on loaded weights."""
    if reasoner.navigator.config.normalised:
        table = reasoner.llama.embedding[...].astype(jnp.float32)
        scale = jnp.sqrt(jnp.mean(jnp.square(table)))
        parameter = reasoner.navigator.feedback_scale
        parameter[...] = jnp.full(parameter.shape, scale, parameter.dtype)
