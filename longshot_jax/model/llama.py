"""Llama 3 (arXiv:2407.21783) as a Flax NNX module: parameters stacked over layers, applied by `lax.scan`.

The one forward pass serves training, prompts, thoughts and decoding: it reads keys and values that earlier passes
returned (`context`), and returns those of its own positions. Nothing is written in place, so the caller decides which
arrays a scan carries.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import constant, normal
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.config.model import Implementation, LoraConfig
from longshot_jax.model.attention import Branches, PaddingLast, Segment, attend, fused_attend
from longshot_jax.model.chunked_logits import CHUNK_ELEMENTS
from longshot_jax.model.key_values import Context, KeyValues
from longshot_jax.model.lora import Adapters, Matrix
from longshot_jax.model.parameters import apply_matrix, weight, wide_product
from longshot_jax.model.quantization import dtype_beside, is_quantised, quantise
from longshot_jax.model.rope import RopeScaling, rotary_angles, rotary_frequencies, rotate
from longshot_jax.model.sharding import axes_of, constrain, constrain_rows


@dataclass(frozen=True)
class LlamaConfig:
    """Shape of a Llama; the names are Hugging Face's where they exist.

    Attributes:
      vocab_size: rows of the embedding table.
      hidden_size, num_hidden_layers, head_dim: D, L and C.
      intermediate_size: width of the gated feed-forward layer.
      num_attention_heads, num_key_value_heads: H and K; H is a multiple of K.
      rope_theta: base of the rotary frequencies.
      rope_scaling: Llama 3.1's scaling, or None.
      rms_norm_eps: added to the mean square in every norm.
      tie_word_embeddings: the output head is the embedding table.
      max_position_embeddings: context length in tokens.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "LlamaConfig":
        """The inverse of `dataclasses.asdict`."""
        scaling = content["rope_scaling"]
        return cls(**{**content, "rope_scaling": scaling and RopeScaling(**scaling)})

    @property
    def matrices(self) -> dict[str, Matrix]:
        """The matrices of every layer, by name."""
        hidden, into, head = (self.hidden_size,), ("embed",), self.head_dim
        queries, heads = (self.num_attention_heads, head), ("heads", "head_dim")
        keys, kv_heads = (self.num_key_value_heads, head), ("kv_heads", "head_dim")
        inner, mlp = (self.intermediate_size,), ("mlp",)
        return {
            "query": Matrix(hidden, queries, into, heads),
            "key": Matrix(hidden, keys, into, kv_heads),
            "value": Matrix(hidden, keys, into, kv_heads),
            "output": Matrix(queries, hidden, heads, into),
            "gate": Matrix(hidden, inner, into, mlp),
            "up": Matrix(hidden, inner, into, mlp),
            "down": Matrix(inner, hidden, mlp, into),
        }


def rms_norm(x: Float[Array, "*batch D"], scale: Float[Array, " D"], epsilon: float) -> Float[Array, "*batch D"]:
    """Root-mean-square norm (Zhang & Sennrich 2019, arXiv:1910.07467), computed in float32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


class Layers(nnx.Module):
    """All decoder layers, stacked on a leading axis L; called with the slice of one layer."""

    def __init__(
        self,
        config: LlamaConfig,
        rngs: nnx.Rngs,
        dtype: jax.typing.DTypeLike,
        attention: Implementation = "plain",
        lora: LoraConfig | None = None,
    ):
        self.config = config
        self.attention: Implementation = attention
        depth, matrices = config.num_hidden_layers, config.matrices

        def norm() -> nnx.Param:
            return weight(rngs, (depth, config.hidden_size), ("layers", "norm"), constant(1.0), dtype_beside(dtype))

        def declare(name: str) -> nnx.Param:
            matrix = matrices[name]
            shape = (depth, *matrix.inputs, *matrix.outputs)
            axes = ("layers", *matrix.input_axes, *matrix.output_axes)
            # Both matrices that write to the residual stream start small, so that its scale does not grow with depth.
            writers = 2 * depth if matrix.output_axes == ("embed",) else 1
            spread = normal((math.prod(matrix.inputs) * writers) ** -0.5)
            if not is_quantised(dtype):
                return weight(rngs, shape, axes, spread, dtype)
            values, scale = quantise(weight(rngs, shape, axes, spread)[...], len(matrix.inputs))
            setattr(self, f"{name}_scale", nnx.Param(scale, logical_axes=("layers", *matrix.output_axes)))
            return nnx.Param(values, logical_axes=axes)

        self.attention_norm = norm()
        self.query, self.key, self.value = declare("query"), declare("key"), declare("value")
        self.output = declare("output")
        self.mlp_norm = norm()
        self.gate, self.up, self.down = declare("gate"), declare("up"), declare("down")
        self.lora = Adapters(lora, matrices, depth, rngs) if lora else None

    def project(self, name: str, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """x through one of the layer's matrices and its adapter, if any."""
        matrix = getattr(self, name)[...]
        result = apply_matrix(x, matrix, len(self.config.matrices[name].inputs))
        if is_quantised(matrix.dtype):
            result = (result.astype(jnp.float32) * getattr(self, f"{name}_scale")[...]).astype(x.dtype)
        return result if self.lora is None else result + self.lora(name, x)

    def __call__(
        self,
        x: Float[Array, "B Q D"],
        cosine: Float[Array, "B Q half"],
        sine: Float[Array, "B Q half"],
        visible: Bool[Array, "B Q Q"] | Branches,
        context: tuple[Segment, ...] = (),
    ) -> tuple[Float[Array, "B Q D"], tuple[Float[Array, "B K Q C"], Float[Array, "B K Q C"]]]:
        """One layer: attention over the context and the own positions, then the feed-forward layer."""
        epsilon = self.config.rms_norm_eps
        with jax.named_scope("attention"):
            normed = rms_norm(x, self.attention_norm[...], epsilon)
            queries = rotate(self.project("query", normed), cosine, sine)
            keys = rotate(self.project("key", normed), cosine, sine)
            values = self.project("value", normed)
            queries = constrain(queries, "batch", None, "heads", None)
            keys, values = (constrain(new.swapaxes(1, 2), "batch", "kv_heads", None, None) for new in (keys, values))
            # A fused kernel takes queries and keys that are cut alike, and devices may be too many for the key/value heads.
            alike = axes_of(queries.shape[2], "heads") == axes_of(keys.shape[1], "kv_heads")
            if self.attention != "plain" and alike:
                attention = partial(fused_attend, implementation=self.attention)
            else:
                attention = attend
            if isinstance(visible, Branches):
                mixed = visible.attend(attention, queries, keys, values)
            else:
                mixed = attention(queries, (*context, Segment(keys, values, visible)))
            # Cut as the rows of the output matrix are, or the compiler gathers the matrix, at every token.
            mixed = constrain(mixed, "batch", None, "heads", None)
            x = constrain(x + self.project("output", mixed), "batch", None, None)
        with jax.named_scope("feed_forward"):
            normed = rms_norm(x, self.mlp_norm[...], epsilon)
            wide = jax.nn.silu(self.project("gate", normed)) * self.project("up", normed)
            x = x + self.project("down", constrain(wide, "batch", None, "mlp"))
            x = constrain(x, "batch", None, None)
        return x, (keys, values)


# So few layers run without a loop in float32: it took 40 % longer for a supervised update of two layers of width 64 on a CPU, and
# a third longer to compile (docs/performance.md).
_FEW_LAYERS = 4


class Llama(nnx.Module):
    """Llama without a cache of its own: `hidden, keys_and_values = llama(embeddings, positions, mask, context)`.

    Attributes:
      compute_dtype: of activations; parameters are stored in `weight_dtype` and cast at use. int8 applies only to the
        layers' matrices, see `model.quantization`.
      remat: recompute each layer in the backward pass instead of keeping its activations.
      remat_keeps: kept nevertheless: `nothing`, or the `products` of activations and weights.
      lora: adapters of the layers' matrices, in float32, or None.
      unrolled: a single position runs through layers that are not in a loop, which would copy each layer's weights
        out of the stack on a GPU. For programs that differentiate nothing: the rest compiles in a scan.
      layers: all layers, stacked; or, after `separate_layers`, one after the other.
    """

    unrolled = False

    def __init__(
        self,
        config: LlamaConfig,
        rngs: nnx.Rngs,
        *,
        compute_dtype: jax.typing.DTypeLike = jnp.float32,
        weight_dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        remat_keeps: Literal["nothing", "products"] = "nothing",
        attention: Implementation = "plain",
        lora: LoraConfig | None = None,
    ):
        self.config = config
        self.compute_dtype = jnp.dtype(compute_dtype)
        self.remat, self.remat_keeps, self.attention = remat, remat_keeps, attention
        table = (config.vocab_size, config.hidden_size)
        spread = normal(config.hidden_size**-0.5)
        beside = dtype_beside(weight_dtype)
        self.embedding = weight(rngs, table, ("vocab", "embed"), spread, beside)
        self.layers: Layers | nnx.List[Layers] = Layers(config, rngs, weight_dtype, attention, lora)
        self.final_norm = weight(rngs, (config.hidden_size,), ("norm",), constant(1.0), beside)
        if not config.tie_word_embeddings:
            self.head = weight(rngs, table, ("vocab", "embed"), spread, beside)

    def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """Rows of the embedding table, in the compute dtype."""
        rows = self.embedding[...][tokens].astype(self.compute_dtype)
        return constrain_rows(rows) if tokens.ndim else rows

    @property
    def output_table(self) -> Array:
        """Float [V, D]: the output head, as stored."""
        return (self.embedding if self.config.tie_word_embeddings else self.head)[...]

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits of (normed) last hidden states, accumulated in float32."""
        table = self.output_table.astype(hidden.dtype)
        logits = wide_product("...d,vd->...v", constrain_rows(hidden), table)
        return constrain(logits, *("batch", *(None,) * logits.ndim)[: logits.ndim - 1], "vocab")

    def expected_embedding(self, hidden: Float[Array, "*batch Q D"]) -> Float[Array, "*batch Q D"]:
        """Mean input embedding of the next token under its distribution, in float32.

        As many positions of axis Q at a time as keep their logits within `CHUNK_ELEMENTS`, at least one. The backward
        pass computes the logits again.
        """

        @jax.checkpoint
        def mean(hidden: Array) -> Array:
            table = self.embedding[...].astype(hidden.dtype)
            return wide_product("...v,vd->...d", jax.nn.softmax(self.logits(hidden)).astype(hidden.dtype), table)

        logits = math.prod(hidden.shape[:-2]) * self.config.vocab_size
        together = max(1, CHUNK_ELEMENTS // logits)
        if hidden.shape[-2] <= together:
            return mean(hidden)
        return jnp.moveaxis(jax.lax.map(mean, jnp.moveaxis(hidden, -2, 0), batch_size=together), 0, -2)

    def __call__(
        self,
        embeddings: Float[Array, "B Q D"],
        positions: Int[Array, "B Q"],
        mask: Bool[Array, "B Q"],
        context: tuple[Context, ...] = (),
    ) -> tuple[Float[Array, "B Q D"], KeyValues]:
        """One causal pass over Q new positions.

        Args:
          embeddings: input embeddings of tokens and thoughts.
          positions: rotary positions, counted over real positions only.
          mask: False on padding, which no query sees.
          context: earlier positions, visible to every query where their mask is True.

        Returns:
          The last hidden states after the final norm (fed back by COCONUT, read by the head), and the keys and values
          of the new positions.
        """
        config = self.config
        length = embeddings.shape[1]
        order = None
        if self.attention != "plain" and length > 1 and not context:
            order = PaddingLast.of(mask)
            embeddings, positions, mask = (order.apply(x) for x in (embeddings, positions, mask))
        frequencies = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        cosine, sine = rotary_angles(positions, frequencies)
        visible = jnp.tril(jnp.ones((length, length), bool))[None] & mask[:, None, :]

        def apply(layer: Layers, x, caches):
            segments = tuple(
                Segment(cache.keys, cache.values, part.mask[:, None])
                for cache, part in zip(caches, context, strict=True)
            )
            return layer(x, cosine, sine, visible, segments)

        caches = tuple(part.cache for part in context)
        start = constrain(embeddings.astype(self.compute_dtype), "batch", None, None)
        if isinstance(self.layers, Layers):
            graphdef, stacked = nnx.split(self.layers)

            def layer(x, sliced):
                weights, caches = sliced
                return apply(nnx.merge(graphdef, weights), x, caches)

            x, added = self._scan(layer, start, (stacked, caches), self.unrolled and length == 1)
        else:
            x, new = start, []
            for number, one in enumerate(self.layers):
                x, keys_and_values = apply(one, x, jax.tree.map(lambda cache, at=number: cache[at], caches))
                new.append(keys_and_values)
            added = jax.tree.map(lambda *layers: jnp.stack(layers), *new)
        hidden = rms_norm(x, self.final_norm[...], config.rms_norm_eps)
        if order is not None:
            hidden, added = order.undo(hidden), jax.tree.map(lambda new: order.undo(new, 1, 3), added)
        return hidden, KeyValues(*added)

    def with_branches(
        self,
        embeddings: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        positions: Int[Array, "B S"],
        after: Float[Array, "R Q D"],
        after_mask: Bool[Array, "R Q"],
        after_positions: Int[Array, "R Q"],
    ) -> tuple[Float[Array, "B S D"], Float[Array, "R Q D"]]:
        """Last hidden states of prompts and of R / B continuations of each, where all inputs are known.

        What two calls give, the second with the first one's keys and values as context, in one pass over the layers:
        each weight is gathered and read once, and multiplies all positions.
        """
        config, batch, length = self.config, *mask.shape
        order = PaddingLast.of(mask) if self.attention != "plain" else None
        if order is not None:
            embeddings, positions, mask = (order.apply(x) for x in (embeddings, positions, mask))

        def joined(prompt: Array, continued: Array) -> Array:
            return jnp.concatenate([prompt, continued.reshape(batch, -1, *continued.shape[2:])], axis=1)

        def seen(mask: Array) -> Array:
            return jnp.tril(jnp.ones((mask.shape[1],) * 2, bool))[None] & mask[:, None, :]

        frequencies = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        cosine, sine = rotary_angles(joined(positions, after_positions), frequencies)
        visible = Branches(seen(mask), seen(after_mask))
        graphdef, stacked = nnx.split(self.layers)

        def layer(x, weights):
            return nnx.merge(graphdef, weights)(x, cosine, sine, visible)[0], None

        start = constrain(joined(embeddings, after).astype(self.compute_dtype), "batch", None, None)
        x, _ = self._scan(layer, start, stacked)
        hidden = rms_norm(x, self.final_norm[...], config.rms_norm_eps)
        first = hidden[:, :length] if order is None else order.undo(hidden[:, :length])
        return first, hidden[:, length:].reshape(after.shape)

    def _scan(self, layer: Callable[..., Any], x: Array, inputs: Any, unrolled: bool = False) -> tuple[Array, Any]:
        """Applies all layers in turn, each computed again in the backward pass if `remat` says so."""
        if not self.remat:
            # A loop writes what each layer keeps for the backward pass into one stack, and reads it from there. In bfloat16
            # it stays: without it two passes over the same positions are fused, and so rounded, in different ways.
            few = self.config.num_hidden_layers <= _FEW_LAYERS and self.compute_dtype == jnp.float32
            return jax.lax.scan(layer, x, inputs, unroll=unrolled or (few and x.shape[1] > 1))
        policies = jax.checkpoint_policies
        kept = policies.dots_with_no_batch_dims_saveable if self.remat_keeps == "products" else None
        # In a loop nothing can be merged with the forward pass anyway; barriers would only stop fusion.
        body = jax.checkpoint(layer, policy=kept, prevent_cse=False)
        return jax.lax.scan(body, x, inputs, unroll=unrolled)

    def separate_layers(self, layers: Sequence[nnx.State]) -> None:
        """Replaces the stack of layers by the layers themselves, for programs that differentiate nothing."""
        graphdef, _ = nnx.split(self.layers)
        self.layers = nnx.List([cast(Layers, nnx.merge(graphdef, layer)) for layer in layers])
