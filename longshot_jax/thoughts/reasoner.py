"""The reasoner: a backbone and its navigator, made from settings, and its shapes before any parameter exists."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.config import RunConfig
from longshot_jax.config.model import MeshConfig
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.model.attention import check_attention, chosen_attention
from longshot_jax.model.decoding import decoding_weights, is_copied
from longshot_jax.model.gathering import gathered
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.model.lora import check_rank, is_adapter
from longshot_jax.model.sharding import platform_of, shardings, traced_mesh
from longshot_jax.thoughts.navigator import Navigator
from longshot_jax.thoughts.sampled_tokens import draw_tokens, mean_embedding

# Parts of a reasoner's state that `nnx.merge(graphdef, *params)` joins, such as (trainable, frozen).
Params = tuple[nnx.State[Any, Any], ...]


class Reasoner(nnx.Module):
    """The policy: a backbone (embeddings, hidden states and logits; see `model.llama.Llama`) and a navigator."""

    def __init__(self, backbone: Llama, navigator: NavigatorConfig, rngs: nnx.Rngs):
        self.backbone = backbone
        self.navigator = Navigator(navigator, backbone.config.hidden_size, rngs)

    def thought_source(self, hidden: Float[Array, "*batch Q D"]) -> Float[Array, "*batch Q D"]:
        """What the navigator makes thoughts of: hidden states, or for `vocabulary` mean embeddings of the next token."""
        if self.navigator.config.feedback != "vocabulary":
            return hidden
        return self.backbone.expected_embedding(hidden)

    def drawn_source(
        self,
        hidden: Float[Array, "*batch D"],
        noise: Float[Array, "*batch K"],
        temperature: Float[Array, ""],
        noisy: Bool[Array, ""],
    ) -> tuple[Float[Array, "*batch 1 D"], Int[Array, "*batch K"]]:
        """As `thought_source`, of one position, from K tokens drawn with the given noise if `noisy`; and the tokens."""

        def draw(hidden: Array) -> tuple[Array, Array]:
            tokens = draw_tokens(self.backbone.logits(hidden) / temperature, noise)
            return mean_embedding(self.backbone, tokens)[..., None, :], tokens

        def expect(hidden: Array) -> tuple[Array, Array]:
            return self.thought_source(hidden[..., None, :]), jnp.zeros(noise.shape, jnp.int32)

        return jax.lax.cond(noisy, draw, expect, hidden)

    @property
    def action_size(self) -> int:
        """X: size of a thought's action."""
        config = self.navigator.config
        return config.reasoning_dim if config.in_reasoning_space else self.backbone.config.hidden_size


def make_reasoner(run: RunConfig, backbone: LlamaConfig, device: Any = None) -> Reasoner:
    """The reasoner of a run with random parameters, around a backbone of the given shape.

    `device`, by default JAX's first, is of the kind on which it will run.
    """
    rngs, model = nnx.Rngs(run.seed), run.model
    device = device or jax.devices()[0]
    llama = Llama(
        backbone,
        rngs,
        compute_dtype=jnp.dtype(model.compute_dtype),
        weight_dtype=jnp.dtype(model.weight_dtype),
        remat=model.remat,
        remat_keeps=model.remat_keeps,
        attention=chosen_attention(model.attention, device, model.compute_dtype, backbone.head_dim),
        lora=run.lora,
    )
    return Reasoner(llama, run.thoughts, rngs)


def decoding_reasoner(graphdef: nnx.GraphDef, *params: nnx.State, unrolled: bool = False) -> Reasoner:
    """The reasoner as rollouts and evaluations use it, inside a function of `model.decoding.decoding_jit`.

    `unrolled`: on a GPU layers run without a loop, which would copy each layer's weights at every token. It compiles
    several times as long, so only rollouts, which repeat one program over a whole run, ask for it.
    """
    reasoner: Reasoner = nnx.merge(graphdef, *params)
    backbone, navigator = reasoner.backbone, reasoner.navigator
    dtype, stacked = backbone.compute_dtype, nnx.state(backbone.layers)
    nnx.update(navigator, decoding_weights(nnx.state(navigator)))
    nnx.update(backbone, decoding_weights(nnx.state(backbone), dtype))
    if unrolled and platform_of(traced_mesh()) == "gpu":
        backbone.unrolled = True
        if is_copied(stacked, dtype):
            depth = range(backbone.config.num_hidden_layers)
            backbone.separate_layers([decoding_weights(stacked, dtype, layer) for layer in depth])
    return reasoner


def gathering(mesh: MeshConfig, compute_dtype: DTypeLike) -> Callable[[nnx.State], nnx.State]:
    """What an update makes of its trainable, and of its frozen, parameters before the passes of a minibatch.

    With `mesh.gather = "model"` the backbone's are gathered, see `model.gathering`.
    """

    def prepare(params: nnx.State) -> nnx.State:
        if mesh.gather == "layer" or "backbone" not in params:
            return params
        whole = gathered(nnx.State(params["backbone"]), compute_dtype)
        return nnx.State({**params, "backbone": whole.raw_mapping})

    return prepare


@dataclass(frozen=True)
class AbstractReasoner:
    """A reasoner before its parameters exist.

    Attributes:
      backbone: shape of the backbone, embedding rows included.
      graphdef: structure of the `Reasoner`.
      params, placement: shapes and dtypes of the parameters, and their shardings.
    """

    backbone: LlamaConfig
    graphdef: nnx.GraphDef
    params: nnx.State
    placement: nnx.State

    @classmethod
    def of(cls, run: RunConfig, backbone: LlamaConfig, mesh: Mesh) -> "AbstractReasoner":
        """The run's reasoner around a backbone of the given shape; nothing is allocated.

        Raises:
          UserError: the mesh does not divide a parameter, its devices cannot run the configured attention, or an
            adapter's rank exceeds the largest rank of its matrix.
        """
        device = mesh.devices.flat[0]
        check_attention(run.model.attention, device.platform, run.model.compute_dtype, backbone.head_dim)
        if run.lora is not None:
            check_rank(run.lora, backbone.matrices)
        graphdef, params = nnx.split(nnx.eval_shape(lambda: make_reasoner(run, backbone, device)))
        return cls(backbone, graphdef, params, shardings(params, mesh))

    def random_params(self, run: RunConfig) -> nnx.State:
        """Random initial parameters, created on their devices."""
        start = jax.jit(lambda: nnx.split(make_reasoner(run, self.backbone))[1], out_shardings=self.placement)
        return start()


def is_trainable(trainable: str) -> Callable[[tuple, Any], bool]:
    """NNX filter of a phase's trained parameters: the navigator, plus the backbone (`all`) or its adapters (`lora`)."""

    def chosen(path: tuple, value: Any) -> bool:
        if is_adapter(path, value):
            return trainable == "lora"
        return trainable == "all" or "navigator" in path

    return chosen


def match_scale(reasoner: Reasoner, initialised: Collection[str]) -> None:
    """Sets the rms of normalised thoughts, and of roles, to that of the token embeddings, which are loaded.

    `initialised` names the navigator's weights that are not loaded themselves.
    """
    navigator, table = reasoner.navigator, reasoner.backbone.embedding[...].astype(jnp.float32)
    scale = jnp.sqrt(jnp.mean(jnp.square(table)))
    if "feedback_scale" in initialised:
        parameter = navigator.feedback_scale
        parameter[...] = jnp.full(parameter.shape, scale, parameter.dtype)
    if "role_table" in initialised:
        roles = navigator.role_table
        roles[...] = roles[...] * (scale / jnp.sqrt(jnp.mean(jnp.square(roles[...]))))
