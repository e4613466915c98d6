"""The public face: logits of the contract, answers, and what it refuses."""

import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from run_folders import CURRICULUM, PPO, save_run

from longshot_jax.checkpoints.convert import from_hf
from longshot_jax.config import RunConfig
from longshot_jax.config.curriculum import CurriculumConfig, GuidanceConfig
from longshot_jax.data.layout import Layout
from longshot_jax.data.problems import Problem
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError
from longshot_jax.evaluation.batches import answer_texts
from longshot_jax.evaluation.decoder import Decoder
from longshot_jax.longshot import Generation, LongShot
from longshot_jax.thoughts.navigator import NavigatorConfig

GOLDEN = Path(__file__).parent / "fixtures" / "golden_llama3"
QUESTION = "a=6 n=a+2 i=n*3 i?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ppo(folder):
    reasoner = save_run(folder / "ppo", PPO, "ppo")
    return reasoner, LongShot.from_pretrained(folder / "ppo")


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "golden.npz")


@pytest.fixture(scope="module")
def backbone():
    return LongShot.from_pretrained(GOLDEN, latent_token_id=91)


def test_logits_are_those_of_transformers(backbone, golden):
    result = backbone.logits(golden["ids"][:, :99])
    assert result.shape == (3, 99, 96) and result.dtype == np.float32
    plain = LongShot.from_pretrained(GOLDEN)
    np.testing.assert_allclose(plain.logits(golden["ids"]), golden["logits"], atol=1e-4, rtol=0)


@pytest.mark.law
def test_logits_with_thoughts_are_coconuts(backbone, golden):
    """Rows of 2, 3 and 4 thoughts, padded on both sides, against the published implementation."""
    mask = golden["c_mask"] == 1
    result = backbone.logits(golden["c_ids"], golden["c_mask"])
    np.testing.assert_allclose(result[mask], golden["c_logits"][mask], atol=1e-4, rtol=0)
    unfilled = LongShot.from_pretrained(GOLDEN).logits(golden["c_ids"], golden["c_mask"])
    assert np.abs(unfilled[mask] - golden["c_logits"][mask]).max() > 0.1


def test_scattered_latents_are_filled_one_by_one(backbone):
    """Against the definition: each thought is the last hidden state of the sequence before it."""
    tokens = np.array([[3, 91, 5, 6, 91, 91, 7], [91, 8, 9, 4, 91, 2, 91]])
    mask = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1, 1]])
    result = backbone.logits(tokens, mask)
    reasoner = nnx.merge(backbone.model.graphdef, *backbone.model.params)
    for row in range(2):
        kept = np.flatnonzero(mask[row])
        inputs = np.zeros((0, 48), np.float32)
        for index in kept:
            token = reasoner.backbone.embed(jnp.asarray(tokens[row, index]))
            if tokens[row, index] == 91:
                token = _hidden(reasoner, inputs)[-1]
            inputs = np.concatenate([inputs, np.asarray(token)[None]])
        expected = reasoner.backbone.logits(_hidden(reasoner, inputs))
        np.testing.assert_allclose(result[row, kept], expected, atol=2e-5)


@nnx.jit
def _forward(reasoner, inputs):
    length = inputs.shape[0]
    return reasoner.backbone(inputs[None], jnp.arange(length)[None], jnp.ones((1, length), bool))[0][0]


def _hidden(reasoner, inputs):
    """Padded on the right, which nothing before sees, so that one program serves all lengths."""
    padded = np.zeros((8, inputs.shape[1]), np.float32)
    padded[: len(inputs)] = inputs
    return _forward(reasoner, jnp.asarray(padded))[: len(inputs)]


def test_logits_refuse_what_has_no_meaning(backbone):
    with pytest.raises(UserError, match="token id 96 is unknown"):
        backbone.logits([[1, 96]])
    assert np.isfinite(backbone.logits([[1, 96]], [[1, 0]])[0, 0]).all()
    with pytest.raises(UserError, match="starts with the latent token"):
        backbone.logits([[0, 91, 2]], [[0, 1, 1]])
    with pytest.raises(UserError, match="attention_mask has shape"):
        backbone.logits([[1, 2]], [[1]])
    with pytest.raises(UserError, match="whole numbers"):
        backbone.logits([[0.5]])
    with pytest.raises(UserError, match="latent_token_id 96"):
        LongShot.from_pretrained(GOLDEN, latent_token_id=96)
    with pytest.raises(UserError, match="no tokenizer"):
        backbone.generate("1+1?")
    with pytest.raises(UserError, match="does not choose their number"):
        backbone.generate("1+1?", num_trajectories="own")
    with pytest.raises(UserError, match="fusion is 'most'"):
        backbone.generate("1+1?", 2, fusion="most")


def test_a_converted_directory_has_the_same_logits(folder, golden):
    from_hf(GOLDEN, folder / "converted")
    model = LongShot.from_pretrained(folder / "converted", latent_token_id=91)
    mask = golden["c_mask"] == 1
    result = model.logits(golden["c_ids"], golden["c_mask"])
    np.testing.assert_allclose(result[mask], golden["c_logits"][mask], atol=1e-4, rtol=0)


def test_a_llama_with_a_tokenizer_answers_and_thinks_when_told(folder):
    """Its tokenizer does not know the latent tokens, so their rows are new."""
    directory = folder / "llama"
    shutil.copytree(GOLDEN, directory)
    Tokenizer.for_chains().save(directory)
    export = LongShot.from_pretrained(directory)  # its tokenizer has the latent tokens, as an export's
    assert export.generate(QUESTION, answer_length=3)
    with pytest.raises(UserError, match=r"exported from a run, but longshot\.safetensors is not beside its weights"):
        export.generate(QUESTION, thoughts=2)
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if "latent" not in token["content"]]
    content["model"]["vocab"] = {word: id for word, id in content["model"]["vocab"].items() if "latent" not in word}
    file.write_text(json.dumps(content))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    kept = {key: value for key, value in settings.items() if "special" not in key and key != "added_tokens_decoder"}
    (directory / "tokenizer_config.json").write_text(json.dumps(kept))
    model = LongShot.from_pretrained(directory)
    assert model.latent_token_id == Tokenizer.load(str(directory)).latent
    plain = model.generate(QUESTION, answer_length=3, return_all_trajectories=True)
    assert isinstance(plain, Generation) and plain.trajectories[0].thoughts == 0
    thinking = model.generate(QUESTION, answer_length=3, thoughts=2, return_all_trajectories=True)
    assert thinking.trajectories[0].thoughts == 2 and len(thinking.trajectories[0].thought_norms) == 2


def test_a_run_is_restored_with_all_that_it_needs(ppo):
    reasoner, model = ppo
    restored = nnx.merge(model.model.graphdef, *model.model.params)
    for ours, theirs in zip(
        jax.tree.leaves(nnx.split(reasoner)[1]), jax.tree.leaves(nnx.split(restored)[1]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert model.model.memory is not None and model.model.memory.positions.shape == (2, 4)
    assert model.model.sigma == 0.1 and float(model.model.temperatures.thought_std) == pytest.approx(0.2)
    assert (model.model.rule.kind, model.model.rule.min_thoughts, model.model.rule.max_thoughts) == ("own", 1, 3)


def test_generate(ppo):
    model = ppo[1]
    greedy = model.generate(QUESTION)
    assert isinstance(greedy, str)
    assert model.generate([QUESTION]) == [greedy]
    result = model.generate(QUESTION, num_trajectories=3, return_all_trajectories=True)
    assert len(result.trajectories) == 3
    assert result.answer == result.trajectories[result.chosen].answer
    for trajectory in result.trajectories:
        assert 1 <= trajectory.thoughts <= 3
        assert len(trajectory.thought_norms) == trajectory.thoughts
        assert len(trajectory.stop_probabilities) == trajectory.thoughts + 1
        assert all(norm > 0 for norm in trajectory.thought_norms)
        assert all(0 < p < 1 for p in trajectory.stop_probabilities)
    assert model.generate(QUESTION, num_trajectories=3, return_all_trajectories=True) == result
    forced = model.generate(QUESTION, thoughts=2, return_all_trajectories=True)
    assert forced.trajectories[0].thoughts == 2
    assert model.generate([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"question": " "}, "the question is empty"),
        ({"question": "a=1 " * 20}, "the prompt length with which the model was trained is 26"),
        ({"question": QUESTION, "num_trajectories": 0}, "num_trajectories is 0: it must be a whole number from 1"),
        (
            {"question": QUESTION, "num_trajectories": np.array([1, 2])},
            "num_trajectories is array.*: it must be a whole",
        ),
        ({"question": QUESTION, "thoughts": np.array([1, 2])}, "thoughts is array.*: it must be a whole number"),
        ({"question": np.array(QUESTION)}, "the question is array.*: give a text, or a list of texts"),
        ({"question": QUESTION, "thoughts": -1}, "thoughts is -1: it must be a whole number from 0"),
        ({"question": QUESTION, "thoughts": 10**7}, "thoughts is 10000000: it must be a whole number"),
        ({"question": QUESTION, "thoughts": True}, "thoughts is True: it must be a whole number"),
        ({"question": QUESTION, "thoughts": 2.5}, "thoughts is 2.5: it must be a whole number, or one of own, fixed"),
        ({"question": QUESTION, "thoughts": "steps"}, "thoughts is 'steps': .* one of own, fixed"),
        ({"question": QUESTION, "answer_length": "3"}, "answer_length is '3': it must be a whole number"),
        ({"question": QUESTION, "seed": 2**70}, "seed is .*: it must be a whole number"),
        ({"question": 5}, "the question is 5: give a text"),
        ({"question": [1]}, r"the question is \[1\]: give a text"),
        ({"question": "what?"}, "cannot spell"),
    ],
)
def test_generate_refuses(ppo, arguments, message):
    with pytest.raises(UserError, match=message):  # without the type checks of the tests, as users have it
        inspect.unwrap(LongShot.generate)(ppo[1], **arguments)


def test_a_joined_answer_is_not_fused(tmp_path):
    joined = replace(CURRICULUM, thoughts=NavigatorConfig(roles=2, join=True))
    save_run(tmp_path, joined, "curriculum")
    model = LongShot.from_pretrained(tmp_path)
    assert isinstance(model.generate(QUESTION), str)
    for number, fusion in ((1, "attend"), (2, "mean"), (2, "best")):
        with pytest.raises(UserError, match=f"fusion '{fusion}' is of several answers, and this model joins"):
            model.generate(QUESTION, num_trajectories=number, fusion=fusion)
    assert isinstance(model.generate(QUESTION, num_trajectories=2), str)
    with pytest.raises(UserError, match="num_trajectories is 3, and an answer of this model joins 2"):
        model.generate(QUESTION, num_trajectories=3)


@pytest.mark.slow
def test_an_answer_from_chosen_trajectories_attends_to_no_others(tmp_path, monkeypatch):
    chosen = replace(
        PPO, thoughts=replace(PPO.thoughts, roles=3, max_trajectories=3), ppo=replace(PPO.ppo, num_trajectories=3)
    )
    save_run(tmp_path, chosen, "ppo")
    model, seen, decode = LongShot.from_pretrained(tmp_path), [], Decoder.decode_given
    monkeypatch.setattr(Decoder, "decode_given", lambda *given: seen.append(given[-1]) or decode(*given))
    found = model.generate([QUESTION, "b=5 b?"], "own", True, fusion="attend")
    assert [len(each.trajectories) for each in found] == seen[0].tolist()


@pytest.mark.slow
def test_a_joined_answer_has_as_many_trajectories_as_in_an_evaluation(tmp_path):
    thoughts = replace(PPO.thoughts, roles=3, join=True, max_trajectories=3)
    ppo = replace(PPO.ppo, num_trajectories=3, shared_reward=True)
    save_run(tmp_path, replace(PPO, thoughts=thoughts, ppo=ppo), "ppo")
    model = LongShot.from_pretrained(tmp_path)
    model.model.params[0]["navigator"]["count_bias"][...] = jnp.array([50.0, 0.0, 0.0])
    problems = [Problem(f"a={n} b=a+{n} b?", (), "0") for n in range(8)]
    evaluated = model.evaluate(problems, num_trajectories=0, controls=False)
    assert evaluated["trajectories"] == [1] * 8
    found = model.generate([problem.question for problem in problems], return_all_trajectories=True)
    assert [len(each.trajectories) for each in found] == evaluated["trajectories"]


def test_a_curriculum_takes_as_many_thoughts_as_steps_in_evaluation_and_all_alone(folder):
    save_run(folder / "curriculum", CURRICULUM, "curriculum", metric=None)
    model = LongShot.from_pretrained(folder / "curriculum")
    problems = [Problem(QUESTION, ("8", "4"), "4"), Problem("b=1 c=b+1 c?", ("2",), "2")]
    results = model.evaluate(problems, num_trajectories=0, controls=False)
    assert results["mean_thoughts"] == 1.5
    assert results["config"] | {"sigma": 0.0, "phase": "curriculum", "step": 7, "seed": 0} == results["config"]
    assert json.loads(json.dumps(results)) == results
    alone = model.generate(QUESTION, return_all_trajectories=True)
    assert alone.trajectories[0].thoughts == 4
    assert model.evaluate(problems, num_trajectories=0, controls=False, thoughts=3)["mean_thoughts"] == 3


@pytest.mark.slow
def test_a_curriculum_that_trained_the_stop_head_stops_a_bare_question_by_it(folder):
    """Thoughts of a token each: the evaluation takes the numbers of the written steps, the bare question's follow the head."""
    guidance = GuidanceConfig(stop=1.0)
    curriculum = CurriculumConfig(c_thought=0, thought_slots=6, guidance=guidance)
    thoughts = replace(CURRICULUM.thoughts, stop_bias=9.0)
    run = replace(CURRICULUM, curriculum=curriculum, thoughts=thoughts)
    save_run(folder / "stops", run, "curriculum", metric=None)
    model = LongShot.from_pretrained(folder / "stops")
    problems = [Problem(QUESTION, ("6+2", "8*3"), "4"), Problem("b=1 c=b+1 c?", ("2",), "2")]
    assert model.evaluate(problems, num_trajectories=0, controls=False)["thoughts"] == [6, 1]
    alone = model.generate(QUESTION, return_all_trajectories=True)
    assert alone.trajectories[0].thoughts == 0 and alone.trajectories[0].stop_probabilities[0] > 0.99
    untrained = replace(run, curriculum=replace(curriculum, guidance=GuidanceConfig()))
    save_run(folder / "told", untrained, "curriculum", metric=None)
    told = LongShot.from_pretrained(folder / "told").generate(QUESTION, return_all_trajectories=True)
    assert told.trajectories[0].thoughts == 6


@pytest.mark.parametrize("phase", ["curriculum", "ppo"])
def test_an_untrained_stop_head_decides_nothing(tmp_path, ppo, phase):
    problems = [Problem(QUESTION, ("8", "4"), "4")]
    few = {"num_trajectories": 0, "controls": False}
    if phase == "ppo":
        _, model = ppo
        assert model.evaluate(problems, thoughts="own", **few)["answers"] == model.evaluate(problems, **few)["answers"]
        return
    save_run(tmp_path, CURRICULUM, "curriculum")
    model = LongShot.from_pretrained(tmp_path)
    trained = r"or a number, or train the head with config\.curriculum\.guidance\.stop or PPO"
    with pytest.raises(UserError, match=rf"'own', but the stop head .* never trained: take steps or fixed {trained}"):
        model.evaluate(problems, thoughts="own", **few)
    with pytest.raises(UserError, match=rf"take fixed {trained}"):
        model.generate(QUESTION, thoughts="own")


def test_a_model_without_thoughts_has_none(folder):
    run = RunConfig(phases=("curriculum",), curriculum=CurriculumConfig(mode="no_cot"))
    save_run(folder / "direct", run, "curriculum")
    model = LongShot.from_pretrained(folder / "direct")
    assert model.generate(QUESTION, return_all_trajectories=True).trajectories[0].thoughts == 0
    with pytest.raises(UserError, match="'no_cot' has no thoughts"):
        model.generate(QUESTION, thoughts=2)


def test_missing_and_foreign_folders(tmp_path, folder):
    with pytest.raises(UserError, match="there is no folder"):
        LongShot.from_pretrained(tmp_path / "absent")
    with pytest.raises(UserError, match="neither checkpoints nor a config"):
        LongShot.from_pretrained(tmp_path)
    save_run(folder / "lost", CURRICULUM, "curriculum")
    shutil.rmtree(folder / "lost" / "tokenizer")
    with pytest.raises(UserError, match="holds no tokenizer"):
        LongShot.from_pretrained(folder / "lost")


def test_the_package_is_cheap_to_import():
    code = "import sys, longshot_jax.errors; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1]).returncode == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", jnp.bfloat16, np.dtype("bfloat16")], ids=str)
def test_dtypes_have_several_names(dtype):
    model = LongShot.from_pretrained(GOLDEN, dtype=dtype).model
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params[0]["backbone"])} == {"bfloat16"}


@pytest.mark.parametrize("dtype", ["auto", "int8", "float16", "", jnp.int8, 3], ids=repr)
def test_another_dtype_is_one_sentence(dtype):
    with pytest.raises(UserError, match=r"dtype is .*: it may be 'float32' \(or 'fp32'\) or 'bfloat16' \(or 'bf16'\)"):
        LongShot.from_pretrained(GOLDEN, dtype=dtype)


@pytest.mark.parametrize("number", ["three", "3", True])
def test_another_number_of_trajectories_is_one_sentence(backbone, number):
    with pytest.raises(UserError, match=r"num_trajectories is .*: it must be a whole number from 1 to \d+ or 'own'"):
        backbone.generate("a?", num_trajectories=number)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"problems": "chains"}, "problems are 'chains': give at least one"),
        ({"problems": None}, "problems are None: give at least one"),
        ({"problems": []}, r"problems are \[\]: give at least one"),
        ({"problems": [QUESTION]}, "problems are .*: give at least one"),
        ({"num_trajectories": 1.5}, "num_trajectories is 1.5: it must be a whole number from 0"),
        ({"num_trajectories": "own"}, "num_trajectories is 'own': it must be a whole number"),
        ({"batch_size": 0}, "batch_size is 0: it must be a whole number from 1"),
        ({"grade": "my:grader"}, "grade is 'my:grader': give a function"),
        ({"thoughts": "all"}, "thoughts is 'all': .* one of own, steps, fixed"),
        ({"thoughts": np.array([1, 2])}, "thoughts is array.*: it must be a whole number"),
        ({"problems": [Problem(QUESTION, (), "1"), "x"]}, "problem 2: 'x' is no problem"),
        ({"problems": [Problem(QUESTION, (), 4)]}, 'problem 1: "answer" must be a text, not int'),
        ({"problems": [Problem("", (), "4")]}, 'problem 1: "question" is empty'),
        ({"grade": lambda problem, text: None}, "grade gives None for .*: give True, False or a number from 0 to 1"),
        ({"grade": lambda problem, text: 5}, "grade gives 5 for .*"),
        ({"grade": lambda problem, text: float("nan")}, "grade gives nan for .*"),
        ({"grade": lambda problem, text: "x"}, "grade gives 'x' for .*"),
    ],
)
def test_evaluate_refuses(ppo, arguments, message):
    given = {"problems": [Problem(QUESTION, (), "1")]} | arguments
    with pytest.raises(UserError, match=message):
        inspect.unwrap(LongShot.evaluate)(ppo[1], given.pop("problems"), **given)


def test_numbers_of_numpy_are_whole_numbers_too(ppo):
    generate = inspect.unwrap(LongShot.generate)
    answered = generate(ppo[1], QUESTION, np.int64(2), True, thoughts=np.int32(2), seed=np.uint8(3))
    assert answered == ppo[1].generate(QUESTION, 2, True, thoughts=2, seed=3)
    options = {"num_trajectories": 0, "controls": False, "thoughts": np.int32(2)}
    results = inspect.unwrap(LongShot.evaluate)(ppo[1], [Problem(QUESTION, (), "1")], **options)
    assert json.loads(json.dumps(results))["config"]["thoughts_asked"] == 2
    with pytest.raises(UserError, match=r"the shape .B, S.: pad shorter rows"):
        ppo[1].logits([[3, 4, 5], [2]])


def test_a_plain_llama_shows_its_whole_text():
    """A trained model's answer is what follows the last `####`; a plain one has reasoned in prose before it."""
    tokens = Tokenizer.for_chains()
    layout = Layout(tokens, "coconut", "cot", 30)
    ids = np.array([[[*tokens.encode("a=3###4"), tokens.end, tokens.end]]])
    assert answer_texts(ids, layout) == [["4"]] and answer_texts(ids, layout, whole=True) == [["a=3###4"]]
