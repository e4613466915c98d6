"""What a thought may read of its own question: the actions that trajectories took at earlier steps.

An action is recorded in the rollout, so everything that is read here is known when a rollout is scored again: all
steps' reads are computed at once under a mask that is causal in the step, and the joint density of the thoughts is
the product over steps. A state that had itself read something could not serve: under new parameters it would have to
be thought again, step by step.

Shapes: P = N · T, the actions of all trajectories side by side; Q thoughts that read, one while thinking, T when a
rollout is scored.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Past:
    """Actions of a question's trajectories; a slot that was not taken is never read.

    Attributes:
      actions: a_0 ... a_(T-1) of every trajectory.
      values: what the critic of the policy that sampled expected before each action: data, like the action.
      taken: whether there is such an action.
    """

    actions: Float[Array, "B N T X"]
    values: Float[Array, "B N T"]
    taken: Bool[Array, "B N T"]

    def with_step(
        self,
        step: Int[Array, ""],
        actions: Float[Array, "B N X"],
        values: Float[Array, "B N"],
        taken: Bool[Array, "B N"],
    ) -> "Past":
        """The past with one more step."""

        def put(array: Array, column: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(array, column[:, :, None].astype(array.dtype), step, 2)

        return Past(put(self.actions, actions), put(self.values, values), put(self.taken, taken))

    def visible(self, steps: Int[Array, " Q"]) -> Bool[Array, "B 1 Q P"]:
        """Which actions a thought of each step may read: those of earlier steps."""
        batch, trajectories, slots = self.taken.shape
        earlier = jnp.arange(slots) < steps[:, None]
        seen = self.taken[:, None, :] & earlier[None, :, None]
        return seen.reshape(batch, 1, steps.shape[0], trajectories * slots)

    @property
    def own(self) -> Bool[Array, "N 1 P"]:
        """Which of the actions are a trajectory's own."""
        _, trajectories, slots = self.taken.shape
        return jnp.repeat(jnp.eye(trajectories, dtype=bool), slots, axis=1)[:, None]

    def ages(self, steps: Int[Array, " Q"]) -> Int[Array, "Q P"]:
        """Steps since each action was taken, as a thought of each step sees it."""
        _, trajectories, slots = self.taken.shape
        return steps[:, None] - jnp.tile(jnp.arange(slots), trajectories)


def empty_past(batch: int, trajectories: int, slots: int, size: int) -> Past:
    """No action yet, with room for `slots` of each trajectory."""
    shape = (batch, trajectories, slots)
    return Past(jnp.zeros((*shape, size)), jnp.zeros(shape), jnp.zeros(shape, bool))
