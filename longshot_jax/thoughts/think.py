"""Think: compute thoughts sequentially, from an encoded question.

One `lax.scan` over thoughts; the trajectories of all questions are the rows of one batch. The prompt's keys and values
are shared by the question's trajectories and lie outside the scan's carry, which holds only what thoughts add.

`think` serves rollouts, evaluation, the differentiated curriculum (given numbers of thoughts) and sequential rescoring
(recorded actions or noise).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.model.key_values import Context, KeyValues
from longshot_jax.model.sharding import constrain_cache
from longshot_jax.thoughts.reads.history import History, empty_history
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.sampled_tokens import TokenDraws
from longshot_jax.thoughts.stopping import StopRule


@struct.dataclass
class EncodedPrompt:
    """Left-padded questions after one pass through the model.

    Attributes:
      context: keys, values [L, B, K, S, C] and mask [B, S].
      lengths: Int [B], positions before the first thought, which is also its rotary position: the real tokens, and the
        role where trajectories have one.
      hidden: Float [B, D], last hidden state of the last prompt token: h_0 of trajectories without roles.
      roles: h_0 of trajectories with roles (`thoughts.roles`); None without.
    """

    context: Context
    lengths: Array
    hidden: Array
    roles: "Roles | None" = None

    def first_hidden(self, trajectories: int) -> Array:
        """Float [B, N, D]: h_0 of every trajectory."""
        if self.roles is not None:
            return self.roles.hidden
        return jnp.broadcast_to(self.hidden[:, None], (len(self.hidden), trajectories, self.hidden.shape[-1]))

    def without_question(self, rows: Bool[Array, " B"]) -> "EncodedPrompt":
        """What follows the thoughts of these rows does not see the question, only the thoughts, which saw it."""
        return replace(self, context=Context(self.context.cache, self.context.mask & ~rows[:, None]))


@struct.dataclass
class Roles:
    """The position between a question and its thoughts at which a trajectory learns which of the N it is.

    Attributes:
      context: keys, values [L, B, N, K, 1, C] and mask [B, N, 1]: False for trajectories that do not exist.
      hidden: Float [B, N, D], last hidden state there: h_0 of each trajectory.
    """

    context: Context
    hidden: Array


@struct.dataclass
class Replay:
    """Recorded rollout for `think` to repeat.

    Attributes:
      actions: Float [B, N, T, X], constants used instead of sampled actions; None replays the noise instead, so
        gradients flow through the thoughts.
      node_values: Float [B, N, T], read by later thoughts instead of the critic's current values; None where thoughts
        read no history.
      bank_slots: Int [B, N, T, K], slots of the memory bank to read; None searches for the nearest to the current
        states, or thoughts read no bank.
      action_gradient: fraction of the gradient with respect to a given action that flows into its mean and, through
        the recorded noise, into its learned standard deviation, without changing values (straight-through: Bengio et al. 2013, arXiv:1308.3432); for the mixture of gradients.
    """

    actions: Array | None = None
    node_values: Array | None = None
    bank_slots: Array | None = None
    action_gradient: float = struct.field(pytree_node=False, default=0.0)


@struct.dataclass
class Teaching:
    """Changes that a curriculum makes to the thoughts fed back.

    Attributes:
      embeddings: Float [B, N, T, D], replace the thoughts where `mask`, Bool [B, N, T], is True (scheduled sampling).
      dropout: Float [B, N, T, D], multiplies the other thoughts.
    """

    embeddings: Array | None = None
    mask: Array | None = None
    dropout: Array | None = None


@struct.dataclass
class Thoughts:
    """N trajectories of up to T thoughts. Step t has the decision at h_t and, if the trajectory continued, thought a_t.

    Attributes:
      actions, means: Float [B, N, T, X], sampled a_t and the means of their Gaussians.
      embeddings: Float [B, N, T, D], fed back.
      thought_mask: Bool [B, N, T], whether thought t was taken; num_thoughts: Int [B, N].
      hidden: Float [B, N, T + 1, D], h_0 ... h_T; constant after the stop.
      stop_logits: Float [B, N, T + 1], divided by the stop temperature.
      stops: Bool [B, N, T + 1], the decision at h_t (a vote in an ensemble).
      is_action: Bool [B, N, T + 1], whether that decision was an action rather than forced.
      context: keys, values [L, B, N, K, T, C] of the thoughts, with `thought_mask` as their mask.
      node_values: Float [B, N, T], the critic's value of the state that made each thought, read by later thoughts with
        the action; None where thoughts read no history.
      bank_slots: Int [B, N, T, K], slots of the memory bank that each thought read, -1 for none; None where thoughts
        read no bank.
      tokens: Int [B, N, T, K], of which each thought is the mean embedding; None where thoughts are not drawn as tokens.
    """

    actions: Array
    means: Array
    embeddings: Array
    thought_mask: Array
    hidden: Array
    stop_logits: Array
    stops: Array
    is_action: Array
    context: Context
    num_thoughts: Array
    node_values: Array | None = None
    bank_slots: Array | None = None
    tokens: Array | None = None

    @property
    def last_hidden(self) -> Array:
        """Float [B, N, D]: the state after the last thought (h_0 if there was none)."""
        return jnp.take_along_axis(self.hidden, self.num_thoughts[..., None, None], axis=2)[:, :, 0]


@jax.named_scope("encode")
def encode(reasoner: Reasoner, prompt: Int[Array, "B S"], prompt_mask: Bool[Array, "B S"]) -> EncodedPrompt:
    """One pass over left-padded questions, shared by all their trajectories."""
    positions = jnp.maximum(jnp.cumsum(prompt_mask, axis=1) - 1, 0)
    backbone = reasoner.backbone
    hidden, cache = backbone(backbone.embed(prompt), positions, prompt_mask)
    return EncodedPrompt(Context(cache, prompt_mask), jnp.sum(prompt_mask, axis=1), hidden[:, -1])


def extend(
    reasoner: Reasoner,
    embeddings: Float[Array, "B N Q D"],
    positions: Int[Array, "B N Q"],
    mask: Bool[Array, "B N Q"],
    prompt: EncodedPrompt,
    own: tuple[Context, ...] = (),
) -> tuple[Float[Array, "B N Q D"], KeyValues]:
    """Runs new positions of every trajectory, which see the prompt, their role and the trajectory's earlier positions.

    `own` holds the trajectory's earlier positions: keys, values [L, B, N, K, P, C], masks [B, N, P]. Returns last
    hidden states and the new keys and values [L, B, N, K, Q, C].
    """
    batch, trajectories = mask.shape[:2]

    def rows(x: Array, axis: int = 0) -> Array:
        """Merges axes B and N, which start at `axis`: every trajectory is a row of the model's batch."""
        return x.reshape(*x.shape[:axis], batch * trajectories, *x.shape[axis + 2 :])

    def apart(x: Array, axis: int = 0) -> Array:
        return x.reshape(*x.shape[:axis], batch, trajectories, *x.shape[axis + 1 :])

    if prompt.roles is not None:
        own = (prompt.roles.context, *own)
    earlier = tuple(Context(jax.tree.map(lambda x: rows(x, 1), part.cache), rows(part.mask)) for part in own)
    hidden, new = reasoner.backbone(rows(embeddings), rows(positions), rows(mask), (prompt.context, *earlier))
    return apart(hidden), jax.tree.map(lambda x: apart(x, 1), new)


def encode_and_extend(
    reasoner: Reasoner,
    prompt: Int[Array, "B S"],
    prompt_mask: Bool[Array, "B S"],
    embeddings: Float[Array, "B N Q D"],
    order: Int[Array, "B N Q"],
    mask: Bool[Array, "B N Q"],
) -> tuple[Float[Array, "B D"], Float[Array, "B N Q D"]]:
    """`encode`, then `extend` by positions counted from the prompt's end, in one pass over the layers.

    Returns h_0 and the last hidden states of the new positions.
    """
    backbone = reasoner.backbone
    positions = jnp.maximum(jnp.cumsum(prompt_mask, axis=1) - 1, 0)
    after = jnp.sum(prompt_mask, axis=1)[:, None, None] + order
    rows = (x.reshape(-1, *x.shape[2:]) for x in (embeddings, mask, after))
    hidden, new = backbone.with_branches(backbone.embed(prompt), prompt_mask, positions, *rows)
    return hidden[:, -1], new.reshape(embeddings.shape)


def feed_back(
    reasoner: Reasoner,
    thought: Float[Array, "B N D"],
    step: Int[Array, ""],
    goes_on: Bool[Array, "B N"],
    prompt: EncodedPrompt,
    cache: Context,
) -> tuple[Float[Array, "B N D"], Context]:
    """Feeds a thought back as the next input of its trajectory, at the position after the last one.

    Returns its last hidden state, and the context of thoughts with its keys and values at `step`. Where `goes_on` is
    False, no later position sees it.
    """
    position = jnp.broadcast_to((prompt.lengths + step)[:, None, None], (*goes_on.shape, 1))
    hidden, new = extend(reasoner, thought[:, :, None], position, goes_on[..., None], prompt, (cache,))

    def put(array: Array, column: Array, axis: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(array, column, step, axis)

    grown = KeyValues(put(cache.cache.keys, new.keys, 4), put(cache.cache.values, new.values, 4))
    return hidden[:, :, 0], Context(grown, put(cache.mask, goes_on[..., None], 2))


@jax.named_scope("think")
def think(
    reasoner: Reasoner,
    prompt: EncodedPrompt,
    memory: MemoryBank | None,
    stop_rule: StopRule,
    noise: Float[Array, "B N T X"],
    thought_std: Float[Array, ""],
    *,
    ensemble: bool = False,
    replay: Replay | None = None,
    teaching: Teaching | None = None,
    summary: Float[Array, "B N D"] | None = None,
    draws: TokenDraws | None = None,
) -> Thoughts:
    """Runs N trajectories of up to T thoughts per question (COCONUT, arXiv:2412.06769, where thought_std is 0).

    Args:
      memory: read at every step, constant.
      stop_rule: forced stops and stop decisions.
      noise: standard normal; an action is its mean + std · noise.
      thought_std: standard deviation of an action, before a learned factor; 0 is deterministic.
      ensemble: feed every trajectory the mean of all that continue, and stop all by majority.
      replay: a recorded rollout to repeat.
      teaching: changes that a curriculum makes to the thoughts fed back.
      summary: of question and answer; actions are sampled from the posterior given it, `means` are the prior's.
      draws: where thought_std is above 0, thoughts are the means of drawn tokens, and `noise` must be zeros.
    """
    navigator, backbone = reasoner.navigator, reasoner.backbone
    batch, trajectories, slots, size = noise.shape
    shape = (batch, trajectories)
    replay, teaching = replay or Replay(), teaching or Teaching()
    if not slots:  # nothing to scan over, and a cache without slots cannot be traced
        nothing = jnp.zeros((*shape, 0, prompt.hidden.shape[-1]), prompt.hidden.dtype)
        thoughts = think_given(reasoner, prompt, nothing, jnp.zeros(shape, jnp.int32))
        tokens = None if draws is None else jnp.zeros(draws.noise.shape, jnp.int32)
        return replace(thoughts, actions=noise, means=noise, tokens=tokens)  # as empty, of the size of an action
    rule = replace(
        stop_rule,
        min_thoughts=jnp.broadcast_to(stop_rule.min_thoughts, shape),
        max_thoughts=jnp.broadcast_to(stop_rule.max_thoughts, shape),
    )

    def ends(stops, running):
        return jnp.broadcast_to(majority(stops, running)[:, None], shape) if ensemble else stops

    def act(hidden, source, history, index, noise, given, slots):
        """The thought's mean, its action, and the slots of the bank that it read."""
        with jax.named_scope("navigator"):
            read = navigator.bank_slots(source, memory, index[None]) if slots is None else slots[:, :, None]
            mean = navigator.action_mean(source, memory, history, index[None], read)[:, :, 0]
            read = None if read is None else read[:, :, 0]
            if given is not None and not replay.action_gradient:
                return mean, given, read
            centre, std = mean, navigator.noise_std(hidden, thought_std)
            if summary is not None:
                centre, std = navigator.posterior(hidden, summary, mean, thought_std)
            sampled = centre + std[..., None] * noise
            if given is None:
                return mean, sampled, read
            return mean, given + replay.action_gradient * (sampled - jax.lax.stop_gradient(sampled)), read

    def embedding(action, goes_on, hidden, taught):
        """The embedding to feed back for an action."""
        fed = action
        if ensemble:
            fed = jnp.broadcast_to(mean_of_trajectories(action, goes_on)[:, None], action.shape)
        thought = navigator.to_embedding(fed, hidden)
        if taught.dropout is not None:
            thought = thought * taught.dropout.astype(thought.dtype)
        if taught.mask is not None:
            thought = jnp.where(taught.mask[..., None], taught.embeddings.astype(thought.dtype), thought)
        return thought

    def step(carry, inputs):
        hidden, running, cache, history = carry
        index, step_noise, token_noise, uniforms, given, step_value, slots, taught = inputs
        logit, stops, is_action = rule.decide(navigator, hidden, index, running, uniforms)
        goes_on = running & ~ends(stops, running)
        with jax.named_scope("navigator"):
            source, tokens = reasoner.thought_source(hidden[:, :, None]), None
            if draws is not None:
                source, tokens = reasoner.drawn_source(hidden, token_noise, draws.temperature, thought_std > 0)
        mean, action, read = act(hidden, source, history, index, step_noise, given, slots)
        thought = embedding(action, goes_on, hidden, taught)
        with jax.named_scope("thought"):
            after, cache = feed_back(reasoner, thought, index, goes_on, prompt, cache)
        if history is not None:
            if step_value is None:
                step_value = jax.lax.stop_gradient(navigator.value(hidden))
            history = history.with_step(index, action, step_value, goes_on)
        after = jnp.where(goes_on[..., None], after, hidden)
        return (after, goes_on, cache, history), (hidden, logit, stops, is_action, mean, action, thought, read, tokens)

    def steps_first(tree):
        return jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), tree)

    config, uniforms = backbone.config, stop_rule.uniforms
    cache_shape = (config.num_hidden_layers, *shape, config.num_key_value_heads, slots, config.head_dim)
    empty = constrain_cache(jnp.zeros(cache_shape, backbone.compute_dtype))
    carry = (
        prompt.first_hidden(trajectories),
        jnp.broadcast_to(stop_rule.active, shape),
        Context(KeyValues(empty, empty), jnp.zeros((*shape, slots), bool)),
        empty_history(*shape, slots, size) if navigator.config.reads_history else None,
    )
    inputs = (
        jnp.arange(slots),
        steps_first(noise),
        None if draws is None else steps_first(draws.noise),
        None if uniforms is None else steps_first(uniforms)[:-1],
        steps_first(replay.actions),
        steps_first(replay.node_values),
        steps_first(replay.bank_slots),
        steps_first(teaching),
    )
    (hidden, running, context, history), records = jax.lax.scan(step, carry, inputs)
    # The decision after the last possible thought is forced: max_thoughts never exceeds T.
    last_uniforms = None if uniforms is None else uniforms[..., -1]
    logit, stops, is_action = rule.decide(navigator, hidden, slots, running, last_uniforms)
    last = (hidden, logit, jnp.ones_like(stops), jnp.zeros_like(is_action))
    hiddens, logits, stops, is_action = (
        jnp.moveaxis(jnp.concatenate([many, one[None]]), 0, 2) for many, one in zip(records[:4], last, strict=True)
    )
    means, actions, embeddings, read, tokens = jax.tree.map(lambda record: jnp.moveaxis(record, 0, 2), records[4:])
    return Thoughts(
        actions=actions,
        means=means,
        embeddings=embeddings,
        thought_mask=context.mask,
        hidden=hiddens,
        stop_logits=logits,
        stops=stops,
        is_action=is_action,
        context=context,
        num_thoughts=jnp.sum(context.mask, axis=-1),
        node_values=history.values if isinstance(history, History) else None,
        bank_slots=read,
        tokens=tokens,
    )


def think_given(
    reasoner: Reasoner, prompt: EncodedPrompt, embeddings: Float[Array, "B N T D"], num_thoughts: Int[Array, "B #N"]
) -> Thoughts:
    """Thoughts from given embeddings (pause tokens, controls) in one pass; actions, means and decisions are zeros."""
    batch, trajectories, slots, _ = embeddings.shape
    num_thoughts = jnp.broadcast_to(num_thoughts, (batch, trajectories))
    thought_mask = jnp.arange(slots) < num_thoughts[..., None]
    positions = jnp.broadcast_to(prompt.lengths[:, None, None] + jnp.arange(slots), thought_mask.shape)
    hidden, cache = extend(reasoner, embeddings, positions, thought_mask, prompt)
    first = prompt.first_hidden(trajectories)[:, :, None]
    decided = jnp.zeros((batch, trajectories, slots + 1), bool)
    return Thoughts(
        actions=jnp.zeros_like(embeddings),
        means=jnp.zeros_like(embeddings),
        embeddings=embeddings,
        thought_mask=thought_mask,
        hidden=jnp.concatenate([first, hidden], axis=2),
        stop_logits=decided.astype(jnp.float32),
        stops=decided,
        is_action=decided,
        context=Context(cache, thought_mask),
        num_thoughts=num_thoughts,
    )


def mean_of_trajectories(thoughts: Float[Array, "B N X"], mask: Bool[Array, "B N"]) -> Float[Array, "B X"]:
    """Mean thought of each question's running trajectories, summed in float32; zeros where none runs."""
    running = jnp.sum(mask, axis=1, dtype=jnp.float32)
    dtype = jnp.promote_types(thoughts.dtype, jnp.float32)
    total = jnp.sum(thoughts, axis=1, where=mask[..., None], dtype=dtype)
    return (total / jnp.maximum(running, 1.0)[:, None]).astype(thoughts.dtype)


def majority(votes: Bool[Array, "B N"], mask: Bool[Array, "B N"]) -> Bool[Array, " B"]:
    """Whether more than half of a question's running trajectories vote yes; a tie is a no."""
    return 2 * jnp.sum(votes & mask, axis=1) > jnp.sum(mask, axis=1)
