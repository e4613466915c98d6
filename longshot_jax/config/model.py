"""Settings of the backbone."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from longshot_jax.config.bounds import COUNT, NON_NEGATIVE, POSITIVE

Implementation = Literal["plain", "xla", "cudnn"]
Attention = Literal["auto", Implementation]
Decoding = Literal["replicated", "tensor"]
Gather = Literal["layer", "model"]
LoraTarget = Literal["query", "key", "value", "output", "gate", "up", "down"]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters of the backbone (LoRA, arXiv:2106.09685), added if a phase trains `lora`."""

    rank: Annotated[int, COUNT] = 16
    """Rank of each adapter."""
    alpha: Annotated[float, POSITIVE] = 16.0
    """An adapter's output is multiplied by alpha / rank."""
    targets: tuple[LoraTarget, ...] = ("query", "key", "value", "output", "gate", "up", "down")
    """Matrices with an adapter, in every layer."""

    @property
    def scale(self) -> float:
        """Factor of an adapter's output."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class ModelConfig:
    """The backbone: source, shape, storage and arithmetic."""

    source: str = "scratch"
    """A Hugging Face directory, a hub name, or `scratch`: random parameters of the shape below."""
    hidden_size: Annotated[int, COUNT] = 64
    """From scratch: width of the hidden states."""
    intermediate_size: Annotated[int, COUNT] = 128
    """From scratch: width of the feed-forward layers."""
    num_hidden_layers: Annotated[int, COUNT] = 2
    """From scratch: layers."""
    num_attention_heads: Annotated[int, COUNT] = 4
    """From scratch: query heads."""
    num_key_value_heads: Annotated[int, NON_NEGATIVE] = 0
    """From scratch: key and value heads; 0 takes `num_attention_heads`."""
    rope_theta: Annotated[float, POSITIVE] = 500_000.0
    """From scratch: base of the rotary frequencies."""
    tie_word_embeddings: bool = True
    """From scratch: use the embedding table as the output head."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations."""
    weight_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """Dtype of stored backbone weights. `bfloat16` and `int8` (8-bit matrices, the rest bfloat16) would round small
    updates away, so they need a frozen backbone."""
    remat: bool = False
    """Recompute layers in the backward pass: less memory, a third more arithmetic."""
    remat_keeps: Literal["nothing", "products"] = "nothing"
    """With `remat`: what is stored nevertheless; `products` are products of activations and weights."""
    attention: Attention = "auto"
    """`plain`: this package's. `cudnn`: NVIDIA's fused kernel, in bfloat16. `xla`: the same call without the kernel.
    `auto`: `cudnn` where it runs, else `plain`."""
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; their product is the number of devices used."""

    data: Annotated[int, COUNT] = 1
    """Copies of the parameters, each with its part of the batch."""
    fsdp: Annotated[int, COUNT] = 1
    """Shards of the parameters, each with its part of the batch."""
    tensor: Annotated[int, COUNT] = 1
    """Shards of heads, feed-forward width and vocabulary."""
    gather: Gather = "layer"
    """What an update gathers along `fsdp` at once: a `layer`, forward and again backward in each micro-batch, or the whole
    `model`, once a minibatch in the compute dtype, which every device then holds (its part along `tensor`). In 16 bits the
    gradients of a weight's several uses are then added in 16 bits too."""
    decoding_weights: Decoding = "replicated"
    """Placement of the copy of the weights, in the compute dtype, from which rollouts and evaluations decode. `replicated`:
    whole on every device. `tensor`: heads, width and vocabulary cut along `fsdp` and `tensor` jointly, for weights that
    are too large to be whole on a device."""
