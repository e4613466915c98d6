"""Law 4 for trajectories that are not independent: they read one another, form an ensemble, or have one joined answer.

They share their reward.

As in `test_law_gradient`, nothing is sampled: stops and tokens of two trajectories are enumerated together, and the
noise of both is integrated by Gauss-Hermite quadrature. The critic's values that a graph holds are data, not actions:
both gradients hold them fixed.
"""

import itertools
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import QUICK, from_scratch
from flax import nnx
from test_law_gradient import (
    COST,
    OPENING,
    PROMPT,
    STOP_TEMPERATURE,
    TOKEN_TEMPERATURE,
    VOCABULARY,
    distance,
    tiny_reasoner,
)

from longshot_jax.config.ppo import PPOConfig
from longshot_jax.ppo.loss import Experience, estimate_advantages, policy_loss, policy_sums
from longshot_jax.ppo.rewards import shared_rewards
from longshot_jax.thoughts.reads.history import History
from longshot_jax.thoughts.rescore import rescore, rescore_method
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.rollout import Rollout
from longshot_jax.thoughts.stopping import StopRule
from longshot_jax.thoughts.think import encode, think

pytestmark = pytest.mark.law

PAIR, SIZE = 2, 2  # trajectories, and numbers in an action


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@dataclass(frozen=True)
class Kind:
    """How two trajectories depend on each other.

    Attributes:
      ensemble: they are fed their mean and stop by majority.
      joined: they have roles and one answer; without either each reads the other's earlier actions.
      steps: T. A second thought is the first that can read.
      first_decision: thoughts before the first decision, so that there are not too many outcomes.
      nodes: of the quadrature, per dimension; the fewer, the smaller the noise has to be.
      thought_std: of the noise.
    """

    ensemble: bool
    steps: int
    first_decision: int
    nodes: int
    thought_std: float
    joined: bool = False

    @property
    def answers(self):
        """Every pair of tokens that the two write, one each, or one that stands in both rows."""
        every = itertools.product(range(VOCABULARY), repeat=PAIR)
        return [tokens for tokens in every if not self.joined or len(set(tokens)) == 1]


READING = Kind(ensemble=False, steps=2, first_decision=1, nodes=3, thought_std=0.03125)
ENSEMBLE = Kind(ensemble=True, steps=1, first_decision=0, nodes=4, thought_std=0.0625)
JOINED = Kind(ensemble=False, steps=1, first_decision=0, nodes=4, thought_std=0.0625, joined=True)


@dataclass
class Outcomes:
    """Everything that two trajectories of a question may do, one row each.

    Attributes:
      votes: of each row's path, see `paths_of`; num_thoughts: [rows, N].
      noise: [rows, N, T, 2], zero where nothing is thought; weights: [rows], of the nodes.
      tokens: [rows, N, 1].
      worth: [rows, N], reward of each trajectory's answer.
      paths: for each path its votes, its numbers of thoughts, and its rows.
    """

    votes: np.ndarray
    num_thoughts: np.ndarray
    noise: np.ndarray
    weights: np.ndarray
    tokens: np.ndarray
    worth: np.ndarray
    paths: list[tuple[np.ndarray, np.ndarray, slice]]


def paths_of(kind: Kind) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every sequence of votes [N, T + 1], and the numbers of thoughts [N] that it leads to."""
    found = {}
    for bits in itertools.product((False, True), repeat=PAIR * kind.steps):
        votes = np.zeros((PAIR, kind.steps + 1), bool)
        votes[:, :-1] = np.reshape(bits, (PAIR, kind.steps))
        going, num_thoughts = np.ones(PAIR, bool), np.zeros(PAIR, int)
        for step in range(kind.steps):
            votes[:, step] &= going & (step >= kind.first_decision)
            ends = votes[:, step] if not kind.ensemble else np.full(PAIR, 2 * votes[:, step].sum() > PAIR)
            going = going & ~ends
            num_thoughts += going
        votes[:, -1] = going
        found[votes.tobytes(), num_thoughts.tobytes()] = votes, num_thoughts
    return list(found.values())


@cache
def all_outcomes(kind: Kind) -> Outcomes:
    nodes, weights = np.polynomial.hermite_e.hermegauss(kind.nodes)
    weights = weights / weights.sum()
    worth = np.random.default_rng(3).normal(size=(kind.steps + 1, VOCABULARY))
    columns, paths, start = [], [], 0
    for votes, num_thoughts in paths_of(kind):
        thought = np.arange(kind.steps) < num_thoughts[:, None]
        grid = np.array(list(itertools.product(range(kind.nodes), repeat=SIZE * num_thoughts.sum())), int)
        noise = np.zeros((len(grid), PAIR, kind.steps, SIZE))
        noise[:, thought] = nodes[grid].reshape(len(grid), num_thoughts.sum(), SIZE)
        for tokens in kind.answers:
            earned = worth[num_thoughts, tokens]
            if kind.joined:  # one reward, which depends on what both do
                earned = np.full(PAIR, earned.sum())
            columns.append((votes, num_thoughts, noise, weights[grid].prod(axis=1), tokens, earned))
        rows = len(grid) * len(kind.answers)
        paths.append((votes, num_thoughts, slice(start, start + rows)))
        start += rows

    def column(index, repeated):
        parts = [
            np.broadcast_to(row[index], (len(row[2]), *np.shape(row[index]))) if repeated else row[index]
            for row in columns
        ]
        return np.concatenate(parts)

    repeated = [column(index, True) for index in (0, 1, 4, 5)]
    tokens = repeated[2][..., None]
    return Outcomes(repeated[0], repeated[1], column(2, False), column(3, False), tokens, repeated[3], paths)


def joint_probability(reasoner, kind, votes, num_thoughts, noise, tokens):
    """Probability of these votes and tokens of both trajectories, given their noise: from scratch, one question."""
    backbone, navigator = reasoner.backbone, reasoner.navigator
    table = backbone.embedding[...]
    inputs, log_prob = [table[jnp.asarray(PROMPT)] for _ in range(PAIR)], 0.0
    if kind.joined:
        roles = navigator.role_table[...]
        inputs = [jnp.concatenate([rows, roles[row][None]]) for row, rows in enumerate(inputs)]
    hidden = [jnp.zeros(SIZE)] * PAIR
    actions, values = jnp.zeros((PAIR, kind.steps, SIZE)), jnp.zeros((PAIR, kind.steps))
    thought_mask = np.arange(kind.steps) < num_thoughts[:, None]
    for step in range(kind.steps):
        going = [row for row in range(PAIR) if num_thoughts[row] >= step]
        for row in going:
            hidden[row] = from_scratch(reasoner, inputs[row], jnp)[-1]
            logit = (hidden[row] @ navigator.stop_weight[...] + navigator.stop_bias[...][0]) / STOP_TEMPERATURE
            if step >= kind.first_decision:
                log_prob += jax.nn.log_sigmoid(logit if votes[row, step] else -logit)
        history = None
        if navigator.config.reads_history:
            seen = jnp.asarray(thought_mask & (np.arange(kind.steps) < step))
            history = History(actions[None], values[None], seen[None])
        means = navigator.action_mean(jnp.stack(hidden)[None, :, None], None, history, jnp.asarray([step]))
        thinking = [row for row in range(PAIR) if num_thoughts[row] > step]
        new = {row: means[0, row, 0] + kind.thought_std * noise[row, step] for row in thinking}
        for row in thinking:
            actions = actions.at[row, step].set(new[row])
            values = values.at[row, step].set(jax.lax.stop_gradient(navigator.value(hidden[row])))
            fed = sum(new.values()) / len(new) if kind.ensemble else new[row]
            thought = navigator.to_embedding(fed, hidden[row])
            inputs[row] = jnp.concatenate([inputs[row], thought[None]])
    if kind.joined:
        log_prob += _joined_log_probs(reasoner, inputs)[tokens[0, 0]]
        return jnp.exp(log_prob)
    for row in range(PAIR):
        ended = jnp.concatenate([inputs[row], table[jnp.asarray(OPENING)]])
        logits = backbone.head[...] @ from_scratch(reasoner, ended, jnp)[-1] / TOKEN_TEMPERATURE
        log_prob += jax.nn.log_softmax(logits)[tokens[row, 0]]
    return jnp.exp(log_prob)


def _joined_log_probs(reasoner, inputs):
    """Log-probs of the answer after an opening that sees both trajectories, which do not see each other."""
    prompt, (first, second) = len(PROMPT), (len(rows) - len(PROMPT) for rows in inputs)
    opening = reasoner.backbone.embedding[...][jnp.asarray(OPENING)]
    everything = jnp.concatenate([inputs[0], inputs[1][prompt:], opening])
    longest = prompt + max(first, second)
    positions = [*range(prompt + first), *range(prompt, prompt + second), *range(longest, longest + len(OPENING))]
    sees = np.tril(np.ones((len(everything),) * 2, bool))
    sees[prompt + first : prompt + first + second, prompt : prompt + first] = False
    hidden = from_scratch(reasoner, everything, jnp, np.array(positions), sees)[-1]
    return jax.nn.log_softmax(reasoner.backbone.head[...] @ hidden / TOKEN_TEMPERATURE)


def expected_reward(kind, graphdef, params):
    """The true expected mean reward of the two, and the probability of every outcome (times its quadrature weight)."""
    outcomes, reasoner = all_outcomes(kind), nnx.merge(graphdef, params)
    probabilities = []
    for votes, num_thoughts, rows in outcomes.paths:
        given = outcomes.noise[rows], outcomes.tokens[rows]
        probability = jax.vmap(partial(joint_probability, reasoner, kind, votes, num_thoughts))(*given)
        probabilities.append(probability * outcomes.weights[rows])
    probability = jnp.concatenate(probabilities)
    return jnp.sum(probability * np.mean(outcomes.worth - COST * outcomes.num_thoughts, axis=1)), probability


def reasoner_of(kind, feedback):
    if kind.joined:
        return tiny_reasoner(feedback, False, roles=PAIR, join=True)
    return tiny_reasoner(feedback, False, reads="nothing" if kind.ensemble else "all")


@cache
def true_gradient(kind, feedback):
    graphdef, params = nnx.split(reasoner_of(kind, feedback))
    of_reward = jax.grad(partial(expected_reward, kind, graphdef), has_aux=True)
    gradient, probability = jax.jit(of_reward, compiler_options=QUICK)(params)
    return gradient, np.asarray(probability)


def recorded_rollout(reasoner, kind):
    """Every outcome as a question with two trajectories."""
    outcomes = all_outcomes(kind)
    num_thoughts, noise, tokens = (jnp.asarray(x) for x in (outcomes.num_thoughts, outcomes.noise, outcomes.tokens))
    prompt = jnp.broadcast_to(jnp.array(PROMPT), (len(num_thoughts), len(PROMPT)))
    mask = jnp.ones(prompt.shape, bool)
    encoded = begin_trajectories(reasoner, encode(reasoner, prompt, mask), PAIR)
    rule = StopRule(num_thoughts, num_thoughts, STOP_TEMPERATURE)
    thoughts = think(reasoner, encoded, None, rule, noise, jnp.float32(kind.thought_std), ensemble=kind.ensemble)
    decisions = jnp.arange(kind.steps + 1)
    within = (decisions >= kind.first_decision) & (decisions < kind.steps)
    return Rollout(
        prompt=prompt,
        prompt_mask=mask,
        actions=thoughts.actions,
        noise=noise,
        embeddings=thoughts.embeddings,
        thought_mask=thoughts.thought_mask,
        stops=jnp.asarray(outcomes.votes),
        is_action=within & (decisions <= num_thoughts[..., None]),
        num_thoughts=num_thoughts,
        tokens=tokens,
        token_mask=jnp.ones(tokens.shape, bool) & ~jnp.asarray([[False], [kind.joined]]),
        ended=jnp.ones(num_thoughts.shape, bool),
        thought_std=jnp.float32(kind.thought_std),
        stop_temperature=jnp.float32(STOP_TEMPERATURE),
        token_temperature=jnp.float32(TOKEN_TEMPERATURE),
        node_values=thoughts.node_values,
    )


def ppo_gradient(kind, feedback, gradient, shared=True):
    """Gradient of the PPO loss with each outcome weighted by its probability, and the probabilities it assigns."""
    outcomes, (_, probability) = all_outcomes(kind), true_gradient(kind, feedback)
    config = PPOConfig(
        gradient=gradient,
        baseline="critic",
        ensemble=kind.ensemble,
        shared_reward=shared,
        whiten=False,
        gae_lambda=1.0,
        value_coefficient=0.0,
        entropy_coefficient=0.0,
        kl_coefficient=0.0,
    )
    graphdef, params = nnx.split(reasoner_of(kind, feedback))
    worth, costs = outcomes.worth, np.zeros((len(outcomes.num_thoughts), PAIR, kind.steps + 1))
    costs[..., :-1] = np.where(np.arange(kind.steps) < outcomes.num_thoughts[..., None], -COST, 0.0)
    if shared:
        worth, costs = shared_rewards(worth, costs, np.ones(outcomes.num_thoughts.shape, bool))

    def collect(params):
        reasoner = nnx.merge(graphdef, params)
        rollout = recorded_rollout(reasoner, kind)
        method = rescore_method(config, feedback)
        recorded = rescore(reasoner, rollout, None, OPENING, method, "summed", ensemble=kind.ensemble)
        advantages, returns = estimate_advantages(rollout, recorded, jnp.asarray(worth), jnp.asarray(costs), config)
        # The true gradient is that of the mean reward of the two: each action's, where it earns that mean, and half
        # of each action's where it earns its own trajectory's reward.
        advantages = advantages * probability[:, None, None] / (1 if shared else PAIR)
        return Experience(rollout, recorded, None, advantages, returns)

    def loss(params, experience):
        reasoner = nnx.merge(graphdef, params)
        sums = policy_sums(reasoner, experience, None, config, OPENING)
        return policy_loss(sums, jnp.float32(1), jnp.float32(1), jnp.float32(0), config)

    experience = jax.jit(collect, compiler_options=QUICK)(params)
    of_loss = jax.jit(jax.grad(loss), compiler_options=QUICK)(params, experience)
    log_prob = jnp.sum(experience.recorded.thoughts.stop, (1, 2)) + jnp.sum(
        experience.recorded.tokens.log_probs, (1, 2)
    )
    return jax.tree.map(jnp.negative, of_loss), np.exp(log_prob) * outcomes.weights


SLOW = [
    ("ensemble", ENSEMBLE, "navigator", "score", 1e-4),
    ("ensemble", ENSEMBLE, "navigator", "pathwise", 1e-4),
    ("reading", READING, "hidden", "score", 8e-6),
    ("reading", READING, "navigator", "pathwise", 1e-4),
]


def check_gradient(kind, feedback, gradient, tolerance):
    true, probability = true_gradient(kind, feedback)
    assert abs(probability.sum() - 1) < 1e-6
    found, assigned = ppo_gradient(kind, feedback, gradient)
    np.testing.assert_allclose(assigned, probability, rtol=1e-4, atol=1e-12)
    assert distance(found, true) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["score", "pathwise"])
def test_gradient_of_an_ensemble_of_two(gradient):
    check_gradient(ENSEMBLE, "hidden", gradient, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["score", "pathwise"])
def test_gradient_of_two_with_one_answer(gradient):
    check_gradient(JOINED, "hidden", gradient, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "feedback", "gradient", "tolerance"), SLOW)
def test_gradient_of_two_that_share_their_reward(name, kind, feedback, gradient, tolerance):
    check_gradient(kind, feedback, gradient, tolerance)


def own_rewards_differ_by(kind):
    true, _ = true_gradient(kind, "hidden")
    found, _ = ppo_gradient(kind, "hidden", "score", shared=False)
    return distance(found, true)


def test_gradient_of_own_rewards_is_another():
    """One's thought moves the other's reward, and is not credited with that."""
    assert own_rewards_differ_by(ENSEMBLE) > 1e-2


@pytest.mark.slow
def test_gradient_of_own_rewards_is_another_where_they_read():
    """By little, at so little noise: fifty times what the law tolerates there."""
    assert own_rewards_differ_by(READING) > 4e-4
