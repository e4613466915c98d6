"""What joins rollout, rewards and update in an iteration of PPO: lengths, temperatures, keys, outcomes, votes, sharing."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from longshot_jax.data.problems import Problem
from longshot_jax.evaluation.batches import UNFINISHED
from longshot_jax.model.sharding import make_mesh
from longshot_jax.planning.shapes import planned_backbone
from longshot_jax.ppo.loop import PPOLoop, Questions
from longshot_jax.ppo.rewards import Outcome
from longshot_jax.ppo.update import PPOPrograms
from longshot_jax.thoughts.reasoner import AbstractReasoner
from longshot_jax.thoughts.rollout import Temperatures
from longshot_jax.thoughts.stopping import Lengths
from longshot_jax.training.schedules import anneal

RUN = tiny(
    phases=("ppo",), ppo__min_thoughts=1, ppo__max_thoughts=3, ppo__memory_slots=2, ppo__memory_writes=2, thoughts__memory_top=1,
    thoughts__feedback="navigator", ppo__minibatches=1, ppo__rewards__vote_correct=1.0, ppo__shared_reward=True, ppo__gae_lambda=1.0,
)  # fmt: skip
B, N = RUN.ppo.questions, RUN.ppo.num_trajectories


def questions(count):
    shape = count, RUN.data.prompt_length
    return SimpleNamespace(prompts=lambda _: (np.zeros(shape, np.int32), np.ones(shape, bool)))


def loop_of(config, **others):
    """What the methods of a `PPOLoop` read, without a run."""
    context = SimpleNamespace(run=RUN, mesh=make_mesh(RUN.mesh), layout=questions(config.questions))
    return SimpleNamespace(config=config, context=context, **others)


def test_forced_numbers_end_after_their_iterations_and_bounds_hold_from_then_on():
    config = replace(RUN.ppo, target_thoughts=(3,), target_iterations=2)
    loop = loop_of(config, programs=SimpleNamespace(shape=SimpleNamespace(adaptive=False)))
    found = []
    for iteration in range(4):
        lengths = PPOLoop.make_questions(loop, iteration, []).lengths
        found.append((np.unique(lengths.min_thoughts).tolist(), np.unique(lengths.max_thoughts).tolist()))
    assert found == [([3], [3]), ([3], [3]), ([1], [3]), ([1], [3])]


def test_every_iteration_has_its_own_temperatures():
    tables = [anneal(bounds, "linear", 5) for bounds in ((0.4, 0.1), (1.0, 2.0), (3.0, 1.0))]
    loop = SimpleNamespace(annealed=tables)
    for iteration in range(5):
        share = iteration / 4
        found = PPOLoop.temperatures(loop, iteration)
        assert found.thought_std == pytest.approx(0.4 - 0.3 * share)
        assert found.stop == pytest.approx(1 + share) and found.token == pytest.approx(3 - 2 * share)
    assert PPOLoop.temperatures(loop, 4, thought_std=0.0).thought_std == 0


def test_the_vote_is_of_the_trajectories_that_exist():
    problems = [Problem("q", (), "1"), Problem("r", (), "1")]
    context = SimpleNamespace(grade=lambda problem, answer: float(answer == problem.answer), run=RUN)
    loop = SimpleNamespace(config=replace(RUN.ppo, num_trajectories=3), context=context)
    # The first question has two trajectories; of three the wrong answer would win.
    ended = {
        "ended": np.array([[True, True, True], [True, True, False]]),
        "num_thoughts": np.ones((2, 3), np.int32),
        "natural_stop": np.zeros((2, 3), bool),
        "num_trajectories": np.array([2, 3], np.int32),
        "values": np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 9.0]], np.float32),
    }
    outcome = PPOLoop._outcomes(loop, ended, problems, [["2", "1", "2"], ["2", "2", f"1{UNFINISHED}"]])
    assert outcome.correct.tolist() == [[False, True, False], [False, False, False]]
    assert outcome.vote_correct is not None and outcome.vote_correct.tolist() == [[True], [False]]
    assert outcome.num_trajectories.tolist() == [[2], [3]] and outcome.grade is None


@pytest.fixture(scope="module")
def programs():
    mesh = make_mesh(RUN.mesh)
    abstract = AbstractReasoner.of(RUN, planned_backbone(RUN), mesh)
    made = PPOPrograms(RUN, abstract, mesh, (1,), (0,))
    state = made.start(abstract.random_params(RUN))
    return made, replace(state, thought_rms=jnp.asarray(0.5))


@pytest.fixture(scope="module")
def rollouts(programs):
    """A rollout of each of two iterations on the same questions."""
    made, state = programs
    prompt, mask = questions(B).prompts(None)
    fewest = np.broadcast_to(np.arange(B)[:, None] % 2, (B, N)).astype(np.int32)
    lengths = Lengths(fewest, fewest + 2)
    std = Temperatures(*(jnp.asarray(value, jnp.float32) for value in (0.3, 1.0, 1.0)))
    return lengths, [made.rollout(state, prompt, mask, lengths, std, np.int32(iteration)) for iteration in (0, 1)]


def test_a_rollout_of_another_iteration_draws_other_noise_and_tells_how_it_ended(rollouts):
    lengths, ((first, recorded, outcome), (second, *_)) = rollouts
    assert first.thought_std == pytest.approx(0.3 * 0.5), "relative to the rms of thoughts"
    assert not np.array_equal(first.noise, second.noise) and not np.array_equal(first.tokens, second.tokens)
    taken = np.asarray(first.num_thoughts)
    # The stop head ended what stopped before its largest number; the smallest is no decision of its own.
    np.testing.assert_array_equal(outcome["natural_stop"], taken < lengths.max_thoughts)
    assert outcome["natural_stop"].any() and not outcome["natural_stop"].all()
    rows, columns = np.indices(taken.shape)
    np.testing.assert_array_equal(outcome["values"], np.asarray(recorded.thoughts.values)[rows, columns, taken])


@pytest.mark.slow
def test_the_bank_keeps_the_thoughts_of_the_highest_returns(programs, rollouts):
    made, state = programs
    rollout, recorded, _ = rollouts[1][0]
    answer = np.linspace(-1.0, 2.0, B * N, dtype=np.float32).reshape(B, N)
    costs = np.zeros((B, N, RUN.ppo.max_thoughts + 1), np.float32)
    after, _ = made.update(jax.tree.map(jnp.copy, state), rollout, recorded, answer, costs)
    # With discount and lambda 1 every thought has the return of its trajectory.
    returns = np.repeat(answer.ravel(), np.asarray(rollout.num_thoughts).ravel())
    assert after.memory.filled == 2
    np.testing.assert_allclose(np.sort(after.memory.values), np.sort(returns)[-2:], atol=1e-5)


def outcome_of(ended, correct):
    number = np.full((len(correct), 1), correct.shape[1], np.int32)
    return Outcome(
        correct,
        *(np.asarray(ended[name]) for name in ("ended", "num_thoughts", "natural_stop")),
        num_trajectories=number,
    )


@pytest.mark.parametrize("shared", [False, True])
def test_a_shared_reward_is_that_of_all_trajectories_of_a_question(programs, rollouts, shared):
    _, state = programs
    config = replace(
        RUN.ppo, shared_reward=shared, rewards=replace(RUN.ppo.rewards, vote_correct=0.0, thought_cost=0.0)
    )
    given = []
    stub = SimpleNamespace(
        rollout=lambda *_: rollouts[1][0],
        update=lambda state, rollout, recorded, *rewards: given.append(rewards) or (state, {}),
    )
    problems = [Problem(f"q{row}", (), "1") for row in range(B)]
    correct = np.zeros((B, N), bool)
    correct[::2, 0] = True
    mesh, writer = make_mesh(RUN.mesh), SimpleNamespace(histogram=lambda *_: None)
    loop = SimpleNamespace(
        config=config,
        context=SimpleNamespace(mesh=mesh, writer=writer, layout=None, run=RUN),
        programs=stub,
        own_rewards={},
        clock=SimpleNamespace(lap=lambda: 0.0),
        temperatures=lambda _: None,
        _outcomes=lambda ended, problems, texts: outcome_of(ended, correct),
        _rollout_metrics=lambda *_: {},
        _rates=lambda *_: {},
    )
    asked = Questions(problems, *map(jnp.asarray, questions(B).prompts(None)), rollouts[0], prompt_tokens=0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("longshot_jax.ppo.loop.answer_texts", lambda tokens, layout: [["1"] * N] * B)
        patched.setattr("longshot_jax.ppo.loop._samples", lambda *_: [])
        PPOLoop._iteration(loop, state, 0, 1, asked, None)
    (answer, _) = given[0]
    expected = config.rewards.correct * correct
    np.testing.assert_allclose(answer, np.broadcast_to(expected.mean(1, keepdims=True), (B, N)) if shared else expected)
