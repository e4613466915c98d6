"""The layout of a Llama's weights in a Hugging Face checkpoint: one table for reading and writing."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from longshot_jax.model.llama import Llama, LlamaConfig

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class TensorLayout:
    """The layout of a weight in the checkpoint: Hugging Face stores matrices as [out, in], with heads flattened.

    Attributes:
      name: tensor's name, with `{layer}` if each layer has its own tensor.
      rows: axes of our weight (of one layer) that, flattened, are the tensor's first axis.
      columns: axes that are its second axis; empty for a vector.
    """

    name: str
    rows: tuple[int, ...]
    columns: tuple[int, ...] = ()

    @property
    def stacked(self) -> bool:
        """Whether every layer has its own tensor; our weight then has a leading axis for layers."""
        return "{layer}" in self.name

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """Axes of our weight for each axis of the tensor."""
        return [group for group in (self.rows, self.columns) if group]

    def tensor_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the tensor for a weight (of one layer) of the given shape."""
        return tuple(prod(shape[axis] for axis in group) for group in self.groups)

    def to_tensor(self, value: np.ndarray) -> np.ndarray:
        """A weight (of one layer) in the tensor's layout."""
        return value.transpose(self.rows + self.columns).reshape(self.tensor_shape(value.shape))

    def from_tensor(self, tensor: Any, shape: Sequence[int], ranges: Sequence[range]) -> np.ndarray:
        """The block `ranges` of a weight (of one layer) of the given shape, read from a sliceable tensor."""
        # Reading slices only the first axis of a group: its other axes are head dims, which are small.
        inner = [prod(shape[axis] for axis in group[1:]) for group in self.groups]
        firsts = [ranges[group[0]] for group in self.groups]
        block = tensor[tuple(slice(r.start * size, r.stop * size) for r, size in zip(firsts, inner, strict=True))]
        order = self.rows + self.columns
        leading = {group[0] for group in self.groups}
        block = block.reshape([len(ranges[axis]) if axis in leading else shape[axis] for axis in order])
        cut = [slice(None) if axis in leading else slice(ranges[axis].start, ranges[axis].stop) for axis in order]
        return block[tuple(cut)].transpose(np.argsort(order))


TENSORS = {
    ("embedding",): TensorLayout("model.embed_tokens.weight", (0,), (1,)),
    ("layers", "attention_norm"): TensorLayout("model.layers.{layer}.input_layernorm.weight", (0,)),
    ("layers", "query"): TensorLayout("model.layers.{layer}.self_attn.q_proj.weight", (1, 2), (0,)),
    ("layers", "key"): TensorLayout("model.layers.{layer}.self_attn.k_proj.weight", (1, 2), (0,)),
    ("layers", "value"): TensorLayout("model.layers.{layer}.self_attn.v_proj.weight", (1, 2), (0,)),
    ("layers", "output"): TensorLayout("model.layers.{layer}.self_attn.o_proj.weight", (2,), (0, 1)),
    ("layers", "mlp_norm"): TensorLayout("model.layers.{layer}.post_attention_layernorm.weight", (0,)),
    ("layers", "gate"): TensorLayout("model.layers.{layer}.mlp.gate_proj.weight", (1,), (0,)),
    ("layers", "up"): TensorLayout("model.layers.{layer}.mlp.up_proj.weight", (1,), (0,)),
    ("layers", "down"): TensorLayout("model.layers.{layer}.mlp.down_proj.weight", (1,), (0,)),
    ("final_norm",): TensorLayout("model.norm.weight", (0,)),
    ("head",): TensorLayout(HEAD, (0,), (1,)),
}


class Tensor(NamedTuple):
    """A tensor of the checkpoint, and the weight that it belongs to: an array, or its shape and dtype.

    `layer` is the tensor's index in a weight that is stacked over layers, None otherwise.
    """

    name: str
    layout: TensorLayout
    weight: Any
    layer: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the checkpoint."""
        return self.layout.tensor_shape(self.weight.shape[self.layer is not None :])


def abstract_state(config: LlamaConfig, dtype: jax.typing.DTypeLike) -> nnx.State[Any, Any]:
    """Shapes and dtypes of a Llama's state, without allocating it."""
    return nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0), weight_dtype=dtype)))[1]


def layout_of(path: tuple[Any, ...]) -> TensorLayout:
    """TensorLayout of the weight at a path in the state; the last step of the path, from variable to value, is ignored."""
    return TENSORS[tuple(step.key for step in path if isinstance(step, jax.tree_util.DictKey))]


def tensors_of(state: nnx.State[Any, Any]) -> list[Tensor]:
    """All tensors of a state, outside the layers first, then layer by layer."""
    tensors = []
    for path, weight in jax.tree.leaves_with_path(state):
        layout = layout_of(path)
        for layer in range(weight.shape[0]) if layout.stacked else [None]:
            tensors.append(Tensor(layout.name.format(layer=layer), layout, weight, layer))
    return sorted(tensors, key=lambda tensor: -1 if tensor.layer is None else tensor.layer)
