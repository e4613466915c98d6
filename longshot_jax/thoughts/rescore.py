"""Rescore: the log-probs of a rollout again, under new parameters. Two exact ways.

- Parallel: the recorded actions are given back, decoded to input embeddings under the new parameters, and
  thoughts and answer are scored in one teacher-forced pass; nothing loops over thoughts.
- Sequential: `think` runs again, from the recorded actions (for the `score` gradient) or from the recorded noise
  (`pathwise`: the gradient flows back through the thoughts).

Where both are exact they agree, and each tests the other.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from longshot_jax.thoughts.answer import TokenScores, answer_inputs, score_tokens
from longshot_jax.thoughts.complexity import NumberScores, score_number
from longshot_jax.thoughts.densities import bernoulli_entropy, bernoulli_log_prob, gaussian_log_prob
from longshot_jax.thoughts.fusion import mean_of_trajectories
from longshot_jax.thoughts.memory import MemoryBank
from longshot_jax.thoughts.navigator import Reasoner
from longshot_jax.thoughts.past import Past
from longshot_jax.thoughts.think import EncodedPrompt, StopRule, Thoughts, encode, extend, think

Replay = Literal["parallel", "actions", "noise"]


@struct.dataclass
class Rollout:
    """Everything that was decided in a rollout, and under which temperatures: enough to score it again.

    Attributes:
      prompt: Int [B, S], padded on the left; prompt_mask: Bool [B, S].
      actions: Float [B, N, T, X]; noise: Float [B, N, T, X], standard normal; embeddings: Float [B, N, T, D].
      taken: Bool [B, N, T]; stops, free: Bool [B, N, T + 1]; counts: Int [B, N].
      tokens: Int [B, N, A]; token_mask: Bool [B, N, A]; ended: Bool [B, N].
      std, stop_temperature, token_temperature: Float [], those that sampled.
      node_values: Float [B, N, T], what thoughts read beside the actions of earlier steps; None where they read none.
      number: Int [B], trajectories of each question; number_free: Bool [B], whether that was an action; exists: Bool
        [B, N], the first so many. None where all questions have all N.
    """

    prompt: Array
    prompt_mask: Array
    actions: Array
    noise: Array
    embeddings: Array
    taken: Array
    stops: Array
    free: Array
    counts: Array
    tokens: Array
    token_mask: Array
    ended: Array
    std: Array
    stop_temperature: Array
    token_temperature: Array
    node_values: Array | None = None
    number: Array | None = None
    number_free: Array | None = None
    exists: Array | None = None


@struct.dataclass
class ThoughtScores:
    """What the policy says of a rollout's thoughts and stops; zero where there was no action.

    Attributes:
      stop: Float [B, N, T + 1], log-probs of free stop decisions.
      stop_logits: Float [B, N, T + 1], divided by the stop temperature.
      stop_entropy: Float [B, N, T + 1], in nats.
      thought: Float [B, N, T], log-probs of thoughts; zeros where std is 0.
      means: Float [B, N, T, X], of the thoughts' Gaussians.
      values: Float [B, N, T + 1], expected return at h_0 ... h_T.
    """

    stop: Array
    stop_logits: Array
    stop_entropy: Array
    thought: Array
    means: Array
    values: Array


@struct.dataclass
class Scores:
    """What the policy says of every action of a rollout."""

    thoughts: ThoughtScores
    tokens: TokenScores
    number: NumberScores | None = None

    @property
    def values(self) -> Array:
        """Float [B, N, T + 1 + A]: thought positions, then answer positions."""
        return jnp.concatenate([self.thoughts.values, self.tokens.values], axis=-1)


def position_mask(counts: Int[Array, "B N"], steps: int) -> Bool[Array, "B N Tplus1"]:
    """Which of the decision points h_0 ... h_T a trajectory reached: those up to its stop."""
    return jnp.arange(steps + 1) <= counts[..., None]


def reached_positions(rollout: Rollout) -> Bool[Array, "B N Tplus1"]:
    """Which decision points the trajectories of a rollout reached; none of one that does not exist."""
    reached = position_mask(rollout.counts, rollout.taken.shape[-1])
    return reached if rollout.exists is None else reached & rollout.exists[..., None]


def score_thoughts(
    reasoner: Reasoner,
    rollout: Rollout,
    hidden: Float[Array, "B N Tplus1 D"],
    means: Float[Array, "B N T X"],
    scaling: str,
) -> ThoughtScores:
    """Log-probs, entropies and values of stops and thoughts, from the hidden states that made them."""
    navigator = reasoner.navigator
    stop_logits = navigator.stop_logit(hidden) / rollout.stop_temperature
    noisy = rollout.std > 0
    safe_std = jnp.where(noisy, rollout.std, 1.0)
    thought = gaussian_log_prob(jax.lax.stop_gradient(rollout.actions), means, safe_std, scaling)
    reached = reached_positions(rollout)
    return ThoughtScores(
        stop=jnp.where(rollout.free, bernoulli_log_prob(stop_logits, rollout.stops), 0.0),
        stop_logits=stop_logits,
        stop_entropy=jnp.where(rollout.free, bernoulli_entropy(stop_logits), 0.0),
        thought=jnp.where(rollout.taken & noisy, thought, 0.0),
        means=means,
        values=jnp.where(reached, navigator.value(hidden), 0.0),
    )


def continuation_hidden(
    reasoner: Reasoner,
    prompt: EncodedPrompt,
    thoughts: Thoughts,
    inputs: Int[Array, "B N I"],
    input_mask: Bool[Array, "B N I"],
) -> Float[Array, "B N I D"]:
    """Teacher-forced hidden states of tokens that follow the thoughts."""
    start = (prompt.lengths[:, None] + thoughts.counts)[..., None]
    positions = start + jnp.maximum(jnp.cumsum(input_mask, axis=-1) - 1, 0)
    embeddings = reasoner.llama.embed(inputs)
    hidden, _ = extend(reasoner, embeddings, positions, input_mask, prompt, (thoughts.context,))
    return hidden


def rescore(
    reasoner: Reasoner,
    rollout: Rollout,
    memory: MemoryBank | None,
    opening: tuple[int, ...],
    replay: Replay,
    scaling: str,
    together: bool = False,
    constant_thoughts: bool = False,
    action_gradient: float = 0.0,
) -> Scores:
    """Scores a rollout under the reasoner's present parameters.

    Args:
      reasoner: the policy.
      rollout: recorded actions.
      memory: the bank the rollout read.
      opening: forced tokens between thoughts and answer, as in the rollout.
      replay: `parallel`, or sequential from the recorded `actions` or `noise`.
      scaling: of a thought's log-prob, see `gaussian_log_prob`.
      together: the rollout fed every trajectory the mean of the actions.
      constant_thoughts: no gradient through the thoughts' embeddings: the `none` control.
      action_gradient: of `actions`, see `think`.
    """
    prompt = encode(reasoner, rollout.prompt, rollout.prompt_mask)
    inputs = answer_inputs(opening, rollout.tokens)
    shape = rollout.counts.shape
    opened = jnp.ones((*shape, len(opening)), bool)
    input_mask = jnp.concatenate([opened, rollout.token_mask[..., :-1]], axis=-1)

    if replay == "parallel":
        hidden, means, token_hidden = _parallel(
            reasoner, rollout, prompt, memory, inputs, input_mask, together, constant_thoughts
        )
    else:
        exists = True if rollout.exists is None else rollout.exists
        rule = StopRule(rollout.counts, rollout.counts, rollout.stop_temperature, exists=exists)
        actions = jax.lax.stop_gradient(rollout.actions) if replay == "actions" else None
        recorded = rollout.noise, rollout.std, actions, together, rollout.node_values
        thoughts = think(reasoner, prompt, memory, rule, *recorded, action_gradient=action_gradient)
        hidden, means = thoughts.hidden, thoughts.means
        after = continuation_hidden(reasoner, prompt, thoughts, inputs, input_mask)
        token_hidden = jnp.concatenate([thoughts.last_hidden[:, :, None], after], axis=2)
    token_hidden = token_hidden[:, :, len(opening) :]
    number = None
    if rollout.number is not None and rollout.number_free is not None:
        number = score_number(reasoner.navigator, prompt.hidden, rollout.number, rollout.number_free)
    return Scores(
        score_thoughts(reasoner, rollout, hidden, means, scaling),
        score_tokens(reasoner, token_hidden, rollout.tokens, rollout.token_mask, rollout.token_temperature),
        number,
    )


def _parallel(reasoner, rollout, prompt, memory, inputs, input_mask, together, constant_thoughts):
    """Hidden states [B, N, T + 1, D], thought means [B, N, T, X] and token hidden states, in one pass."""
    navigator = reasoner.navigator
    batch, trajectories, steps = rollout.taken.shape
    # A residual thought adds the hidden state that made it, which a parallel pass does not have: the recorded
    # embedding stands in for it.
    if navigator.config.feedback == "navigator_residual":
        embeddings = rollout.embeddings
    else:
        fed = rollout.actions
        if together:
            shared = jax.vmap(mean_of_trajectories, in_axes=2, out_axes=1)(fed, rollout.taken)
            fed = jnp.broadcast_to(shared[:, None], fed.shape)
        embeddings = navigator.to_embedding(fed, rollout.embeddings)
    if constant_thoughts:
        embeddings = jax.lax.stop_gradient(embeddings)

    mask = jnp.concatenate([rollout.taken, input_mask], axis=-1)
    order = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
    hidden, _ = extend(
        reasoner,
        jnp.concatenate([embeddings, reasoner.llama.embed(inputs)], axis=2),
        prompt.lengths[:, None, None] + order,
        mask,
        prompt,
    )
    first = jnp.broadcast_to(prompt.hidden[:, None, None], (batch, trajectories, 1, hidden.shape[-1]))
    thought_hidden = jnp.concatenate([first, hidden[:, :, :steps]], axis=2)
    last = jnp.take_along_axis(thought_hidden, rollout.counts[..., None, None], axis=2)
    # All steps read at once what each read in its turn: the recorded actions of the steps before it.
    past = None
    if rollout.node_values is not None:
        past = Past(jax.lax.stop_gradient(rollout.actions), rollout.node_values, rollout.taken)
    means = navigator.action_mean(thought_hidden[:, :, :-1], memory, past, jnp.arange(steps))
    return thought_hidden, means, jnp.concatenate([last, hidden[:, :, steps:]], axis=2)
