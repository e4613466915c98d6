"""Rescore: recompute the log-probs of a rollout under new parameters, by one of two exact methods.

- Parallel: the recorded actions are decoded to input embeddings under the new parameters, and question, thoughts and
  answer run through the layers together, teacher-forced, without a loop over thoughts.
- Sequential: `think` runs again, from the recorded actions (for the `score` gradient) or from the recorded noise
  (`pathwise`: the gradient flows through the thoughts).

Where both are exact they agree, and each tests the other.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from longshot_jax.config.ppo import PPOConfig
from longshot_jax.thoughts.answer import answer_inputs, continue_thoughts, score_tokens
from longshot_jax.thoughts.joint import score_joint_answer
from longshot_jax.thoughts.reads.history import History
from longshot_jax.thoughts.reads.memory_bank import MemoryBank
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.roles import begin_trajectories, role_embeddings
from longshot_jax.thoughts.rollout import Rollout, Scores, score_thoughts
from longshot_jax.thoughts.sampled_tokens import mean_embedding
from longshot_jax.thoughts.stopping import StopRule, score_count
from longshot_jax.thoughts.think import Replay, encode, encode_and_extend, mean_of_trajectories, think, think_given

RescoreMethod = Literal["parallel", "actions", "noise"]


def rescore_method(config: PPOConfig, feedback: str) -> RescoreMethod:
    """The cheapest exact method for a gradient and a kind of thought."""
    if config.gradient == "pathwise":
        return "noise"
    if config.gradient == "mixture" or (feedback == "navigator_residual" and config.gradient == "score"):
        return "actions"
    return "parallel"


@jax.named_scope("rescore")
def rescore(
    reasoner: Reasoner,
    rollout: Rollout,
    memory: MemoryBank | None,
    opening: tuple[int, ...],
    method: RescoreMethod,
    scaling: str,
    *,
    ensemble: bool = False,
    constant_thoughts: bool = False,
    action_gradient: float = 0.0,
) -> Scores:
    """Scores of a rollout under the reasoner's current parameters.

    Args:
      memory: the bank that the rollout read.
      opening: forced tokens between thoughts and answer, as in the rollout.
      method: `parallel`, or sequential from the recorded `actions` or `noise`.
      scaling: reduction of a thought's log-prob, see `densities.gaussian_log_prob`.
      ensemble: the rollout fed every trajectory the mean of the actions.
      constant_thoughts: with `parallel`, stop the gradient at the thoughts' embeddings (the `none` control).
      action_gradient: with `actions`, see `think.Replay`.
    """
    inputs = answer_inputs(opening, rollout.tokens)
    opened = jnp.ones((*rollout.num_thoughts.shape, len(opening)), bool)
    input_mask = jnp.concatenate([opened, rollout.token_mask[..., :-1]], axis=-1)

    answer = rollout.tokens, rollout.token_mask, rollout.token_temperature
    joined = reasoner.navigator.config.join
    if method == "parallel" and not joined:
        question, hidden, means, token_hidden = _parallel(
            reasoner, rollout, memory, inputs, input_mask, ensemble, constant_thoughts
        )
        tokens = score_tokens(reasoner, token_hidden[:, :, len(opening) :], *answer)
    else:
        prompt = encode(reasoner, rollout.prompt, rollout.prompt_mask)
        question = prompt.hidden
        prompt = begin_trajectories(reasoner, prompt, rollout.num_thoughts.shape[1], rollout.active)
        if method == "parallel":
            embeddings = _embeddings(reasoner, rollout, ensemble, constant_thoughts)
            thoughts = think_given(reasoner, prompt, embeddings, rollout.num_thoughts)
            means = _means(reasoner, rollout, thoughts.hidden, memory, constant_thoughts)
        else:
            active = True if rollout.active is None else rollout.active
            rule = StopRule(rollout.num_thoughts, rollout.num_thoughts, rollout.stop_temperature, active=active)
            actions = _actions(reasoner, rollout) if method == "actions" else None
            replay = Replay(actions, rollout.node_values, rollout.bank_slots, action_gradient)
            thoughts = think(
                reasoner, prompt, memory, rule, rollout.noise, rollout.thought_std, ensemble=ensemble, replay=replay
            )
            means = thoughts.means
        hidden = thoughts.hidden
        if joined:
            tokens = score_joint_answer(reasoner, prompt, thoughts, inputs, input_mask, *answer)
        else:
            after, _ = continue_thoughts(reasoner, prompt, thoughts, inputs, input_mask)
            token_hidden = jnp.concatenate([thoughts.last_hidden[:, :, None], after], axis=2)
            tokens = score_tokens(reasoner, token_hidden[:, :, len(opening) :], *answer)
    count = None
    if rollout.num_trajectories is not None and rollout.count_is_action is not None:
        count = score_count(reasoner.navigator, question, rollout.num_trajectories, rollout.count_is_action)
    return Scores(score_thoughts(reasoner, rollout, hidden, means, scaling), tokens, count)


def _actions(reasoner, rollout):
    """Float [B, N, T, X]: the recorded actions; of thoughts drawn as tokens, from the current embeddings of the tokens."""
    recorded = jax.lax.stop_gradient(rollout.actions)
    if rollout.thought_tokens is None:
        return recorded
    steps = jnp.arange(rollout.thought_mask.shape[-1])
    drawn = reasoner.navigator.action_mean(mean_embedding(reasoner.backbone, rollout.thought_tokens), None, None, steps)
    return jnp.where(rollout.thought_std > 0, drawn, recorded)


def _embeddings(reasoner, rollout, ensemble, constant_thoughts):
    """Float [B, N, T, D]: the recorded thoughts, decoded to embeddings under the current parameters."""
    # A residual thought adds the hidden state that made it, which a parallel pass does not have; the recorded embedding
    # replaces it.
    if reasoner.navigator.config.feedback == "navigator_residual":
        embeddings = rollout.embeddings
    else:
        fed = _actions(reasoner, rollout)
        if ensemble:
            shared = jax.vmap(mean_of_trajectories, in_axes=2, out_axes=1)(fed, rollout.thought_mask)
            fed = jnp.broadcast_to(shared[:, None], fed.shape)
        embeddings = reasoner.navigator.to_embedding(fed, rollout.embeddings)
    return jax.lax.stop_gradient(embeddings) if constant_thoughts else embeddings


def _means(reasoner, rollout, hidden, memory, constant):
    """Float [B, N, T, X]: means of all thoughts from the states before them, [B, N, T + 1, D]."""
    if rollout.thought_tokens is not None:  # their log-probs are those of the tokens
        return rollout.actions
    if constant:  # the `none` control does not score thoughts
        hidden = jax.lax.stop_gradient(hidden)
    # All steps are read at once; each reads the recorded actions of the steps before it.
    history = None
    if rollout.node_values is not None:
        history = History(jax.lax.stop_gradient(rollout.actions), rollout.node_values, rollout.thought_mask)
    steps = jnp.arange(rollout.thought_mask.shape[-1])
    source = reasoner.thought_source(hidden[:, :, :-1])
    return reasoner.navigator.action_mean(source, memory, history, steps, rollout.bank_slots)


def _parallel(reasoner, rollout, memory, inputs, input_mask, ensemble, constant_thoughts):
    """States of questions [B, D] and thoughts [B, N, T + 1, D], means [B, N, T, X], states of tokens [B, N, I + 1, D].

    In one pass over the layers.
    """
    batch, trajectories, slots = rollout.thought_mask.shape
    embeddings = _embeddings(reasoner, rollout, ensemble, constant_thoughts)
    first_inputs, first_mask = [], []
    if reasoner.navigator.config.roles:
        first_inputs = [role_embeddings(reasoner, (batch, trajectories))]
        first_mask = [jnp.ones((batch, trajectories, 1), bool)]
    mask = jnp.concatenate([*first_mask, rollout.thought_mask, input_mask], axis=-1)
    order = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
    question, hidden = encode_and_extend(
        reasoner,
        rollout.prompt,
        rollout.prompt_mask,
        jnp.concatenate([*first_inputs, embeddings, reasoner.backbone.embed(inputs)], axis=2),
        order,
        mask,
    )
    if first_inputs:
        first, hidden = hidden[:, :, :1], hidden[:, :, 1:]
    else:
        first = jnp.broadcast_to(question[:, None, None], (batch, trajectories, 1, hidden.shape[-1]))
    thought_hidden = jnp.concatenate([first, hidden[:, :, :slots]], axis=2)
    last = jnp.take_along_axis(thought_hidden, rollout.num_thoughts[..., None, None], axis=2)
    means = _means(reasoner, rollout, thought_hidden, memory, constant_thoughts)
    return question, thought_hidden, means, jnp.concatenate([last, hidden[:, :, slots:]], axis=2)
