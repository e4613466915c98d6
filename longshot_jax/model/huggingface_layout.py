"""Where each weight of a Llama stands in a Hugging Face checkpoint: one table serves reading and writing."""

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
class Layout:
    """Where a weight stands in the checkpoint: Hugging Face keeps matrices as [out, in], heads flattened.

    Attributes:
      name: of the tensor, with `{layer}` where each layer has its own.
      rows: axes of our weight (of one layer) that, flattened, are the tensor's first axis.
      columns: those that are its second axis; none for a vector.
    """

    name: str
    rows: tuple[int, ...]
    columns: tuple[int, ...] = ()

    @property
    def stacked(self) -> bool:
        """Every layer has a tensor of its own, and our weight a leading axis for them."""
        return "{layer}" in self.name

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """Our axes behind each axis of the tensor."""
        return [group for group in (self.rows, self.columns) if group]

    def tensor_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the tensor for our weight (of one layer) of the given shape."""
        return tuple(prod(shape[axis] for axis in group) for group in self.groups)

    def to_tensor(self, value: np.ndarray) -> np.ndarray:
        """Our weight (of one layer) in the tensor's layout."""
        return value.transpose(self.rows + self.columns).reshape(self.tensor_shape(value.shape))

    def from_tensor(self, tensor: Any, shape: Sequence[int], ranges: Sequence[range]) -> np.ndarray:
        """The block of our weight (of one layer) that `ranges` names, read from a sliceable tensor."""
        # Only a group's first axis is cut while reading: its others are head dims, which are small.
        inner = [prod(shape[axis] for axis in group[1:]) for group in self.groups]
        firsts = [ranges[group[0]] for group in self.groups]
        block = tensor[
            tuple(slice(r.start * size, r.stop * size) for r, size in zip(firsts, inner, strict=True))
        ]
        order = self.rows + self.columns
        leading = {group[0] for group in self.groups}
        block = block.reshape([len(ranges[axis]) if axis in leading else shape[axis] for axis in order])
        cut = [
            slice(None) if axis in leading else slice(ranges[axis].start, ranges[axis].stop) for axis in order
        ]
        return block[tuple(cut)].transpose(np.argsort(order))


LAYOUTS = {
    ("embedding",): Layout("model.embed_tokens.weight", (0,), (1,)),
    ("layers", "attention_norm"): Layout("model.layers.{layer}.input_layernorm.weight", (0,)),
    ("layers", "query"): Layout("model.layers.{layer}.self_attn.q_proj.weight", (1, 2), (0,)),
    ("layers", "key"): Layout("model.layers.{layer}.self_attn.k_proj.weight", (1, 2), (0,)),
    ("layers", "value"): Layout("model.layers.{layer}.self_attn.v_proj.weight", (1, 2), (0,)),
    ("layers", "output"): Layout("model.layers.{layer}.self_attn.o_proj.weight", (2,), (0, 1)),
    ("layers", "mlp_norm"): Layout("model.layers.{layer}.post_attention_layernorm.weight", (0,)),
    ("layers", "gate"): Layout("model.layers.{layer}.mlp.gate_proj.weight", (1,), (0,)),
    ("layers", "up"): Layout("model.layers.{layer}.mlp.up_proj.weight", (1,), (0,)),
    ("layers", "down"): Layout("model.layers.{layer}.mlp.down_proj.weight", (1,), (0,)),
    ("final_norm",): Layout("model.norm.weight", (0,)),
    ("head",): Layout(HEAD, (0,), (1,)),
}


class Tensor(NamedTuple):
    """A tensor of the checkpoint and the weight that it belongs to.

    Attributes:
      name: in the checkpoint.
      layout: of the weight.
      weight: array, or shape and dtype, of the weight; stacked over layers where `layer` is given.
      layer: which layer of the weight the tensor is; None where the weight is not stacked.
    """

    name: str
    layout: Layout
    weight: Any
    layer: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor in the checkpoint."""
        return self.layout.tensor_shape(self.weight.shape[self.layer is not None :])


def abstract_state(config: LlamaConfig, dtype: jax.typing.DTypeLike) -> nnx.State[Any, Any]:
    """Shapes and dtypes of a Llama's state; nothing is allocated."""
    return nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0), weight_dtype=dtype)))[1]


def layout_of(path: tuple[Any, ...]) -> Layout:
    """Layout of the weight at a path in the state; the path's last step, from variable to value, is not a key."""
    return LAYOUTS[tuple(step.key for step in path if isinstance(step, jax.tree_util.DictKey))]


def tensors_of(state: nnx.State[Any, Any]) -> list[Tensor]:
    """All tensors that the state's weights make up, layer after layer."""
    tensors = []
    for path, weight in jax.tree.leaves_with_path(state):
        layout = layout_of(path)
        for layer in range(weight.shape[0]) if layout.stacked else [None]:
            tensors.append(Tensor(layout.name.format(layer=layer), layout, weight, layer))
    return sorted(tensors, key=lambda tensor: -1 if tensor.layer is None else tensor.layer)
