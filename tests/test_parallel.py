"""The curriculum of joined answers: what a batch holds, its loss, and a run from training to evaluation."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import QUICK, small_reasoner
from flax import nnx
from tiny_run import tiny

from longshot_jax import LongShot
from longshot_jax.checkpoints.pretrained import load_pretrained
from longshot_jax.cli import load_config
from longshot_jax.config import parse_config
from longshot_jax.config.curriculum import CurriculumConfig, GuidanceConfig, TextConfig
from longshot_jax.curriculum.parallel import parallel_batch, parallel_sums
from longshot_jax.curriculum.update import curriculum_update
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.data.sources import Problems, check_problems
from longshot_jax.data.threads import THREAD_WORDS, ThreadProblems
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.evaluation import accuracy
from longshot_jax.evaluation.accuracy import CONTROLS, JOINT_CONTROLS, evaluate
from longshot_jax.evaluation.batches import Batches
from longshot_jax.evaluation.decoder import Decoder
from longshot_jax.evaluation.results import results_table
from longshot_jax.thoughts.answer import decode_answers
from longshot_jax.thoughts.joint import decode_jointly
from longshot_jax.thoughts.roles import begin_trajectories
from longshot_jax.thoughts.rollout import make_temperatures
from longshot_jax.thoughts.stopping import StopRule, ThoughtRule, rule_of_stage
from longshot_jax.thoughts.think import encode, think
from longshot_jax.train import train
from longshot_jax.training.state import start_state

ROOT = Path(__file__).parents[1]
TOKENS = Tokenizer.for_chains(words=THREAD_WORDS)
LAYOUT = Layout(TOKENS, "answer", "coconut", 60)
CONFIG, ROLES, LENGTH = CurriculumConfig(max_latent_stage=3), 3, 7
PROBLEMS = [*(ThreadProblems(0, 2, (2, 3), (2,))[i] for i in range(2)), Problem("a=1 b=a+2 b?", ("3",), "3")]


def batch_at(stage, config=CONFIG, problems=PROBLEMS):
    return parallel_batch(problems, stage, config, LAYOUT, LENGTH, ROLES, np.random.default_rng(0))


def written(tokens, mask):
    return TOKENS.decode_literally(tokens[mask].tolist())


def test_every_thread_has_a_trajectory_with_its_thoughts_and_the_rest_of_its_steps():
    for stage in (0, 1, 3):
        batch = batch_at(stage)
        for row, problem in enumerate(PROBLEMS):
            threads = problem.threads or (problem.steps,)
            assert batch.active[row].tolist() == [n < len(threads) for n in range(ROLES)]
            for n in range(ROLES):
                steps = threads[n] if n < len(threads) else ()
                assert batch.num_thoughts[row, n] == min(stage, len(steps))
                rest = "".join(steps[stage:]) + "<|end-latent|>" if n < len(threads) else ""
                assert written(batch.texts[row, n], batch.text_mask[row, n]) == rest
            answer = f"<|end-latent|>{problem.answer}<|end-of-text|>"
            assert written(batch.answers[row], batch.answer_mask[row]) == answer
        texts = sum(max(len(t) - stage, 0) + 1 for p in PROBLEMS for t in p.threads or (p.steps,))
        assert batch.loss_count == texts + sum(len(TOKENS.encode(p.answer)) + 1 for p in PROBLEMS)


def test_steps_that_guide_thoughts_are_those_of_the_trajectory():
    guided = dataclasses.replace(CONFIG, guidance=GuidanceConfig(explanation=1.0))
    steps = batch_at(1, guided).steps
    assert steps is not None and steps.tokens.shape == (len(PROBLEMS), ROLES * 3, LENGTH)
    steps = jax.tree.map(lambda x: x.reshape(-1, 3, *x.shape[2:]), steps)
    firsts = [thread[0] for p in PROBLEMS for thread in (*(p.threads or (p.steps,)), *((" ",),) * ROLES)[:ROLES]]
    assert [written(row[0], mask[0]) for row, mask in zip(steps.tokens, steps.mask, strict=True)] == [
        text.strip() for text in firsts
    ]


@pytest.mark.slow
def test_neither_guidance_nor_its_gradient_depends_on_micro_batches():
    guidance = GuidanceConfig(target=0.5, explanation=0.5, forcing=(0.5, 0.5), stop=0.2)
    batch = batch_at(2, dataclasses.replace(CONFIG, guidance=guidance), [*PROBLEMS, PROBLEMS[1]])
    reasoner = reasoner_of()
    graphdef, params = nnx.split(reasoner)
    steps, metrics = [], []
    for parts in (1, 2):
        config = dataclasses.replace(CONFIG, guidance=guidance, batch_size=4, micro_batch_size=4 // parts)
        update = curriculum_update(graphdef, optax.sgd(1.0), config)
        state = start_state(params, nnx.State({}), optax.sgd(1.0), jax.random.key(0))
        after, told = jax.jit(update, compiler_options=QUICK)(state, batch)
        steps.append(jax.tree.leaves(jax.tree.map(lambda a, b: a - b, after.trainable, params)))
        metrics.append(told)
    assert metrics[0]["guidance/explanation"] > 0 and metrics[0]["guidance/target"] > 0
    for name, value in metrics[0].items():
        np.testing.assert_allclose(value, metrics[1][name], rtol=1e-4, atol=1e-5)
    for one, two in zip(*steps, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=2e-5)
    # Of trajectories that exist: of four problems two, three, one and three.
    assert metrics[0]["thoughts"] == np.asarray(batch.num_thoughts)[np.asarray(batch.active)].mean()


def test_a_sampled_answer_has_other_random_numbers_than_the_texts_before_it():
    """All tokens are equally likely, so what is drawn shows the numbers themselves."""
    reasoner, batch = reasoner_of(), jax.tree.map(jnp.asarray, batch_at(1))
    reasoner.backbone.head[...] = jnp.zeros_like(reasoner.backbone.head[...])

    @partial(jax.jit, compiler_options=QUICK)
    def drawn(reasoner):
        prompt = begin_trajectories(reasoner, encode(reasoner, batch.prompt, batch.prompt_mask), ROLES)
        rule = StopRule(batch.num_thoughts, batch.num_thoughts)
        thoughts = think(reasoner, prompt, None, rule, jnp.zeros((3, ROLES, 3, 8)), jnp.zeros(()))
        keys = jax.vmap(lambda key: jax.random.split(key, ROLES))(jax.random.split(jax.random.key(0), 3))
        given = LENGTH, jnp.ones(()), keys
        texts = decode_answers(reasoner, prompt, thoughts, (), (TOKENS.end_latent,), *given)
        answers = decode_jointly(reasoner, prompt, thoughts, (), (TOKENS.end,), *given, text_end=TOKENS.end_latent)
        return texts.tokens[:, 0], answers.tokens[:, 0]

    texts, answers = drawn(reasoner)
    assert (texts[:, :2] != answers[:, :2]).any(axis=1).all()


def test_a_problem_with_more_threads_than_roles_or_too_long_a_text_is_refused():
    four = ThreadProblems(0, 1, (4,), (2,))[0]
    with pytest.raises(UserError, match=r"4 threads, but config.thoughts.roles is 3"):
        batch_at(0, problems=[four])
    # Before training, although the file's first problems have fewer.
    config = load_config(ROOT / "configs" / "threads.py")
    config.thoughts.roles, config.data.validation = ROLES, "other.json"
    many = [*[PROBLEMS[0]] * 20, four]
    with pytest.raises(UserError, match=r"problem 21: a problem has 4 threads"):
        check_problems(parse_config(config), LAYOUT, Problems(many, many))
    long = Problem("a?", ("1",) * 9, "1")
    with pytest.raises(UserError, match=r"have 10 tokens but config.data.answer_length is 7"):
        batch_at(0, problems=[long])


def reasoner_of(seed=1):
    return small_reasoner(seed=seed, roles=ROLES, join=True, vocab_size=TOKENS.vocabulary_size)


def test_the_loss_is_that_of_the_tokens_as_they_are_decoded():
    """What each trajectory writes after its thoughts, and the answer over all, have the probabilities of the cache."""
    reasoner, batch = reasoner_of(), jax.tree.map(jnp.asarray, batch_at(1))
    head = reasoner.backbone.head  # often the likeliest or the least likely token, so that texts end
    head[...] = head[...].at[TOKENS.end_latent].multiply(5)

    @partial(jax.jit, compiler_options=QUICK)
    def decoded(reasoner):
        prompt = begin_trajectories(reasoner, encode(reasoner, batch.prompt, batch.prompt_mask), ROLES, batch.active)
        rule = StopRule(batch.num_thoughts, batch.num_thoughts, active=batch.active)
        thoughts = think(reasoner, prompt, None, rule, jnp.zeros((3, ROLES, 3, 8)), jnp.zeros(()))
        end = TOKENS.end_latent
        texts = decode_answers(reasoner, prompt, thoughts, (), (end,), LENGTH, jnp.ones(()), None, batch.active)
        static = (end,), (TOKENS.end,), LENGTH
        answers = decode_jointly(
            reasoner, prompt, thoughts, *static, jnp.ones(()), None, text_end=end, active=batch.active
        )
        return texts, answers

    texts, answers = decoded(reasoner)
    # The decoded tokens as if they were the right ones; the answer follows its marker.
    marker = jnp.full((len(PROBLEMS), 1), TOKENS.end_latent)
    own = dataclasses.replace(
        batch,
        texts=jnp.where(texts.mask, texts.tokens, 0),
        text_mask=texts.mask,
        answers=jnp.concatenate([marker, answers.tokens[:, 0]], axis=1),
        answer_mask=jnp.concatenate([jnp.ones_like(marker, bool), answers.mask[:, 0]], axis=1),
    )
    # A text that reached the limit has no marker, and its last token is read by the answer too.
    ended = np.asarray(texts.ended | ~batch.active).all(axis=1)
    sums = jax.jit(lambda reasoner, batch: parallel_sums(reasoner, batch, 3), compiler_options=QUICK)
    rows = [jax.tree.map(lambda x, row=row: x[row : row + 1], own) for row in range(len(PROBLEMS))]
    for row in np.flatnonzero(ended):
        found = sums(reasoner, rows[row])
        expected = jnp.sum(texts.scores.log_probs[row]) + jnp.sum(answers.scores.log_probs[row])
        np.testing.assert_allclose(found.loss_sum, -expected, rtol=1e-4)
        assert found.correct == found.count  # greedy tokens are the likeliest ones
    assert ended.any()


def test_another_trajectorys_thread_changes_only_the_answer():
    reasoner, batch = reasoner_of(), batch_at(1)
    of_texts = jax.jit(lambda reasoner, batch: parallel_sums(reasoner, batch, 3), compiler_options=QUICK)
    first_only = dataclasses.replace(
        batch,
        text_mask=batch.text_mask & (np.arange(ROLES) == 0)[:, None],
        answer_mask=np.zeros_like(batch.answer_mask),
    )
    changed = batch.texts.copy()
    changed[:, 1] = TOKENS.encode("9")[0]
    one, other = (of_texts(reasoner, dataclasses.replace(first_only, texts=t)).loss_sum for t in (batch.texts, changed))
    assert one == other
    one, other = (of_texts(reasoner, dataclasses.replace(batch, texts=t)).loss_sum for t in (batch.texts, changed))
    assert abs(one - other) > 1e-3


def test_controls_of_a_joined_answer_act_on_the_trajectories_that_they_name():
    graphdef, params = nnx.split(reasoner_of())
    decoder = Decoder(graphdef, LAYOUT, 3, LENGTH, joined=ROLES)
    rule = ThoughtRule("steps", 3)
    problems = PROBLEMS[:2]
    batches = Batches(decoder, (params,), problems, rule, None, 2, 0)
    greedy = batches.run(make_temperatures())
    assert greedy.num_thoughts.tolist() == [[2, 2, 0], [2, 2, 2]]
    assert greedy.active.tolist() == [[True, True, False], [True, True, True]]
    assert (greedy.tokens == greedy.tokens[:, :1]).all()
    given = decoder.decode_given(
        (params,),
        (batches.prompt, batches.mask),
        greedy.thoughts,
        greedy.num_thoughts,
        counts=batches.counts,
        roles=np.tile(np.arange(ROLES), (2, 1)),
    )
    np.testing.assert_array_equal(given.tokens, greedy.tokens)


CONFLICTS = [
    ({"data.threads": ()}, "config.data.threads is empty"),
    ({"ppo.coupling": "antithetic", "ppo.gradient": "score"}, "depends on others, as with config.thoughts.join"),
    (
        {"ppo.kl_in": "reward", "ppo.kl_coefficient": 0.1, "phases": ("curriculum", "ppo")},
        "config.ppo.kl_in 'reward' is of single trajectories",
    ),
    (
        {"ppo.loss_mean": "sequence", "phases": ("curriculum", "ppo")},
        "config.ppo.loss_mean 'sequence' is of single trajectories",
    ),
    (
        {"ppo.rewards.success_per_thought": 0.1, "phases": ("curriculum", "ppo")},
        "success_per_thought is of single trajectories",
    ),
    ({"thoughts.roles": 0}, "set config.thoughts.roles"),
    ({"data.threads": (3,)}, "config.data.threads 3 is more than config.thoughts.roles 2"),
    ({"markers": "coconut"}, "take 'answer'"),
    ({"curriculum.mode": "cot"}, "config.curriculum.mode 'cot' has no marker .* the same text in parallel"),
    (
        {"phases": ("ppo",), "thoughts.max_trajectories": 1, "ppo.shared_reward": True},
        "to the same number of 2 or more",
    ),
    ({"data.batch_shapes": 2}, "config.data.batch_shapes 2 groups sequences of one trajectory"),
    ({"ppo.rewards.vote_correct": 1.0, "ppo.shared_reward": True}, "config.ppo.rewards.vote_correct"),
    ({"curriculum.guidance.distillation": 1.0}, "config.curriculum.guidance.distillation"),
    ({"phases": ("ppo",), "ppo.num_trajectories": 5}, "has no room for config.ppo.num_trajectories 5"),
    ({"phases": ("ppo",), "ppo.num_trajectories": 1}, "more roles than config.ppo.num_trajectories 1"),
    ({"ppo.baseline": "leave_one_out", "ppo.num_trajectories": 2}, "config.thoughts.join gives them one answer"),
]


@pytest.mark.parametrize(("settings", "message"), CONFLICTS, ids=str)
def test_settings_that_cannot_be_joined_are_refused(settings, message):
    config = load_config(ROOT / "configs" / "threads.py")
    config.update_from_flattened_dict(settings)
    with pytest.raises(UserError, match=message):
        parse_config(config)


def test_a_joined_answer_may_choose_between_one_and_two():
    config = load_config(ROOT / "configs" / "threads.py")
    settings = {"phases": ("curriculum", "ppo"), "thoughts.max_trajectories": 2, "ppo.shared_reward": True}
    config.update_from_flattened_dict(settings)
    assert parse_config(config).thoughts.fewest_trajectories == 1


@pytest.mark.parametrize("mode", ["coconut", "no_cot"])
def test_the_text_phase_writes_the_joint_steps_whatever_the_mode_of_the_curriculum(mode):
    problem, layout = Problem("?", ("1+2=3", "4+5=9", "3+9=2"), "2"), Layout(TOKENS, "answer", mode, 60)
    rng = np.random.default_rng(0)
    phase = TextConfig().as_curriculum
    batch = parallel_batch([problem], 0, phase, layout, 60, 2, rng)
    assert written(batch.answers[0], batch.answer_mask[0]) == "<|end-latent|>3+9=2<|end-latent|>2<|end-of-text|>"
    plain = parallel_batch([problem], 0, dataclasses.replace(CONFIG, mode="no_cot"), layout, 60, 2, rng)
    assert written(plain.answers[0], plain.answer_mask[0]) == "<|end-latent|>2<|end-of-text|>"


def test_the_count_head_of_a_joined_answer_chooses_from_one_on():
    reasoner = small_reasoner(roles=ROLES, join=True, max_trajectories=ROLES, vocab_size=TOKENS.vocabulary_size)
    head, many = reasoner.navigator.count_bias, {}
    assert head.shape == (ROLES,)
    decoder = Decoder(nnx.split(reasoner)[0], LAYOUT, 3, LENGTH, max_trajectories=ROLES, joined=ROLES)
    for number in (1, 3):
        head[...] = jnp.where(jnp.arange(ROLES) == number - 1, 50.0, 0.0)
        params = (nnx.split(reasoner)[1],)
        rule = ThoughtRule("own", 3)
        many[number] = evaluate(decoder, params, PROBLEMS, rule, num_trajectories=0, batch_size=3, controls=False)
        assert many[number]["trajectories"] == [number] * len(PROBLEMS)
    steps = evaluate(
        decoder, params, PROBLEMS, ThoughtRule("steps", 3), num_trajectories=0, batch_size=3, controls=False
    )
    assert steps["trajectories"] == [2, 3, 1] and steps["mean_trajectories"] == 2
    assert "mean trajectories   2.00" in results_table(steps)
    # One without steps has all, and changes nothing of the others.
    bare = [*PROBLEMS, Problem("a=1 a?", (), "1")]
    rule = ThoughtRule("steps", 3)
    assert rule.counts(bare, ROLES).tolist() == [2, 3, 1, ROLES]
    assert rule.bounds(bare, LAYOUT, ROLES)[1][-1].tolist() == [3] * ROLES
    many_threads = Problem("q", ("1",) * 4, "1", threads=(("1",),) * 4)
    with pytest.raises(
        UserError, match=r"4 threads, but config.thoughts.roles is 3: .* leave out problems such as 'q'"
    ):
        ThoughtRule("steps", 3).bounds([many_threads], LAYOUT, ROLES)


@pytest.mark.slow
def test_controls_have_the_trajectories_that_the_model_chose(monkeypatch):
    """With its own thoughts given again, every answer is the greedy one, in each of the controls."""
    reasoner = small_reasoner(roles=ROLES, join=True, max_trajectories=ROLES, vocab_size=TOKENS.vocabulary_size)
    reasoner.navigator.count_bias[...] = jnp.array([50.0, 0.0, 0.0])
    decoder = Decoder(nnx.split(reasoner)[0], LAYOUT, 3, LENGTH, max_trajectories=ROLES, joined=ROLES)
    given = decoder, (nnx.split(reasoner)[1],)
    rule, options = ThoughtRule("own", 3, 2), {"num_trajectories": 0, "batch_size": 3, "grade": lambda *_: 1.0}
    answers = []
    monkeypatch.setattr(accuracy, "replaced_trajectories", lambda kind, thoughts, *_: thoughts)
    monkeypatch.setattr(accuracy, "JOINT_CONTROLS", ())
    monkeypatch.setattr(Batches, "accuracy", lambda self, texts: answers.append(list(texts)) or 1.0)
    greedy = evaluate(*given, PROBLEMS, rule, **options)["answers"]
    assert len(answers) == len(CONTROLS) and all(each == greedy for each in answers)


@pytest.mark.slow
def test_a_run_from_training_to_evaluation_and_ppo(tmp_path):
    config = load_config(ROOT / "configs" / "threads.py")
    few = {"phases": ("curriculum", "ppo"), "curriculum.max_steps_per_stage": 2, "curriculum.stages": (0, 2)}
    few |= {"curriculum.batch_size": 8, "evaluation.questions": 8, "evaluation.batch_size": 8, "model.hidden_size": 32}
    few |= {"ppo.iterations": 2, "ppo.questions": 4, "ppo.num_trajectories": 2, "ppo.baseline": "critic"}
    few |= {"ppo.minibatches": 1, "ppo.epochs": 1, "ppo.gradient": "pathwise", "ppo.max_thoughts": 3}
    config.update_from_flattened_dict(few)
    train(parse_config(config), tmp_path / "run")
    model = LongShot.from_pretrained(tmp_path / "run", which="latest")
    problems = [ThreadProblems(1, 6, (2,), (3,), "test")[i] for i in range(6)]
    results = model.evaluate(problems, thoughts="steps")
    assert set(results["controls"]) == {*CONTROLS, *JOINT_CONTROLS} and results["mean_thoughts"] == 3
    generation = model.generate(problems[0].question, thoughts=3, return_all_trajectories=True)
    assert len(generation.trajectories) == 2 and len({each.answer for each in generation.trajectories}) == 1


def test_pauses_have_the_trajectories_of_the_problem():
    """With as many pauses for all, a trajectory without a thread has none in training, and none in evaluation."""
    config = dataclasses.replace(CONFIG, mode="pause", pad_latent_to_max=True)
    layout = dataclasses.replace(LAYOUT, mode="pause", steps_written=True)
    reasoner = small_reasoner(roles=ROLES, join=True, vocab_size=TOKENS.vocabulary_size)
    graphdef, params = nnx.split(reasoner)
    decoder = Decoder(graphdef, layout, 3, LENGTH, joined=ROLES)
    evaluated = Batches(decoder, (params,), PROBLEMS, rule_of_stage(config, 3), None, len(PROBLEMS), 0)
    trained = batch_at(3, config).num_thoughts
    assert trained.tolist() == [[3, 3, 0], [3, 3, 3], [3, 0, 0]]
    assert evaluated.run(make_temperatures()).num_thoughts.tolist() == trained.tolist()


@pytest.mark.slow
def test_a_role_has_read_the_question_so_nothing_is_evaluated_from_thoughts_alone(tmp_path):
    run = tiny(phases=("ppo",), thoughts__roles=2, ppo__num_trajectories=2, curriculum__question_hidden=0.5)
    train(run, tmp_path)
    assert not load_pretrained(tmp_path).question_hidden
    train(dataclasses.replace(run, thoughts=dataclasses.replace(run.thoughts, roles=0)), tmp_path / "alone")
    assert load_pretrained(tmp_path / "alone").question_hidden
