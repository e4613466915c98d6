"""Rollout: questions in, N reasoned and decoded trajectories each out, with everything needed to score them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, Key

from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.complexity import draw_number, existing, score_number
from longshot_jax.thoughts.coupling import Coupling, coupled
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
    """How many thoughts and trajectories there may be.

    Attributes:
      min_steps, max_steps: bounds on the thoughts of each trajectory; Int [B, N] or broadcastable. Equal bounds force.
      trajectories: forced numbers of trajectories, Int [B], 0 leaves the choice to the complexity head; None leaves
        all. Read only where that head chooses.
    """

    min_steps: Array
    max_steps: Array
    trajectories: Array | None = None


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
    coupling: Coupling = "independent",
    adaptive: bool = False,
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
      coupling: of the noise of one question's trajectories.
      adaptive: the complexity head says how many of the N trajectories exist.

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
    noise = coupled(noise, coupling)
    number = free = exists = None
    if adaptive:
        # A fold that no trajectory has.
        number_keys = None if greedy else jax.vmap(jax.random.fold_in, (0, None))(keys, 2**31 - 1)
        number, free = draw_number(reasoner.navigator, encoded.hidden, lengths.trajectories, number_keys)
        exists = existing(number, num_trajectories)
    if greedy:
        temperatures = replace(temperatures, std=jnp.zeros_like(temperatures.std))
    rule = StopRule(
        lengths.min_steps,
        lengths.max_steps,
        temperatures.stop,
        None if greedy else uniforms,
        True if exists is None else exists,
    )
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
        exists,
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
        number=number,
        number_free=free,
        exists=exists,
    )
    # The scores come from the cached passes that sampled, not from a second one: rescore is tested against them.
    recorded = score_thoughts(reasoner, rollout, thoughts.hidden, thoughts.means, scaling)
    number_scores = None
    if number is not None and free is not None:
        number_scores = score_number(reasoner.navigator, encoded.hidden, number, free)
    return rollout, Scores(recorded, answers.scores, number_scores)
