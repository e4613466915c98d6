"""Think: run thoughts one after the other from an encoded question.

One `lax.scan` over thoughts; inside it the trajectories of all questions are the rows of one batch. The question's keys and values
are shared by all trajectories and lie outside the scan's carry, which holds only what thoughts add.

The same function serves rollouts, evaluation, the differentiated curriculum (where every row has a given number
of thoughts) and the sequential way of rescoring (where actions or noise are given back).
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.model.activations import constrain_cache
from longshot_jax.model.llama import Context, KeyValues
from longshot_jax.thoughts.fusion import majority, mean_of_trajectories
from longshot_jax.thoughts.memory import MemoryBank
from longshot_jax.thoughts.navigator import Reasoner
from longshot_jax.thoughts.past import empty_past


@struct.dataclass
class EncodedPrompt:
    """Questions after their one pass through the model; prompts are padded on the left.

    Attributes:
      context: keys, values [L, B, K, S, C] and mask [B, S].
      lengths: Int [B], real tokens, which is also the rotary position of the first thought.
      hidden: Float [B, D], last hidden state of the last prompt token: h_0.
    """

    context: Context
    lengths: Array
    hidden: Array


@struct.dataclass
class StopRule:
    """When trajectories may stop; every field is [B, N] or broadcastable.

    A decision is free from `min_steps` on and before `max_steps`; outside it is forced and no action at all.

    Attributes:
      min_steps: Int, thoughts before which there is no decision.
      max_steps: Int, thoughts after which there is none.
      temperature: Float [], divides the stop logit.
      uniforms: Float [B, N, T + 1] in [0, 1); stops where below the stop probability. None is greedy: stops
        where the probability exceeds one half.
      exists: Bool, trajectories that are thought at all.
    """

    min_steps: Array
    max_steps: Array
    temperature: Array | float = 1.0
    uniforms: Array | None = None
    exists: Array | bool = True


@struct.dataclass
class Thoughts:
    """N trajectories of up to T thoughts. Step t holds the decision at h_t and, if it went on, thought a_t.

    Attributes:
      actions: Float [B, N, T, X], sampled a_t.
      means: Float [B, N, T, X], of their Gaussians.
      embeddings: Float [B, N, T, D], what was fed back.
      taken: Bool [B, N, T], whether thought t was taken.
      hidden: Float [B, N, T + 1, D], h_0 ... h_T; constant after the stop.
      stop_logits: Float [B, N, T + 1], divided by the stop temperature.
      stops: Bool [B, N, T + 1], the decision at h_t (a vote, where trajectories decide together).
      free: Bool [B, N, T + 1], whether that decision was an action.
      context: keys, values [L, B, N, K, T, C] of the thoughts and `taken` as their mask.
      counts: Int [B, N], number of thoughts taken.
      node_values: Float [B, N, T], the critic's value at the state that made each thought, as later thoughts read it
        with the action; None where no thought reads actions.
    """

    actions: Array
    means: Array
    embeddings: Array
    taken: Array
    hidden: Array
    stop_logits: Array
    stops: Array
    free: Array
    context: Context
    counts: Array
    node_values: Array | None = None

    @property
    def last_hidden(self) -> Array:
        """Float [B, N, D]: the state after the last thought taken (h_0 if there was none)."""
        return jnp.take_along_axis(self.hidden, self.counts[..., None, None], axis=2)[:, :, 0]


def encode(reasoner: Reasoner, prompt: Int[Array, "B S"], prompt_mask: Bool[Array, "B S"]) -> EncodedPrompt:
    """One pass over left-padded questions, shared by all their trajectories."""
    positions = jnp.maximum(jnp.cumsum(prompt_mask, axis=1) - 1, 0)
    llama = reasoner.llama
    hidden, cache = llama(llama.embed(prompt), positions, prompt_mask)
    return EncodedPrompt(Context(cache, prompt_mask), jnp.sum(prompt_mask, axis=1), hidden[:, -1])


def extend(
    reasoner: Reasoner,
    embeddings: Float[Array, "B N Q D"],
    positions: Int[Array, "B N Q"],
    mask: Bool[Array, "B N Q"],
    prompt: EncodedPrompt,
    own: tuple[Context, ...] = (),
) -> tuple[Float[Array, "B N Q D"], KeyValues]:
    """New positions of every trajectory, which see the shared prompt and their own past.

    `own` holds what the trajectory itself added before: keys, values [L, B, N, K, P, C], masks [B, N, P].

    Returns last hidden states and the new keys and values [L, B, N, K, Q, C].
    """
    batch, trajectories = mask.shape[:2]

    def rows(x: Array, axis: int = 0) -> Array:
        """B and N, which start at `axis`, as one axis: every trajectory is a row of the model's batch."""
        return x.reshape(*x.shape[:axis], batch * trajectories, *x.shape[axis + 2 :])

    def apart(x: Array, axis: int = 0) -> Array:
        return x.reshape(*x.shape[:axis], batch, trajectories, *x.shape[axis + 1 :])

    past = tuple(Context(jax.tree.map(lambda x: rows(x, 1), part.cache), rows(part.mask)) for part in own)
    hidden, new = reasoner.llama(rows(embeddings), rows(positions), rows(mask), (prompt.context, *past))
    return apart(hidden), jax.tree.map(lambda x: apart(x, 1), new)


def feed_back(
    reasoner: Reasoner,
    thought: Float[Array, "B N D"],
    step: Int[Array, ""],
    goes_on: Bool[Array, "B N"],
    prompt: EncodedPrompt,
    cache: Context,
) -> tuple[Float[Array, "B N D"], Context]:
    """A thought is fed back: it is the next input of its trajectory, at the position after the last one.

    Returns the last hidden state that it gives, and the context of thoughts with its keys and values at `step`. In a
    trajectory that does not go on, nothing that comes later will see it.
    """
    position = jnp.broadcast_to((prompt.lengths + step)[:, None, None], (*goes_on.shape, 1))
    hidden, new = extend(reasoner, thought[:, :, None], position, goes_on[..., None], prompt, (cache,))

    def put(array: Array, column: Array, axis: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(array, column, step, axis)

    grown = KeyValues(put(cache.cache.keys, new.keys, 4), put(cache.cache.values, new.values, 4))
    return hidden[:, :, 0], Context(grown, put(cache.mask, goes_on[..., None], 2))


def think(
    reasoner: Reasoner,
    prompt: EncodedPrompt,
    memory: MemoryBank | None,
    stop_rule: StopRule,
    noise: Float[Array, "B N T X"],
    std: Float[Array, ""],
    actions: Float[Array, "B N T X"] | None = None,
    together: bool = False,
    node_values: Float[Array, "B N T"] | None = None,
    action_gradient: float = 0.0,
    teacher: tuple[Bool[Array, "B N T"], Float[Array, "B N T D"]] | None = None,
    kept: Float[Array, "B N T D"] | None = None,
) -> Thoughts:
    """Runs N trajectories of up to T thoughts from every question (COCONUT, arXiv:2412.06769, where std is 0).

    Args:
      reasoner: the policy.
      prompt: encoded questions.
      memory: read at every step, constant here.
      stop_rule: forced and free stops.
      noise: standard normal; an action is its mean + std · noise. Recorded noise replays a rollout
        pathwise: gradients flow back through the thoughts.
      std: standard deviation of thoughts, in units of the action; 0 is deterministic.
      actions: if given, these are taken instead, as constants: the sequential replay for `score`.
      together: every trajectory is fed the mean of all that go on, and all stop by majority: the ensemble.
      action_gradient: share of the gradient with respect to a given action that flows on into its mean, which leaves
        values alone (straight-through: Bengio et al. 2013, arXiv:1308.3432); for a mixture of gradients.
      teacher: where its mask is True, its embedding is fed back in place of the thought (scheduled sampling).
      kept: if given, multiplies what is fed back: the curriculum's dropout. Rollouts have none.
      node_values: if given, later thoughts read these with the actions, and not what the critic says now: a replay.
    """
    navigator, llama = reasoner.navigator, reasoner.llama
    batch, trajectories, steps, size = noise.shape
    shape = (batch, trajectories)
    if not steps:  # nothing to scan over, and a cache without slots cannot be traced
        nothing = jnp.zeros((*shape, 0, prompt.hidden.shape[-1]), prompt.hidden.dtype)
        return think_given(reasoner, prompt, nothing, jnp.zeros(shape, jnp.int32))
    min_steps = jnp.broadcast_to(stop_rule.min_steps, shape)
    max_steps = jnp.broadcast_to(stop_rule.max_steps, shape)

    def decide(hidden, step, going, uniforms):
        """The stop decision at h_t: (scaled logit, own decision, is it an action)."""
        logit = navigator.stop_logit(hidden) / stop_rule.temperature
        wants = logit > 0 if uniforms is None else uniforms < jax.nn.sigmoid(logit)
        free = going & (step >= min_steps) & (step < max_steps)
        stops = jnp.where(step < min_steps, False, (step >= max_steps) | wants)
        return logit, stops, free

    def ends(stops, going):
        if not together:
            return stops
        return jnp.broadcast_to(majority(stops, going)[:, None], shape)

    def act(hidden, past, index, noise, given):
        """The thought's mean and the action that is taken."""
        with jax.named_scope("navigator"):
            mean = navigator.action_mean(hidden[:, :, None], memory, past, index[None])[:, :, 0]
            if given is None:
                return mean, mean + std * noise
            if action_gradient:
                given = given + action_gradient * (mean - jax.lax.stop_gradient(mean))
            return mean, given

    def step(carry, inputs):
        hidden, going, cache, past = carry
        index, step_noise, step_action, uniforms, step_value, step_kept, taught = inputs
        logit, stops, free = decide(hidden, index, going, uniforms)
        goes_on = going & ~ends(stops, going)
        mean, action = act(hidden, past, index, step_noise, step_action)
        fed = action
        if together:
            fed = jnp.broadcast_to(mean_of_trajectories(action, goes_on)[:, None], action.shape)
        thought = navigator.to_embedding(fed, hidden)
        if step_kept is not None:
            thought = thought * step_kept.astype(thought.dtype)
        if taught is not None:
            thought = jnp.where(taught[0][..., None], taught[1].astype(thought.dtype), thought)
        with jax.named_scope("thought"):
            after, cache = feed_back(reasoner, thought, index, goes_on, prompt, cache)
        if past is not None:
            if step_value is None:
                step_value = jax.lax.stop_gradient(navigator.value(hidden))
            past = past.with_step(index, action, step_value, goes_on)
        after = jnp.where(goes_on[..., None], after, hidden)
        return (after, goes_on, cache, past), (hidden, logit, stops, free, mean, action, thought)

    def steps_first(x):
        return None if x is None else jnp.moveaxis(x, 2, 0)

    config, uniforms = llama.config, stop_rule.uniforms
    cache_shape = (config.num_hidden_layers, *shape, config.num_key_value_heads, steps, config.head_dim)
    empty = constrain_cache(jnp.zeros(cache_shape, llama.compute_dtype))
    carry = (
        jnp.broadcast_to(prompt.hidden[:, None], (*shape, prompt.hidden.shape[-1])),
        jnp.broadcast_to(stop_rule.exists, shape),
        Context(KeyValues(empty, empty), jnp.zeros((*shape, steps), bool)),
        empty_past(*shape, steps, size) if navigator.config.reads_past else None,
    )
    inputs = (
        jnp.arange(steps),
        steps_first(noise),
        steps_first(actions),
        None if uniforms is None else jnp.moveaxis(uniforms, 2, 0)[:-1],
        steps_first(node_values),
        steps_first(kept),
        None if teacher is None else (steps_first(teacher[0]), steps_first(teacher[1])),
    )
    (hidden, going, context, past), records = jax.lax.scan(step, carry, inputs)
    # The decision after the last possible thought is forced: max_steps never exceeds T.
    logit, stops, free = decide(hidden, steps, going, None if uniforms is None else uniforms[..., -1])
    last = (hidden, logit, jnp.ones_like(stops), jnp.zeros_like(free))
    hiddens, logits, stops, free = (
        jnp.moveaxis(jnp.concatenate([many, one[None]]), 0, 2)
        for many, one in zip(records[:4], last, strict=True)
    )
    means, taken_actions, embeddings = (jnp.moveaxis(record, 0, 2) for record in records[4:])
    return Thoughts(
        actions=taken_actions,
        means=means,
        embeddings=embeddings,
        taken=context.mask,
        hidden=hiddens,
        stop_logits=logits,
        stops=stops,
        free=free,
        context=context,
        counts=jnp.sum(context.mask, axis=-1),
        node_values=None if past is None else past.values,
    )


def think_given(
    reasoner: Reasoner,
    prompt: EncodedPrompt,
    embeddings: Float[Array, "B N T D"],
    counts: Int[Array, "B #N"],
) -> Thoughts:
    """Thoughts whose embeddings are given, in one causal pass: pause tokens, and the controls of an evaluation.

    Nothing is decided and nothing sampled: actions, means and decisions are zeros.
    """
    batch, trajectories, steps, _ = embeddings.shape
    counts = jnp.broadcast_to(counts, (batch, trajectories))
    taken = jnp.arange(steps) < counts[..., None]
    positions = jnp.broadcast_to(prompt.lengths[:, None, None] + jnp.arange(steps), taken.shape)
    hidden, cache = extend(reasoner, embeddings, positions, taken, prompt)
    first = jnp.broadcast_to(prompt.hidden[:, None, None], (*hidden.shape[:2], 1, hidden.shape[-1]))
    decided = jnp.zeros((batch, trajectories, steps + 1), bool)
    return Thoughts(
        actions=jnp.zeros_like(embeddings),
        means=jnp.zeros_like(embeddings),
        embeddings=embeddings,
        taken=taken,
        hidden=jnp.concatenate([first, hidden], axis=2),
        stop_logits=decided.astype(jnp.float32),
        stops=decided,
        free=decided,
        context=Context(cache, taken),
        counts=counts,
    )
