"""Evaluation: what is counted, and what must not change the counts."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import small_bank
from flax import nnx

from longshot_jax.config import RunConfig
from longshot_jax.config.curriculum import CurriculumConfig, Mode
from longshot_jax.config.ppo import PPOConfig
from longshot_jax.config.run import Markers
from longshot_jax.config.thoughts import NavigatorConfig
from longshot_jax.data.chains import ChainProblems
from longshot_jax.data.grading import same_answer
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.evaluation.accuracy import CONTROLS, evaluate
from longshot_jax.evaluation.batches import UNFINISHED, Batches, answer_texts
from longshot_jax.evaluation.decoder import Decoder, Trajectories, full_batches
from longshot_jax.evaluation.fusion_accuracy import adaptive_vote, choose, distinct, fusion_accuracies
from longshot_jax.evaluation.results import results_table
from longshot_jax.model.llama import Llama, LlamaConfig
from longshot_jax.thoughts.reasoner import Reasoner
from longshot_jax.thoughts.rollout import make_temperatures
from longshot_jax.thoughts.stopping import ThoughtRule, rule_after

TOKENIZER = Tokenizer.for_chains()
STEPS = ThoughtRule("steps", 3)
LAYOUT = Layout(TOKENIZER, "answer", "coconut", 30)
NOISY = make_temperatures(thought_std=0.3)


def build(seed=0, **navigator):
    def make(rngs):
        shape = LlamaConfig(TOKENIZER.vocabulary_size, 16, 24, 1, 2, 2, 8, tie_word_embeddings=True)
        return Reasoner(Llama(shape, rngs), NavigatorConfig(stop_bias=0.0, **navigator), rngs)

    graphdef = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(seed))))[0]
    params = jax.jit(lambda: nnx.split(make(nnx.Rngs(seed)))[1])()
    # Larger weights than at the start of training, so that answers differ between questions.
    return graphdef, jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params)


GRAPHDEF, PARAMS = build()


def decoder_of(mode: Mode = "coconut", markers: Markers = "answer") -> Decoder:
    return Decoder(GRAPHDEF, Layout(TOKENIZER, markers, mode, 30), 3 if mode in ("coconut", "pause") else 0, 3)


@pytest.fixture(scope="module")
def decoder():
    return decoder_of()


@pytest.fixture(scope="module")
def problems(decoder):
    """Chains whose gold answer is the text of the model's own, or, of every third, one that it does not give."""
    chains = list(ChainProblems(0, 11, (1, 2, 3), "test"))
    greedy = evaluate(decoder, (PARAMS,), chains, STEPS, num_trajectories=0, controls=False, batch_size=4)
    answers = greedy["answers"]
    gold = [answer.removesuffix(UNFINISHED) or "999" for answer in answers]
    gold[::3] = ["999"] * len(gold[::3])
    return [Problem(p.question, p.steps, g) for p, g in zip(chains, gold, strict=True)]


@pytest.fixture(scope="module")
def results(decoder, problems):
    return evaluate(decoder, (PARAMS,), problems, STEPS, temperatures=NOISY, batch_size=4, num_trajectories=3)


def test_counts_are_exact_and_padding_rows_are_not_counted(results, problems):
    answers = results["answers"]
    right = [int(problem.answer == answer) for problem, answer in zip(problems, answers, strict=True)]
    assert 0 < sum(right) < 11
    # Right by its text, but nobody knows how it would have gone on: not counted.
    assert any(problem.answer + UNFINISHED == a for problem, a in zip(problems, answers, strict=True))
    assert results["correct"] == right
    assert results["count"] == 11
    assert results["accuracy"] == pytest.approx(np.mean(right))
    low, high = results["confidence_interval"]
    assert 0 < low < results["accuracy"] < high < 1


def test_by_steps(results, problems):
    assert set(results["by_steps"]) == {"1", "2", "3"}
    for number, part in results["by_steps"].items():
        rows = [i for i, problem in enumerate(problems) if len(problem.steps) == int(number)]
        assert part["count"] == len(rows)
        assert part["mean_thoughts"] == int(number)
        assert part["accuracy"] == pytest.approx(np.mean([results["correct"][i] for i in rows]))


@pytest.mark.law
def test_no_trajectory_depends_on_the_batch_size(decoder, problems):
    """Greedy ones, samples, and answers from given thoughts; ensembles too: `test_law_rows`."""
    few, all_at_once = (Batches(decoder, (PARAMS,), problems, STEPS, None, size, 0) for size in (4, 11))
    for number in (0, 3):
        decoded, other = few.run(NOISY, number), all_at_once.run(NOISY, number)
        for name in ("tokens", "ended", "num_thoughts"):
            np.testing.assert_array_equal(getattr(other, name), getattr(decoded, name))
        np.testing.assert_allclose(other.thoughts, decoded.thoughts, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(other.values, decoded.values, rtol=1e-4, atol=1e-5)
    given = "given", decoded.thoughts, decoded.num_thoughts
    assert all_at_once.accuracy_from(*given) == few.accuracy_from(*given)


class RowsAlone(Decoder):
    """Nothing is compiled: a row follows from its own question, index and thoughts, without a model."""

    def decode(self, params, prompts, bounds, temperatures, *, indices, num_trajectories=0, ensemble=False, **_):
        number, thoughts = num_trajectories or 1, []
        for index in indices.tolist():
            drawn = np.random.default_rng((index, number, ensemble)).normal(size=(number, self.max_thoughts, 16))
            thoughts.append(drawn.astype(np.float32) * (1 + temperatures.thought_std))
        return self.decode_given(params, prompts, np.stack(thoughts), np.repeat(bounds[1][:, None], number, 1))

    def decode_given(self, params, prompts, thoughts, num_thoughts, **_):
        sums = [
            float(np.abs(trajectory[:taken]).sum())
            for row, numbers in zip(thoughts, num_thoughts, strict=True)
            for trajectory, taken in zip(row, numbers, strict=True)
        ]
        sums = np.asarray(sums).reshape(num_thoughts.shape) + prompts[0].sum(axis=1, keepdims=True)
        digits = np.asarray([TOKENIZER.encode(digit)[0] for digit in "0123"])
        tokens = np.stack([digits[sums.astype(int) % 4], np.full(sums.shape, TOKENIZER.end)], axis=-1)
        slots = np.zeros((*sums.shape, self.max_thoughts + 1))
        return Trajectories(tokens, np.ones(sums.shape, bool), num_thoughts, sums % 1, slots, thoughts)


@pytest.mark.law
def test_no_result_depends_on_the_batch_size(problems):
    decoder, seen = RowsAlone(GRAPHDEF, LAYOUT, 3, 3), []
    for size in (4, 11, 1):
        found = evaluate(decoder, (PARAMS,), problems, STEPS, temperatures=NOISY, batch_size=size, num_trajectories=3)
        told = [Problem(p.question, p.steps, answer) for p, answer in zip(problems, found["answers"], strict=True)]
        told[::3] = [Problem(p.question, p.steps, "999") for p in problems[::3]]
        seen.append(evaluate(decoder, (PARAMS,), told, STEPS, temperatures=NOISY, batch_size=size, num_trajectories=3))
    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["controls"].keys() == set(CONTROLS) and len(set(seen[0]["controls"].values())) > 2
    assert len(set(seen[0]["fusion"].values())) > 3 and 0 < seen[0]["accuracy"] < 1


def test_every_number_of_the_contract_is_there(results):
    assert set(results["controls"]) == {"zero", "noise", "mean", "swap"}
    for name in ("accuracy", "sampled_accuracy", "vote_accuracy", "mean_accuracy", "any_accuracy"):
        assert 0 <= results[name] <= 1
    assert results["any_accuracy"] >= results["sampled_accuracy"] and 1 < results["distinct_answers"] <= 3
    fusion = results["fusion"]
    assert set(fusion) == {"vote", "weighted", "best", "attend", "attend_identical", "mean", "mean_one_path"}
    assert all(0 <= accuracy <= 1 for accuracy in fusion.values())
    assert (fusion["vote"], fusion["mean"]) == (results["vote_accuracy"], results["mean_accuracy"])
    assert results["mean_thoughts"] == pytest.approx((1 * 4 + 2 * 4 + 3 * 3) / 11)


@pytest.mark.parametrize("reads", [{"graph": "own"}, {"graph": "all"}, {"cross_attention": True}])
def test_one_path_is_no_control_where_it_reads_the_others(problems, reads, monkeypatch):
    graphdef, params = build(heads=1, reasoning_dim=8, **reads)
    batches = Batches(Decoder(graphdef, LAYOUT, 3, 3), (params,), problems, STEPS, None, 11, 0)
    one = SimpleNamespace(thoughts=np.zeros((11, 1, 3, 16), np.float32), num_thoughts=np.ones((11, 1), int))
    two = SimpleNamespace(
        **{name: np.repeat(part, 2, axis=1) for name, part in vars(one).items()}, values=np.zeros((11, 2))
    )
    monkeypatch.setattr(Batches, "run", lambda *_, **__: two)
    monkeypatch.setattr(Batches, "accuracy_from", lambda *_, **__: 0.5)
    found = fusion_accuracies(batches, two, [["1", "2"]] * 11, one, NOISY)
    assert {"attend", "attend_identical", "mean"} < found.keys()
    assert ("mean_one_path" in found) == (reads == {"graph": "own"})


def test_equal_numbers_are_one_answer():
    assert (
        distinct(["4", "4.0", "5"]) == 2
        and distinct(["4", "", ""]) == 2
        and distinct(["4", f"4{UNFINISHED}"]) == 2
        and distinct(["4"]) == 1
    )


def test_answers_that_were_cut_off_win_no_vote():
    assert choose("vote", [f"7{UNFINISHED}"] * 3 + ["4"], [0.0] * 4) == 3


def test_own_thoughts_given_back_give_the_same_answers(decoder, problems):
    """Answers are decoded from the thoughts: the same ones, and other ones for a control."""
    prompts = decoder.layout.prompts(problems[:4])
    bounds = STEPS.bounds(problems[:4], decoder.layout)
    greedy = decoder.decode(
        (PARAMS,), prompts, bounds, NOISY, indices=np.arange(4, dtype=np.int32), key=jax.random.key(0)
    )
    again = decoder.decode_given((PARAMS,), prompts, greedy.thoughts, greedy.num_thoughts)
    np.testing.assert_array_equal(again.tokens, greedy.tokens)
    np.testing.assert_allclose(again.values, greedy.values, atol=1e-5)


def test_repeated_questions_are_counted_once_beside_the_interval(decoder, problems):
    options = {"num_trajectories": 0, "controls": False, "batch_size": 4}
    once, twice = (evaluate(decoder, (PARAMS,), [*problems[:3]] * times, STEPS, **options) for times in (1, 2))
    assert (once["count"], once["different_questions"]) == (3, 3)
    assert (twice["count"], twice["different_questions"]) == (6, 3)
    assert results_table(once).startswith("3 questions\n")
    assert results_table(twice).startswith("6 questions, 3 of them different\n")


def test_the_table_says_what_was_asked_for_and_who_judged():
    results = {
        "count": 2, "accuracy": 0.5, "confidence_interval": [0.1, 0.9], "mean_thoughts": 0.0, "by_steps": {}, "controls": {},
    }  # fmt: skip
    assert "thoughts asked for" not in (table := results_table(results | {"config": {}})) and "right by" not in table
    assert "no question used a thought" in table
    asked = results_table(results | {"config": {"thoughts_asked": 0, "grader": "mine:half"}})
    assert "thoughts asked for  0" in asked and "mine:half" in asked and "no question used a thought" not in asked


def test_the_table_says_where_controls_may_write_steps_that_thoughts_replaced():
    results = {
        "accuracy": 0.5,
        "confidence_interval": (0.4, 0.6),
        "count": 9,
        "mean_thoughts": 2.0,
        "controls": {"zero": 0.3},
    }
    results["by_steps"] = {"2": {"accuracy": 0.5, "mean_thoughts": 2.0, "count": 9}}
    for stage, written, told in ((2, True, True), (1, True, False), (2, False, False)):
        table = results_table(results | {"config": {"stage": stage, "steps_written": written}})
        assert ("a control may write some: --thoughts steps" in table) is told
    unknown = results | {"by_steps": {}, "config": {"stage": 2, "steps_written": True}}
    assert "a control may write some" not in results_table(unknown)


def test_every_pass_over_the_problems_tells_how_far_it_is(decoder, problems):
    passes = {}

    def decoded(what, done, total):
        assert total == 11
        passes.setdefault(what, []).append(done)

    evaluate(decoder, (PARAMS,), problems[:11], STEPS, num_trajectories=3, batch_size=4, decoded=decoded)
    named = {
        "greedy answers",
        "3 samples",
        "samples for mean",
        "attend",
        "mean",
        *(f"thoughts: {kind}" for kind in CONTROLS),
    }
    assert named <= passes.keys()
    assert all(counts[:4] == [0, 4, 8, 11] for counts in passes.values())


def test_samples_without_noise_at_low_temperature_are_greedy(decoder, problems):
    cold = make_temperatures(token=1e-4)
    result = evaluate(
        decoder, (PARAMS,), problems, STEPS, temperatures=cold, num_trajectories=3, batch_size=4, controls=False
    )
    fusion = result["fusion"]
    for accuracy in (result["sampled_accuracy"], *(fusion[kind] for kind in ("vote", "mean", "mean_one_path"))):
        assert accuracy == pytest.approx(result["accuracy"])
    assert fusion["attend"] == fusion["attend_identical"]
    assert result["any_accuracy"] == result["accuracy"] and result["distinct_answers"] == 1


def test_samples_are_those_of_seed_and_question(decoder, problems):
    def sample(seed, rows):
        chosen = [problems[row] for row in rows]
        return decoder.decode(
            (PARAMS,),
            decoder.layout.prompts(chosen),
            STEPS.bounds(chosen, decoder.layout),
            NOISY,
            indices=np.array(rows, np.int32),
            key=jax.random.key(seed),
            num_trajectories=3,
        ).tokens

    first = sample(0, [0, 1, 2, 3])
    np.testing.assert_array_equal(sample(0, [3, 2, 5, 6])[:2], first[jnp.array([3, 2])])
    assert (sample(1, [0, 1, 2, 3]) != first).any()
    assert (first[:, 0] != first[:, 1]).any()


@pytest.mark.parametrize("mode", ["cot", "no_thoughts"])
def test_without_thoughts_there_are_no_controls(mode, problems):
    rule = rule_after(RunConfig(curriculum=CurriculumConfig(mode=mode)), "curriculum")
    samples = 2 if mode == "cot" else 0
    result = evaluate(
        decoder_of(mode, "coconut"), (PARAMS,), problems[:3], rule, num_trajectories=samples, batch_size=4
    )
    assert result["controls"] == {} and result["mean_thoughts"] == 0
    assert "mean_accuracy" not in result and ("vote_accuracy" in result) == (mode == "cot")


def test_pause_thinks_the_latent_token(problems):
    """Its batch mean and another question's thoughts are the constant itself, so they change nothing."""
    decoder = decoder_of("pause")
    result = evaluate(decoder, (PARAMS,), problems, STEPS, num_trajectories=0, batch_size=4)
    assert result["mean_thoughts"] == pytest.approx(21 / 11)
    assert result["controls"]["mean"] == result["controls"]["swap"] == result["accuracy"]
    rows = np.arange(4, dtype=np.int32)
    decoded = decoder.decode(
        (PARAMS,),
        decoder.layout.prompts(problems[:4]),
        STEPS.bounds(problems[:4], decoder.layout),
        make_temperatures(),
        indices=rows,
        key=jax.random.key(0),
    )
    table = nnx.merge(GRAPHDEF, PARAMS).backbone.embedding[...]
    np.testing.assert_array_equal(decoded.thoughts[0, 0, 0], table[TOKENIZER.latent])


def test_a_second_evaluation_compiles_nothing(decoder, problems, results):
    before = decoder._decode._cache_size(), decoder._decode_given._cache_size()
    assert before[0] > 0
    ones = make_temperatures(thought_std=0.1, token=0.7)
    rule = ThoughtRule("own", 3, 1)
    evaluate(decoder, (PARAMS,), problems[:7], rule, temperatures=ones, batch_size=4, num_trajectories=3)
    assert (decoder._decode._cache_size(), decoder._decode_given._cache_size()) == before


def test_a_model_that_chooses_its_number_of_trajectories(problems):
    """The vote is over those that exist, and the others are empty."""
    graphdef, params = build(max_trajectories=3)
    decoder = Decoder(graphdef, Layout(TOKENIZER, "answer", "coconut", 30), 3, 3, max_trajectories=3)
    accuracies = []
    for bias in ([0.0, 0.0], [9.0, -9.0], [-9.0, 9.0]):
        params["navigator"]["count_bias"][...] = jnp.array(bias)
        batches = Batches(decoder, (params,), problems, STEPS, None, 4, 0)
        accuracy, number = adaptive_vote(batches, NOISY)
        samples = batches.run(NOISY, 3, adaptive=True)
        assert number == samples.active.sum(1).mean() and samples.active[:, :2].all()
        assert not samples.num_thoughts[~samples.active].any()
        accuracies.append((accuracy, number))
    assert 2 < accuracies[0][1] < 3 and [number for _, number in accuracies[1:]] == [2, 3]
    # All three exist in the last round, so their answers are those of any three samples.
    samples = batches.run(NOISY, 3, adaptive=True)
    texts = answer_texts(samples.tokens, decoder.layout)
    right = [
        same_answer(row[choose("vote", row, values)], problem.answer)
        for row, values, problem in zip(texts, samples.values, problems, strict=True)
    ]
    assert accuracies[-1][0] == np.mean(right)


def test_with_a_hidden_question_the_answer_knows_the_thoughts_alone(decoder, problems):
    """Equal thoughts of questions of equal length: the same answer to all, and another with other thoughts."""
    alike = [problem for problem in problems if len(problem.steps) == 3]
    assert len({problem.question for problem in alike}) == len(alike) > 2
    prompts = decoder.layout.prompts(alike)
    one, other = np.random.default_rng(0).normal(size=(2, 1, 1, 3, 16)).astype(np.float32)

    def answers(thoughts, hidden):
        given = np.repeat(thoughts, len(alike), 0), np.full((len(alike), 1), 3)
        decoded = decoder.decode_given((PARAMS,), prompts, *given, question_hidden=hidden)
        return {tuple(row) for row in np.asarray(decoded.tokens)[:, 0].tolist()}

    assert len(answers(one, True)) == 1 and len(answers(one, False)) > 1
    assert answers(one, True) != answers(other, True)
    results = evaluate(
        decoder, (PARAMS,), problems, STEPS, batch_size=4, num_trajectories=0, controls=False, question_hidden=True
    )
    assert 0 <= results["question_hidden_accuracy"] <= 1
    assert "from the thoughts alone" in results_table(results)


@pytest.mark.slow
def test_without_its_reads_a_model_answers_as_one_that_has_none(problems):
    graphdef, params = build(graph="own", heads=1, reasoning_dim=8)
    draw = np.random.default_rng(3).normal
    params = jax.tree.map(lambda x: x if x.any() else jnp.asarray(5 * draw(size=x.shape), x.dtype), params)
    reading = dict(nnx.to_flat_state(params))
    shared = [(path, reading[path]) for path, _ in nnx.to_flat_state(PARAMS)]
    assert len(shared) < len(reading)
    layout = Layout(TOKENIZER, "answer", "coconut", 30)
    options = {"batch_size": 4, "num_trajectories": 0}
    plain = evaluate(Decoder(GRAPHDEF, layout, 3, 3), (nnx.from_flat_state(shared),), problems, STEPS, **options)
    assert "no_reads" not in plain["controls"]
    told = [
        Problem(problem.question, problem.steps, answer.removesuffix(UNFINISHED))
        for problem, answer in zip(problems, plain["answers"], strict=True)
    ]
    ended = np.mean([not answer.endswith(UNFINISHED) for answer in plain["answers"]])
    results = evaluate(Decoder(graphdef, layout, 3, 3), (params,), told, STEPS, **options)
    assert 0 < ended == results["controls"]["no_reads"] > results["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"memory_top": 2}, {"graph": "own", "heads": 1}])
def test_without_its_reads_a_model_reads_no_memory_bank(problems, settings, monkeypatch):
    """The same model without a bank answers as under the control, unless it also reads a graph."""
    graphdef, params = build(reasoning_dim=8, **settings)
    draw = np.random.default_rng(3).normal
    params = jax.tree.map(lambda x: x if x.any() else jnp.asarray(5 * draw(size=x.shape), x.dtype), params)
    decoder, banks, decode = Decoder(graphdef, LAYOUT, 3, 3), {}, Decoder.decode

    def watched(self, *given, memory=None, **options):
        banks.setdefault(reading[-1], []).append(memory)
        return decode(self, *given, memory=memory, **options)

    reading = []
    monkeypatch.setattr(Decoder, "decode", watched)
    options = {"batch_size": 4, "num_trajectories": 0, "decoded": lambda what, *_: reading.append(what)}
    results = evaluate(decoder, (params,), problems, STEPS, memory=small_bank(8), **options)
    assert banks["reads: none"] == [None] * 3 and all(bank is not None for bank in banks["greedy answers"])
    assert "reads: none" in results_table(results)
    bare = evaluate(decoder, (params,), problems, STEPS, **options)
    assert ("no_reads" in bare["controls"]) == ("graph" in settings)
    if "graph" not in settings:
        assert results["controls"]["no_reads"] == bare["accuracy"]
    monkeypatch.undo()
    # A bank that thoughts do not read is no reason for the control.
    plain = evaluate(decoder_of(), (PARAMS,), problems, STEPS, memory=small_bank(8), batch_size=4, num_trajectories=0)
    assert "no_reads" not in plain["controls"]


def test_own_stopping_keeps_to_its_bounds(decoder, problems):
    result = evaluate(
        decoder, (PARAMS,), problems, ThoughtRule("own", 2, 1), batch_size=4, num_trajectories=0, controls=False
    )
    assert 1 <= result["mean_thoughts"] <= 2


def test_rules_of_runs():
    assert rule_after(RunConfig(), "curriculum") == ThoughtRule("steps", 4)
    padded = RunConfig(curriculum=CurriculumConfig(pad_latent_to_max=True, c_thought=2, max_latent_stage=3))
    assert rule_after(padded, "curriculum") == ThoughtRule("fixed", 6, per_step=2)
    rewarded = RunConfig(ppo=PPOConfig(min_thoughts=2), curriculum=CurriculumConfig(c_thought=2))
    assert rule_after(rewarded, "ppo") == ThoughtRule("own", 6, 2, per_step=2, stage=4, stops=True)


def test_a_question_without_steps_has_the_most_thoughts_that_its_stage_knows():
    problems = [Problem("q", ("1", "2"), "2"), Problem("q", (), "2"), Problem("q", ("1",), "2")]
    assert ThoughtRule("steps", 3, per_step=2).bounds(problems, LAYOUT)[1].tolist() == [3, 3, 2]
    assert ThoughtRule("steps", 3, per_step=1).bounds(problems, LAYOUT)[0].tolist() == [2, 3, 1]


def test_choosing_takes_equal_numbers_as_one_answer_and_breaks_ties_by_value():
    assert choose("vote", ["18", "$18", "5"], [0.0, 0.1, 9.0]) == 1
    assert choose("vote", ["18", "5"], [0.0, 1.0]) == 1
    assert choose("vote", ["", "", "5"], [9.0, 9.0, 0.0]) == 2
    assert choose("weighted", ["18", "$18", "5"], [0.0, 0.1, 9.0]) == 2
    assert choose("best", ["18", "$18", ""], [0.0, 0.1, 9.0]) == 1


def test_last_batch_is_filled_up_with_the_last_row():
    batches = [(rows.tolist(), real) for rows, real in full_batches(5, 3)]
    assert batches == [([0, 1, 2], 3), ([3, 4, 4], 2)]
