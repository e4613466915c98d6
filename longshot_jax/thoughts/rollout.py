"""Rollout: questions in, N reasoned and decoded trajectories each out, with everything needed to score them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, Key

from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.memory import MemoryBank
from longshot_jax.thoughts.navigator import Reasoner, action_size
from longshot_jax.thoughts.rescore import Rollout, Scores, score_thoughts
from longshot_jax.thoughts.think import StopRule, encode, think


@struct.dataclass
class Temperatures:
    """How much a rollout explores.

    Attributes:
      std: Float [], standard deviation of thoughts, in units of the action.
      stop: Float [], divides stop logits.
      token: Float [], divides token logits.
    """

    std: Array
    stop: Array
    token: Array


@struct.dataclass
class Lengths:
    """Bounds on the number of thoughts of each trajectory; Int [B, N] or broadcastable. Equal bounds force it."""

    min_steps: Array
    max_steps: Array


def sample_rollout(
    reasoner: Reasoner,
    prompt: Int[Array, "B S"],
    prompt_mask: Bool[Array, "B S"],
    memory: MemoryBank | None,
    lengths: Lengths,
    temperatures: Temperatures,
    keys: Key[Array, "B"],
    *,
    num_trajectories: int,
    max_thoughts: int,
    answer_length: int,
    opening: tuple[int, ...],
    end_token: int,
    scaling: str,
    together: bool = False,
    greedy: bool = False,
) -> tuple[Rollout, Scores]:
    """Samples N trajectories from every question.

    Args:
      reasoner: the policy.
      prompt: left-padded token ids; prompt_mask: True on real tokens.
      memory: read while thinking, constant.
      lengths: bounds on the number of thoughts.
      temperatures: of thoughts, stops and tokens; they are recorded, log-probs are under them.
      keys: one per question, so that a row does not depend on the batch around it.
      num_trajectories: N.
      max_thoughts: T.
      answer_length: A, including the end token.
      opening: forced tokens between thoughts and answer.
      end_token: ends an answer.
      scaling: of a thought's log-prob.
      together: the ensemble: all trajectories are fed their mean thought.
      greedy: no sampling anywhere: thoughts are their means, stops and tokens the likelier.

    Returns:
      The rollout and what the policy that sampled it said of its actions.
    """
    encoded = encode(reasoner, prompt, prompt_mask)

    def draws(key):
        noise_key, stop_key, token_key = jax.random.split(key, 3)
        noise = jax.random.normal(noise_key, (max_thoughts, action_size(reasoner)))
        return noise, jax.random.uniform(stop_key, (max_thoughts + 1,)), token_key

    trajectory_keys = jax.vmap(
        lambda key: jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(num_trajectories))
    )(keys)
    noise, uniforms, token_keys = jax.vmap(jax.vmap(draws))(trajectory_keys)
    if greedy:
        temperatures = replace(temperatures, std=jnp.zeros_like(temperatures.std))
    rule = StopRule(lengths.min_steps, lengths.max_steps, temperatures.stop, None if greedy else uniforms)
    thoughts = think(reasoner, encoded, memory, rule, noise, temperatures.std, None, together)
    answers = decode_answers(
        reasoner,
        encoded,
        thoughts,
        opening,
        end_token,
        answer_length,
        temperatures.token,
        None if greedy else token_keys,
    )
    rollout = Rollout(
        prompt=prompt,
        prompt_mask=prompt_mask,
        actions=thoughts.actions,
        noise=noise,
        embeddings=thoughts.embeddings,
        taken=thoughts.taken,
        stops=thoughts.stops,
        free=thoughts.free,
        counts=thoughts.counts,
        tokens=answers.tokens,
        token_mask=answers.mask,
        ended=answers.ended,
        std=jnp.asarray(temperatures.std, jnp.float32),
        stop_temperature=jnp.asarray(temperatures.stop, jnp.float32),
        token_temperature=jnp.asarray(temperatures.token, jnp.float32),
        node_values=thoughts.node_values,
    )
    # The scores come from the cached passes that sampled, not from a second one: rescore is tested against them.
    recorded = score_thoughts(reasoner, rollout, thoughts.hidden, thoughts.means, scaling)
    return rollout, Scores(recorded, answers.scores)
