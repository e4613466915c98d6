"""AdamW with separate learning rates for backbone and navigator; gradients summed over micro-batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from longshot_jax.config.optimizer import OptimizerConfig
from longshot_jax.model.sharding import constrain_rows, gpu_options, on_mesh, replicated
from longshot_jax.training.adafactor import factored_second_moment


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Clips by global norm, then applies AdamW per group; `total_steps` is the length of the schedule in updates."""

    def schedule(peak: float) -> optax.Schedule:
        decay = max(total_steps - config.warmup_steps, 1)
        after = {
            "constant": lambda: optax.constant_schedule(peak),
            "cosine": lambda: optax.cosine_decay_schedule(peak, decay, config.final_learning_rate),
            "linear": lambda: optax.linear_schedule(peak, peak * config.final_learning_rate, decay),
        }[config.schedule]()
        if not config.warmup_steps:
            return after
        # Counted from 1: the first update has a nonzero learning rate.
        warmup = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps)
        return optax.join_schedules([warmup, after], [config.warmup_steps])

    def adamw(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
        if config.moments == "factored":
            # In the order of Zhai et al. 2022 (arXiv:2106.04560).
            return optax.chain(
                factored_second_moment(),
                optax.clip_by_block_rms(1.0),
                optax.ema(config.b1, accumulator_dtype=jnp.bfloat16),
                optax.add_decayed_weights(weight_decay, mask=is_matrix),
                optax.scale_by_learning_rate(schedule(learning_rate)),
            )
        return optax.adamw(
            schedule(learning_rate),
            b1=config.b1,
            b2=config.b2,
            mu_dtype=jnp.bfloat16 if config.moments == "bfloat16" else None,
            weight_decay=weight_decay,
            mask=is_matrix,
        )

    def group(params: Any) -> Any:
        def name(path: tuple, _: Any) -> str:
            return "navigator" if "navigator" in jax.tree_util.keystr(path) else "backbone"

        return jax.tree_util.tree_map_with_path(name, params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.multi_transform(
            {
                "backbone": adamw(config.learning_rate, config.weight_decay),
                "navigator": adamw(config.navigator_learning_rate, config.navigator_weight_decay),
            },
            group,
        ),
    )


def is_matrix(params: Any) -> Any:
    """Mask of the parameters with weight decay: all but norms and biases, which are vectors in every layer."""

    def decays(variable: nnx.Variable) -> Any:
        axes = [axis for axis in variable.get_metadata("logical_axes") if axis != "layers"]
        return jax.tree.map(lambda _: len(axes) > 1, variable)

    return jax.tree.map(decays, params, is_leaf=lambda node: isinstance(node, nnx.Variable))


def restart_schedule(optimizer_state: Any) -> Any:
    """Sets the step of the learning rate schedule to 0 and keeps the moments."""

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def restart(node: Any) -> Any:
        return node._replace(count=jnp.zeros_like(node.count)) if is_schedule(node) else node

    return jax.tree.map(restart, optimizer_state, is_leaf=is_schedule)


def jit_update(update: Callable[..., Any], mesh: Mesh, placement: Any) -> Any:
    """`jax.jit` of `update(state, ...) -> state, metrics` on a mesh, with the state donated and placed as before."""
    return jax.jit(
        on_mesh(mesh, update),
        donate_argnums=0,
        out_shardings=(placement, replicated(mesh)),
        compiler_options=gpu_options(mesh),
    )


def cut_rows(tree: Any, parts: int) -> Any:
    """Splits the leading axis of every leaf into `parts` on a new leading axis; scalars are repeated.

    Each part has every `parts`-th row, so no row moves to another device.
    """

    def cut(x: Array) -> Array:
        if not x.ndim:
            return jnp.broadcast_to(x, (parts,))
        return jnp.swapaxes(x.reshape(len(x) // parts, parts, *x.shape[1:]), 0, 1)

    return constrain_rows(jax.tree.map(cut, tree), axis=1)


def summed_gradients(
    loss_and_sums: Callable[[Any, Any], tuple[Float[Array, ""], Any]],
    params: Any,
    micro_batches: Any,
    join: Callable[[Any, Any], Any],
    prepare: Callable[[Any], Any] = lambda params: params,
) -> tuple[Any, Any]:
    """Gradients with respect to `params` of a loss summed over micro-batches, and the sums for metrics.

    Args:
      loss_and_sums: (params, micro-batch) -> (part of the loss, sums). The part is divided by the count of the *whole*
        batch, so the total does not depend on the split.
      micro_batches: a tree whose leaves have a leading axis of micro-batches, which are processed in sequence.
      join: adds the sums of two micro-batches; zeros change nothing.
      prepare: makes of `params` what `loss_and_sums` gets, once for all micro-batches.
    """
    prepared, back = jax.vjp(prepare, params)

    def differentiate(micro_batch):
        of_prepared, sums = jax.grad(loss_and_sums, has_aux=True)(prepared, micro_batch)
        return back(of_prepared)[0], sums

    first = jax.tree.map(lambda x: x[0], micro_batches)
    if len(jax.tree.leaves(micro_batches)[0]) == 1:
        return differentiate(first)

    def add(carry, micro_batch):
        gradients, sums = carry
        more, more_sums = differentiate(micro_batch)
        return (jax.tree.map(jnp.add, gradients, more), join(sums, more_sums)), None

    # From zeros, so that the program is compiled once for all micro-batches, the first included.
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(differentiate, first))
    return jax.lax.scan(add, nothing, micro_batches)[0]


@jax.named_scope("optimizer")
def step_if_finite(
    optimizer: optax.GradientTransformation, loss: Float[Array, ""], gradients: Any, optimizer_state: Any, params: Any
) -> tuple[Any, Any, Float[Array, ""], Array]:
    """One optimizer step, skipped if the loss or any gradient is not finite.

    Returns parameters, optimizer state, the global norm of the gradient before clipping, and whether it was applied.
    """
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(gradients)))
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    updates, new_state = optimizer.update(gradients, optimizer_state, params)
    new_params = optax.apply_updates(params, updates)

    def keep(new, old):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    return keep(new_params, params), keep(new_state, optimizer_state), norm, finite
