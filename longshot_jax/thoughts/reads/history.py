"""History: the actions of a question's trajectories at earlier steps, which a thought may read.

Actions are recorded in the rollout, so a rescore knows everything that was read: it computes the reads of all steps at
once under a mask that is causal in the step, and the joint density of the thoughts is the product over steps. States
that have read something themselves would change with the parameters and have to be recomputed step by step.

Shapes: P = N · T, the actions of all trajectories side by side; Q reading thoughts, 1 in `think`, T in a parallel
rescore.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class History:
    """Actions of a question's trajectories; a slot outside the mask is never read.

    Attributes:
      actions: a_0 ... a_(T-1) of every trajectory.
      values: values before each action by the critic of the sampling policy; data, like the action.
      thought_mask: True where there is an action.
    """

    actions: Float[Array, "B N T X"]
    values: Float[Array, "B N T"]
    thought_mask: Bool[Array, "B N T"]

    def with_step(
        self,
        step: Int[Array, ""],
        actions: Float[Array, "B N X"],
        values: Float[Array, "B N"],
        thought_mask: Bool[Array, "B N"],
    ) -> "History":
        """The history with the actions of one more step."""

        def put(array: Array, column: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(array, column[:, :, None].astype(array.dtype), step, 2)

        return History(put(self.actions, actions), put(self.values, values), put(self.thought_mask, thought_mask))

    def visible(self, steps: Int[Array, " Q"]) -> Bool[Array, "B 1 Q P"]:
        """Mask of the actions that a thought of each step may read: the actions of earlier steps."""
        batch, trajectories, slots = self.thought_mask.shape
        earlier = jnp.arange(slots) < steps[:, None]
        seen = self.thought_mask[:, None, :] & earlier[None, :, None]
        return seen.reshape(batch, 1, steps.shape[0], trajectories * slots)

    @property
    def own(self) -> Bool[Array, "N 1 P"]:
        """Mask of each trajectory's own actions."""
        _, trajectories, slots = self.thought_mask.shape
        return jnp.repeat(jnp.eye(trajectories, dtype=bool), slots, axis=1)[:, None]

    def ages(self, steps: Int[Array, " Q"]) -> Int[Array, "Q P"]:
        """Steps between each action and a thought of each step."""
        _, trajectories, slots = self.thought_mask.shape
        return steps[:, None] - jnp.tile(jnp.arange(slots), trajectories)


def empty_history(batch: int, trajectories: int, slots: int, size: int) -> History:
    """A history without actions, with `slots` slots per trajectory."""
    shape = (batch, trajectories, slots)
    return History(jnp.zeros((*shape, size)), jnp.zeros(shape), jnp.zeros(shape, bool))
